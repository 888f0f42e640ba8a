"""Speculative decoding: a step verifies several proposed tokens of each decoding sequence and keeps those accepted.

vLLM V1's rules: a decoding sequence takes ``1 + num_speculative_tokens`` tokens of the step's budget (fewer where the
budget or the context ends), and KV slots for them and for what the drafter will write next (its lookahead; none for
n-gram look-up). A step emits the accepted ones and one more: 1 to k + 1 tokens. Each proposal is accepted with
``acceptance_rate``, independently (Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative
Decoding", ICML 2023, section 3.1). The draws belong to the request and its steps: they depend on nothing else.

Steps are decided when the one before has ended, and taken one by one: no two are alike.
"""

from __future__ import annotations

from typing import Any

from simulator.engine import decoding, draws, kv_cache, preemption, step_eval
from simulator.engine.compiled import inner
from simulator.engine.engine_state import DECODING


@inner
def num_accepted(u: float, rate: float, most: int) -> int:
    """Proposals accepted before the first that is not: n with chance ``rate**n * (1 - rate)``, at most ``most``."""
    accepted, chance = 0, rate
    while accepted < most and u < chance:
        accepted += 1
        chance *= rate
    return accepted


@inner
def slots(w: Any, r: int, tokens: int) -> int:
    """Tokens for which a sequence that computes up to ``tokens`` needs blocks: the drafter's next ones too."""
    me = w.replicas[r]
    return min(tokens + me.lookahead, min(me.max_model_len, me.num_blocks * me.block_size))  # type: ignore[no-any-return]


@inner
def plan(w: Any, r: int, now: float) -> int:
    """Give decoding sequences their tokens of this step, and the blocks for them; how many take part."""
    me = w.replicas[r]
    me.verify, me.contexts, me.shortest, me.longest = 0, 0, 2**62, 0
    planned, place = 0, 0
    longest = min(me.max_model_len, me.num_blocks * me.block_size)
    for at in range(me.num_running):
        w.requests[w.running[r, at]].want = 0
    while place < me.num_running:
        i = w.running[r, place]
        place += 1
        if w.requests[i].phase != DECODING:
            continue
        computed = w.requests[i].computed
        want = min(me.spec_tokens + 1, me.max_tokens - me.verify, longest - 1 - computed)
        if want <= 0:
            break
        held = preemption.blocks_held(w, r, i, w.requests[i].slots)
        need = preemption.blocks_held(w, r, i, max(w.requests[i].slots, slots(w, r, computed + want)))
        gone = -1
        while need - held > me.free and gone != i:
            gone = preemption.preempt_last(w, r, now)
        if gone == i:
            break
        kv_cache.take_blocks(w, r, need - held)
        w.requests[i].slots = max(w.requests[i].slots, slots(w, r, computed + want))
        w.requests[i].want, w.requests[i].known = want, computed + 1
        context = computed + want
        me.verify += want
        me.contexts += context
        me.shortest, me.longest = min(me.shortest, context), max(me.longest, context)
        planned += 1
    return planned


@inner
def step_s(w: Any, r: int, tokens: int, work: float, ending: int, decodes: int, seqs: int) -> float:
    """Seconds of a step: what the model verifies and computes, then what the drafter proposes, token after token."""
    me = w.replicas[r]
    mean_keys = work / tokens if tokens > 0 else 0.0
    contexts = (0.0, 0.0, 0.0)
    if decodes > 0:
        contexts = (me.contexts / decodes, float(me.shortest), float(me.longest))
    sampled = me.verify + ending
    time = step_eval.step_s(w.tables, me.table, tokens, mean_keys, decodes, me.verify, contexts, sampled, seqs)
    if me.draft_table < 0:
        return time
    drafting = decodes + ending
    time += step_eval.step_s(w.tables, me.draft_table, tokens, mean_keys, decodes, me.verify, contexts, drafting, seqs)
    if drafting > 0 and me.spec_tokens > 1:
        if decodes == 0:
            contexts = (2.0 * mean_keys, 2.0 * mean_keys, 2.0 * mean_keys)
        one = step_eval.step_s(w.tables, me.draft_table, 0, 0.0, drafting, drafting, contexts, drafting, drafting)
        time += (me.spec_tokens - 1) * one
    return time


@inner
def take_step(w: Any, r: int, end: float) -> None:
    """Sequences that took part gain what was accepted, and one token."""
    me = w.replicas[r]
    for place in range(me.num_running):
        i = w.running[r, place]
        it = w.requests[i]
        if it.phase != DECODING or it.want == 0:
            continue
        accepted = num_accepted(draws.uniform(me.seed, i, it.draws), me.acceptance_rate, it.want - 1)
        me.drafted += it.want - 1
        me.accepted += accepted
        emitted = min(accepted + 1, it.output - it.generated)
        it.draws += 1
        it.want = 0
        it.computed += emitted
        it.generated += emitted
        if it.generated >= it.output:
            me.num_decode -= 1
            decoding.finish(w, r, i, end)
