"""Preemption by swap (vLLM V0): a preempted sequence's blocks go to host memory and come back before it goes on.

First out, first back, when its blocks and one more are free beside a hundredth of all (V0's watermark), in a step that
preempted no one and while no prompt is half computed. A step waits for the copies of its decision. A sequence for which
host memory has no room, or in the middle of its prompt, is computed again instead.
"""

from __future__ import annotations

from typing import Any

from simulator.engine import decoding, kv_cache, preemption
from simulator.engine.compiled import inner
from simulator.engine.engine_state import DECODING


@inner
def swap_in(w: Any, r: int, now: float) -> None:
    """Bring swapped sequences back, in order, as far as seats, token budget and blocks allow; they decode at once."""
    me = w.replicas[r]
    if me.preempted_now or me.prefilling >= 0:
        return
    while me.swap_head >= 0 and me.num_running < me.max_num_seqs and me.num_decode < me.max_tokens:
        i = me.swap_head
        held = preemption.blocks_held(w, r, i, w.requests[i].computed)
        need = preemption.blocks_held(w, r, i, w.requests[i].computed + 1)
        spare = me.num_blocks // 100 if me.num_running > 0 else 0
        if need + spare > me.free:
            return
        take_out(w, r, -1, i)
        me.copy_s += held * me.block_copy_s
        me.swap_ins += 1
        kv_cache.take_blocks(w, r, need)
        w.running[r, me.num_running] = i
        me.num_running += 1
        w.requests[i].phase = DECODING
        w.requests[i].stall_s += now
        decoding.start_decoding(w, r, i)


@inner
def take_out(w: Any, r: int, before: int, i: int) -> None:
    """Remove a sequence from the swapped ones, where ``before`` (or -1) comes before it; its host blocks are free."""
    me = w.replicas[r]
    if before < 0:
        me.swap_head = w.requests[i].next
    else:
        w.requests[before].next = w.requests[i].next
    if w.requests[i].next < 0:
        me.swap_tail = before
    w.requests[i].next = -1
    me.num_waiting -= 1
    me.swap_free += preemption.blocks_held(w, r, i, w.requests[i].computed)
