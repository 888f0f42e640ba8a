"""A request inside an engine, and a step, in plain Python for the reference."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.engine.plain.blocks import Block


@dataclass(eq=False)
class Job:
    """A request inside an engine."""

    index: int
    num_prompt_tokens: int
    max_tokens: int
    ready_s: float
    num_computed_tokens: int = 0
    num_sampled: int = 0  # output tokens, those in flight too
    num_returned: int = 0  # output tokens that have come out
    num_draws: int = 0  # steps in which proposals were made for it
    prefilling: bool = False
    finished: bool = False
    num_remembered: int = 0  # full blocks that were put into the cache, or equal ones were there
    blocks: list[Block] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_sampled

    @property
    def all_sampled(self) -> bool:
        return self.num_sampled >= self.max_tokens


@dataclass
class Step:
    """What one step computes: (sequence, tokens, tokens before), and when."""

    chunks: list[tuple[Job, int, int]] = field(default_factory=list)
    decodes: list[Job] = field(default_factory=list)
    sampling: list[Job] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)  # of the decodes, this step's tokens included
    num_decode_tokens: int = 0
    emitted: dict[int, int] = field(default_factory=dict)  # tokens by request, where not one
    end_s: float = 0.0

    @property
    def num_prefill_tokens(self) -> int:
        return sum(tokens for _, tokens, _ in self.chunks)
