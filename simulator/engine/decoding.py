"""Decoding sequences, one token a step, kept in counters so that many steps can be taken at once.

A sequence is known by ``base`` (its computed tokens less the replica's decode steps so far), which does not change
while it decodes; ``crossing`` counts by residue of ``base`` who needs a block in a step, and ``next_done`` is the step
in which the next one has all its tokens.
"""

from __future__ import annotations

from typing import Any

from simulator.engine import adapters, kv_cache, step_eval
from simulator.engine.compiled import inner
from simulator.engine.engine_state import DECODING, FAR, FINISHING
from simulator.engine.records import COMPLETED


@inner
def decode_contexts(w: Any, r: int) -> tuple[float, float, float]:
    """Mean, shortest and longest context of the decoding sequences in this step."""
    me = w.replicas[r]
    now = me.steps + 1
    return me.sum_context / me.num_decode, float(me.shortest + now), float(me.longest + now)


@inner
def scan_decoding(w: Any, r: int) -> None:
    """Find anew which decoding sequence ends first, and the shortest and longest."""
    me = w.replicas[r]
    me.next_done, me.shortest, me.longest = FAR, FAR, -FAR
    for place in range(me.num_running):
        i = w.running[r, place]
        if w.requests[i].phase == DECODING:
            me.next_done = min(me.next_done, w.requests[i].done_at)
            me.shortest = min(me.shortest, w.requests[i].base)
            me.longest = max(me.longest, w.requests[i].base)


@inner
def sample_after_prefill(w: Any, r: int, i: int, end: float) -> None:
    """A prompt's last chunk is in flight: its token comes at ``end``; from now on it decodes."""
    me = w.replicas[r]
    it = w.requests[i]
    it.generated += 1
    if it.generated == 1:
        it.first_token_s = end + w.tables.overhead[me.table, step_eval.OUTPUT_S]
    if it.generated >= it.output:
        finish(w, r, i, end)
        return
    it.phase = DECODING
    it.prefilled = it.known = it.computed
    start_decoding(w, r, i)


@inner
def start_decoding(w: Any, r: int, i: int) -> None:
    """Put a sequence among the decoding ones."""
    me = w.replicas[r]
    it = w.requests[i]
    me.num_decode += 1
    if me.spec_tokens > 0:
        return
    it.base = it.computed - me.steps
    it.done_at = me.steps + it.output - it.generated
    me.sum_context += it.computed + 1
    w.crossing[r, (-it.base) % me.block_size] += 1 if me.reserve == 0 else 0
    me.next_done = min(me.next_done, it.done_at)
    me.shortest = min(me.shortest, it.base)
    me.longest = max(me.longest, it.base)


@inner
def finish(w: Any, r: int, i: int, end: float) -> None:
    """The last token is in flight; seat and blocks are held until it is out."""
    me = w.replicas[r]
    if me.lora_slots > 0:
        adapters.give_back(w, r, i)
    w.requests[i].phase = FINISHING
    w.requests[i].end_s = end
    me.num_finishing += 1
    w.requests[i].finish_s = end + w.tables.overhead[me.table, step_eval.OUTPUT_S]
    w.requests[i].status = COMPLETED
    if len(w.ended) > 0:
        w.ended[w.num_ended[0]] = i
        w.num_ended[0] += 1


@inner
def steps_with_blocks(w: Any, r: int, most: int) -> int:
    """Decode steps, up to ``most``, until the blocks run out; the first of them has its blocks."""
    me = w.replicas[r]
    bs = me.block_size
    free, per_turn = me.free, me.num_decode
    if me.reserve > 0 or ((most + bs - 2) // bs) * per_turn <= free:
        return most
    turns = free // per_turn
    steps, free = 1 + turns * bs, free - turns * per_turn
    while steps < most:
        free -= w.crossing[r, (me.steps + steps) % bs]
        if free < 0:
            return steps  # type: ignore[no-any-return]
        steps += 1
    return most


@inner
def take_blocks_for_steps(w: Any, r: int, steps: int) -> None:
    """Blocks for the second to the last of ``steps`` decode steps."""
    me = w.replicas[r]
    bs = me.block_size
    if me.reserve > 0:
        return
    turns, rest = (steps - 1) // bs, (steps - 1) % bs
    need = turns * me.num_decode
    for j in range(rest):
        need += w.crossing[r, (me.steps + 1 + j) % bs]
    kv_cache.take_blocks(w, r, need)


@inner
def take_decode_steps(w: Any, r: int, steps: int, end: float) -> None:
    """Decoding sequences gain ``steps`` tokens, the last at ``end``."""
    me = w.replicas[r]
    me.steps += steps
    me.sum_context += steps * me.num_decode
    if me.steps < me.next_done:
        return
    for place in range(me.num_running):
        i = w.running[r, place]
        if w.requests[i].phase == DECODING and w.requests[i].done_at <= me.steps:
            stop_decoding(w, r, i)
            finish(w, r, i, end)
    scan_decoding(w, r)


@inner
def stop_decoding(w: Any, r: int, i: int) -> None:
    """Take a sequence out of the decode counters; its tokens are written down."""
    me = w.replicas[r]
    if me.spec_tokens > 0:
        me.num_decode -= 1
        return
    w.requests[i].computed = w.requests[i].base + me.steps
    w.requests[i].generated = w.requests[i].output - (w.requests[i].done_at - me.steps)
    me.num_decode -= 1
    me.sum_context -= w.requests[i].computed + 1
    w.crossing[r, (-w.requests[i].base) % me.block_size] -= 1 if me.reserve == 0 else 0
