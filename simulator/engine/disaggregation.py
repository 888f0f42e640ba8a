"""Prefill/decode disaggregation: some replicas compute prompts, others decode, and the KV moves in between.

As vLLM's disaggregated prefill behind its proxy: a request goes to a prefill replica with ``max_tokens`` 1; when that
answers, it goes to a decode replica, which fetches the KV (see ``handover``) and computes the prompt's last token again
to sample the first token that the client sees. With ``first_token="prefill"`` the client sees the prefill replica's
token, as in DistServe (Zhong et al., OSDI 2024) and Splitwise (Patel et al., ISCA 2024), and the decode replica goes on
from it.
``plain/disaggregation.py`` says the same in plain Python.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.engine import feed, handover, loop, routing, step_eval
from simulator.engine.compiled import entry, inner
from simulator.engine.engine_state import DONE
from simulator.engine.event_heap import pop, push
from simulator.engine.plane import Plane, check_run, router_keys
from simulator.engine.pools import Pools, doubled
from simulator.engine.records import COMPLETED, REJECTED, Handover, Records
from simulator.engine.transfers import new_transfers
from simulator.workload.requests import Requests


class DisaggregatedPlane(Plane):
    """Prefill and decode replicas in one world; it cannot grow or shrink.

    Args:
        requests: the workload, open or closed loop.
        pools: the replicas, prefill first.
        router: chooses the prefill replica on arrival.
    """

    def __init__(
        self, requests: Requests, pools: Pools, router: str, seed: int = 0,
        options: routing.RouterOptions | None = None,
    ) -> None:  # fmt: skip
        super().__init__(doubled(requests), (*pools.prefill, *pools.decode), "round_robin", seed)
        n, self._pools = len(requests), pools

        def new(name: str, num: int, options: routing.RouterOptions | None) -> routing.Router:
            return routing.new_router(name, num, router_keys(requests, name), options or routing.RouterOptions(), seed)

        self._feed = feed.new_feed(n, requests.concurrency)
        self._router = new(router, len(pools.prefill), options)
        self._decode_router = new(pools.decode_router, len(pools.decode), None)
        rows = self._world.requests
        decodes_first = pools.first_token == "decode"
        self._goes_on = rows["output"][n:] > (0 if decodes_first else 1)
        rows["hold"][:n] = self._goes_on
        rows["remote"][n:] = requests.input_tokens - (1 if decodes_first else 0)
        rows["generated"][n:] = 0 if decodes_first else 1
        self._world.replicas["link_bytes_per_s"] = pools.link_bytes_per_s
        self._world = self._world._replace(
            ended=np.zeros(2 * n, np.int64),
            transfers=new_transfers(n, pools.block_bytes, pools.latency_s, pools.hidden_share),
        )

    def advance(self, until_s: float) -> None:
        """Deliver all requests and make all decisions before ``until_s``."""
        world, arrivals, router, decode_router = map(self._pack, ("_world", "_feed", "_router", "_decode_router"))
        advance(world, arrivals, router, decode_router, float(until_s))
        self.now_s = max(self.now_s, until_s)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return super().idle and self._world.transfers.num_heap[0] == 0

    def records(self) -> Records:
        """What has happened so far, one row a request; ``replica`` is the one that decoded it."""
        both, n = super().records(), len(self.requests) // 2
        rows, transfers = self._world.requests, self._world.transfers
        first, second = slice(0, n), slice(n, 2 * n)
        ended_there = (rows["status"][first] != COMPLETED) | ~self._goes_on
        by_decode = self._pools.first_token == "decode"
        return replace(
            both,
            arrival_s=both.arrival_s[first],
            scheduled_s=both.scheduled_s[first],
            first_token_s=np.where(
                ended_there | (not by_decode), both.first_token_s[first], both.first_token_s[second]
            ),
            finish_s=np.where(ended_there, both.finish_s[first], both.finish_s[second]),
            replica=np.where(ended_there, both.replica[first], both.replica[second]),
            status=np.where(ended_there, both.status[first], both.status[second]),
            num_cached_tokens=both.num_cached_tokens[first],
            num_preemptions=both.num_preemptions[first] + both.num_preemptions[second],
            stall_s=None if both.stall_s is None else both.stall_s[first] + both.stall_s[second],
            handover=Handover(
                prefill_replica=both.replica[first],
                prefill_end_s=both.finish_s[first],
                start_s=transfers.start_s.copy(),
                end_s=transfers.end_s.copy(),
                decode_scheduled_s=both.scheduled_s[second],
                num_bytes=transfers.num_bytes.copy(),
            ),
        )


def simulate_disaggregated(
    requests: Requests,
    pools: Pools,
    router: str = "round_robin",
    seed: int = 0,
    *,
    options: routing.RouterOptions | None = None,
    fast: bool = True,
    check: bool = False,
    series_interval_s: float | None = None,
) -> Records:
    """Serve all requests through both pools; see ``engine.simulate_replicas`` for the arguments.

    Raises:
        InputError: settings that the engine refuses. BrokenInvariantError: a fault of ours, with ``check``.
    """
    if not fast:
        from simulator.engine.plain.disaggregation import simulate_plainly

        records = simulate_plainly(requests, pools, router, seed, options)
    else:
        plane = DisaggregatedPlane(requests, pools, router, seed, options)
        series = {} if series_interval_s is None else _sample(plane, len(pools.prefill), series_interval_s)
        records = replace(plane.finish(), series=series)
    if check:
        check_run(requests, records, DisaggregatedPlane(requests, pools, router, seed, options))
    return records


def _sample(plane: DisaggregatedPlane, num_prefill: int, interval_s: float) -> dict[str, NDArray[np.float64]]:
    """Both pools at every multiple of an interval until nothing is left to do."""
    rows: list[list[float]] = []
    for at in plane.snapshots(interval_s):
        row = [at.at_s]
        for pool in (slice(0, num_prefill), slice(num_prefill, None)):
            row += [at.num_running[pool].sum(), at.num_waiting[pool].sum(), at.kv_share[pool].mean()]
        rows.append(row)
    names = [f"{pool}_{name}" for pool in ("prefill", "decode") for name in ("num_running", "num_waiting", "kv_share")]
    return dict(zip(["t_s", *names], np.array(rows, float).T, strict=True))


@entry
def advance(w: Any, arrivals: Any, router: Any, decode_router: Any, until_s: float) -> None:
    """Deliver all requests that come before ``until_s`` and make all decisions before it, in both pools.

    Events have one order: arrivals, then prompts that are computed, then KV that has come, then decisions by replica.
    A decode replica that has no KV to fetch changes nothing elsewhere until it is looked at, and runs ahead by itself.
    """
    num_prefill = len(router.alive)
    closed = arrivals.closed[0] == 1
    transfers = w.transfers
    while True:
        at_s = feed.next_arrival_s(w, arrivals)
        event_s = transfers.heap_s[0] if transfers.num_heap[0] > 0 else np.inf
        who, soonest, second = -1, np.inf, np.inf
        for r in range(len(w.replicas)):
            if r < num_prefill or closed or w.replicas[r].remote_head >= 0:
                if w.replicas[r].next_s < soonest:
                    who, soonest, second = r, w.replicas[r].next_s, soonest
                else:
                    second = min(second, w.replicas[r].next_s)
        if min(at_s, min(event_s, soonest)) >= until_s:
            break
        if at_s <= event_s and at_s <= soonest:
            _deliver(w, arrivals, router, at_s)
        elif event_s <= soonest:
            i = pop(transfers)
            if i < len(transfers.start_s):
                _hand_over(w, arrivals, decode_router, num_prefill, i, event_s)
            else:
                loop.advance_replica(w, w.requests[i].replica, event_s, False)
                handover.arrive(w, i, event_s)
                handover.let_go(w, i - len(transfers.start_s), event_s)
        else:
            loop.advance_replica(w, who, min(min(until_s, second), min(at_s, event_s)), True)
            _take_ended(w, arrivals, closed)
    for r in range(num_prefill, len(w.replicas)):
        loop.advance_replica(w, r, until_s, False)
    _take_ended(w, arrivals, closed)


@inner
def _deliver(w: Any, arrivals: Any, router: Any, at_s: float) -> None:
    """Route the next request to a prefill replica."""
    if router.kind[0] not in routing.BLIND and at_s >= router.taken_s[0] + router.staleness_s[0]:
        feed.take_snapshot(w, router, at_s)
    feed.deliver(w, arrivals, router, at_s)
    for r in range(len(router.alive)):
        if w.replicas[r].next_s < at_s:  # it waited for blocks: it looks again now
            w.replicas[r].next_s = at_s


@inner
def _take_ended(w: Any, arrivals: Any, closed: bool) -> None:
    """Prompts that end go to the decode pool; answers that end let a closed loop's next request come."""
    for place in range(w.num_ended[0]):
        i = w.ended[place]
        if w.requests[i].hold:
            push(w.transfers, w.requests[i].finish_s, i)
        elif closed:
            feed.send_next(w, arrivals, w.requests[i].finish_s)
    w.num_ended[0] = 0


@inner
def _hand_over(w: Any, arrivals: Any, router: Any, first: int, i: int, at_s: float) -> None:
    """A computed prompt goes to a decode replica's queue, or is refused as the engine would."""
    if router.kind[0] not in routing.BLIND:
        router.taken_s[0] = at_s
        for place in range(len(router.alive)):
            loop.advance_replica(w, first + place, at_s, False)
            me = w.replicas[first + place]
            router.load[place] = me.num_waiting + me.num_running
            router.kv_share[place] = 1.0 - me.free / me.num_blocks
    r = first + routing.choose(router, i)
    loop.advance_replica(w, r, at_s, False)
    me, it = w.replicas[r], w.requests[len(w.transfers.start_s) + i]
    longest = min(me.max_model_len, me.num_blocks * me.block_size)
    it.output = min(it.output, longest - it.input)
    if me.reserve > 0:
        it.output = min(it.output, me.reserve)
    if it.output <= it.generated:
        it.replica, it.phase = r, DONE
        it.status = REJECTED
        handover.let_go(w, i, at_s)
        if arrivals.closed[0]:
            feed.send_next(w, arrivals, at_s)
        return
    overhead = w.tables.overhead[me.table]
    me.front_s = max(at_s, me.front_s) + overhead[step_eval.PROMPT_TOKEN_S] * it.input
    handover.queue_remote(w, r, len(w.transfers.start_s) + i, me.front_s + overhead[step_eval.REQUEST_S])
