"""A data plane in a few lines of plain Python, for tests of the control plane.

A replica with seats: prompts are computed one after another, and while none is, all running requests gain tokens
together at the pace of their number. It knows no KV blocks and no chunks, and takes two events a request.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simulator.engine.records import COMPLETED, REJECTED
from simulator.fleet.data_plane import Load, Outcome
from simulator.workload.requests import Requests


@dataclass(frozen=True)
class SeatSpec:
    """A replica in a few numbers.

    Attributes:
        prefill_tokens_per_s: prompt tokens a second.
        step_s, step_per_seq_s: a decode step of n sequences takes ``step_s + n * step_per_seq_s``.
        kv_tokens: tokens (input and output) that fit; a request waits until its own do.
    """

    prefill_tokens_per_s: float = 20000.0
    step_s: float = 0.010
    step_per_seq_s: float = 0.0001
    max_num_seqs: int = 256
    kv_tokens: int = 500_000


@dataclass
class _Seat:
    """One replica: ``tokens`` counts what each running sequence has gained since the start."""

    spec: SeatSpec
    speed: float = 1.0
    tokens: float = 0.0
    at_s: float = 0.0
    version: int = 0
    waiting: deque[int] = field(default_factory=deque)
    prefilling: int = -1
    prefill_left_s: float = 0.0
    decoding: list[tuple[float, int]] = field(default_factory=list)  # heap of (tokens at the end, request)
    kv: int = 0
    busy_s: float = 0.0

    @property
    def num_running(self) -> int:
        return len(self.decoding) + (self.prefilling >= 0)

    def next_s(self) -> float:
        if self.speed == np.inf:
            return np.inf
        if self.prefilling >= 0:
            return self.at_s + self.prefill_left_s * self.speed
        if self.decoding:
            return self.at_s + max(0.0, self.decoding[0][0] - self.tokens) * self._step_s()
        return np.inf

    def _step_s(self) -> float:
        return self.speed * (self.spec.step_s + len(self.decoding) * self.spec.step_per_seq_s)

    def move(self, now_s: float) -> None:
        """Let time pass, with no event in between."""
        passed = now_s - self.at_s
        if self.speed != np.inf and passed > 0:
            if self.prefilling >= 0:
                self.prefill_left_s -= passed / self.speed
                self.busy_s += passed
            elif self.decoding:
                self.tokens += passed / self._step_s()
                self.busy_s += passed
        self.at_s = now_s


class SeatPlane:
    """``DataPlane`` of seats.

    Args:
        requests: the workload; its arrival times play no part here.
        kinds: the kinds of replica.
        router: round_robin, least_loaded, power_of_two, prefix_affinity or session_affinity.
        staleness_s: the router sees loads that are up to this old.
    """

    def __init__(
        self,
        requests: Requests,
        kinds: Sequence[SeatSpec],
        router: str = "least_loaded",
        seed: int = 0,
        staleness_s: float = 0.0,
    ) -> None:
        self.outcome = Outcome.empty(len(requests))
        self._requests, self._kinds, self._router = requests, kinds, router
        self._rng = np.random.default_rng([seed, 0x5EA7])
        self._seats: list[_Seat | None] = []
        self._alive: list[int] = []
        self._where: dict[int, int] = {}  # request -> slot
        self._events: list[tuple[float, int, int, int]] = []  # (instant, order, slot, version)
        self._arrivals: deque[tuple[float, int]] = deque()
        self._order = 0
        self._opened = 0
        self._turn = 0
        self._seen: dict[int, int] = {}
        self._seen_s = -np.inf
        self._staleness_s = staleness_s
        self.now_s = 0.0

    def add(self, kind: int) -> int:
        """A new replica."""
        seat = _Seat(self._kinds[kind], at_s=self.now_s)
        slot = self._seats.index(None) if None in self._seats else len(self._seats)
        self._seats[slot : slot + 1] = [seat]
        self._alive.append(slot)
        self._alive.sort()
        return slot

    def drain(self, slot: int) -> None:
        """No more requests for it."""
        if slot in self._alive:
            self._alive.remove(slot)

    def is_empty(self, slot: int) -> bool:
        """Whether it holds no request."""
        seat = self._seat(slot)
        return not seat.num_running and not seat.waiting

    def remove(self, slot: int) -> None:
        """Free an empty slot."""
        assert self.is_empty(slot)
        self.drain(slot)
        self._seats[slot] = None

    def kill(self, slot: int) -> NDArray[np.int64]:
        """Free a slot and say what it held."""
        seat = self._seat(slot)
        held = [i for _, i in sorted(seat.decoding)] + ([seat.prefilling] if seat.prefilling >= 0 else [])
        lost = np.array([*held, *seat.waiting], np.int64)
        for i in lost:
            del self._where[int(i)]
        self.outcome.forget(lost)
        self.drain(slot)
        self._seats[slot] = None
        return lost

    def set_speed(self, slot: int, factor: float) -> None:
        """Slower, hung, or well again."""
        seat = self._seat(slot)
        seat.move(self.now_s)
        seat.speed = factor
        self._plan(slot)

    def send(self, ids: NDArray[np.int64], at_s: NDArray[np.float64]) -> None:
        """Queue arrivals."""
        before = self._arrivals[-1][0] if self._arrivals else -np.inf
        self._arrivals.extend(zip(at_s.tolist(), ids.tolist(), strict=True))
        if len(at_s) and at_s[0] < before:
            self._arrivals = deque(sorted(self._arrivals))

    def withdraw(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Empty the line of arrivals."""
        line = list(self._arrivals)
        self._arrivals.clear()
        return np.array([i for _, i in line], np.int64), np.array([t for t, _ in line], float)

    def open_until(self, index: int) -> None:
        """Queue arrivals up to an index."""
        ids = np.arange(self._opened, index)
        self.send(ids, np.maximum(self._requests.arrival_s[ids], self.now_s))
        self._opened = max(self._opened, index)

    def cancel(self, i: int) -> bool:
        """Take a request out."""
        slot = self._where.pop(i, None)
        if slot is None:
            return False
        seat = self._seat(slot)
        seat.move(self.now_s)
        if i in seat.waiting:
            seat.waiting.remove(i)
        else:
            seat.kv -= self._size(i)
            if seat.prefilling == i:
                seat.prefilling = -1
            else:
                seat.decoding = [d for d in seat.decoding if d[1] != i]
                heapq.heapify(seat.decoding)
        self.outcome.forget(np.array([i]))
        self._admit(slot)
        return True

    def advance(self, until_s: float) -> None:
        """Events and arrivals in order of time; at equal times events first."""
        while True:
            event_s = self._events[0][0] if self._events else np.inf
            arrival_s = self._arrivals[0][0] if self._arrivals else np.inf
            if min(event_s, arrival_s) > until_s:
                break
            if event_s <= arrival_s:
                _, _, slot, version = heapq.heappop(self._events)
                seat = self._seats[slot]
                if seat is not None and seat.version == version:
                    self.now_s = max(self.now_s, event_s)
                    self._finish_event(slot, seat)
            else:
                at_s, i = self._arrivals.popleft()
                self.now_s = max(self.now_s, at_s)
                self._arrive(i)
        self.now_s = max(self.now_s, until_s)
        for seat in self._seats:
            if seat is not None:
                seat.move(self.now_s)

    def load(self) -> Load:
        """How the slots stand."""
        seats = self._seats
        return Load(
            np.array([s.num_running if s else 0 for s in seats], np.int64),
            np.array([len(s.waiting) if s else 0 for s in seats], np.int64),
            np.array([s.kv / s.spec.kv_tokens if s else 0.0 for s in seats]),
            np.array([s.busy_s if s else 0.0 for s in seats]),
        )

    def _seat(self, slot: int) -> _Seat:
        seat = self._seats[slot]
        assert seat is not None, f"slot {slot} is free"
        return seat

    def _size(self, i: int) -> int:
        return int(self._requests.input_tokens[i] + self._requests.output_tokens[i])

    def _plan(self, slot: int) -> None:
        seat = self._seat(slot)
        seat.version += 1
        self._order += 1
        at_s = seat.next_s()
        if at_s < np.inf:
            heapq.heappush(self._events, (at_s, self._order, slot, seat.version))

    def _arrive(self, i: int) -> None:
        slot = self._choose(i)
        seat = self._seat(slot)
        self.outcome.replica[i] = slot
        if self._size(i) > seat.spec.kv_tokens or self._requests.output_tokens[i] < 1:
            self.outcome.status[i] = REJECTED
            return
        self._where[i] = slot
        seat.move(self.now_s)
        seat.waiting.append(i)
        self._admit(slot)

    def _admit(self, slot: int) -> None:
        seat = self._seat(slot)
        if seat.prefilling < 0 and seat.waiting and seat.num_running < seat.spec.max_num_seqs:
            size = self._size(seat.waiting[0])
            if seat.kv + size <= seat.spec.kv_tokens:
                i = seat.waiting.popleft()
                seat.kv += size
                seat.prefilling = i
                seat.prefill_left_s = float(self._requests.input_tokens[i]) / seat.spec.prefill_tokens_per_s
                self.outcome.scheduled_s[i] = self.now_s
        self._plan(slot)

    def _finish_event(self, slot: int, seat: _Seat) -> None:
        seat.move(self.now_s)
        if seat.prefilling >= 0:
            i = seat.prefilling
            seat.prefilling = -1
            self.outcome.first_token_s[i] = self.now_s
            heapq.heappush(seat.decoding, (seat.tokens + float(self._requests.output_tokens[i]) - 1, i))
        while seat.decoding and seat.decoding[0][0] <= seat.tokens + 1e-6:
            _, i = heapq.heappop(seat.decoding)
            self.outcome.finish_s[i] = self.now_s
            self.outcome.status[i] = COMPLETED
            seat.kv -= self._size(i)
            del self._where[i]
        self._admit(slot)

    def _outstanding(self, slot: int) -> int:
        if self._staleness_s == 0:
            return self._seat(slot).num_running + len(self._seat(slot).waiting)
        if self.now_s >= self._seen_s + self._staleness_s:
            self._seen_s = self.now_s
            self._seen = {s: self._seat(s).num_running + len(self._seat(s).waiting) for s in self._alive}
        return self._seen.get(slot, 0)

    def _choose(self, i: int) -> int:
        alive = self._alive
        if not alive:
            raise RuntimeError("a request was sent while no replica is alive")
        if self._router == "least_loaded":
            return min(alive, key=lambda s: (self._outstanding(s), s))
        if self._router == "power_of_two" and len(alive) > 1:
            a, b = self._rng.choice(len(alive), 2, replace=False)
            return min(alive[int(a)], alive[int(b)], key=lambda s: (self._outstanding(s), s))
        if self._router == "session_affinity" and self._requests.session is not None:
            return alive[int(self._requests.session[i]) * 2654435761 % 2**32 % len(alive)]
        self._turn += 1
        return alive[(self._turn - 1) % len(alive)]
