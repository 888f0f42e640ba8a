"""KV blocks: who holds how many, and which free ones still hold something that a request could use again.

Free blocks form one queue: blocks are taken from its front and given back at its end, a request's last block first
(vLLM V1's ``FreeKVCacheBlockQueue``). A preempted request's full blocks keep their content until they are taken, and
since its last block leaves first, what is left is always a prefix. The queue is kept as counts: preempted requests'
segments in order, and how many blocks without content lie before each and after the last.
"""

from __future__ import annotations

from typing import Any

from simulator.compiled import inner


@inner
def take_blocks(w: Any, r: int, count: int) -> None:
    """Take blocks from the front of the free queue; what they held is lost."""
    me = w.replicas[r]
    me.free -= count
    while me.first >= 0:
        i = me.first
        taken = min(count, w.requests[i].plain_before)
        w.requests[i].plain_before -= taken
        count -= taken
        taken = min(count, w.requests[i].kept)
        w.requests[i].kept -= taken
        count -= taken
        if count == 0 and w.requests[i].kept > 0:
            return
        _unlink(w, r, i)
    me.plain_after -= count


@inner
def _unlink(w: Any, r: int, i: int) -> None:
    """Remove a segment; blocks that it has left lose their content but stay in their place."""
    me = w.replicas[r]
    before, after = w.requests[i].segment_prev, w.requests[i].segment_next
    left = w.requests[i].plain_before + w.requests[i].kept
    if after >= 0:
        w.requests[after].plain_before += left
        w.requests[after].segment_prev = before
    else:
        me.plain_after += left
        me.last = before
    if before >= 0:
        w.requests[before].segment_next = after
    else:
        me.first = after
    w.requests[i].plain_before = w.requests[i].kept = 0


@inner
def give_back_blocks(w: Any, r: int, i: int, num_blocks: int, full: int) -> None:
    """Put a request's blocks at the end of the free queue; the first ``full`` of them keep their content."""
    me = w.replicas[r]
    me.free += num_blocks
    me.plain_after += num_blocks - full
    if full == 0:
        return
    w.requests[i].plain_before = me.plain_after
    w.requests[i].kept = full
    me.plain_after = 0
    w.requests[i].segment_prev, w.requests[i].segment_next = me.last, -1
    if me.last >= 0:
        w.requests[me.last].segment_next = i
    else:
        me.first = i
    me.last = i


@inner
def num_cached_blocks(w: Any, i: int, most: int) -> int:
    """Blocks that a waiting request would find in the cache, at most ``most``."""
    return min(most, w.requests[i].kept)  # type: ignore[no-any-return]


@inner
def take_cached_blocks(w: Any, r: int, i: int, count: int) -> None:
    """A request takes ``count`` blocks of its own segment; the rest of the segment loses its content."""
    if w.requests[i].kept == 0:
        return
    w.requests[i].kept -= count
    w.replicas[r].free -= count
    _unlink(w, r, i)


@inner
def forget(w: Any, r: int, i: int) -> None:
    """A request that will not come back: what its free blocks hold is of no use."""
    if w.requests[i].kept > 0:
        _unlink(w, r, i)
