"""KV blocks in plain Python, for the reference: a pool whose free blocks keep what they hold until they are taken."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


class Tier:
    """A tier of the prefix cache beyond the GPU: contents, the least recently used first."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.contents: OrderedDict[Hashable, None] = OrderedDict()

    def store(self, content: Hashable) -> None:
        """Write a content, or make it the most recent one."""
        if self.num_blocks:
            self.contents[content] = None
            self.contents.move_to_end(content)
            if len(self.contents) > self.num_blocks:
                self.contents.popitem(last=False)


@dataclass(eq=False)
class Block:
    """A KV block: how many requests hold it, and what it holds that another could use."""

    num_holders: int = 0
    content: Hashable = None


class BlockPool:
    """All blocks of a replica; free ones wait in the order in which they will be taken."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.free: OrderedDict[Block, None] = OrderedDict((Block(), None) for _ in range(num_blocks))
        self.cached: dict[Hashable, Block] = {}

    def take(self, count: int) -> list[Block]:
        """Take the first free blocks; what they held is lost."""
        taken = []
        for _ in range(count):
            block, _none = self.free.popitem(last=False)
            if block.content is not None:
                del self.cached[block.content]
                block.content = None
            block.num_holders = 1
            taken.append(block)
        return taken

    def hold(self, blocks: Sequence[Block]) -> None:
        """One more request holds these cached blocks."""
        for block in blocks:
            if block.num_holders == 0:
                del self.free[block]
            block.num_holders += 1

    def give_back(self, blocks: Sequence[Block]) -> None:
        """A request lets its blocks go, the last first."""
        for block in reversed(blocks):
            block.num_holders -= 1
            if block.num_holders == 0:
                self.free[block] = None

    def remember(self, block: Block, content: Hashable) -> None:
        """A full block can be found by its content from now on, unless another one already is."""
        if block.content is None and content not in self.cached:
            block.content = content
            self.cached[content] = block

    def forget(self, owner: tuple[str, int], first: int) -> None:
        """What a request's own blocks held from place ``first`` on is of no use: it computes them again."""
        for content in [c for c in self.cached if isinstance(c, tuple) and c[:2] == owner and c[2] >= first]:
            self.cached.pop(content).content = None
