"""Prompts: the running one's next chunk, then waiting requests in order, within the token budget."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.engine import adapters, handover, kv_cache, kv_tiers, preemption, speculation, static_batches, waiting
from simulator.engine.compiled import inner
from simulator.engine.engine_state import PREFILLING
from simulator.engine.policies import STATIC


@inner
def continue_prefill(w: Any, r: int, now: float, budget: int) -> tuple[int, float, int]:
    """The running request in the middle of its prompt computes its next chunk.

    Returns:
        (tokens, sum of tokens x keys they attend to, prompts that end).
    """
    me = w.replicas[r]
    i = me.prefilling
    if i < 0 or budget <= 0:
        return 0, 0.0, 0
    computed = w.requests[i].computed
    rest = w.requests[i].input + w.requests[i].generated - computed
    chunk = min(rest, budget)
    before, after = computed, computed + chunk
    if me.spec_tokens > 0:
        before, after = w.requests[i].slots, speculation.slots(w, r, after)
    need = preemption.blocks_held(w, r, i, after) - preemption.blocks_held(w, r, i, before)
    if need > kv_cache.free_blocks(w, r):
        preemption.preempt_last(w, r, now)
        return 0, 0.0, 0
    kv_cache.take_blocks(w, r, need)
    kv_cache.remember_blocks(w, r, i, computed, computed + chunk)
    kv_tiers.remember(w, r, i, computed, computed + chunk)
    w.requests[i].computed, w.requests[i].slots = computed + chunk, after
    if chunk == rest:
        me.prefilling = -1
    return chunk, chunk * (computed + 0.5 * chunk), 1 if chunk == rest else 0


@inner
def prefill(w: Any, r: int, now: float, budget: int) -> tuple[int, float, int]:
    """Prompt tokens of this step: the running prompt's next chunk, then waiting requests in order.

    No one is admitted in a step that preempted someone.
    """
    me = w.replicas[r]
    bs = me.block_size
    tokens, work, ending = continue_prefill(w, r, now, budget)
    if me.preempted_now:
        return tokens, work, ending
    if me.policy == STATIC and (me.num_running > 0 or me.head < 0 or now < waiting.due_s(w, r)):
        return tokens, work, ending
    seats = me.max_num_seqs - (waiting.running_elsewhere(w, r) if me.num_stages > 1 else 0)
    budget -= tokens
    if me.arrived_head >= 0:
        arrived, reach = handover.admit_arrived(w, r, now, budget)
        tokens, work, ending, budget = tokens + arrived, work + reach, ending + arrived, budget - arrived
    before, i, leader = -1, w.replicas[me.home].head, w.replicas[me.home].head
    while budget > 0 and i >= 0 and me.num_running < seats:
        if w.requests[i].ready_s > now:
            break
        if me.lora_slots > 0 and not adapters.fits(w, r, i):
            before, i = i, w.requests[i].next
            continue
        if not static_batches.alike(w, r, leader, i):
            before, i = i, w.requests[i].next
            continue
        length = w.requests[i].input + w.requests[i].generated
        hit, held = kv_cache.find_cached_blocks(w, r, i, (length - 1) // bs)
        in_cpu, on_disk = kv_tiers.find(w, r, i, hit, (length - 1) // bs)
        on_gpu, hit = hit, hit + in_cpu + on_disk
        rest = length - hit * bs
        chunk = min(rest, budget)
        if not me.chunked and w.requests[i].generated > 0 and budget == me.max_tokens:
            chunk = rest  # alone in its step, a preempted sequence may have outgrown the budget
        need = preemption.blocks_held(w, r, i, length) - held
        if (chunk < rest and not me.chunked) or need > kv_cache.free_blocks(w, r):
            break
        after = w.requests[i].next
        _take_from_queue(w, r, before, i)
        _admit(w, r, i, now, on_gpu, in_cpu, on_disk)
        kv_cache.take_blocks(w, r, preemption.blocks_held(w, r, i, hit * bs + chunk) - on_gpu)
        kv_cache.remember_blocks(w, r, i, on_gpu * bs, hit * bs + chunk)
        kv_tiers.remember(w, r, i, on_gpu * bs, hit * bs + chunk)
        tokens += chunk
        work += chunk * (hit * bs + 0.5 * chunk)
        budget -= chunk
        w.requests[i].computed = w.requests[i].slots = hit * bs + chunk
        if chunk == rest:
            ending += 1
        else:
            me.prefilling = i
        i = after
    if budget > 0 and me.head < 0 and me.remote_head >= 0 and me.num_running < me.max_num_seqs:
        handover.start_transfers(w, r, now)
    return tokens, work, ending


@inner
def _take_from_queue(w: Any, r: int, before: int, i: int) -> None:
    """Take a request out of the queue, in which ``before`` (or -1) comes before it."""
    me = w.replicas[w.replicas[r].home]
    if before < 0:
        me.head = w.requests[i].next
    else:
        w.requests[before].next = w.requests[i].next
    if w.requests[i].next < 0:
        me.tail = before
    me.num_waiting -= 1


@inner
def _admit(w: Any, r: int, i: int, now: float, on_gpu: int, in_cpu: int, on_disk: int) -> None:
    """A request becomes the last running one; some of its blocks are cached, here or in a tier."""
    me = w.replicas[r]
    bs = me.block_size
    if me.lora_slots > 0:
        adapters.take(w, r, i)
    kv_cache.take_cached_blocks(w, r, i, on_gpu)
    kv_tiers.load(w, r, in_cpu, on_disk)
    w.running[r, me.num_running] = i
    me.num_running += 1
    w.requests[i].phase = PREFILLING
    w.requests[i].replica = r
    if np.isnan(w.requests[i].scheduled_s):
        w.requests[i].scheduled_s = now
        w.requests[i].num_cached_tokens = (on_gpu + in_cpu + on_disk) * bs
        if me.prefix_caching:
            me.prefix_queries += w.requests[i].input
            me.prefix_hits += (on_gpu + in_cpu + on_disk) * bs
            me.cpu_hits += in_cpu * bs
            me.disk_hits += on_disk * bs
    else:
        w.requests[i].stall_s += now
