"""Tasks run anywhere give the same results; one that fails, breaks or dies is reported and stops nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from catalogs.errors import MissingError
from simulator.pool import run_tasks
from simulator.tasks import Failure
from tests.simulator.pool_tasks import picky, square


@pytest.mark.parametrize("workers", [1, 2])
def test_all_tasks_are_done_once(workers: int) -> None:
    done = list(run_tasks(square, list(range(20)), workers=workers))
    assert sorted((d.number, d.result) for d in done) == [(i, i * i) for i in range(20)]


def test_only_the_chosen_tasks_run() -> None:
    assert sorted(d.number for d in run_tasks(square, list(range(9)), numbers=[2, 5], workers=1)) == [2, 5]


def test_a_task_that_fails_breaks_or_dies_stops_nothing() -> None:
    results = {d.number: d.result for d in run_tasks(picky, list(range(12)), workers=2)}
    failed = {n: r for n, r in results.items() if isinstance(r, Failure)}
    assert len(results) == 12 and set(failed) == {3, 5, 7}
    assert failed[3].kind == "InputError" and "three is refused" in failed[3].what
    assert failed[5].kind == "ZeroDivisionError" and failed[7].kind == "WorkerDied"


def test_a_reader_that_stops_early_stops_the_workers() -> None:
    tasks = run_tasks(square, list(range(1000)), workers=2)
    next(tasks)
    tasks.close()


def test_no_cluster_is_said() -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(MissingError, match="no Ray cluster"):
        list(run_tasks(square, [1], ray_address="127.0.0.1:1"))


def test_a_killed_program_leaves_no_worker_behind(tmp_path: Path) -> None:
    code = (
        "import sys; from simulator.pool import run_tasks; from tests.simulator.pool_tasks import note_process\n"
        "if __name__ == '__main__':\n    list(run_tasks(note_process, [sys.argv[1]] * 4000, workers=2))\n"
    )
    script = tmp_path / "program.py"
    script.write_text(code)
    (tmp_path / "seen").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    program = subprocess.Popen([sys.executable, str(script), str(tmp_path / "seen")], env=environment)
    while not (workers := [int(p.name) for p in (tmp_path / "seen").iterdir()]):
        assert program.poll() is None
        time.sleep(0.05)
    program.send_signal(signal.SIGKILL)
    program.wait()
    for _ in range(400):
        alive = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        if not alive:
            break
        time.sleep(0.05)
    assert alive == []
