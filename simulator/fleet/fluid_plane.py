"""A data plane without requests' own events: load as a stream, replicas as measured curves. For long horizons.

Each kind of replica is probed with the engine: how many requests run, how much KV is in use, how busy it is and how
long a first token takes, against the rate that it is given, up to the rate at which it saturates. Between control
events the stream is split over the live replicas by what they can carry; what exceeds that waits and is worked off.
Transients shorter than a control interval are not seen: ``long_horizon`` plays windows with the engine for those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError
from simulator.engine.records import COMPLETED
from simulator.engine.replica_spec import ReplicaSpec
from simulator.fleet.data_plane import Load, Outcome
from simulator.workload.requests import Requests
from simulator.workload.traces import take

SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.96)  # of the saturation rate, probed
PROBE_REQUESTS = 1500


@dataclass(frozen=True)
class Curve:
    """A replica against its load; all arrays on ``share`` of ``max_rps``, from 0 to 1."""

    max_rps: float
    share: NDArray[np.float64]
    running: NDArray[np.float64]
    kv_share: NDArray[np.float64]
    busy: NDArray[np.float64]
    ttft_p95_s: NDArray[np.float64]
    e2e_s: NDArray[np.float64]

    def at(self, name: str, share: float) -> float:
        """A quantity at a share of the saturation rate."""
        return float(np.interp(min(share, 1.0), self.share, getattr(self, name)))


def probe(requests: Requests, spec: ReplicaSpec, seed: int = 0) -> Curve:
    """Measure a replica's curve on lengths drawn from a workload.

    Raises:
        InputError: no request fits the replica.
    """
    from simulator.engine.simulate import simulate_replicas

    rng = np.random.default_rng([seed, 0xC0DE])
    drawn = take(requests, rng.integers(0, len(requests), PROBE_REQUESTS))
    flood = replace(drawn, arrival_s=np.zeros(PROBE_REQUESTS))
    records = simulate_replicas(flood, [spec])
    half = np.sort(records.finish_s[~np.isnan(records.finish_s)])
    if not len(half):
        raise InputError("no request fits a replica", where="workload", why="a load of refusals needs no fleet",
                         remedy="shorter requests, or a larger max_model_len")  # fmt: skip
    lo, hi = int(0.2 * len(half)), int(0.8 * len(half))
    max_rps = (hi - lo) / (half[hi] - half[lo]) if half[hi] > half[lo] else len(half) / half[-1]
    gaps = rng.exponential(1.0, PROBE_REQUESTS)
    points: dict[str, list[float]] = {k: [0.0] for k in ("running", "kv_share", "busy", "ttft_p95_s", "e2e_s")}
    for share in SHARES:
        arrival = np.cumsum(gaps) / (share * max_rps)
        offered = replace(drawn, arrival_s=arrival)
        found = simulate_replicas(offered, [spec], series_interval_s=max(arrival[-1] / 200, 0.05))
        settled = (found.series["t_s"] > 0.2 * arrival[-1]) & (found.series["t_s"] < arrival[-1])
        late = arrival > 0.2 * arrival[-1]
        points["running"].append(float(found.series["num_running"][settled].mean()))
        points["kv_share"].append(float(found.series["kv_share"][settled].mean()))
        points["busy"].append(min(1.0, float(found.busy_s[0]) / found.end_s))
        points["ttft_p95_s"].append(float(np.nanquantile((found.first_token_s - arrival)[late], 0.95)))
        points["e2e_s"].append(float(np.nanmean((found.finish_s - arrival)[late])))
    arrays = {k: np.array([*v, v[-1]]) for k, v in points.items()}
    arrays["ttft_p95_s"][0], arrays["e2e_s"][0] = arrays["ttft_p95_s"][1], arrays["e2e_s"][1]
    return Curve(max_rps, np.array([0.0, *SHARES, 1.0]), **arrays)


class FluidPlane:
    """``DataPlane`` of curves; requests get the 95th percentile of the TTFT that their minute has.

    Args:
        requests: the load.
        curves: one a kind of replica.
        seed: of the number of running requests, which controllers see at an instant.
    """

    def __init__(self, requests: Requests, curves: Sequence[Curve], seed: int = 0) -> None:
        self._rng = np.random.default_rng([seed, 0xF1D])
        self.outcome = Outcome.empty(len(requests))
        self._arrival = requests.arrival_s
        self._curves = curves
        self._kind: list[int | None] = []
        self._alive: set[int] = set()
        self._speed: dict[int, float] = {}
        self._busy: list[float] = []
        self._share: list[float] = []
        self._opened = self._counted = self._served = 0  # requests: of the stream, in the backlog so far, with an end
        self._backlog = 0.0
        self.now_s = 0.0

    def add(self, kind: int) -> int:
        """A new replica."""
        slot = self._kind.index(None) if None in self._kind else len(self._kind)
        self._kind[slot : slot + 1] = [kind]
        self._busy[slot : slot + 1] = [0.0]
        self._share[slot : slot + 1] = [0.0]
        self._alive.add(slot)
        self._speed[slot] = 1.0
        return slot

    def drain(self, slot: int) -> None:
        """No more load for it."""
        self._alive.discard(slot)
        self._share[slot] = 0.0

    def is_empty(self, slot: int) -> bool:
        """A stream leaves nothing behind."""
        return slot not in self._alive

    def remove(self, slot: int) -> None:
        """Free the slot."""
        self.kill(slot)

    def kill(self, slot: int) -> NDArray[np.int64]:
        """Free the slot; the stream goes elsewhere."""
        self.drain(slot)
        self._kind[slot] = None
        return np.zeros(0, np.int64)

    def set_speed(self, slot: int, factor: float) -> None:
        """Slower, hung, or well again."""
        self._speed[slot] = 1.0 / factor

    def open_until(self, index: int) -> None:
        """More of the stream."""
        self._opened = max(self._opened, index)

    def send(self, ids: NDArray[np.int64], at_s: NDArray[np.float64]) -> None:
        """Only whole streams are known here."""
        raise RuntimeError("a fluid data plane takes requests in order only")

    def withdraw(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Nothing is on its way."""
        return np.zeros(0, np.int64), np.zeros(0)

    def cancel(self, i: int) -> bool:
        """No request can be found in a stream."""
        return False

    def advance(self, until_s: float) -> None:
        """Split what came since over the live replicas."""
        passed = until_s - self.now_s
        if passed <= 0:
            return
        came = self._opened - self._counted
        self._counted = self._opened
        rates = {s: self._curves[self._kind_of(s)].max_rps * self._speed[s] for s in self._alive}
        capacity = sum(rates.values())
        before = self._backlog
        self._backlog = max(0.0, before + came - capacity * passed)
        carried = (before + came - self._backlog) / passed
        share = carried / capacity if capacity > 0 else 0.0
        for slot in self._alive:
            self._share[slot] = share if rates[slot] > 0 else 1.0
            self._busy[slot] += self._curves[self._kind_of(slot)].at("busy", self._share[slot]) * passed
        if self._served < self._opened and capacity > 0:
            curve = self._curves[self._kind_of(min(self._alive))]
            ids = slice(self._served, self._opened)
            wait = 0.5 * (before + self._backlog) / capacity
            first = np.maximum(self._arrival[ids], self.now_s) + wait + curve.at("ttft_p95_s", share)
            self.outcome.scheduled_s[ids] = np.maximum(self._arrival[ids], self.now_s) + wait
            self.outcome.first_token_s[ids] = first
            self.outcome.finish_s[ids] = first + curve.at("e2e_s", share)
            self.outcome.status[ids] = COMPLETED
            self._served = self._opened
        self.now_s = until_s

    def load(self) -> Load:
        """How the slots stand."""
        kinds, shares = self._kind, self._share
        waiting = self._backlog / max(1, len(self._alive))
        on = [s in self._alive for s in range(len(kinds))]

        def of(name: str) -> list[float]:
            return [self._curves[k].at(name, x) if k is not None else 0.0 for k, x in zip(kinds, shares, strict=True)]

        return Load(
            self._rng.poisson(of("running")).astype(np.int64),  # as many as are there at an instant, M/G/infinity
            np.array([round(waiting) if live else 0 for live in on], np.int64),
            np.array(of("kv_share")),
            np.array(self._busy),
        )

    def _kind_of(self, slot: int) -> int:
        kind = self._kind[slot]
        assert kind is not None
        return kind
