"""What controllers and people see of a fleet over time."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.fleet.autoscaling import FleetSnapshot

if TYPE_CHECKING:
    from simulator.fleet.simulate import Fleet

TTFT_WINDOW_S = 60.0


class Series:
    """Samples of a fleet, for the record and for its controllers."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._samples: dict[str, list[float]] = defaultdict(list)
        self._busy: dict[int, tuple[float, dict[int, float]]] = {}  # by group: (instant, busy seconds by lease)
        self._snapshots: dict[int, deque[tuple[float, FleetSnapshot]]] = defaultdict(deque)
        self._last_s = 0.0
        self._last_busy: dict[int, float] = {}

    def observed(self, index: int) -> FleetSnapshot:
        """A group as its controller sees it: the newest snapshot that is at least ``metrics_delay_s`` old."""
        now = self._fleet.now_s
        snapshots = self._snapshots[index]
        snapshots.append((now, self._take(index)))
        while len(snapshots) > 1 and snapshots[1][0] <= now - self._fleet.config.metrics_delay_s:
            snapshots.popleft()
        return snapshots[0][1]

    def _take(self, index: int) -> FleetSnapshot:
        fleet, group = self._fleet, self._fleet.groups[index]
        now, load = fleet.now_s, fleet.plane.load()
        ready = group.ready
        slots = [m.slot for m in ready if m.slot is not None]
        then, before = self._busy.get(index, (0.0, {}))
        busy = {m.lease.lease_id: float(load.busy_s[m.slot]) for m in ready if m.slot is not None}
        passed = max(now - then, 1e-9)
        self._busy[index] = (now, busy)
        rate = self._rate(then, now)
        tokens, ttft = self._recent(now)
        num_ready = max(1, sum(len(g.ready) for g in fleet.groups))
        share = len(ready) / num_ready
        waiting_outside = fleet.gateway.num_waiting * share / max(1, len(ready))
        per_replica: dict[str, list[float | None]] = {
            "queue_length": [float(load.waiting[s]) + waiting_outside for s in slots],
            "running_requests": [float(load.running[s]) for s in slots],
            "ongoing_requests": [float(load.running[s] + load.waiting[s]) + waiting_outside for s in slots],
            "kv_use": [float(load.kv_share[s]) for s in slots],
            "gpu_use": [min(1.0, max(0.0, busy[k] - before.get(k, 0.0)) / passed) for k in busy],
            "tokens_per_s": [tokens / num_ready] * len(slots),
            "requests_per_s": [rate * share / max(1, len(ready))] * len(slots),
            "ttft_s": [ttft] * len(slots),
        }
        held = float(sum(load.running[s] + load.waiting[s] for s in slots))
        outside = fleet.gateway.num_waiting * (share if any(g.ready for g in fleet.groups) else 1.0)
        return FleetSnapshot(
            num_replicas=group.target,
            num_ready=len(ready),
            per_replica=per_replica,
            num_requests=held + outside,
            requests_per_s=rate,
        )

    def _rate(self, start_s: float, end_s: float) -> float:
        arrival = self._fleet.requests.arrival_s
        first, last = np.searchsorted(arrival, [start_s, end_s])
        return float(last - first) / max(end_s - start_s, 1e-9)

    def _recent(self, now: float) -> tuple[float, float | None]:
        """(tokens a second of requests that ended, p95 TTFT of first tokens) in the last window."""
        fleet = self._fleet
        first, last = fleet.gateway.forget_ended(), fleet.gateway.arrived
        # what ended within the window arrived before or after the oldest open request; look a little further back
        first = max(0, min(first, int(np.searchsorted(fleet.requests.arrival_s, now - 4 * TTFT_WINDOW_S))))
        outcome = fleet.plane.outcome
        ends, starts = outcome.finish_s[first:last], outcome.first_token_s[first:last]
        ended = (ends > now - TTFT_WINDOW_S) & (ends <= now)
        requests = fleet.requests
        tokens = requests.input_tokens[first:last][ended].sum() + requests.output_tokens[first:last][ended].sum()
        started = (starts > now - TTFT_WINDOW_S) & (starts <= now)
        waits = starts[started] - requests.arrival_s[first:last][started]
        return float(tokens) / TTFT_WINDOW_S, float(np.quantile(waits, 0.95)) if len(waits) else None

    def sample(self) -> None:
        """Add a row to the time series."""
        fleet, row = self._fleet, self._samples
        now, load = fleet.now_s, fleet.plane.load()
        if row["t_s"] and now <= row["t_s"][-1]:
            return
        machines = [m for g in fleet.groups for m in g.machines]
        slots = [m.slot for m in machines if m.serving and m.slot is not None]
        busy = {m.lease.lease_id: m.busy_s(load) for m in machines}
        gained = sum(max(0.0, b - self._last_busy.get(k, 0.0)) for k, b in busy.items())
        passed = max(now - self._last_s, 1e-9)
        ttft = self._recent(now)[1]
        row["t_s"].append(now)
        row["requests_per_s"].append(self._rate(self._last_s, now))
        row["target"].append(float(sum(g.target for g in fleet.groups)))
        for purchase in sorted({lease.purchase for lease in fleet.ledger.leases} | {"on_demand", "spot"}):
            row[f"ready_{purchase}"].append(float(sum(m.serving and m.lease.purchase == purchase for m in machines)))
        row["booting"].append(float(sum(m.slot is None for m in machines)))
        row["draining"].append(float(sum(m.draining and m.slot is not None for m in machines)))
        row["running_requests"].append(float(load.running.sum()))
        row["queue_length"].append(float(load.waiting.sum() + fleet.gateway.num_waiting))
        row["kv_use"].append(float(np.mean(load.kv_share[slots])) if slots else 0.0)
        row["gpu_use"].append(min(1.0, gained / (passed * len(slots))) if slots else 0.0)
        row["ttft_p95_s"].append(ttft if ttft is not None else np.nan)
        self._last_s, self._last_busy = now, busy

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """The samples as arrays; what began later is 0 before."""
        n = len(self._samples["t_s"])
        padded: dict[str, Any] = {k: [0.0] * (n - len(v)) + v for k, v in self._samples.items()}
        return {k: np.asarray(v, float) for k, v in padded.items()}
