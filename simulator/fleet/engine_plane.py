"""The engine behind the control plane's seam: slots that are filled, drained, killed and filled again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.engine import feed
from simulator.engine.plane import Plane, ReplicaSpec
from simulator.engine.records import COUNTS, FAILED, Records
from simulator.engine.routing import RouterOptions
from simulator.fleet.data_plane import Load, Outcome
from simulator.workload.requests import Requests

HUNG = 1e-12  # speed of a replica that hangs


class EnginePlane:
    """``DataPlane`` on the compiled engine.

    Args:
        requests: an open load, sorted by arrival.
        kinds: the kinds of replica.
        router, seed, options: as for ``Plane``.
        weights: relative rate of each kind, for routers that know sizes (least loaded, power of two, weighted).
    """

    def __init__(
        self,
        requests: Requests,
        kinds: Sequence[ReplicaSpec],
        router: str = "least_loaded",
        seed: int = 0,
        options: RouterOptions | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self._kinds = list(kinds)
        first = min(range(len(kinds)), key=lambda k: kinds[k].block_size)  # prefixes are cut into its blocks
        self._weights = [1.0] * len(kinds) if weights is None else [w / weights[first] for w in weights]
        self._plane = Plane(requests, [kinds[first]], router, seed, options)
        self._plane.drain(0)
        self._feed.limit[0] = 0
        self._free: dict[int, list[int]] = {first: [0]}
        self._kind_of = [first]
        self._busy_at_start = [0.0]
        self._busy_when_hung: dict[int, float] = {}
        self.check_every_s: float | None = None
        self._next_check_s = 0.0
        rows = self._plane._world.requests
        self.outcome = Outcome(
            rows["scheduled_s"],
            rows["first_token_s"],
            rows["finish_s"],
            rows["replica"],
            rows["status"],
            rows["num_cached_tokens"],
            rows["num_preemptions"],
        )

    @property
    def _feed(self) -> feed.Feed:
        return self._plane._feed

    @property
    def _rows(self) -> Any:
        return self._plane._world.replicas

    def add(self, kind: int) -> int:
        """Fill a free slot of that kind, or a new one."""
        free = self._free.get(kind, [])
        if free:
            slot = free.pop()
            self._plane.resume(slot)
        else:
            slot = self._plane.add(self._kinds[kind], self._weights[kind])
            self._kind_of.append(kind)
            self._busy_at_start.append(0.0)
        row = self._rows[slot]
        row["inflight_s"] = row["idle_since_s"] = self._plane.now_s
        self._busy_at_start[slot] = float(row["busy_s"])
        return slot

    def drain(self, slot: int) -> None:
        """No more requests for it."""
        self._plane.drain(slot)

    def is_empty(self, slot: int) -> bool:
        """Whether it holds no request."""
        row = self._rows[slot]
        return bool(row["num_running"] == 0 and row["num_waiting"] == 0)

    def remove(self, slot: int) -> None:
        """Free an empty slot."""
        assert self.is_empty(slot)
        self.kill(slot)

    def kill(self, slot: int) -> NDArray[np.int64]:
        """Free a slot and say what it held."""
        lost = self._plane.kill(slot)
        if slot in self._busy_when_hung:  # the step in which it hung has no end
            self._rows[slot]["busy_s"] = self._busy_when_hung.pop(slot)
        self._free.setdefault(self._kind_of[slot], []).append(slot)
        return lost

    def set_speed(self, slot: int, factor: float) -> None:
        """Slower, hung, or well again."""
        if factor == np.inf:
            row = self._rows[slot]
            self._busy_when_hung[slot] = float(row["busy_s"] - max(0.0, row["inflight_s"] - self._plane.now_s))
        self._plane.set_speed(slot, HUNG if factor == np.inf else 1.0 / factor)

    def open_until(self, index: int) -> None:
        """Let all requests below ``index`` come at their own arrival (later, if that has passed)."""
        self._feed.limit[0] = index

    def send(self, ids: NDArray[np.int64], at_s: NDArray[np.float64]) -> None:
        """Route requests at given instants."""
        self._plane.send(ids, at_s)

    def withdraw(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Empty the heap of requests that were sent for later."""
        n = int(self._feed.num_heap[0])
        order = np.lexsort((self._feed.heap[:n], self._feed.heap_s[:n]))
        self._feed.num_heap[0] = 0
        return self._feed.heap[:n][order], self._feed.heap_s[:n][order]

    def cancel(self, i: int) -> bool:
        """Take a request out of its replica."""
        return self._plane.cancel(i)

    def advance(self, until_s: float) -> None:
        """Deliver and serve up to an instant; look for broken invariants every ``check_every_s``."""
        self._plane.advance(until_s)
        if self.check_every_s is not None and self._next_check_s <= until_s < np.inf:
            self._plane.check()
            self._next_check_s = until_s + self.check_every_s

    def records(self, requests: Requests, end_s: float) -> Records:
        """What has happened, a row a request and a row a slot."""
        rows, outcome = self._rows, self.outcome
        status = np.where(outcome.status < 0, FAILED, outcome.status).astype(np.int8)
        return Records(
            arrival_s=requests.arrival_s.copy(),
            scheduled_s=outcome.scheduled_s.copy(),
            first_token_s=outcome.first_token_s.copy(),
            finish_s=outcome.finish_s.copy(),
            replica=outcome.replica.copy(),
            status=status,
            num_cached_tokens=outcome.num_cached_tokens.copy(),
            num_preemptions=outcome.num_preemptions.copy(),
            iterations=rows["iterations"].copy(),
            preemptions=rows["preemptions"].copy(),
            busy_s=np.minimum(rows["busy_s"], end_s),
            prefix_queries=rows["prefix_queries"].copy(),
            prefix_hits=rows["prefix_hits"].copy(),
            num_gpu_blocks=rows["num_blocks"] + 1,
            end_s=end_s,
            counts={name: rows[name].copy() for name in COUNTS},
        )

    @property
    def kinds_of_slots(self) -> list[int]:
        """The kind of replica of each slot."""
        return list(self._kind_of)

    def load(self) -> Load:
        """How the slots stand."""
        rows = self._rows
        over = np.maximum(0.0, rows["inflight_s"] - self._plane.now_s)  # of the step in flight
        busy = np.maximum(0.0, rows["busy_s"] - np.array(self._busy_at_start) - over)
        return Load(
            rows["num_running"].copy(), rows["num_waiting"].copy(), 1.0 - rows["free"] / rows["num_blocks"], busy
        )
