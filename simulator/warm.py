"""Compile the hot loop ahead of its first use: ``python -m simulator.warm``."""

from __future__ import annotations

import time

import numpy as np

from calibrate.step import StepTable
from simulator.engine.simulate import ReplicaSpec, simulate_replicas
from simulator.workload.requests import Requests


def warm() -> float:
    """Compile, or load what was compiled before; returns the seconds it took."""
    start = time.perf_counter()
    axis = np.array([0.0, 1.0])
    table = StepTable(
        np.full(2, 1.0),
        np.full(2, 1.0),
        np.zeros(2),
        axis,
        axis,
        axis,
        axis,
        np.zeros((2, 2, 2, 2)),
        0.0,
        0.0,
        0.0,
        0.0,
    )
    requests = Requests(np.zeros(2), np.full(2, 3, np.int64), np.full(2, 3, np.int64))
    simulate_replicas(requests, [ReplicaSpec(table, num_gpu_blocks=8)])
    return time.perf_counter() - start


if __name__ == "__main__":
    print(f"engine ready after {warm():.1f} s")
