"""Simulate replicas on a workload: the one call that the rest of the project makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from simulator.plane import Plane, ReplicaSpec, Snapshot
from simulator.records import Records
from simulator.routing import ROUTERS, RouterOptions
from simulator.workload import Requests

__all__ = ["ROUTERS", "Plane", "ReplicaSpec", "RouterOptions", "Snapshot", "simulate_replicas"]


def simulate_replicas(
    requests: Requests,
    replicas: Sequence[ReplicaSpec],
    router: str = "round_robin",
    seed: int = 0,
    *,
    options: RouterOptions | None = None,
    series_interval_s: float | None = None,
) -> Records:
    """Serve all requests and say when each was scheduled, got its first token and ended.

    Args:
        requests: the workload, open or closed loop.
        replicas: the fleet; all stand from the start to the end.
        router: one of ``ROUTERS``.
        seed: of the router's random choices; same inputs and seed give the same bytes.
        options: weights, groups and staleness of the router.
        series_interval_s: sample the replicas this often, in seconds.

    Raises:
        InputError: settings that the engine refuses.
    """
    plane = Plane(requests, replicas, router, seed, options)
    if series_interval_s is None:
        return plane.finish()
    samples: list[Snapshot] = []
    at_s = 0.0
    while not samples or not plane.idle:
        at_s += series_interval_s
        plane.advance(at_s)
        samples.append(plane.snapshot())
    records = plane.finish()
    return replace(
        records,
        series={
            "t_s": np.array([s.at_s for s in samples]),
            "num_running": np.array([s.num_running.sum() for s in samples], float),
            "num_waiting": np.array([s.num_waiting.sum() for s in samples], float),
            "kv_share": np.array([s.kv_share.mean() for s in samples]),
        },
    )
