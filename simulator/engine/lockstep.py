"""Data-parallel ranks that share experts step together; what they do when no rank has work.

vLLM's rules (0.19; ``DPEngineCoreProc`` in ``vllm/v1/engine/core.py``): each step waits for all ranks, and a rank
without work computes a dummy token. Only at every 32nd step do they ask each other whether all are idle; until then
they go on with dummy steps, and a request that comes in between waits for the end of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.engine import step_eval
from simulator.engine.compiled import inner

SYNC_STEPS = 32  # between two questions whether all ranks are idle


@inner
def dummy_step_s(w: Any, first: int) -> float:
    """Seconds of a step in which every rank computes a dummy token; nothing is sampled."""
    me = w.replicas[first]
    experts_s = step_eval.experts_s(w.tables, me.table, me.num_ranks)
    own_s = step_eval.token_wise_s(w.tables, me.table, 1, False) + w.tables.overhead[me.table, step_eval.STEP_S]
    return me.speed * (own_s + experts_s)  # type: ignore[no-any-return]


@inner
def free_at_s(w: Any, first: int, at_s: float) -> float:
    """When idle ranks can take up work that comes at ``at_s``: then, or at the end of the dummy step under way."""
    me = w.replicas[first]
    left = -me.steps_since_sync % SYNC_STEPS
    if me.num_ranks == 1 or left == 0:
        return at_s
    step_s = dummy_step_s(w, first)
    num = np.ceil((at_s - me.idle_since_s) / step_s - 1e-9)
    return max(at_s, me.idle_since_s + num * step_s) if num <= left else at_s


@inner
def count_step(w: Any, first: int, now: float) -> None:
    """Count a step towards the next question, with the dummy steps that idle ranks ran before it."""
    me = w.replicas[first]
    left = -me.steps_since_sync % SYNC_STEPS
    if left > 0 and me.inflight_s <= me.idle_since_s:
        num = int(np.rint((now - me.idle_since_s) / dummy_step_s(w, first)))
        me.steps_since_sync = 0 if num >= left else me.steps_since_sync + num
    me.steps_since_sync = (me.steps_since_sync + 1) % SYNC_STEPS
