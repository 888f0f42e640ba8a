"""Arrivals in the order of time: open loop from a sorted list, closed loop and re-sent requests from a heap."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.engine import front_end, kv_cache, loop, routing, step_eval, waiting
from simulator.engine.compiled import entry, inner
from simulator.engine.event_heap import pop, push

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]


class Feed(NamedTuple):
    """Requests that have not reached a replica.

    Attributes:
        limit: (1,) requests below this index come at their ``arrival_s``, in order (none of a closed loop).
        cursor: (1,) the next of them.
        heap_s, heap: (capacity,) a heap of (instant, request) of the others.
        num_heap: (1,)
        closed: (1,) 1 for a closed loop.
        spare: (1,) the next request of a closed loop that has not been sent; num_requests: (1,).
        lost: (1,) requests that found no replica alive.
    """

    limit: I64
    cursor: I64
    heap_s: F64
    heap: I64
    num_heap: I64
    closed: I64
    spare: I64
    num_requests: I64
    lost: I64


def new_feed(num_requests: int, concurrency: int | None) -> Feed:
    """All requests by their arrival, or the first ``concurrency`` of them and one more whenever one ends."""

    def one(value: int) -> I64:
        return np.array([value], np.int64)

    first = num_requests if concurrency is None else min(concurrency, num_requests)
    capacity = max(16, num_requests if concurrency is not None else 16)
    return Feed(
        one(first), one(0), np.zeros(capacity), np.zeros(capacity, np.int64), one(0),
        one(0 if concurrency is None else 1), one(first), one(num_requests), one(0),
    )  # fmt: skip


def with_room(feed: Feed, count: int) -> Feed:
    """The feed with room for ``count`` more requests in its heap."""
    if feed.num_heap[0] + count <= len(feed.heap):
        return feed
    return feed._replace(
        heap_s=np.concatenate([feed.heap_s, np.zeros(len(feed.heap) + count)]),
        heap=np.concatenate([feed.heap, np.zeros(len(feed.heap) + count, np.int64)]),
    )


@inner
def next_arrival_s(w: Any, feed: Any) -> float:
    """When the next request comes; infinity where none is left."""
    listed = w.requests[feed.cursor[0]].arrival_s if feed.cursor[0] < feed.limit[0] else np.inf
    if feed.num_heap[0] > 0 and feed.heap_s[0] < listed:
        return feed.heap_s[0]  # type: ignore[no-any-return]
    return listed


@inner
def deliver(w: Any, feed: Any, router: Any, at_s: float) -> None:
    """Route the next request, which comes at ``at_s``."""
    cursor = feed.cursor[0]
    if cursor < feed.limit[0] and w.requests[cursor].arrival_s == at_s:
        i = cursor
        feed.cursor[0] += 1
    else:
        i = pop(feed)
    r = routing.choose(router, i)
    if r < 0:
        feed.lost[0] += 1
        w.requests[i].replica = -1
        return
    if w.replicas[r].num_front > 1:
        for rank in range(w.replicas[r].front, w.replicas[r].front + w.replicas[r].num_front):
            loop.advance_replica(w, rank, at_s, False)
        r = front_end.choose_rank(w, r, at_s)
    r = w.replicas[r].home
    overhead = w.tables.overhead[w.replicas[r].table]
    front_s = max(at_s, w.replicas[r].front_s) + overhead[step_eval.PROMPT_TOKEN_S] * w.requests[i].input
    w.replicas[r].front_s = front_s
    ready_s = front_s + overhead[step_eval.REQUEST_S]
    if not waiting.enqueue(w, r, i, ready_s) and feed.closed[0]:
        send_next(w, feed, at_s)


@inner
def send_next(w: Any, feed: Any, at_s: float) -> None:
    """A closed loop's next request, sent when one has ended."""
    i = feed.spare[0]
    if i < feed.num_requests[0]:
        feed.spare[0] += 1
        w.requests[i].arrival_s = at_s
        push(feed, at_s, i)


@inner
def take_snapshot(w: Any, router: Any, at_s: float) -> None:
    """What the router sees of the replicas; every batch of a pipeline stands for the whole of it."""
    router.taken_s[0] = at_s
    for r in range(len(router.alive)):
        me = w.replicas[r]
        router.load[r] = 0.0
        for batch in range(me.home, me.home + me.num_stages):
            router.load[r] += w.replicas[batch].num_waiting + w.replicas[batch].num_running
        router.kv_share[r] = 1.0 - kv_cache.free_blocks(w, r) / me.num_blocks


@entry
def advance(w: Any, feed: Any, router: Any, until_s: float) -> None:
    """Deliver all requests that come before ``until_s`` and make all decisions before it.

    Blind routers in an open loop: all requests are delivered first, then each replica runs by itself. Else the
    replicas keep up with the arrivals. In a closed loop the replica with the earliest decision goes first, up to the
    others', since any end of a request is an arrival.
    """
    num_replicas = len(router.alive)
    closed = feed.closed[0] == 1
    blind = router.kind[0] in routing.BLIND
    while True:
        at_s = next_arrival_s(w, feed)
        first, last, limit_s = 0, num_replicas, min(at_s, until_s)
        looks = not blind and at_s < until_s and at_s >= router.taken_s[0] + router.staleness_s[0]
        if closed:
            first, soonest = 0, w.replicas[0].next_s
            for r in range(1, num_replicas):
                if w.replicas[r].next_s < soonest:
                    first, limit_s, soonest = r, min(limit_s, soonest), w.replicas[r].next_s
                else:
                    limit_s = min(limit_s, w.replicas[r].next_s)
            last = first + 1
            if soonest >= until_s and at_s >= until_s:
                return
            if at_s <= soonest:
                last = first
        elif at_s < until_s and not looks:
            last = 0
        for r in range(first, last):
            loop.advance_replica(w, r, limit_s, closed)
        for place in range(w.num_ended[0]):
            send_next(w, feed, w.requests[w.ended[place]].finish_s)
        w.num_ended[0] = 0
        if closed and last > first:
            continue
        if at_s >= until_s:
            return
        if looks:
            take_snapshot(w, router, at_s)
        deliver(w, feed, router, at_s)
