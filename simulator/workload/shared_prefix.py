"""Which KV blocks of a prompt hold what other prompts hold too, by the trace's prefix hashes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.workload.requests import Requests

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class SharedPrefix:
    """Contents of full prompt blocks as small integers: equal ones are equal in all tokens up to the block's end.

    A block's content is that of the hashed unit in which its last token lies, and its place within it.

    Attributes:
        units: (total,) unit of each hash of each request, numbered from 0.
        offsets: (n + 1,) where a request's units begin.
        covered: (n,) prompt tokens that its hashes cover.
        unit_tokens, block_size: tokens of a unit and of a block.
        blocks_per_unit: contents of a unit.
        num_contents: all contents.
    """

    units: I64
    offsets: I64
    covered: I64
    unit_tokens: int
    block_size: int
    blocks_per_unit: int
    num_contents: int

    @staticmethod
    def of(requests: Requests, block_size: int) -> SharedPrefix:
        """The shared contents of a workload; none where it has no hashes."""
        n = len(requests)
        if requests.hash_ids is None or requests.hash_offsets is None:
            nothing = np.zeros(0, np.int64)
            return SharedPrefix(nothing, np.zeros(n + 1, np.int64), np.zeros(n, np.int64), 1, block_size, 1, 0)
        offsets = np.asarray(requests.hash_offsets, np.int64)
        tokens = requests.hash_block_tokens
        place = np.arange(len(requests.hash_ids)) - np.repeat(offsets[:-1], np.diff(offsets))
        pairs = np.stack([np.asarray(requests.hash_ids, np.int64), place])
        _, units = np.unique(pairs, axis=1, return_inverse=True)  # equal ids at equal places
        covered = np.minimum(np.diff(offsets) * tokens, requests.input_tokens)
        per_unit = -(-tokens // block_size)
        num_units = int(units.max()) + 1 if len(units) else 0
        return SharedPrefix(
            units.astype(np.int64).ravel(), offsets, covered.astype(np.int64), tokens, block_size, per_unit,
            num_units * per_unit,
        )  # fmt: skip

    def content(self, i: int, place: int) -> int:
        """The content of a prompt's block, or -1 where only this request has it."""
        if place >= self.covered[i] // self.block_size:
            return -1
        unit = ((place + 1) * self.block_size - 1) // self.unit_tokens
        first = -(-(unit * self.unit_tokens + 1) // self.block_size) - 1  # the first block that ends in the unit
        return int(self.units[self.offsets[i] + unit]) * self.blocks_per_unit + place - first
