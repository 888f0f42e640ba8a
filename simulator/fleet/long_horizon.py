"""Weeks in minutes: the control plane throughout on a stream, and windows of it in full.

1. The whole horizon on a ``FluidPlane``: every controller tick, boot, loss and bill is there; latencies are not.
2. The horizon is cut into windows. The busiest ones and a spread over all loads (by requests a ready replica) are
   played with the engine on the replicas that stood then; each stands for the windows of its load.
3. Percentiles are those of the windows' requests, each weighing as many as it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.engine.records import COMPLETED
from simulator.engine.replica_spec import ReplicaSpec
from simulator.fleet.autoscaling import FleetSnapshot
from simulator.fleet.cold_start import ColdStart, LogNormal
from simulator.fleet.config import FleetConfig, Group
from simulator.fleet.data_plane import DataPlane
from simulator.fleet.engine_plane import EnginePlane
from simulator.fleet.fluid_plane import FluidPlane, probe
from simulator.fleet.simulate import Fleet
from simulator.fleet.state import FleetResult
from simulator.workload.requests import Requests
from simulator.workload.traces import take

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Windows:
    """How much is played in full: ``num`` windows of ``length_s`` after ``warm_up_s`` each."""

    num: int = 12
    length_s: float = 600.0
    warm_up_s: float = 120.0


@dataclass(frozen=True)
class LongRun:
    """A long horizon.

    Attributes:
        fleet: the control plane's run: ledger, targets, losses, series (its latencies are those of the stream).
        ttft_s, tpot_s, e2e_s, queue_s, input_tokens, output_tokens, request_class: of the requests in the windows.
        weight: how many requests each of them stands for.
        windows: (start, weight) of each window: the requests that it stands for over its own.
    """

    fleet: FleetResult
    ttft_s: Float
    tpot_s: Float
    e2e_s: Float
    queue_s: Float
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    request_class: NDArray[np.int64]
    weight: Float
    windows: list[tuple[float, float]]

    def percentile(self, metric: str, percent: float) -> float:
        """A weighted percentile of ``ttft``, ``tpot`` or ``e2e``."""
        values: Float = getattr(self, f"{metric}_s")
        known = ~np.isnan(values)
        order = np.argsort(values[known])
        total = np.cumsum(self.weight[known][order])
        at = np.searchsorted(total, percent / 100 * total[-1])
        return float(values[known][order][min(int(at), len(order) - 1)])


class _Replayed:
    """A controller that holds what stood at each instant of another run."""

    def __init__(self, t_s: Float, ready: Float, start_s: float, interval_s: float) -> None:
        self._t, self._ready, self._start, self._interval = t_s, ready, start_s, interval_s

    @property
    def interval_s(self) -> float:
        """The sampling interval of the other run."""
        return self._interval

    def target_replicas(self, now_s: float, fleet: FleetSnapshot) -> int:
        """What was ready then (1 at least: a stream waits, a request must go somewhere)."""
        at = min(int(np.searchsorted(self._t, now_s + self._start)), len(self._t) - 1)
        return max(1, int(self._ready[at]))


def run_long(
    requests: Requests,
    specs: Sequence[ReplicaSpec],
    config: FleetConfig,
    seed: int = 0,
    windows: Windows | None = None,
    router: str = "least_loaded",
) -> LongRun:
    """Play a long horizon by its control plane and windows of its requests.

    Args:
        requests: the whole load; the gateway must pass all (no classes, caches or bounds).
        specs: the engine of each group's kind; one group is scaled or all are fixed.
    """
    windows = windows or Windows()
    curves = [probe(requests, spec, seed) for spec in specs]
    seats = tuple(s.max_num_seqs for s in specs)
    fluid = Fleet(requests, FluidPlane(requests, curves, seed), config, seed, seats=seats).run()
    chosen = choose_windows(requests, fluid, windows)
    parts = [_play(requests, specs, config, fluid, start, windows, seed, router) for start, _ in chosen]
    weights = [
        # a window stands for others of its load, so each of its requests for as many as it has of them
        np.full(len(part[0]), weight)
        for part, (_, weight) in zip(parts, chosen, strict=True)
    ]
    ttft, tpot, e2e, queue, inputs, outputs, classes = (np.concatenate([p[i] for p in parts]) for i in range(7))
    return LongRun(
        fluid,
        ttft,
        tpot,
        e2e,
        queue,
        inputs.astype(np.int64),
        outputs.astype(np.int64),
        classes.astype(np.int64),
        np.concatenate(weights),
        chosen,
    )


def choose_windows(requests: Requests, fluid: FleetResult, windows: Windows) -> list[tuple[float, float]]:
    """(start, requests that it stands for over its own): the busiest, and the middle of each of the groups by load."""
    end = float(requests.arrival_s[-1])
    starts = np.arange(0.0, max(end - windows.length_s, 1.0), windows.length_s)
    t, series = fluid.series["t_s"], fluid.series
    ready = sum((v for name, v in series.items() if name.startswith("ready_")), np.zeros(len(t)))
    first = np.searchsorted(requests.arrival_s, starts)
    last = np.searchsorted(requests.arrival_s, starts + windows.length_s)
    load = np.empty(len(starts))
    for i, start in enumerate(starts):
        inside = (t > start) & (t <= start + windows.length_s)
        stood = float(np.maximum(ready[inside], 0.5).min()) if inside.any() else 1.0
        load[i] = (last[i] - first[i]) / stood
    order = np.argsort(load, kind="stable")
    counts = (last - first).astype(float)
    if len(order) <= windows.num:
        groups = [np.array([i]) for i in sorted(order)]
    else:
        groups = [*np.array_split(order[:-1], windows.num - 1), order[-1:]]
    picked = [(int(g[len(g) // 2]), float(counts[g].sum())) for g in groups]
    scale = len(requests) / max(counts.sum(), 1.0)  # what the last, partial window has is shared out
    return sorted((float(starts[i]), scale * total / counts[i]) for i, total in picked if counts[i] > 0)


def _play(
    requests: Requests,
    specs: Sequence[ReplicaSpec],
    config: FleetConfig,
    fluid: FleetResult,
    start_s: float,
    windows: Windows,
    seed: int,
    router: str,
) -> tuple[Float, ...]:
    """TTFT, TPOT, E2E, queue time, tokens and class of one window's requests."""
    warm = min(windows.warm_up_s, start_s)
    lo, hi = np.searchsorted(requests.arrival_s, [start_s - warm, start_s + windows.length_s])
    part = take(requests, np.arange(lo, hi))
    part = replace(part, arrival_s=part.arrival_s - (start_s - warm))
    t = fluid.series["t_s"]
    ready = sum((v for name, v in fluid.series.items() if name.startswith("ready_")), np.zeros(len(t)))
    at = min(int(np.searchsorted(t, start_s - warm)), len(t) - 1)
    group = Group("window", 0, "window", max(1, int(ready[at])), cold_start=ColdStart(total=LogNormal(0.0)),
                  scaler=_replayer(t, ready, start_s - warm, config.sample_interval_s))  # fmt: skip
    played = replace(config, groups=(group,), availability=None, metrics_delay_s=0.0, pauses=())
    plane: DataPlane = EnginePlane(part, specs, router, seed)
    outcome = Fleet(part, plane, played, seed, seats=tuple(s.max_num_seqs for s in specs)).run().outcome
    mine = (part.arrival_s >= warm) & (outcome.status == COMPLETED)
    ttft = (outcome.first_token_s - part.arrival_s)[mine]
    e2e = (outcome.finish_s - part.arrival_s)[mine]
    steps = part.output_tokens[mine] - 1
    tpot = np.where(steps > 0, (e2e - ttft) / np.maximum(steps, 1), np.nan)
    queue = (outcome.scheduled_s - part.arrival_s)[mine]
    classes = np.zeros(len(part)) if part.request_class is None else part.request_class
    columns = (part.input_tokens, part.output_tokens, classes)
    return ttft, tpot, e2e, queue, *(column[mine].astype(float) for column in columns)


def _replayer(t: Float, ready: Float, start_s: float, interval_s: float) -> Callable[[], Any]:
    return lambda: _Replayed(t, ready, start_s, interval_s)
