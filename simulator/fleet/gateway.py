"""The gateway in motion: from a client's request to a replica, or to a cache, a refusal, a retry."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from simulator.engine.records import COMPLETED, FAILED, REJECTED, UNDECIDED
from simulator.fleet.admission import AdmissionPolicy, CentralQueue, ClassPolicy, TokenBucket
from simulator.fleet.caches import Caches
from simulator.fleet.data_plane import DataPlane
from simulator.workload.requests import Requests

DEFAULT_CLASS = ClassPolicy()


class Gateway:
    """Between clients and replicas.

    The control plane calls ``settle(now)`` before it looks at or changes anything; the gateway then works off what
    came since, moves the data plane to ``now`` and works off what ended. Each request ends in exactly one status.

    Args:
        seats: how many requests each live replica may hold at once, by slot (central queue only).
    """

    def __init__(
        self,
        requests: Requests,
        plane: DataPlane,
        policy: AdmissionPolicy,
        caches: Caches | None,
        seed: int,
        seats: Callable[[], dict[int, int]],
    ) -> None:
        self._requests, self._plane, self._policy, self._caches = requests, plane, policy, caches
        self._seats = seats
        self._rng = np.random.default_rng([seed, 0x6A7E])
        self.reasons: Counter[str] = Counter()
        self.num_retries = 0
        self.arrived = 0
        self.now_s = 0.0
        self._first_open = 0  # all requests below have ended
        self._simple = policy.passes_all and caches is None
        self._queue = CentralQueue(policy.ageing_s, fair=policy.fairness == "tenant")
        self._again: list[tuple[float, int]] = []  # retries and requests of lost replicas
        self._kept: set[int] = set()  # of those, the ones that were let in before
        self._due: list[tuple[float, int, int, str]] = []  # (instant, request, attempt, what) of time-outs, deadlines
        self._attempt: dict[int, int] = {}
        self._buckets: dict[int, TokenBucket] = {}
        self._undelivered = 0  # sent since the data plane last moved
        self._opened = 0
        self._sent: set[int] = set()  # on their way to or at a replica
        self._sent_at: dict[int, float] = {}
        self._classes = [policy.classes.get(name, DEFAULT_CLASS) for name in requests.class_names]

    @property
    def ticks(self) -> bool:
        """Whether the gateway must be called often."""
        return not self._simple

    @property
    def num_waiting(self) -> int:
        """Requests that wait in the gateway itself."""
        simple = self.arrived - self._opened if self._simple else 0
        return len(self._queue) + len(self._again) + simple

    def settle(self, now_s: float) -> None:
        """Bring gateway and replicas to ``now_s``."""
        if now_s < self.now_s:
            return
        upto = int(np.searchsorted(self._requests.arrival_s, now_s, side="left"))
        if self._simple:
            self._settle_simple(upto, now_s)
        else:
            self._offer_all(upto, now_s)
            self._plane.advance(now_s)
            self._undelivered = 0
            self._look_at_ends(now_s)
            self._give_up(now_s)
            self._dispatch(now_s)
        self.arrived = upto
        self.now_s = now_s

    def lost(self, ids: NDArray[np.int64], now_s: float) -> None:
        """Requests of a replica that is no more."""
        for i in ids.tolist():
            self._sent.discard(i)
            if self._policy.on_loss == "requeue":
                self._kept.add(i)
                heapq.heappush(self._again, (now_s, i))
            else:
                self._fail(i, now_s, "replica lost")

    def call_back(self) -> None:
        """The last live replica has gone: hold what is on its way to one."""
        ids, at_s = self._plane.withdraw()
        for i, at in zip(ids.tolist(), at_s.tolist(), strict=True):
            self._sent.discard(i)
            self._kept.add(i)
            heapq.heappush(self._again, (at, i))
        self._undelivered = 0

    def close(self) -> None:
        """End the run: what has not ended has failed."""
        outcome = self._plane.outcome
        for i in np.flatnonzero(outcome.status == UNDECIDED).tolist():
            outcome.status[i] = FAILED
            self.reasons["end of run"] += 1

    def forget_ended(self) -> int:
        """Move the first open request on; returns it. All below have ended before now."""
        outcome = self._plane.outcome
        while self._first_open < self.arrived:
            block = slice(self._first_open, min(self.arrived, self._first_open + 4096))
            ended = (outcome.status[block] == REJECTED) | (outcome.status[block] == FAILED)
            ended |= outcome.finish_s[block] < self.now_s
            if ended.all():
                self._first_open = block.stop
                continue
            self._first_open += int(np.argmin(ended))
            break
        return self._first_open

    def _settle_simple(self, upto: int, now_s: float) -> None:
        if self._seats():
            while self._again:
                at_s, i = heapq.heappop(self._again)
                self._plane.send(np.array([i]), np.array([max(at_s, self.now_s)]))
            self._plane.open_until(upto)
            self._opened = upto
        self._plane.advance(now_s)

    def _offer_all(self, upto: int, now_s: float) -> None:
        room, waiting = self._room(), self._num_waiting_behind()
        ids: list[int] = []
        at: list[float] = []
        i, arrival = self.arrived, self._requests.arrival_s
        while i < upto or (self._again and self._again[0][0] < now_s):
            if self._again and (i >= upto or self._again[0][0] <= arrival[i]):
                at_s, j = heapq.heappop(self._again)
            else:
                at_s, j = float(arrival[i]), i
                i += 1
            at_s = max(at_s, self.now_s)
            if self._plane.outcome.status[j] != UNDECIDED:
                continue
            if j in self._kept:
                self._kept.discard(j)
                send_s: float | None = at_s
            else:
                send_s = self._admit(j, at_s, waiting + max(0, -room))
            if send_s is None:
                continue
            if self._can_send_now(room):
                room -= 1
                self._mark_sent(j, send_s)
                ids.append(j)
                at.append(send_s)
            else:
                self._queue.push(j, self._promise(j).priority, at_s, self._tenant(j))
        if ids:
            order = np.argsort(at, kind="stable")
            self._plane.send(np.array(ids, np.int64)[order], np.array(at)[order])

    def _can_send_now(self, room: int) -> bool:
        if not self._seats():
            return False
        return self._policy.queue == "replica" or (room > 0 and not len(self._queue))

    def _admit(self, i: int, at_s: float, waiting: int) -> float | None:
        """When the request may go on; None where it has ended here."""
        new = i not in self._attempt
        if new:
            self._attempt[i] = 0
        policy, promise = self._policy, self._promise(i)
        for what, limit in (("timeout", promise.timeout_s), ("deadline", promise.deadline_s)):
            if limit is not None:
                heapq.heappush(self._due, (at_s + limit, i, self._attempt[i], what))
        spent = 0.0
        if self._caches is not None:
            found, spent = self._caches.ask(i, at_s)
            if found:
                self._answer(i, at_s, at_s + spent)
                return None
        if policy.rate_rps is not None:
            key = self._tenant(i) if policy.per_tenant else 0
            bucket = self._buckets.setdefault(key, TokenBucket(policy.rate_rps, max(1.0, policy.burst)))
            if not bucket.take(at_s):
                self._reject(i, at_s, "rate limit")
                return None
        if policy.max_queue is not None and waiting + len(self._queue) >= policy.max_queue and not self._shed(i, at_s):
            self._reject(i, at_s, "queue full")
            return None
        return at_s + spent

    def _shed(self, i: int, at_s: float) -> bool:
        """Make room by refusing someone less important."""
        worst = self._queue.least_important()
        if worst is None or worst[0] <= self._promise(i).priority:
            return False
        self._queue.remove(worst[1])
        self._reject(worst[1], at_s, "shed")
        return True

    def _dispatch(self, now_s: float) -> None:
        seats = self._seats()
        if not seats or not len(self._queue):
            return
        room = self._room() if self._policy.queue == "central" else len(self._queue)  # held while none was live
        ids: list[int] = []
        while len(self._queue):
            if room <= 0 and not (self._policy.preempt_lower and self._preempt(now_s)):
                break
            i = self._queue.pop()
            if i is None:
                break
            room -= 1
            self._mark_sent(i, now_s)
            ids.append(i)
        if ids:
            self._plane.send(np.array(ids, np.int64), np.full(len(ids), now_s))

    def _preempt(self, now_s: float) -> bool:
        """Take the seat of the request of the lowest class that was sent last."""
        best = self._queue.best_priority()
        victims = [(self._promise(j).priority, self._sent_at[j], j) for j in self._sent]
        if best is None or not victims:
            return False
        priority, _, victim = max(victims)
        if priority <= best or not self._plane.cancel(victim):
            return False
        self._sent.discard(victim)
        self._plane.outcome.num_preemptions[victim] += 1
        self.reasons["preempted by a higher class"] += 1
        self._queue.push(victim, priority, float(self._requests.arrival_s[victim]), self._tenant(victim), front=True)
        return True

    def _look_at_ends(self, now_s: float) -> None:
        outcome = self._plane.outcome
        for i in [j for j in self._sent if outcome.status[j] == REJECTED or outcome.finish_s[j] <= now_s]:
            self._sent.discard(i)
            if outcome.status[i] == REJECTED:
                self.reasons["too long for a replica"] += 1
                continue
            if self._caches is not None:
                self._caches.ended(i, float(outcome.finish_s[i]))
            self._queue.charge(self._tenant(i), float(self._requests.input_tokens[i] + self._requests.output_tokens[i]))

    def _give_up(self, now_s: float) -> None:
        """Clients that time out and deadlines that pass."""
        outcome = self._plane.outcome
        while self._due and self._due[0][0] <= now_s:
            due_s, i, attempt, what = heapq.heappop(self._due)
            if self._attempt.get(i) != attempt or outcome.status[i] in (REJECTED, FAILED):
                continue
            kept = outcome.finish_s[i] if what == "timeout" else outcome.scheduled_s[i]
            if kept <= due_s or not self._take_back(i):
                continue
            if what == "timeout":
                self._fail(i, due_s, "client time-out")
            else:
                self._reject(i, due_s, "deadline", retry=False)

    def _take_back(self, i: int) -> bool:
        if self._queue.remove(i):
            return True
        if i in self._sent:
            if self._plane.cancel(i):
                self._sent.discard(i)
                return True
            return False
        self._kept.discard(i)
        before = len(self._again)
        self._again = [e for e in self._again if e[1] != i]
        heapq.heapify(self._again)
        return len(self._again) < before

    def _answer(self, i: int, at_s: float, end_s: float) -> None:
        outcome = self._plane.outcome
        outcome.scheduled_s[i], outcome.first_token_s[i], outcome.finish_s[i] = at_s, end_s, end_s
        outcome.status[i] = COMPLETED
        self.reasons["answered by a cache"] += 1

    def _reject(self, i: int, now_s: float, reason: str, *, retry: bool = True) -> None:
        self.reasons[reason] += 1
        if not (retry and self._retry(i, now_s)):
            self._plane.outcome.status[i] = REJECTED

    def _fail(self, i: int, now_s: float, reason: str) -> None:
        self.reasons[reason] += 1
        if not self._retry(i, now_s):
            self._plane.outcome.status[i] = FAILED

    def _retry(self, i: int, now_s: float) -> bool:
        attempt = self._attempt.get(i, 0)
        if attempt >= self._policy.retry.max_retries:
            return False
        self._attempt[i] = attempt + 1
        self.num_retries += 1
        heapq.heappush(self._again, (now_s + self._policy.retry.wait_s(attempt, self._rng), i))
        return True

    def _mark_sent(self, i: int, at_s: float) -> None:
        self._undelivered += 1
        self._sent.add(i)
        self._sent_at[i] = at_s

    def _num_waiting_behind(self) -> int:
        return int(self._plane.load().waiting.sum()) if self._policy.max_queue is not None else 0

    def _room(self) -> int:
        """Free seats of the live replicas, less what is on its way; may be negative."""
        load = self._plane.load()
        held = sum(int(load.running[s] + load.waiting[s]) for s in self._seats())
        return sum(self._seats().values()) - held - self._undelivered

    def _promise(self, i: int) -> ClassPolicy:
        classes = self._requests.request_class
        return self._classes[0 if classes is None else int(classes[i])]

    def _tenant(self, i: int) -> int:
        return int(self._requests.session[i]) if self._requests.session is not None else 0
