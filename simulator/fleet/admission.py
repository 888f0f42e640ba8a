"""The gateway's policies: who gets in, who goes first, who is told to come back, and when clients give up."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from catalogs.errors import InputError


@dataclass(frozen=True)
class ClassPolicy:
    """What a request class gets.

    Attributes:
        priority: smaller goes first (vLLM's convention).
        deadline_s: dropped if it has not started so long after its arrival; None: never.
        timeout_s: the client goes away so long after it sent the request; None: never.
    """

    priority: int = 0
    deadline_s: float | None = None
    timeout_s: float | None = None


@dataclass(frozen=True)
class RetryPolicy:
    """Clients that come back: after ``backoff_s * multiplier**k``, at most ``max_backoff_s``, with jitter.

    Attributes:
        jitter: share of the wait that is drawn at random (1: full jitter).
    """

    max_retries: int = 0
    backoff_s: float = 1.0
    multiplier: float = 2.0
    max_backoff_s: float = 60.0
    jitter: float = 1.0

    def wait_s(self, attempt: int, rng: np.random.Generator) -> float:
        """Until the retry number ``attempt`` (from 0)."""
        whole = min(self.max_backoff_s, self.backoff_s * self.multiplier**attempt)
        return whole * (1 - self.jitter * float(rng.uniform()))


@dataclass(frozen=True)
class AdmissionPolicy:
    """The gateway.

    Attributes:
        queue: ``replica``: requests go to a replica at once and wait there; ``central``: they wait in the gateway until
            a replica has fewer than ``max_ongoing_requests``.
        max_queue: a request that finds so many waiting is refused, or takes the place of a less important one.
        rate_rps, burst: token bucket over all requests; per_tenant: one each.
        ageing_s: a waiting request gains one priority level in so many seconds; None: never.
        preempt_lower: a request that finds no seat takes that of a running one of a lower class, which starts over.
        fairness: ``tenant``: among equals, the tenant that was served the fewest tokens goes first (VTC).
        on_loss: requests on a lost replica are sent again (``requeue``), or fail.
    """

    queue: Literal["replica", "central"] = "replica"
    max_ongoing_requests: int | None = None
    max_queue: int | None = None
    rate_rps: float | None = None
    burst: float = 1.0
    per_tenant: bool = False
    classes: Mapping[str, ClassPolicy] = field(default_factory=dict)
    ageing_s: float | None = None
    preempt_lower: bool = False
    fairness: Literal["none", "tenant"] = "none"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    on_loss: Literal["requeue", "fail"] = "requeue"
    tick_s: float = 0.25

    def __post_init__(self) -> None:
        if self.queue == "replica" and (self.preempt_lower or self.fairness != "none" or self.ageing_s is not None):
            raise InputError(
                "preempt_lower, fairness and ageing_s need a queue to reorder",
                where="admission",
                why="with queue: replica the gateway holds nothing",
                remedy="queue: central",
            )
        if self.rate_rps is not None and self.rate_rps <= 0:
            raise InputError(f"rate_rps is {self.rate_rps:g}", where="admission", remedy="a rate above 0")

    @property
    def passes_all(self) -> bool:
        """Whether requests go to replicas as they come, so that the gateway need not look at each."""
        silent = all(c.deadline_s is None and c.timeout_s is None for c in self.classes.values())
        return self.queue == "replica" and self.max_queue is None and self.rate_rps is None and silent


@dataclass
class TokenBucket:
    """``rate_rps`` tokens a second, at most ``burst`` kept; a request takes one."""

    rate_rps: float
    burst: float
    tokens: float = field(init=False)
    at_s: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = self.burst

    def take(self, now_s: float) -> bool:
        """Whether a request may pass."""
        self.tokens = min(self.burst, self.tokens + (now_s - self.at_s) * self.rate_rps)
        self.at_s = now_s
        if self.tokens < 1 - 1e-9:
            return False
        self.tokens -= 1
        return True


class CentralQueue:
    """Waiting requests by class, tenant and age.

    The class whose oldest request has the smallest ``priority + enqueued / ageing_s`` is served (which ranks as
    ``priority - waited / ageing_s`` does); within it the tenant with the fewest tokens served, then the oldest request.
    A tenant that returns starts no lower than the least served one that waits (Sheng et al. 2024, VTC).

    Args:
        ageing_s: a request gains a level in so many seconds; None: never.
        fair: tell tenants apart.
    """

    def __init__(self, ageing_s: float | None = None, *, fair: bool = False) -> None:
        self._ageing_s, self._fair = ageing_s, fair
        self._classes: dict[int, dict[int, deque[tuple[float, int, int]]]] = {}  # priority, tenant, (since, ticket, i)
        self._served: dict[int, float] = {}
        self._tickets: dict[int, int] = {}  # requests that wait
        self._num_tickets = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, i: int) -> bool:
        return i in self._tickets

    def push(self, i: int, priority: int, now_s: float, tenant: int = 0, *, front: bool = False) -> None:
        """Add a request; ``front``: before its tenant's others (it was taken from a seat)."""
        tenant = tenant if self._fair else 0
        tenants = self._classes.setdefault(priority, {})
        if self._fair and not any(tenant in t for t in self._classes.values()):
            waiting = {t for tenants_of in self._classes.values() for t in tenants_of}
            least = min((self._served.get(t, 0.0) for t in waiting), default=0.0)
            self._served[tenant] = max(self._served.get(tenant, 0.0), least)
        self._num_tickets += 1
        self._tickets[i] = self._num_tickets
        queue = tenants.setdefault(tenant, deque())
        (queue.appendleft if front else queue.append)((now_s, self._num_tickets, i))

    def remove(self, i: int) -> bool:
        """Take a request out, wherever it stands; False if it does not wait."""
        return self._tickets.pop(i, None) is not None

    def pop(self) -> int | None:
        """The next request; None where none waits."""
        heads = self._heads()
        if not heads:
            return None
        age = 1 / self._ageing_s if self._ageing_s else 0.0
        oldest = {p: min(since for _, since, _ in tenants) for p, tenants in heads.items()}
        priority = min(heads, key=lambda p: (p + oldest[p] * age, p))
        _, _, tenant = min(heads[priority])
        _, _, i = self._classes[priority][tenant].popleft()
        del self._tickets[i]
        return i

    def charge(self, tenant: int, tokens: float) -> None:
        """A tenant was served so many tokens."""
        if self._fair:
            self._served[tenant] = self._served.get(tenant, 0.0) + tokens

    def least_important(self) -> tuple[int, int] | None:
        """(priority, request): the newest of the least important class that waits."""
        for priority in sorted(self._classes, reverse=True):
            waits = [e for q in self._classes[priority].values() for e in q if self._tickets.get(e[2]) == e[1]]
            if waits:
                return priority, max(waits)[2]
        return None

    def best_priority(self) -> int | None:
        """The most important class that waits."""
        return min(self._heads(), default=None)

    def _heads(self) -> dict[int, list[tuple[float, float, int]]]:
        """By priority: (tokens served, since, tenant) of each tenant that waits; drops what has been removed."""
        heads: dict[int, list[tuple[float, float, int]]] = {}
        for priority, tenants in self._classes.items():
            for tenant in list(tenants):
                queue = tenants[tenant]
                while queue and self._tickets.get(queue[0][2]) != queue[0][1]:
                    queue.popleft()
                if queue:
                    heads.setdefault(priority, []).append((self._served.get(tenant, 0.0), queue[0][0], tenant))
                else:
                    del tenants[tenant]
        return heads
