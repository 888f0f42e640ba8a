"""A small trace that every planner test can plan for, and a cache of its own."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.workload.requests import Requests
from simulator.workload.trace_writing import write_trace


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Capacities found by one test serve the others, and never the user's own."""
    folder = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("PLAN_CACHE", str(folder / "cache"))
    monkeypatch.setenv("PLAN_HOME", str(folder / "home"))


@pytest.fixture(scope="session")
def trace(tmp_path_factory):
    """1,200 requests at 6 a second, lognormal lengths."""
    rng = np.random.default_rng(5)
    num = 1200
    arrival = np.cumsum(rng.exponential(1 / 6, num))
    inputs = np.clip(rng.lognormal(6.0, 0.8, num), 16, 6000).astype(np.int64)
    outputs = np.clip(rng.lognormal(4.6, 0.6, num), 2, 800).astype(np.int64)
    path = tmp_path_factory.mktemp("trace") / "requests.csv"
    write_trace(Requests(arrival - arrival[0], inputs, outputs), path)
    return path
