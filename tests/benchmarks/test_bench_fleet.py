"""How long a fleet takes to simulate, and in how much memory: printed, never asserted. One case a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASE = """
import json, resource, sys, time
import numpy as np
from calibrate.step import StepTable
from simulator.fleet.autoscaling import Hpa, HpaConfig, HpaMetric
from simulator.fleet.cold_start import ColdStart
from simulator.fleet.simulate import Fleet
from simulator.fleet.config import FleetConfig, Group
from simulator.fleet.engine_plane import EnginePlane
from simulator.engine.plane import ReplicaSpec
from simulator.fleet.spot import SpotPolicy, catalogue_zones, synthesise
from simulator.workload.requests import Requests

replicas, hours, n, seed = {replicas}, {hours}, {requests}, 0
rng = np.random.default_rng(seed)
duration = hours * 3600.0
shape = 1 + 0.6 * np.sin(np.linspace(0, 2 * np.pi * hours / 24, 1441) - np.pi / 2)
edges = np.concatenate([[0.0], np.cumsum((shape[1:] + shape[:-1]) / 2)])
arrival = np.sort(np.interp(rng.uniform(size=n), edges / edges[-1], np.linspace(0, duration, 1441)))
inputs = rng.lognormal(6.3, 0.8, n).astype(np.int64) + 1
requests = Requests(arrival, inputs, rng.lognormal(5.0, 0.6, n).astype(np.int64) + 1)
axis = np.array([0.0, 1e6])
work = 0.012 + 4e-5 * np.arange(8193.0)
table = StepTable(work, work, np.zeros(513), axis, axis, axis, axis, np.zeros((2, 2, 2, 2)), 0.0, 0.0, 0.0, 0.0)
spec = ReplicaSpec(table, num_gpu_blocks=16000)

def play(requests):
    plane = EnginePlane(requests, [spec], "{router}", seed)
    bounds = dict(min_replicas=replicas // 2, max_replicas=replicas * 2)
    scaler = lambda: Hpa(HpaConfig((HpaMetric("running_requests", 2.0),), **bounds))
    spot = SpotPolicy(2, 0, True)
    group = Group("g", 0, "g6e.xlarge", replicas, scaler=scaler, spot=spot, cold_start=ColdStart(16e9))
    config = FleetConfig((group,), availability=synthesise(catalogue_zones(), duration + 3600, seed))
    return Fleet(requests, plane, config, seed, seats=(256,)).run()

few = Requests(arrival[:200], requests.input_tokens[:200], requests.output_tokens[:200])
play(few)
start = time.process_time()
result = play(requests)
cpu = time.process_time() - start
print(json.dumps(dict(replicas=replicas, hours=hours, requests=n, router="{router}", cpu_s=round(cpu, 1),
    requests_per_cpu_s=round(n / cpu), peak_gib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    machines=len(result.ledger.leases), completed=int((result.outcome.status == 0).sum()),
    mean_ready=round(float(sum(v.mean() for k, v in result.series.items() if k.startswith("ready_"))), 1))))
"""


def measure(**case: object) -> dict[str, object]:
    """Run one case in a process of its own."""
    code = CASE
    for name, value in case.items():
        code = code.replace("{" + name + "}", str(value))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found))
    return found


@pytest.mark.bench
@pytest.mark.parametrize(
    ("replicas", "hours", "requests", "router"),
    [(10, 24, 1_000_000, "least_loaded"), (100, 24, 10_000_000, "power_of_two"), (100, 24, 10_000_000, "round_robin")],
)
def test_a_day_of_a_fleet(replicas: int, hours: int, requests: int, router: str) -> None:
    assert measure(replicas=replicas, hours=hours, requests=requests, router=router)["completed"] == requests
