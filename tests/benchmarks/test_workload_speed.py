"""How fast traces are read and described, what a whole simulation costs outside the engine, and in how much memory."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from simulator.engine import metrics
from simulator.run import simulate, write_requests
from simulator.scenario.spec import read_scenario
from simulator.workload.requests import Requests
from simulator.workload.trace_stats import describe_file
from simulator.workload.trace_writing import write_trace
from simulator.workload.traces import read_trace

pytestmark = pytest.mark.bench
NUM = 1_000_000


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("traces") / "million.csv"
    requests = Requests(
        np.cumsum(rng.exponential(0.18, NUM)),
        np.maximum(1, rng.lognormal(6.6, 0.9, NUM)).astype(np.int64),
        np.maximum(1, rng.lognormal(5.0, 0.8, NUM)).astype(np.int64),
    )
    write_trace(requests, path)
    return path


def cpu_s(what: str, start: float) -> float:
    now = time.process_time()
    print(f"\n{what}: {(now - start) / NUM * 1e6:.2f} µs of CPU a request", end="")
    return now


def test_reading_describing_and_metrics(million: Path, tmp_path: Path) -> None:
    text = f"model: llama-3.1-8b\nworkload: {{trace: {million}}}\nfleet: [{{gpu: H100-SXM, count: 4}}]\n"
    (tmp_path / "s.yaml").write_text(text)
    scenario = read_scenario(tmp_path / "s.yaml")
    read_trace(million, limit=1000)
    simulate(scenario, read_trace(million, limit=1000))  # compiled by now
    mark = time.process_time()
    requests = read_trace(million)
    mark = cpu_s("read", mark)
    describe_file(million)
    mark = cpu_s("described, piece by piece", mark)
    result = simulate(scenario, requests)
    mark = cpu_s("simulated, answer included", mark)
    metrics.Latencies.of(requests, result.records)
    write_requests(tmp_path / "out.csv", requests, result.records)
    cpu_s("written, a row a request", mark)
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def test_memory_of_describing_does_not_grow_with_the_file(million: Path, tmp_path: Path) -> None:
    body = million.read_text().split("\n", 1)
    long = tmp_path / "long.csv"
    with long.open("w") as file:
        file.write(body[0] + "\n")
        for copy in range(8):
            rows = body[1].splitlines()
            file.writelines(f"{float(a) + copy * 2e5:.6f},{rest}\n" for a, _, rest in (r.partition(",") for r in rows))
    program = (
        "import resource, sys\nfrom simulator.workload.trace_stats import describe_file\ndescribe_file(sys.argv[1])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peaks = [
        int(subprocess.run([sys.executable, "-c", program, str(p)], check=True, capture_output=True, text=True).stdout)
        for p in (million, long)
    ]
    print(f"\npeak memory {peaks[0] / 1e3:.0f} MB for 1 million rows, {peaks[1] / 1e3:.0f} MB for 8 million")
    assert peaks[1] < 1.6 * peaks[0]
