"""LoRA adapters in plain Python, for the reference (see ``adapters``)."""

from __future__ import annotations

from collections import Counter, OrderedDict

from simulator.engine.plain.step_time import uniform
from simulator.engine.techniques import Adapters


class AdapterSlots:
    """A replica's slots; requests are known by their index."""

    def __init__(self, adapters: Adapters | None, seed: int, num_requests: int = 2**62) -> None:
        self.adapters, self.seed, self.num_requests = adapters, seed, num_requests
        self.users: Counter[int] = Counter()  # sequences of the next step, by adapter
        self.filled: OrderedDict[int, None] = OrderedDict()  # adapters on the GPU, the least recently used first

    def adapter_of(self, i: int) -> int:
        """The adapter of a request; those beyond ``num_requests`` are second halves."""
        assert self.adapters is not None
        return int(uniform(self.seed, i % self.num_requests, -1) * self.adapters.num_adapters)

    def fit(self, i: int) -> bool:
        """Whether the next step can have this request's adapter too."""
        full = self.adapters is not None and len(self.users) == self.adapters.max_loras
        return not full or self.adapter_of(i) in self.users

    def take(self, i: int) -> int:
        """A request gets a seat; returns how many adapters must be copied for it."""
        if self.adapters is None:
            return 0
        adapter = self.adapter_of(i)
        self.users[adapter] += 1
        if self.users[adapter] > 1:
            return 0
        copies = int(adapter not in self.filled)
        if copies and len(self.filled) == self.adapters.max_loras:
            del self.filled[next(a for a in self.filled if a not in self.users)]
        self.filled[adapter] = None
        self.filled.move_to_end(adapter)
        return copies

    def give_back(self, i: int) -> None:
        """A request is in no further step."""
        if self.adapters is None:
            return
        adapter = self.adapter_of(i)
        self.users[adapter] -= 1
        if not self.users[adapter]:
            del self.users[adapter]
            self.filled.move_to_end(adapter)
