"""The queue of a replica: who waits, when an empty replica starts on it, and who is taken out.

A static batch (``policy: static``) starts when it is full or its first request has waited long enough.
"""

from __future__ import annotations

from typing import Any

from simulator.engine import adapters, decoding, kv_cache, lockstep, preemption, static_batches, swapping
from simulator.engine.compiled import entry, inner
from simulator.engine.engine_state import DECODING, DONE, FINISHING, NEVER, SWAPPED, UNSEEN, WAITING
from simulator.engine.policies import STATIC
from simulator.engine.records import REJECTED


@inner
def enqueue(w: Any, r: int, i: int, ready_s: float) -> bool:
    """Put a request into a replica's queue, or refuse it as the engine would."""
    r = w.replicas[r].home
    me = w.replicas[r]
    w.requests[i].replica = r
    longest = min(me.max_model_len, me.num_blocks * me.block_size)
    if w.requests[i].output < 1 or w.requests[i].input >= longest:
        w.requests[i].status = REJECTED
        w.requests[i].phase = DONE
        return False
    if not me.chunked and w.requests[i].input > me.max_tokens:
        w.requests[i].status = REJECTED
        w.requests[i].phase = DONE
        return False
    w.requests[i].output = min(w.requests[i].output, longest - w.requests[i].input)
    if me.reserve > 0:
        w.requests[i].output = min(w.requests[i].output, me.reserve)
    w.requests[i].ready_s = ready_s
    w.requests[i].phase = WAITING
    w.requests[i].next = -1
    if me.tail >= 0:
        w.requests[me.tail].next = i
    else:
        me.head = i
    me.tail = i
    me.num_waiting += 1
    idles = me.inflight_s <= me.idle_since_s and (me.num_ranks > 1 or me.policy == STATIC)
    start_s = lockstep.free_at_s(w, me.rank_0, max(due_s(w, r), me.idle_since_s))
    for rank in range(me.rank_0, me.rank_0 + me.num_ranks):
        if idles or w.replicas[rank].next_s == NEVER:
            w.replicas[rank].next_s = min(w.replicas[rank].next_s, start_s)
    return True


@inner
def running_elsewhere(w: Any, r: int) -> int:
    """Sequences in a pipeline's other batches, which share its seats."""
    first, total = w.replicas[r].home, 0
    for batch in range(first, first + w.replicas[r].num_stages):
        total += w.replicas[batch].num_running if batch != r else 0
    return total


@inner
def due_s(w: Any, r: int) -> float:
    """When an empty replica starts on its queue: with the first request, or once a static batch is full or overdue."""
    me = w.replicas[r]
    if me.policy != STATIC:
        return w.requests[me.head].ready_s  # type: ignore[no-any-return]
    due = w.requests[me.head].ready_s + me.max_delay_s
    i, place = me.head, 1
    while i >= 0 and place < me.max_num_seqs:
        i = w.requests[i].next
        if i >= 0 and static_batches.alike(w, r, me.head, i):
            place += 1
    return due if i < 0 else min(due, w.requests[i].ready_s)  # type: ignore[no-any-return]


@inner
def next_ready_s(w: Any, r: int, now: float) -> float:
    """When a request that is not ready yet could be admitted first; infinity without one.

    Only where adapters let a request pass another is it not the head.
    """
    i = w.replicas[w.replicas[r].home].head
    while i >= 0 and w.requests[i].ready_s <= now and w.replicas[r].lora_slots > 0:
        i = w.requests[i].next
    if i < 0 or w.requests[i].ready_s <= now:
        return NEVER
    return w.requests[i].ready_s  # type: ignore[no-any-return]


@entry
def cancel(w: Any, i: int) -> bool:
    """Take a waiting or running request out; False where it is in no replica or its last token is in flight."""
    phase, r = w.requests[i].phase, w.requests[i].replica
    if r < 0 or phase in (UNSEEN, DONE, FINISHING):
        return False
    me = w.replicas[w.replicas[r].home if phase == WAITING else r]
    if phase in (WAITING, SWAPPED):
        before, at = -1, me.swap_head if phase == SWAPPED else me.head
        while at >= 0 and at != i:
            before, at = at, w.requests[at].next
        if at < 0:
            return False
    if phase == SWAPPED:
        swapping.take_out(w, r, before, i)
    elif phase == WAITING:
        after = w.requests[i].next
        if before >= 0:
            w.requests[before].next = after
        else:
            me.head = after
        if after < 0:
            me.tail = before
        me.num_waiting -= 1
        kv_cache.forget(w, r, i)
    else:
        if me.lora_slots > 0:
            adapters.give_back(w, r, i)
        if phase == DECODING:
            decoding.stop_decoding(w, r, i)
        kept = 0
        for place in range(me.num_running):
            if w.running[r, place] != i:
                w.running[r, kept] = w.running[r, place]
                kept += 1
        me.num_running = kept
        preemption.give_back(w, r, i, False)
        if me.prefilling == i:
            me.prefilling = -1
    w.requests[i].phase = UNSEEN
    w.requests[i].next = -1
    w.requests[i].generated = 0
    w.requests[i].computed = 0
    w.requests[i].draws = 0
    return True
