"""LoRA adapters: which request has which, who waits for a slot, and when an adapter is copied to the GPU.

vLLM's rules (0.19): a step has at most ``max_loras`` different adapters; a waiting request whose adapter would be one
more is passed over, and those behind it are looked at (``vllm/v1/core/sched/scheduler.py``). The GPU has as many slots;
an adapter that is in none is copied from host memory into the least recently used one that no sequence of the step
needs, before the step (``vllm/lora/worker_manager.py``, ``LRUCacheWorkerLoRAManager``). A decode replica asks the same
before it fetches a request's KV, and again before it gives the seat.
"""

from __future__ import annotations

from typing import Any

from simulator.engine import draws
from simulator.engine.compiled import inner
from simulator.engine.engine_state import DECODING, PREFILLING

# columns of ``World.adapters``: sequences that use it in the next step; when it was last used, 0: in no slot
USERS, USED = range(2)
DRAW = -1  # the random number of a request that chooses its adapter; those from 0 on are speculation's


@inner
def adapter_of(w: Any, r: int, i: int) -> int:
    """The adapter of a request: all are equally popular, and the draw belongs to seed and request (its prompt's row,
    where prompts are computed elsewhere)."""
    me, n = w.replicas[r], len(w.transfers.start_s)
    return int(draws.uniform(me.seed, i - n if 0 < n <= i else i, DRAW) * me.num_adapters)


@inner
def fits(w: Any, r: int, i: int) -> bool:
    """Whether the next step can have one more request's adapter."""
    r = w.replicas[r].home
    me = w.replicas[r]
    if me.used_slots < me.lora_slots:
        return True
    return w.adapters[r, adapter_of(w, r, i), USERS] > 0  # type: ignore[no-any-return]


@inner
def take(w: Any, r: int, i: int) -> None:
    """A request gets a seat: its adapter is in use, and is copied if it is in no slot."""
    batch, r = w.replicas[r], w.replicas[r].home
    me = w.replicas[r]
    adapter = adapter_of(w, r, i)
    w.adapters[r, adapter, USERS] += 1
    if w.adapters[r, adapter, USERS] > 1:
        return
    me.used_slots += 1
    if w.adapters[r, adapter, USED] == 0:
        if me.full_slots == me.lora_slots:
            oldest = -1
            for other in range(me.num_adapters):
                idle = w.adapters[r, other, USED] > 0 and w.adapters[r, other, USERS] == 0
                if idle and (oldest < 0 or w.adapters[r, other, USED] < w.adapters[r, oldest, USED]):
                    oldest = other
            w.adapters[r, oldest, USED] = 0
        else:
            me.full_slots += 1
        batch.copy_s += me.lora_copy_s
        batch.lora_loads += 1
    me.lora_clock += 1
    w.adapters[r, adapter, USED] = me.lora_clock


@inner
def give_back(w: Any, r: int, i: int) -> None:
    """A request is in no further step; to be called while its phase still says that it was."""
    r = w.replicas[r].home
    me = w.replicas[r]
    if w.requests[i].phase not in (PREFILLING, DECODING):
        return
    adapter = adapter_of(w, r, i)
    w.adapters[r, adapter, USERS] -= 1
    if w.adapters[r, adapter, USERS] == 0:
        me.used_slots -= 1
        me.lora_clock += 1
        w.adapters[r, adapter, USED] = me.lora_clock
