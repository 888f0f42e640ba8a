"""KV blocks: who holds how many, and which free ones still hold something that a request could use again.

Free blocks form one queue: blocks are taken from its front and given back at its end, a request's last block first
(vLLM V1's ``FreeKVCacheBlockQueue``). The queue is kept as nodes with what could be used again, and counts of the
blocks without content before each and after the last. Two things can be used again: a preempted request's own full
blocks (a node a request; since its last block leaves first, what is left is always a prefix), and blocks of prompts
that share their beginning (a node a block, ``w.shared``, also while requests hold it).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.engine.compiled import inner
from simulator.workload.requests import Requests
from simulator.workload.shared_prefix import SharedPrefix

I64 = NDArray[np.int64]

# A node of a free queue; request i is node i, slot s of replica r is node (requests + r * slots + s).
NODE = np.dtype(
    [
        ("plain_before", np.int64),  # blocks without content before it
        ("kept", np.int64),  # its blocks with content
        ("next", np.int64),
        ("prev", np.int64),
    ]
)


class Shared(NamedTuple):
    """Prompt blocks that other prompts may share (see ``SharedPrefix``); all empty for a workload without hashes.

    Attributes:
        units, offsets: units of each request's prompt. covered: (n,) prompt tokens that they cover.
        sizes: (2,) tokens of a unit; contents of a unit.
        held: for each such block of each request 1 where it holds the block that is in the cache.
        held_offsets: (n + 1,) where a request's blocks begin in ``held``.
        slot_of: (r, contents) the slot that holds a content, or -1.
        content, holders: (r, slots) of a slot. spare: (r, slots) unused slots, a stack. num_spare: (r,).
    """

    units: I64
    offsets: I64
    covered: I64
    sizes: I64
    held: NDArray[np.int8]
    held_offsets: I64
    slot_of: NDArray[np.int32]
    content: I64
    holders: I64
    spare: I64
    num_spare: I64


def new_shared(requests: Requests, block_sizes: list[int], num_blocks: list[int]) -> Shared:
    """Nothing cached yet."""
    prefix = SharedPrefix.of(requests, min(block_sizes))
    num_replicas = len(block_sizes)
    num_slots = max(num_blocks) if prefix.num_contents else 0
    return Shared(
        units=prefix.units,
        offsets=prefix.offsets,
        covered=prefix.covered,
        sizes=np.array([prefix.unit_tokens, prefix.blocks_per_unit], np.int64),
        held=np.zeros(int((prefix.covered // min(block_sizes)).sum()), np.int8),
        held_offsets=np.concatenate([[0], np.cumsum(prefix.covered // min(block_sizes))]).astype(np.int64),
        slot_of=np.full((num_replicas, prefix.num_contents), -1, np.int32),
        content=np.zeros((num_replicas, num_slots), np.int64),
        holders=np.zeros((num_replicas, num_slots), np.int64),
        spare=np.tile(np.arange(num_slots, dtype=np.int64), (num_replicas, 1)),
        num_spare=np.full(num_replicas, num_slots, np.int64),
    )


@inner
def num_shared_blocks(w: Any, r: int, i: int) -> int:
    """Full blocks of a prompt that its hashes cover."""
    if len(w.shared.units) == 0 or not w.replicas[r].prefix_caching:
        return 0
    return w.shared.covered[i] // w.replicas[r].block_size  # type: ignore[no-any-return]


@inner
def content_of(w: Any, r: int, i: int, place: int) -> int:
    """What a shared prompt block holds."""
    bs, unit_tokens = w.replicas[r].block_size, w.shared.sizes[0]
    unit = ((place + 1) * bs - 1) // unit_tokens
    first = (unit * unit_tokens + bs) // bs - 1  # the first block that ends in the unit
    return w.shared.units[w.shared.offsets[i] + unit] * w.shared.sizes[1] + place - first  # type: ignore[no-any-return]


@inner
def free_blocks(w: Any, r: int) -> int:
    """Blocks that a request could take."""
    return w.replicas[w.replicas[r].home].free  # type: ignore[no-any-return]


@inner
def take_blocks(w: Any, r: int, count: int) -> None:
    """Take blocks from the front of the free queue; what they held is lost."""
    r = w.replicas[r].home
    me = w.replicas[r]
    me.free -= count
    while me.first >= 0:
        node = me.first
        taken = min(count, w.nodes[node].plain_before)
        w.nodes[node].plain_before -= taken
        count -= taken
        taken = min(count, w.nodes[node].kept)
        w.nodes[node].kept -= taken
        count -= taken
        if w.nodes[node].kept > 0:
            return
        _unlink(w, r, node)
        if node >= len(w.requests):
            slot = node - len(w.requests) - r * w.shared.content.shape[1]
            w.shared.slot_of[r, w.shared.content[r, slot]] = -1
            w.shared.spare[r, w.shared.num_spare[r]] = slot
            w.shared.num_spare[r] += 1
    me.plain_after -= count


@inner
def _unlink(w: Any, r: int, node: int) -> None:
    """Remove a node; blocks that it has left lose their content but stay in their place."""
    me = w.replicas[r]
    it = w.nodes[node]
    left = it.plain_before + it.kept
    if it.next >= 0:
        w.nodes[it.next].plain_before += left
        w.nodes[it.next].prev = it.prev
    else:
        me.plain_after += left
        me.last = it.prev
    if it.prev >= 0:
        w.nodes[it.prev].next = it.next
    else:
        me.first = it.next
    it.plain_before = it.kept = 0


@inner
def _append(w: Any, r: int, node: int, kept: int) -> None:
    """Put a node with content at the end of the free queue."""
    me = w.replicas[r]
    it = w.nodes[node]
    it.plain_before, it.kept = me.plain_after, kept
    it.prev, it.next = me.last, -1
    if me.last >= 0:
        w.nodes[me.last].next = node
    else:
        me.first = node
    me.last = node
    me.plain_after = 0


@inner
def give_back_blocks(w: Any, r: int, i: int, num_blocks: int, full: int, keep: bool) -> None:
    """Put a request's blocks at the end of the free queue.

    Args:
        num_blocks, full: its blocks, and those of them whose tokens are all known.
        keep: its own full blocks keep their content, since it will come back.
    """
    r = w.replicas[r].home
    me = w.replicas[r]
    shared = min(num_shared_blocks(w, r, i), full)
    own = full - shared if keep and me.prefix_caching else 0
    me.plain_after += num_blocks - shared - own
    me.free += num_blocks - shared
    if own > 0:
        _append(w, r, i, own)
    for place in range(shared - 1, -1, -1):
        at = w.shared.held_offsets[i] + place
        if w.shared.held[at]:
            w.shared.held[at] = 0
            slot = w.shared.slot_of[r, content_of(w, r, i, place)]
            w.shared.holders[r, slot] -= 1
            if w.shared.holders[r, slot] == 0:
                me.free += 1
                _append(w, r, len(w.requests) + r * w.shared.content.shape[1] + slot, 1)
        else:
            me.free += 1
            me.plain_after += 1


@inner
def find_cached_blocks(w: Any, r: int, i: int, most: int) -> tuple[int, int]:
    """Blocks that a waiting request would find in the cache, at most ``most``; how many of them others hold."""
    r = w.replicas[r].home
    if not w.replicas[r].prefix_caching:
        return 0, 0
    shared = num_shared_blocks(w, r, i)
    found, held = 0, 0
    while found < min(shared, most):
        slot = w.shared.slot_of[r, content_of(w, r, i, found)]
        if slot < 0:
            return found, held
        held += w.shared.holders[r, slot] > 0
        found += 1
    return min(most, found + w.nodes[i].kept), held


@inner
def take_cached_blocks(w: Any, r: int, i: int, count: int) -> None:
    """A request holds its first ``count`` blocks again; its own others lose their content."""
    r = w.replicas[r].home
    me = w.replicas[r]
    shared = min(count, num_shared_blocks(w, r, i))
    for place in range(shared):
        slot = w.shared.slot_of[r, content_of(w, r, i, place)]
        if w.shared.holders[r, slot] == 0:
            node = len(w.requests) + r * w.shared.content.shape[1] + slot
            w.nodes[node].kept = 0
            me.free -= 1
            _unlink(w, r, node)
        w.shared.holders[r, slot] += 1
        w.shared.held[w.shared.held_offsets[i] + place] = 1
    if w.nodes[i].kept > 0:
        w.nodes[i].kept -= count - shared
        me.free -= count - shared
        _unlink(w, r, i)


@inner
def remember_blocks(w: Any, r: int, i: int, before: int, after: int) -> None:
    """Shared prompt blocks that are full now (tokens ``before`` to ``after``) can be found, unless equal ones can."""
    r = w.replicas[r].home
    bs = w.replicas[r].block_size
    for place in range(before // bs, min(after // bs, num_shared_blocks(w, r, i))):
        content = content_of(w, r, i, place)
        if w.shared.slot_of[r, content] < 0 and w.shared.num_spare[r] > 0:
            w.shared.num_spare[r] -= 1
            slot = w.shared.spare[r, w.shared.num_spare[r]]
            w.shared.slot_of[r, content] = slot
            w.shared.content[r, slot] = content
            w.shared.holders[r, slot] = 1
            w.shared.held[w.shared.held_offsets[i] + place] = 1


@inner
def forget(w: Any, r: int, i: int) -> None:
    """A request that will not come back: what its free blocks hold is of no use."""
    if w.nodes[i].kept > 0:
        _unlink(w, w.replicas[r].home, i)


def empty_shared(shared: Shared, r: int) -> None:
    """A replica starts anew: nothing cached, nothing held."""
    num_slots = shared.spare.shape[1]
    shared.slot_of[r] = -1
    shared.holders[r] = 0
    shared.spare[r] = np.arange(num_slots)
    shared.num_spare[r] = num_slots


def with_replica(shared: Shared) -> Shared:
    """The caches with one more replica, empty."""

    def row(array: Any) -> Any:
        return np.concatenate([array, np.zeros((1, *array.shape[1:]), array.dtype)])

    grown = shared._replace(
        slot_of=row(shared.slot_of),
        content=row(shared.content),
        holders=row(shared.holders),
        spare=row(shared.spare),
        num_spare=row(shared.num_spare),
    )
    empty_shared(grown, len(grown.num_spare) - 1)
    return grown
