"""KV offload: prompt blocks kept in host memory and on disk after the GPU has let them go.

Each tier is a list of contents in order of use, the least recent first. A prompt block that is full is written to both
tiers at once (write-through, as vLLM's offloading connector, LMCache and HiCache do), and the least recent one leaves a
tier that is full. A request that is admitted finds the longest beginning in the GPU, then, block by block, what host
memory or else the disk holds; those blocks are loaded into blocks of its own.
"""

from __future__ import annotations

from typing import Any

from simulator.engine import kv_cache
from simulator.engine.compiled import inner

ABSENT = -2
# columns of ``World.tiers``: least and most recent content, contents held, how many it can hold
FIRST, LAST, USED, CAPACITY = range(4)


@inner
def holds(w: Any, tier: int, content: int) -> bool:
    """Whether a tier (2 r: host memory of replica r; 2 r + 1: its disk) has a content."""
    return w.links[tier, content, 0] != ABSENT  # type: ignore[no-any-return]


@inner
def _drop(w: Any, tier: int, content: int) -> None:
    before, after = w.links[tier, content, 0], w.links[tier, content, 1]
    if before >= 0:
        w.links[tier, before, 1] = after
    else:
        w.tiers[tier, FIRST] = after
    if after >= 0:
        w.links[tier, after, 0] = before
    else:
        w.tiers[tier, LAST] = before
    w.links[tier, content, 0] = ABSENT
    w.tiers[tier, USED] -= 1


@inner
def store(w: Any, r: int, content: int) -> None:
    """Write a content to both tiers, or make it their most recent one."""
    for tier in range(2 * r, 2 * r + 2):
        if w.tiers[tier, CAPACITY] == 0:
            continue
        if holds(w, tier, content):
            _drop(w, tier, content)
        elif w.tiers[tier, USED] == w.tiers[tier, CAPACITY]:
            _drop(w, tier, w.tiers[tier, FIRST])
        last = w.tiers[tier, LAST]
        w.links[tier, content, 0], w.links[tier, content, 1] = last, -1
        if last >= 0:
            w.links[tier, last, 1] = content
        else:
            w.tiers[tier, FIRST] = content
        w.tiers[tier, LAST] = content
        w.tiers[tier, USED] += 1


@inner
def find(w: Any, r: int, i: int, first: int, most: int) -> tuple[int, int]:
    """Blocks of a prompt from place ``first`` on, up to ``most``: (in host memory, only on disk), without a gap."""
    r = w.replicas[r].home
    in_cpu, on_disk = 0, 0
    if w.links.shape[1] == 0:
        return in_cpu, on_disk
    for place in range(first, min(most, kv_cache.num_shared_blocks(w, r, i))):
        content = kv_cache.content_of(w, r, i, place)
        if holds(w, 2 * r, content):
            in_cpu += 1
        elif holds(w, 2 * r + 1, content):
            on_disk += 1
        else:
            break
    return in_cpu, on_disk


@inner
def load(w: Any, r: int, in_cpu: int, on_disk: int) -> None:
    """Copy blocks to the GPU; the next step waits for it, or computes meanwhile where layers are loaded one by one."""
    me = w.replicas[r]
    seconds = in_cpu * me.cpu_block_s + on_disk * me.disk_block_s
    if me.overlap:
        me.load_s += seconds
    else:
        me.copy_s += seconds


@inner
def remember(w: Any, r: int, i: int, before: int, after: int) -> None:
    """Write the prompt blocks that are full now (tokens ``before`` to ``after``)."""
    r = w.replicas[r].home
    bs = w.replicas[r].block_size
    if w.links.shape[1] > 0:
        for place in range(before // bs, min(after // bs, kv_cache.num_shared_blocks(w, r, i))):
            store(w, r, kv_cache.content_of(w, r, i, place))
