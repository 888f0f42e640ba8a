"""Who gives blocks back: sequences that have ended, and the last running ones where none is free for another."""

from __future__ import annotations

from typing import Any

from simulator.engine import adapters, decoding, kv_cache
from simulator.engine.compiled import entry, inner
from simulator.engine.engine_state import DECODING, DONE, FINISHING, HELD, SWAPPED, WAITING


@entry
def blocks_held(w: Any, r: int, i: int, computed: int) -> int:
    """Blocks of a running request that has computed so many tokens."""
    me = w.replicas[r]
    bs = me.block_size
    if me.reserve > 0:
        computed = min(w.requests[i].input + me.reserve, min(me.max_model_len, me.num_blocks * bs))
    return (computed + bs - 1) // bs  # type: ignore[no-any-return]


@inner
def release_finished(w: Any, r: int, now: float) -> None:
    """Sequences whose last token is out give back seat and blocks."""
    me = w.replicas[r]
    kept = 0
    for place in range(me.num_running):
        i = w.running[r, place]
        if w.requests[i].phase == FINISHING and w.requests[i].end_s <= now:
            me.num_finishing -= 1
            if w.requests[i].hold:
                w.requests[i].phase = HELD
                me.num_held += 1
            else:
                w.requests[i].phase = DONE
                give_back(w, r, i, False)
        else:
            w.running[r, kept] = i
            kept += 1
    me.num_running = kept


@inner
def give_back(w: Any, r: int, i: int, keep: bool) -> None:
    """Free a sequence's blocks, last first; with ``keep`` its full blocks can be found again."""
    me = w.replicas[r]
    bs = me.block_size
    computed = w.requests[i].computed
    num_blocks = blocks_held(w, r, i, w.requests[i].slots if me.spec_tokens > 0 else computed)
    full = 0
    if me.prefix_caching:
        known = computed
        if me.spec_tokens > 0 and w.requests[i].phase == DECODING:
            known = w.requests[i].known
        elif me.asynchronous and w.requests[i].phase == DECODING and computed > w.requests[i].prefilled:
            known -= 1  # as vLLM: a block counts as cached once the token after it is out
        full = known // bs
    kv_cache.give_back_blocks(w, r, i, num_blocks, full, keep)


@inner
def _recompute(w: Any, r: int, i: int) -> None:
    """To the head of the queue, to be computed again."""
    me = w.replicas[r]
    give_back(w, r, i, True)
    if me.prefilling == i:
        me.prefilling = -1
    w.requests[i].phase = WAITING
    w.requests[i].computed = 0
    queue = w.replicas[me.home]
    w.requests[i].next = queue.head
    queue.head = i
    if queue.tail < 0:
        queue.tail = i


@inner
def _swap_out(w: Any, r: int, i: int) -> None:
    """To host memory, behind those that are there (see ``swapping``)."""
    me = w.replicas[r]
    blocks = blocks_held(w, r, i, w.requests[i].computed)
    give_back(w, r, i, False)
    me.swap_free -= blocks
    me.copy_s += blocks * me.block_copy_s
    me.swap_outs += 1
    w.requests[i].phase = SWAPPED
    w.requests[i].next = -1
    if me.swap_tail >= 0:
        w.requests[me.swap_tail].next = i
    else:
        me.swap_head = i
    me.swap_tail = i


@inner
def preempt_last(w: Any, r: int, now: float) -> int:
    """Take the last running request's blocks; it waits to go on, in host memory or the queue. Returns it."""
    me = w.replicas[r]
    me.num_running -= 1
    i = w.running[r, me.num_running]
    if w.requests[i].phase == FINISHING:
        me.num_finishing -= 1
        give_back(w, r, i, False)
        w.requests[i].phase = DONE
    else:
        if me.lora_slots > 0:
            adapters.give_back(w, r, i)
        decodes = w.requests[i].phase == DECODING
        if decodes:
            decoding.stop_decoding(w, r, i)
        if decodes and blocks_held(w, r, i, w.requests[i].computed) <= me.swap_free:
            _swap_out(w, r, i)
        else:
            _recompute(w, r, i)
        w.replicas[me.home].num_waiting += 1
        w.requests[i].stall_s -= now
    w.requests[i].num_preemptions += 1
    me.preemptions += 1
    me.preempted_now = 1
    return i  # type: ignore[no-any-return]


@inner
def make_room(w: Any, r: int, now: float) -> None:
    """Take the blocks that decoding sequences need in this step, from the last running ones if none is free."""
    me = w.replicas[r]
    bs = me.block_size
    if me.num_decode == 0:
        return
    phase = me.steps % bs
    need = w.crossing[r, phase]
    if need <= kv_cache.free_blocks(w, r):
        kv_cache.take_blocks(w, r, need)
        return
    place = 0
    while place < me.num_running:
        i = w.running[r, place]
        if w.requests[i].phase == DECODING and (-w.requests[i].base) % bs == phase:
            gone = -1
            while kv_cache.free_blocks(w, r) == 0 and gone != i:
                gone = preempt_last(w, r, now)
            if gone == i:
                break
            kv_cache.take_blocks(w, r, 1)
        place += 1
    decoding.scan_decoding(w, r)
