"""Simulate replicas on a workload: the one call that the rest of the project makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simulator.engine.plane import Plane, Snapshot, check_run
from simulator.engine.records import Records
from simulator.engine.replica_spec import ReplicaSpec
from simulator.engine.routing import ROUTERS, RouterOptions
from simulator.workload.requests import Requests

__all__ = ["ROUTERS", "Plane", "ReplicaSpec", "RouterOptions", "Snapshot", "simulate_replicas"]


def simulate_replicas(
    requests: Requests,
    replicas: Sequence[ReplicaSpec],
    router: str = "round_robin",
    seed: int = 0,
    *,
    options: RouterOptions | None = None,
    fast: bool = True,
    check: bool = False,
    series_interval_s: float | None = None,
) -> Records:
    """Serve all requests and say when each was scheduled, got its first token and ended.

    Args:
        requests: the workload, open or closed loop.
        replicas: the fleet; all stand from the start to the end.
        router: one of ``ROUTERS``.
        seed: of the router's random choices; same inputs and seed give the same bytes.
        options: weights, groups and staleness of the router.
        fast: False walks every step in plain Python: equal to 1e-9, and some thousand times slower.
        check: look for broken invariants (docs/invariants.md), at the end and at instants in between.
        series_interval_s: sample the replicas this often, in seconds (fast runs only).

    Raises:
        InputError: settings that the engine refuses. BrokenInvariantError: a fault of ours, with ``check``.
    """
    if not fast:
        from simulator.engine.plain.reference import simulate_plainly

        records = simulate_plainly(requests, replicas, router, seed, options)
    else:
        plane = Plane(requests, replicas, router, seed, options)
        series = {} if series_interval_s is None else _sample(plane, series_interval_s)
        records = replace(plane.finish(), series=series)
    if check:
        check_run(requests, records, Plane(requests, replicas, router, seed, options))
    return records


def _sample(plane: Plane, interval_s: float) -> dict[str, NDArray[np.float64]]:
    """Snapshots at every multiple of an interval until nothing is left to do."""
    samples = list(plane.snapshots(interval_s))
    return {
        "t_s": np.array([s.at_s for s in samples]),
        "num_running": np.array([s.num_running.sum() for s in samples], float),
        "num_waiting": np.array([s.num_waiting.sum() for s in samples], float),
        "kv_share": np.array([s.kv_share.mean() for s in samples]),
    }
