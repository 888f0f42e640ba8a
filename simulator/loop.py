"""The compiled engine: replicas that step from event to event.

A replica's state changes only at admissions, chunk ends, completions and block exhaustion; the decode steps in between
are taken at once (``step_eval.decode_run``). The rules are vLLM V1's scheduler (``vllm/v1/core/sched/scheduler.py``,
0.19): running requests first, then waiting ones first come, first served, within the token budget; a request that
finds no block preempts the last running one, and no one is admitted in that step. With asynchronous scheduling a
step is decided while the one before it runs. ``reference.py`` says the same in plain Python, one step at a time.

Running order is the order of admission; at most the last running request is in the middle of its prompt.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator import handover, kv_cache, step_eval
from simulator.compiled import entry, inner
from simulator.kv_cache import blocks_held
from simulator.phases import DECODING, DONE, FINISHING, HELD, PREFILLING, UNSEEN, WAITING
from simulator.records import COMPLETED, REJECTED

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

CONTINUOUS, PREFILL_FIRST, STATIC = range(3)
NEVER = np.inf
FAR = 2**62
UNDECIDED = -1  # the status of a request that has not ended


# One row a replica: its settings, its state (instants are of decisions, not of results), its totals.
REPLICA = np.dtype(
    [
        ("table", np.int64),
        ("num_blocks", np.int64),  # that requests can hold
        ("block_size", np.int64),
        ("max_num_seqs", np.int64),
        ("max_tokens", np.int64),
        ("max_model_len", np.int64),
        ("prefix_caching", np.int64),
        ("chunked", np.int64),
        ("asynchronous", np.int64),
        ("policy", np.int64),
        ("reserve", np.int64),  # output tokens whose blocks are taken at admission; 0: blocks are taken as needed
        ("max_delay_s", np.float64),  # static batches: how long the first request waits for others
        ("rank_0", np.int64),  # of its lock-step group, and how many ranks that has
        ("num_ranks", np.int64),
        ("step_tokens", np.int64),  # of the step that a lock-step group is deciding
        ("step_work", np.float64),
        ("step_ending", np.int64),
        ("step_decodes", np.int64),
        ("next_s", np.float64),  # the next decision
        ("inflight_s", np.float64),  # end of the last step that was decided
        ("idle_since_s", np.float64),
        ("speed", np.float64),  # multiplies step times
        ("free", np.int64),  # blocks
        ("num_running", np.int64),
        ("num_decode", np.int64),
        ("sum_context", np.int64),  # of decoding sequences, in the next step
        ("steps", np.int64),  # decode steps so far: the clock that the counters refer to
        ("next_done", np.int64),  # ``steps`` at which the next decoding sequence has all its tokens
        ("shortest", np.int64),  # smallest and largest ``base`` of decoding sequences, where their skew matters
        ("longest", np.int64),
        ("num_finishing", np.int64),
        ("prefilling", np.int64),  # request in the middle of its prompt, or -1
        ("head", np.int64),  # waiting queue: first and last request, or -1
        ("tail", np.int64),
        ("num_waiting", np.int64),
        ("preempted_now", np.int64),  # 1 after a decision that preempted someone
        ("first", np.int64),  # free blocks (see kv_cache): first and last node, blocks after it
        ("last", np.int64),
        ("plain_after", np.int64),
        ("iterations", np.int64),
        ("preemptions", np.int64),
        ("busy_s", np.float64),
        ("front_s", np.float64),  # until when its one tokenizer is busy
        ("prefix_queries", np.int64),
        ("prefix_hits", np.int64),
        ("num_held", np.int64),  # requests that hold blocks without a seat (see ``handover``)
        ("remote_head", np.int64),  # queue of requests whose KV lies elsewhere, and of those whose KV has come
        ("remote_tail", np.int64),
        ("arrived_head", np.int64),
        ("arrived_tail", np.int64),
        ("link_bytes_per_s", np.float64),  # over which KV comes and goes, and until when it is taken
        ("link_free_s", np.float64),
    ]
)

# One row a request: its lengths, its state, its results (as in ``Records``).
REQUEST = np.dtype(
    [
        ("input", np.int64),
        ("output", np.int64),  # tokens that it will generate
        ("phase", np.int64),
        ("generated", np.int64),  # tokens sampled, while waiting or prefilling
        ("computed", np.int64),  # tokens computed, while prefilling
        ("prefilled", np.int64),  # tokens computed as a prompt, before it decoded
        ("base", np.int64),  # while decoding: computed tokens - ``steps``
        ("done_at", np.int64),  # while decoding: ``steps`` at which all tokens are sampled
        ("end_s", np.float64),  # while finishing: end of its last step
        ("ready_s", np.float64),  # in its replica's queue
        ("next", np.int64),  # in the waiting queue
        ("arrival_s", np.float64),
        ("scheduled_s", np.float64),
        ("first_token_s", np.float64),
        ("finish_s", np.float64),
        ("replica", np.int64),
        ("status", np.int64),
        ("num_cached_tokens", np.int64),
        ("num_preemptions", np.int64),
        ("stall_s", np.float64),  # preempted, waiting to be admitted again
        ("remote", np.int64),  # tokens whose KV is computed elsewhere
        ("hold", np.int64),  # 1: keeps its blocks when it has ended, until its KV has been fetched
    ]
)


class World(NamedTuple):
    """All that the compiled loop works on.

    Attributes:
        replicas, requests: rows of ``REPLICA`` and ``REQUEST``.
        nodes, shared: the KV caches (see ``kv_cache``).
        crossing: (r, block size) decoding sequences that need a block where ``steps % block_size`` is the column.
        running: (r, seats) requests in order of admission.
        ended, num_ended: requests whose end was decided since the caller last looked (where someone does; else empty).
        transfers: KV under way from prefill to decode replicas (empty without).
    """

    tables: step_eval.Tables
    replicas: Any
    requests: Any
    nodes: Any
    shared: kv_cache.Shared
    crossing: I64
    running: I64
    ended: I64
    num_ended: I64
    transfers: handover.Transfers


@inner
def enqueue(w: Any, r: int, i: int, ready_s: float) -> bool:
    """Put a request into a replica's queue, or refuse it as the engine would."""
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
    for rank in range(me.rank_0, me.rank_0 + me.num_ranks):
        if idles or w.replicas[rank].next_s == NEVER:
            w.replicas[rank].next_s = min(w.replicas[rank].next_s, max(due_s(w, r), me.idle_since_s))
    return True


@inner
def due_s(w: Any, r: int) -> float:
    """When an empty replica starts on its queue: with the first request, or once a static batch is full or overdue."""
    me = w.replicas[r]
    if me.policy != STATIC:
        return w.requests[me.head].ready_s  # type: ignore[no-any-return]
    due = w.requests[me.head].ready_s + me.max_delay_s
    i, place = me.head, 1
    while i >= 0 and place < me.max_num_seqs:
        i, place = w.requests[i].next, place + 1
    return due if i < 0 else min(due, w.requests[i].ready_s)  # type: ignore[no-any-return]


@inner
def advance_replica(w: Any, r: int, until_s: float, once: bool) -> None:
    """Make all decisions before ``until_s``; with ``once`` a single one (or a run of equal ones)."""
    if w.replicas[r].rank_0 != r:
        return
    while once or w.replicas[r].next_s < until_s:
        if w.replicas[r].num_ranks > 1:
            _decide_together(w, r)
        else:
            _decide(w, r, until_s)
        if once:
            return


@inner
def _plan_step(w: Any, r: int, now: float) -> tuple[int, float, int, int]:
    """What the next step computes: (prompt tokens, their work, prompts that end, decoding sequences)."""
    me = w.replicas[r]
    if me.num_finishing > 0:
        release_finished(w, r, now)
    me.preempted_now = 0
    if me.policy == PREFILL_FIRST:
        tokens, work, ending = prefill(w, r, now, me.max_tokens)
        if tokens == 0:
            make_room(w, r, now)
        return tokens, work, ending, 0 if tokens > 0 else me.num_decode
    make_room(w, r, now)
    decodes = me.num_decode
    tokens, work, ending = prefill(w, r, now, me.max_tokens - decodes)
    return tokens, work, ending, decodes


@inner
def _decide(w: Any, r: int, until_s: float) -> None:
    """One decision of the scheduler; where it repeats itself, as many as fall before ``until_s``."""
    now = w.replicas[r].next_s
    tokens, work, ending, decodes = _plan_step(w, r, now)
    if tokens > 0:
        time = w.replicas[r].speed * _step_s(w, r, tokens, work, ending, decodes)
        _commit_step(w, r, now, time, ending, decodes)
    elif decodes > 0:
        _decode_steps(w, r, now, until_s)
    else:
        _nothing_to_do(w, r, now)


@inner
def _decide_together(w: Any, first: int) -> None:
    """One decision of all ranks of a lock-step group: each waits for the slowest, and all share the experts."""
    now, last = w.replicas[first].next_s, first + w.replicas[first].num_ranks
    slowest, total = 0.0, 0
    for r in range(first, last):
        me = w.replicas[r]
        me.step_tokens, me.step_work, me.step_ending, me.step_decodes = _plan_step(w, r, now)
        tokens = me.step_tokens + me.step_decodes
        total += tokens
        if tokens > 0:
            own = _step_s(w, r, me.step_tokens, me.step_work, me.step_ending, me.step_decodes)
            slowest = max(slowest, me.speed * own)
    if total > 0:
        time = slowest + w.replicas[first].speed * step_eval.experts_s(w.tables, w.replicas[first].table, total)
        for r in range(first, last):
            _commit_step(w, r, now, time, w.replicas[r].step_ending, w.replicas[r].step_decodes)
        return
    soonest = NEVER
    for r in range(first, last):
        _nothing_to_do(w, r, now)
        soonest = min(soonest, w.replicas[r].next_s)
    for r in range(first, last):
        w.replicas[r].next_s = soonest


@inner
def _nothing_to_do(w: Any, r: int, now: float) -> None:
    me = w.replicas[r]
    if me.inflight_s > now:
        me.next_s = me.inflight_s
    else:
        me.idle_since_s = now
        head = me.head
        me.next_s = NEVER if head < 0 else max(now, due_s(w, r))
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
    contexts = decode_contexts(w, r) if decodes > 0 else (0.0, 0.0, 0.0)
    seqs = decodes + ending + (1 if tokens > 0 and me.prefilling >= 0 else 0)
    mean_keys = work / tokens if tokens > 0 else 0.0
    return step_eval.step_s(w.tables, me.table, tokens, mean_keys, decodes, contexts, decodes + ending, seqs)


@inner
def _commit_step(w: Any, r: int, now: float, time: float, ending: int, decodes: int) -> None:
    """Put one step in flight, in which the prompts of ``ending`` requests end."""
    me = w.replicas[r]
    end = _after_steps(w, r, now, 1, time, 0.0)
    if decodes > 0:
        _take_decode_steps(w, r, 1, end)
    stop = me.num_running - (1 if me.prefilling >= 0 else 0)
    for place in range(stop - ending, stop):
        _sample_after_prefill(w, r, w.running[r, place], end)


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
def _sample_after_prefill(w: Any, r: int, i: int, end: float) -> None:
    """A prompt's last chunk is in flight: its token comes at ``end``; from now on it decodes."""
    me = w.replicas[r]
    bs = me.block_size
    it = w.requests[i]
    it.generated += 1
    if it.generated == 1:
        it.first_token_s = end + w.tables.overhead[me.table, step_eval.OUTPUT_S]
    if it.generated >= it.output:
        _finish(w, r, i, end)
        return
    it.phase = DECODING
    it.prefilled = it.computed
    it.base = it.computed - me.steps
    it.done_at = me.steps + it.output - it.generated
    me.num_decode += 1
    me.sum_context += it.computed + 1
    w.crossing[r, (-it.base) % bs] += 1 if me.reserve == 0 else 0
    me.next_done = min(me.next_done, it.done_at)
    me.shortest = min(me.shortest, it.base)
    me.longest = max(me.longest, it.base)


@inner
def _finish(w: Any, r: int, i: int, end: float) -> None:
    """The last token is in flight; seat and blocks are held until it is out."""
    me = w.replicas[r]
    w.requests[i].phase = FINISHING
    w.requests[i].end_s = end
    me.num_finishing += 1
    w.requests[i].finish_s = end + w.tables.overhead[me.table, step_eval.OUTPUT_S]
    w.requests[i].status = COMPLETED
    if len(w.ended) > 0:
        w.ended[w.num_ended[0]] = i
        w.num_ended[0] += 1


@inner
def _decode_steps(w: Any, r: int, now: float, until_s: float) -> None:
    """As many equal decode steps as fit before the next event."""
    me = w.replicas[r]
    start = max(now, me.inflight_s)
    limit = until_s
    head = me.head
    if head >= 0 and w.requests[head].ready_s > now:
        limit = min(limit, w.requests[head].ready_s)
    limit = min(limit, handover.next_event_s(w, r, now))
    most = me.next_done - me.steps
    if me.num_finishing > 0 or me.preempted_now or me.prefilling >= 0:
        most = 1
    if most > 1:
        most = _steps_with_blocks(w, r, most)
    decode = me.num_decode
    contexts = decode_contexts(w, r)
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
        _take_blocks_for_steps(w, r, steps)
    _take_decode_steps(w, r, steps, end)


@inner
def _steps_with_blocks(w: Any, r: int, most: int) -> int:
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
def _take_blocks_for_steps(w: Any, r: int, steps: int) -> None:
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
def _take_decode_steps(w: Any, r: int, steps: int, end: float) -> None:
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
            _finish(w, r, i, end)
    scan_decoding(w, r)


@inner
def stop_decoding(w: Any, r: int, i: int) -> None:
    """Take a sequence out of the decode counters; its tokens are written down."""
    me = w.replicas[r]
    w.requests[i].computed = w.requests[i].base + me.steps
    w.requests[i].generated = w.requests[i].output - (w.requests[i].done_at - me.steps)
    me.num_decode -= 1
    me.sum_context -= w.requests[i].computed + 1
    w.crossing[r, (-w.requests[i].base) % me.block_size] -= 1 if me.reserve == 0 else 0


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
    num_blocks = blocks_held(w, r, i, computed)
    full = 0
    if me.prefix_caching:
        known = computed
        if me.asynchronous and w.requests[i].phase == DECODING and computed > w.requests[i].prefilled:
            known -= 1  # as vLLM: a block counts as cached once the token after it is out
        full = known // bs
    kv_cache.give_back_blocks(w, r, i, num_blocks, full, keep)


@inner
def preempt_last(w: Any, r: int, now: float) -> int:
    """Take the last running request's blocks; it goes to the head of the queue. Returns it."""
    me = w.replicas[r]
    me.num_running -= 1
    i = w.running[r, me.num_running]
    if w.requests[i].phase == FINISHING:
        me.num_finishing -= 1
        give_back(w, r, i, False)
        w.requests[i].phase = DONE
    else:
        if w.requests[i].phase == DECODING:
            stop_decoding(w, r, i)
        give_back(w, r, i, True)
        if me.prefilling == i:
            me.prefilling = -1
        w.requests[i].phase = WAITING
        w.requests[i].computed = 0
        w.requests[i].next = me.head
        me.head = i
        if me.tail < 0:
            me.tail = i
        me.num_waiting += 1
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
    if need <= me.free:
        kv_cache.take_blocks(w, r, need)
        return
    place = 0
    while place < me.num_running:
        i = w.running[r, place]
        if w.requests[i].phase == DECODING and (-w.requests[i].base) % bs == phase:
            gone = -1
            while me.free == 0 and gone != i:
                gone = preempt_last(w, r, now)
            if gone == i:
                break
            kv_cache.take_blocks(w, r, 1)
        place += 1
    scan_decoding(w, r)


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
    need = blocks_held(w, r, i, computed + chunk) - blocks_held(w, r, i, computed)
    if need > me.free:
        preempt_last(w, r, now)
        return 0, 0.0, 0
    kv_cache.take_blocks(w, r, need)
    kv_cache.remember_blocks(w, r, i, computed, computed + chunk)
    w.requests[i].computed = computed + chunk
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
    if me.policy == STATIC and (me.num_running > 0 or me.head < 0 or now < due_s(w, r)):
        return tokens, work, ending
    budget -= tokens
    if me.arrived_head >= 0:
        arrived, reach = handover.admit_arrived(w, r, now, budget)
        tokens, work, ending, budget = tokens + arrived, work + reach, ending + arrived, budget - arrived
    while budget > 0 and me.head >= 0 and me.num_running < me.max_num_seqs:
        i = me.head
        if w.requests[i].ready_s > now:
            break
        length = w.requests[i].input + w.requests[i].generated
        hit, held = kv_cache.find_cached_blocks(w, r, i, (length - 1) // bs)
        rest = length - hit * bs
        chunk = min(rest, budget)
        if not me.chunked and w.requests[i].generated > 0 and budget == me.max_tokens:
            chunk = rest  # alone in its step, a preempted sequence may have outgrown the budget
        if (chunk < rest and not me.chunked) or blocks_held(w, r, i, length) - held > me.free:
            break
        _admit(w, r, i, now, hit)
        kv_cache.take_blocks(w, r, blocks_held(w, r, i, hit * bs + chunk) - hit)
        kv_cache.remember_blocks(w, r, i, hit * bs, hit * bs + chunk)
        tokens += chunk
        work += chunk * (hit * bs + 0.5 * chunk)
        budget -= chunk
        w.requests[i].computed = hit * bs + chunk
        if chunk == rest:
            ending += 1
        else:
            me.prefilling = i
    if budget > 0 and me.head < 0 and me.remote_head >= 0 and me.num_running < me.max_num_seqs:
        handover.start_transfers(w, r, now)
    return tokens, work, ending


@inner
def _admit(w: Any, r: int, i: int, now: float, hit: int) -> None:
    """The head of the queue becomes the last running request, with ``hit`` cached blocks."""
    me = w.replicas[r]
    bs = me.block_size
    me.head = w.requests[i].next
    if me.head < 0:
        me.tail = -1
    me.num_waiting -= 1
    kv_cache.take_cached_blocks(w, r, i, hit)
    w.running[r, me.num_running] = i
    me.num_running += 1
    w.requests[i].phase = PREFILLING
    if np.isnan(w.requests[i].scheduled_s):
        w.requests[i].scheduled_s = now
        w.requests[i].num_cached_tokens = hit * bs
        if me.prefix_caching:
            me.prefix_queries += w.requests[i].input
            me.prefix_hits += hit * bs
    else:
        w.requests[i].stall_s += now


@entry
def cancel(w: Any, i: int) -> bool:
    """Take a waiting or running request out; False where it is in no replica or its last token is in flight."""
    phase, r = w.requests[i].phase, w.requests[i].replica
    if r < 0 or phase in (UNSEEN, DONE, FINISHING):
        return False
    me = w.replicas[r]
    if phase == WAITING:
        before, at = -1, me.head
        while at >= 0 and at != i:
            before, at = at, w.requests[at].next
        if at < 0:
            return False
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
        if phase == DECODING:
            stop_decoding(w, r, i)
        kept = 0
        for place in range(me.num_running):
            if w.running[r, place] != i:
                w.running[r, kept] = w.running[r, place]
                kept += 1
        me.num_running = kept
        give_back(w, r, i, False)
        if me.prefilling == i:
            me.prefilling = -1
    w.requests[i].phase = UNSEEN
    w.requests[i].next = -1
    w.requests[i].generated = 0
    w.requests[i].computed = 0
    return True
