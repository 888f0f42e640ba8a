"""The front end of a data-parallel replica: which of its ranks a request goes to.

As vLLM's internal load balancer (0.19; ``vllm/v1/engine/core_client.py``, ``DPLBAsyncMPClient``; ``coordinator.py``):
the rank with the smallest 4 x waiting + running, the first among equals. The front end is told these counts every
100 ms, as they were after each rank's last decision, and in between counts what it has sent itself as waiting.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.engine.compiled import inner

UPDATE_S = 0.1  # the coordinator's ``min_stats_update_interval_ms``
WAITING = 4  # weight of a waiting request; a running one has 1


@inner
def update_s(at_s: float) -> float:
    """When a front end was last told its ranks' loads."""
    return np.floor(at_s / UPDATE_S) * UPDATE_S  # type: ignore[no-any-return]


@inner
def note_load(w: Any, r: int, now: float) -> None:
    """Write down a rank's load after a decision."""
    me = w.replicas[r]
    told_s = update_s(now)
    if told_s > me.noted_s:
        me.noted_s, me.load_before = told_s, me.load
    me.load = WAITING * me.num_waiting + me.num_running


@inner
def choose_rank(w: Any, r: int, at_s: float) -> int:
    """The rank of replica r's front end that takes a request; all of its ranks have decided up to ``at_s``."""
    first, num = w.replicas[r].front, w.replicas[r].num_front
    told_s = update_s(at_s)
    if told_s > w.replicas[first].told_s:
        w.replicas[first].told_s = told_s
        for rank in range(first, first + num):
            me = w.replicas[rank]
            me.told_load = me.load_before if me.noted_s == told_s else me.load
    best = first
    for rank in range(first + 1, first + num):
        if w.replicas[rank].told_load < w.replicas[best].told_load:
            best = rank
    w.replicas[best].told_load += WAITING
    return best  # type: ignore[no-any-return]
