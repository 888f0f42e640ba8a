"""KV that moves from prefill replicas to decode replicas: what the compiled loop does about it.

A request is two rows: i computes the prompt on a prefill replica and samples one token; n + i decodes elsewhere. As
with vLLM's KV connectors (``vllm/v1/core/sched/scheduler.py``, WAITING_FOR_REMOTE_KVS, 0.19): once the prompt is
computed its blocks stay where they are; the decode replica, at one of its decisions, takes blocks for the prompt
without giving a seat, and fetches the KV; when it has come, the request gets a seat before those that wait for blocks,
and the prefill replica gives its blocks back. Of a prompt that its own prefix cache holds in part, it fetches the rest.

A replica's link carries one transfer at a time, first come, first served; a transfer takes both ends' links.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.engine import adapters, kv_cache, preemption
from simulator.engine.compiled import inner
from simulator.engine.engine_state import DONE, HELD, PREFILLING, WAITING
from simulator.engine.event_heap import push


@inner
def next_s(w: Any, r: int, now: float) -> float:
    """When the first request whose KV lies elsewhere can be looked at, if that is later than now; else infinity."""
    i = w.replicas[r].remote_head
    while i >= 0 and w.requests[i].ready_s <= now and w.replicas[r].lora_slots > 0:
        i = w.requests[i].next  # one that waits for a slot may be passed
    if i < 0 or w.requests[i].ready_s <= now:
        return np.inf
    return w.requests[i].ready_s  # type: ignore[no-any-return]


@inner
def next_event_s(w: Any, r: int, now: float) -> float:
    """Until when nothing that moves KV can change a replica."""
    soonest = next_s(w, r, now)
    if w.transfers.num_heap[0] > 0:
        soonest = min(soonest, w.transfers.heap_s[0])
    return soonest


@inner
def wake(w: Any, r: int, at_s: float) -> None:
    """Let a replica that has nothing in flight decide at an instant."""
    me = w.replicas[r]
    if me.next_s == np.inf or me.inflight_s <= me.idle_since_s:
        me.next_s = min(me.next_s, max(at_s, me.idle_since_s))


@inner
def queue_remote(w: Any, r: int, i: int, ready_s: float) -> None:
    """A request whose prompt is computed elsewhere comes to a decode replica."""
    me = w.replicas[r]
    it = w.requests[i]
    it.replica, it.ready_s, it.phase, it.next = r, ready_s, WAITING, -1
    if me.remote_tail >= 0:
        w.requests[me.remote_tail].next = i
    else:
        me.remote_head = i
    me.remote_tail = i
    me.num_waiting += 1
    wake(w, r, ready_s)


@inner
def start_transfers(w: Any, r: int, now: float) -> None:
    """Fetch the KV of waiting requests in order, as long as there are blocks for it."""
    me = w.replicas[r]
    bs, before, after = me.block_size, -1, me.remote_head
    while after >= 0 and w.requests[after].ready_s <= now:
        i, after = after, w.requests[after].next
        if me.lora_slots > 0 and not adapters.fits(w, r, i):
            before = i
            continue
        length = w.requests[i].input + w.requests[i].generated
        hit, held = kv_cache.find_cached_blocks(w, r, i, (length - 1) // bs)
        need = preemption.blocks_held(w, r, i, length)
        if need - held > me.free:
            return
        if before < 0:
            me.remote_head = after
        else:
            w.requests[before].next = after
        if after < 0:
            me.remote_tail = before
        kv_cache.take_cached_blocks(w, r, i, hit)
        kv_cache.take_blocks(w, r, need - hit)
        w.requests[i].phase, w.requests[i].computed = HELD, length
        w.requests[i].slots = length
        w.requests[i].num_cached_tokens = hit * bs
        if me.prefix_caching:
            me.prefix_queries += w.requests[i].input
            me.prefix_hits += hit * bs
        me.num_held += 1
        _send(w, r, i, now, max(0, (w.requests[i].remote + bs - 1) // bs - hit))


@inner
def _send(w: Any, r: int, i: int, now: float, num_blocks: int) -> None:
    """Put a transfer of some blocks on both ends' links.

    Layer by layer, what the link carried while the prompt was computed is there already.
    """
    transfers, n = w.transfers, len(w.transfers.start_s)
    prompt = w.requests[i - n]
    source = w.replicas[prompt.replica]
    me = w.replicas[r]
    num_bytes = num_blocks * transfers.block_bytes[0]
    bytes_per_s = min(me.link_bytes_per_s, source.link_bytes_per_s)
    ahead_s = max(0.0, prompt.finish_s - max(prompt.scheduled_s, source.link_free_s))
    ahead = min(transfers.hidden_share[0] * num_bytes, bytes_per_s * ahead_s)
    start_s = max(now, max(me.link_free_s, source.link_free_s))
    end_s = start_s + transfers.latency_s[0] + (num_bytes - ahead) / bytes_per_s
    me.link_free_s = source.link_free_s = end_s
    transfers.start_s[i - n], transfers.end_s[i - n], transfers.num_bytes[i - n] = start_s, end_s, num_bytes
    push(transfers, end_s, i)


@inner
def arrive(w: Any, i: int, at_s: float) -> None:
    """A request's KV has come: it waits for a seat."""
    r = w.requests[i].replica
    me = w.replicas[r]
    bs = me.block_size
    kv_cache.remember_blocks(w, r, i, w.requests[i].num_cached_tokens // bs * bs, w.requests[i].remote)
    w.requests[i].next = -1
    if me.arrived_tail >= 0:
        w.requests[me.arrived_tail].next = i
    else:
        me.arrived_head = i
    me.arrived_tail = i
    wake(w, r, at_s)


@inner
def admit_arrived(w: Any, r: int, now: float, budget: int) -> tuple[int, float]:
    """Seats for requests whose KV has come; each computes one token. Returns (tokens, tokens x keys)."""
    me = w.replicas[r]
    tokens, work, before, after = 0, 0.0, -1, me.arrived_head
    while tokens < budget and after >= 0 and me.num_running < me.max_num_seqs:
        i, after = after, w.requests[after].next
        if me.lora_slots > 0:
            if not adapters.fits(w, r, i):
                before = i
                continue
            adapters.take(w, r, i)
        if before < 0:
            me.arrived_head = after
        else:
            w.requests[before].next = after
        if after < 0:
            me.arrived_tail = before
        me.num_held -= 1
        me.num_waiting -= 1
        w.running[r, me.num_running] = i
        me.num_running += 1
        w.requests[i].phase = PREFILLING
        w.requests[i].scheduled_s = now
        kv_cache.remember_blocks(w, r, i, w.requests[i].remote, w.requests[i].computed)
        tokens += 1
        work += w.requests[i].remote + 0.5
    return tokens, work


@inner
def let_go(w: Any, i: int, at_s: float) -> None:
    """A prefill replica need not hold a request's blocks any longer."""
    r = w.requests[i].replica
    me = w.replicas[r]
    w.requests[i].hold = 0
    if w.requests[i].phase == HELD:
        me.num_held -= 1
        preemption.give_back(w, r, i, False)
        w.requests[i].phase = DONE
        if me.head >= 0:
            wake(w, r, at_s)
