"""The compiled engine: replicas that step from event to event.

A replica's state changes only at admissions, chunk ends, completions and block exhaustion; the decode steps in between
are taken at once (``step_eval.decode_run``). The rules are vLLM V1's scheduler (``vllm/v1/core/sched/scheduler.py``,
0.19): running requests first, then waiting ones first come, first served, within the token budget; a request that
finds no block preempts the last running one, and no one is admitted in that step. With asynchronous scheduling a
step is decided while the one before it runs. ``plain/reference.py`` says the same in plain Python, one step at a time.

Running order is the order of admission; at most the last running request is in the middle of its prompt.
"""

from __future__ import annotations

from typing import Any

from simulator.engine import (
    decoding,
    front_end,
    handover,
    lockstep,
    preemption,
    prefilling,
    speculation,
    static_batches,
    step_eval,
    swapping,
    waiting,
)
from simulator.engine.compiled import inner
from simulator.engine.engine_state import NEVER
from simulator.engine.policies import PREFILL_FIRST


@inner
def advance_replica(w: Any, r: int, until_s: float, once: bool) -> None:
    """Make all decisions before ``until_s``; with ``once`` a single one (or a run of equal ones)."""
    if w.replicas[r].rank_0 != r or w.replicas[r].home != r:
        return
    while once or w.replicas[r].next_s < until_s:
        if w.replicas[r].num_ranks > 1:
            _decide_together(w, r)
        elif w.replicas[r].num_stages > 1:
            _decide_staged(w, r)
        else:
            _decide(w, r, until_s)
        if once:
            return


@inner
def _plan_step(w: Any, r: int, now: float) -> tuple[int, float, int, int]:
    """What the next step computes: (prompt tokens, their work, prompts that end, decoding sequences)."""
    me = w.replicas[r]
    if me.num_finishing > 0:
        preemption.release_finished(w, r, now)
    me.preempted_now = 0
    me.verify = 0
    if me.policy == PREFILL_FIRST:
        tokens, work, ending = 0, 0.0, 0
        if me.swap_head < 0 or me.prefilling >= 0:
            tokens, work, ending = prefilling.prefill(w, r, now, me.max_tokens)
        decodes = 0 if tokens > 0 else _plan_decodes(w, r, now)
    else:
        decodes = _plan_decodes(w, r, now)
        tokens, work, ending = prefilling.prefill(w, r, now, me.max_tokens - me.verify)
    if me.num_front > 1:
        front_end.note_load(w, r, now)
    return tokens, work, ending, decodes


@inner
def _plan_decodes(w: Any, r: int, now: float) -> int:
    """Blocks for the decoding sequences of this step; how many they are (and ``verify``, how many tokens)."""
    me = w.replicas[r]
    if me.spec_tokens > 0:
        return speculation.plan(w, r, now)
    preemption.make_room(w, r, now)
    if me.swap_head >= 0:
        swapping.swap_in(w, r, now)
    me.verify = me.num_decode
    return me.num_decode  # type: ignore[no-any-return]


@inner
def _decide(w: Any, r: int, until_s: float) -> None:
    """One decision of the scheduler; where it repeats itself, as many as fall before ``until_s``."""
    now = w.replicas[r].next_s
    tokens, work, ending, decodes = _plan_step(w, r, now)
    single = w.replicas[r].spec_tokens > 0 or w.replicas[r].copy_s > 0.0
    if tokens > 0 or (decodes > 0 and single):
        time = w.replicas[r].speed * _step_s(w, r, tokens, work, ending, decodes)
        _commit_step(w, r, now, time, ending, decodes)
    elif decodes > 0:
        _decode_steps(w, r, now, until_s)
    else:
        _nothing_to_do(w, r, now)


@inner
def _decide_together(w: Any, first: int) -> None:
    """One decision of all ranks of a lock-step group: each waits for the slowest, and all share the experts.

    A rank without work computes one token, as vLLM's dummy batch; where all ranks' tokens fit a CUDA graph, all run the
    graph that the largest of them needs, of the kind for prompts if one has some (``vllm/v1/worker/dp_utils.py``).
    """
    now, last = w.replicas[first].next_s, first + w.replicas[first].num_ranks
    total, most, mixed = 0, 0, False
    for r in range(first, last):
        me = w.replicas[r]
        me.step_tokens, me.step_work, me.step_ending, me.step_decodes = _plan_step(w, r, now)
        tokens = me.step_tokens + me.verify
        total += max(tokens, 1)
        most = max(most, tokens)
        mixed = mixed or me.step_tokens > 0
    if most > 0:
        lockstep.count_step(w, first, now)
        graph = step_eval.graph_size(most) if most <= w.replicas[first].graph_tokens else 0
        if graph > 0:
            total = w.replicas[first].num_ranks * graph
        time = _slowest_s(w, first, graph, mixed)
        time += w.replicas[first].speed * step_eval.experts_s(w.tables, w.replicas[first].table, total)
        for r in range(first, last):
            _commit_step(w, r, now, time, w.replicas[r].step_ending, w.replicas[r].step_decodes)
        return
    soonest = NEVER
    for r in range(first, last):
        _nothing_to_do(w, r, now)
        soonest = min(soonest, w.replicas[r].next_s)
    if soonest < NEVER and w.replicas[first].inflight_s <= now:
        soonest = lockstep.free_at_s(w, first, soonest)
    for r in range(first, last):
        w.replicas[r].next_s = soonest


@inner
def _slowest_s(w: Any, first: int, graph: int, mixed: bool) -> float:
    """The longest of the ranks' own steps, experts apart; ``graph`` > 0: all are padded to so many tokens."""
    slowest = 0.0
    for r in range(first, first + w.replicas[first].num_ranks):
        me = w.replicas[r]
        tokens = me.step_tokens + me.verify
        if tokens > 0:
            own = _step_s(w, r, me.step_tokens, me.step_work, me.step_ending, me.step_decodes)
            if graph > 0:
                own += step_eval.token_wise_s(w.tables, me.table, graph, mixed)
                own -= step_eval.token_wise_s(w.tables, me.table, tokens, me.step_tokens > 0)
            slowest = max(slowest, me.speed * own)
    return slowest


@inner
def _decide_staged(w: Any, first: int) -> None:
    """One decision of a pipeline's scheduler, which has as many batches under way as there are stages.

    As vLLM's ``step_with_batch_queue`` (``vllm/v1/engine/core.py``, 0.19): a batch that has come out of the last stage
    goes in again with what waits; while fewer are under way, what still waits makes another; once nothing is left to
    put in, nothing is decided until the oldest batch has come out.
    """
    now = w.replicas[first].next_s
    r = _batch_to_plan(w, first, now)
    planned = False
    if r >= 0:
        tokens, work, ending, decodes = _plan_step(w, r, now)
        planned = tokens > 0 or decodes > 0
        if planned:
            time = w.replicas[r].speed * _step_s(w, r, tokens, work, ending, decodes)
            end = _through_stages(w, first, now, time)
            me = w.replicas[r]
            me.iterations += 1
            me.busy_s += time
            me.inflight_s = end
            _take_step(w, r, end, ending, decodes)
    _plan_next(w, first, now, planned)


@inner
def _batch_to_plan(w: Any, first: int, now: float) -> int:
    """The batch that has come out first, else an empty one for what waits, else -1."""
    out, empty = -1, -1
    for r in range(first, first + w.replicas[first].num_stages):
        me = w.replicas[r]
        if me.inflight_s <= now and me.num_running == 0 and empty < 0:
            empty = r
        elif me.inflight_s <= now and me.num_running > 0 and (out < 0 or me.inflight_s < w.replicas[out].inflight_s):
            out = r
    if out >= 0:
        return out
    return empty if w.replicas[first].head >= 0 else -1


@inner
def _through_stages(w: Any, first: int, now: float, time: float) -> float:
    """When a batch that goes in now has passed all stages, each of which serves one batch at a time."""
    stages = w.replicas[first].num_stages
    at_s = now
    for stage in range(first, first + stages):
        at_s = max(at_s, w.replicas[stage].stage_free_s) + time / stages
        w.replicas[stage].stage_free_s = at_s
    return at_s


@inner
def _plan_next(w: Any, first: int, now: float, planned: bool) -> None:
    """When a pipeline's scheduler decides again."""
    home = w.replicas[first]
    soonest, under_way, is_out = NEVER, 0, False
    for r in range(first, first + home.num_stages):
        me = w.replicas[r]
        if me.inflight_s > now:
            under_way += 1
            soonest = min(soonest, me.inflight_s)
        elif me.num_running > 0:
            is_out = True
    more = planned and under_way < home.num_stages and home.head >= 0 and w.requests[home.head].ready_s <= now
    if is_out or more:
        home.next_s = now
    elif under_way > 0:
        home.next_s = soonest
    else:
        home.idle_since_s = now
        home.next_s = NEVER if home.head < 0 else max(now, waiting.due_s(w, first))


@inner
def _nothing_to_do(w: Any, r: int, now: float) -> None:
    me = w.replicas[r]
    if me.inflight_s > now:
        me.next_s = me.inflight_s
    else:
        me.idle_since_s = now
        head = me.head
        me.next_s = NEVER if head < 0 else max(now, waiting.due_s(w, r))
        if me.num_held > 0 and me.next_s <= now and not me.preempted_now:
            me.next_s = NEVER  # what it waits for is held for a transfer, whose end wakes it
        me.next_s = min(me.next_s, handover.next_s(w, r, now))


@inner
def _after_steps(w: Any, r: int, now: float, steps: int, total_s: float, before_s: float) -> float:
    """Put steps in flight; returns the end of the last of them."""
    me = w.replicas[r]
    start = max(now, me.inflight_s)
    me.iterations += steps
    me.busy_s += total_s
    end = start + total_s
    if not me.asynchronous:
        me.next_s = end
    else:
        me.next_s = start + before_s
    me.inflight_s = end
    return end  # type: ignore[no-any-return]


@inner
def _step_s(w: Any, r: int, tokens: int, work: float, ending: int, decodes: int) -> float:
    """Seconds of one step."""
    me = w.replicas[r]
    seqs = decodes + ending + (1 if tokens > 0 and me.prefilling >= 0 else 0)
    if me.spec_tokens > 0:
        time = speculation.step_s(w, r, tokens, work, ending, decodes, seqs)
    elif me.pads:
        time = _padded_step_s(w, r, tokens > 0)
    else:
        contexts = decoding.decode_contexts(w, r) if decodes > 0 else (0.0, 0.0, 0.0)
        keys, sampled = work / tokens if tokens > 0 else 0.0, decodes + ending
        time = step_eval.step_s(w.tables, me.table, tokens, keys, decodes, decodes, contexts, sampled, seqs)
    longer = max(time, me.load_s) + me.copy_s
    me.copied_s += me.speed * (longer - time)
    return longer  # type: ignore[no-any-return]


@inner
def _padded_step_s(w: Any, r: int, begins: bool) -> float:
    """Seconds of one step of a static batch whose rows are padded."""
    if begins:
        static_batches.begin(w, r)
    rows, length = w.replicas[r].batch_rows, w.replicas[r].batch_tokens
    table = w.replicas[r].table
    if begins:
        none = (0.0, 0.0, 0.0)
        return step_eval.step_s(w.tables, table, rows * length, 0.5 * length, 0, 0, none, rows, rows)
    contexts = static_batches.decode_contexts(w, r)
    return step_eval.step_s(w.tables, table, 0, 0.0, rows, rows, contexts, rows, rows)


@inner
def _commit_step(w: Any, r: int, now: float, time: float, ending: int, decodes: int) -> None:
    """Put one step in flight, in which the prompts of ``ending`` requests end."""
    _take_step(w, r, _after_steps(w, r, now, 1, time, 0.0), ending, decodes)


@inner
def _take_step(w: Any, r: int, end: float, ending: int, decodes: int) -> None:
    """What a step that ends at ``end`` brings its sequences."""
    me = w.replicas[r]
    w.replicas[r].copy_s = w.replicas[r].load_s = 0.0
    if w.replicas[r].spec_tokens > 0:
        speculation.take_step(w, r, end)
    elif decodes > 0:
        decoding.take_decode_steps(w, r, 1, end)
    stop = me.num_running - (1 if me.prefilling >= 0 else 0)
    for place in range(stop - ending, stop):
        decoding.sample_after_prefill(w, r, w.running[r, place], end)


@inner
def _decode_steps(w: Any, r: int, now: float, until_s: float) -> None:
    """As many equal decode steps as fit before the next event."""
    me = w.replicas[r]
    start = max(now, me.inflight_s)
    limit = until_s
    limit = min(limit, waiting.next_ready_s(w, r, now))
    limit = min(limit, handover.next_event_s(w, r, now))
    most = me.next_done - me.steps
    if me.num_finishing > 0 or me.preempted_now or me.prefilling >= 0:
        most = 1
    if most > 1:
        most = decoding.steps_with_blocks(w, r, most)
    if me.pads:
        decode, contexts = me.batch_rows, static_batches.decode_contexts(w, r)
    else:
        decode, contexts = me.num_decode, decoding.decode_contexts(w, r)
    table, speed = me.table, me.speed
    room = limit - start
    if not me.asynchronous:
        steps, total, before = step_eval.decode_run(w.tables, table, speed, decode, contexts, most, room)
    elif room <= 0.0 or most == 1:
        steps, total, before = step_eval.decode_run(w.tables, table, speed, decode, contexts, 1, NEVER)
    else:
        steps, total, before = step_eval.decode_run(w.tables, table, speed, decode, contexts, most, room)
        if total >= room and steps < most:
            later = (contexts[0] + steps, contexts[1] + steps, contexts[2] + steps)
            _, one, _ = step_eval.decode_run(w.tables, table, speed, decode, later, 1, NEVER)
            steps, before, total = steps + 1, total, total + one
    end = _after_steps(w, r, now, steps, total, before)
    if steps > 1:
        decoding.take_blocks_for_steps(w, r, steps)
    decoding.take_decode_steps(w, r, steps, end)
