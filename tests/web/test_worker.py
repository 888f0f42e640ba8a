"""Long work in a process of its own: its answers, its errors, and a stop that ends it in the middle of anything."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError as FutureCancelled
from pathlib import Path
from typing import Any

import pytest

from app.web import worker
from app.web.jobs import CancelledError, Job, Jobs
from app.web.worker import Worker, apart
from catalogs.errors import InputError

SCENARIO: dict[str, Any] = {
    "model": "llama-3.1-8b", "fleet": [{"gpu": "L4", "precision": "fp8"}],
    "workload": {"arrivals": {"process": "poisson", "rate_rps": 1.0, "num_requests": 200},
                 "input_tokens": {"distribution": "fixed", "value": 100},
                 "output_tokens": {"distribution": "fixed", "value": 20}},
}  # fmt: skip


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Worker]]:
    """The workers of this test alone, which end with it."""
    found: list[Worker] = []

    class Noted(Worker):
        def __init__(self) -> None:
            super().__init__()
            found.append(self)

    monkeypatch.setattr(worker, "Worker", Noted)
    monkeypatch.setattr(worker, "_idle", [])
    yield found
    for one in found:
        one.end()


def cpu_ticks(process: subprocess.Popen[bytes]) -> int:
    return sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def wait_for(what: Any) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def long_work(jobs: Jobs) -> Job:
    """A simulation that takes minutes, in the middle of its compiled loop."""
    arrivals = {"process": "poisson", "rate_rps": 500.0, "num_requests": 1_500_000}
    scenario = {**SCENARIO, "workload": {**SCENARIO["workload"], "arrivals": arrivals}}
    job = jobs.start("simulate", "Simulating", apart("simulate", scenario))
    wait_for(lambda: job.text.startswith("simulating") or job.done)
    assert not job.done
    return job


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")
def test_a_stop_ends_the_simulation_in_the_middle_of_its_loop_and_the_next_piece_has_a_process_that_stays(
    started: list[Worker],
) -> None:
    jobs = Jobs(max_workers=1)
    job = long_work(jobs)
    process = started[0].process
    used = cpu_ticks(process)
    wait_for(lambda: cpu_ticks(process) > used)  # it is at work
    job.cancel()
    assert job.future is not None
    with pytest.raises((CancelledError, FutureCancelled)):
        job.future.result(timeout=30)
    assert process.wait(timeout=30) == -signal.SIGKILL

    seen: list[str] = []
    first = apart("simulate", SCENARIO)(lambda text, _share: seen.append(text))
    assert first.answer["requests"]["completed"] == 200
    assert "reading the workload" in seen
    with pytest.raises(InputError) as refused:
        apart("simulate", {**SCENARIO, "model": "no-such-model"})(lambda *_: None)
    assert refused.value.remedy
    assert apart("simulate", SCENARIO)(lambda *_: None).answer == first.answer
    assert len(started) == 2

    job = long_work(jobs)
    started[1].process.kill()  # as when memory runs out
    assert job.future is not None
    assert isinstance(job.future.exception(timeout=30), RuntimeError)


def test_a_worker_does_not_outlive_its_server(started: list[Worker]) -> None:
    one = Worker()
    one._connection.close()  # as when the server is gone
    assert one.process.wait(timeout=60) == 0
