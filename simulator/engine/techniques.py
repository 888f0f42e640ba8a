"""Techniques beyond the scheduler's core, as one replica's engine is told of them: speculation, swap, KV offload."""

from __future__ import annotations

from dataclasses import dataclass

from calibrate.step import StepTable
from catalogs.errors import InputError


@dataclass(frozen=True)
class Speculation:
    """Speculative decoding.

    Attributes:
        num_speculative_tokens: proposed for each decoding sequence in each step.
        acceptance_rate: chance that a proposal is accepted where those before it were, 0 to 1.
        num_lookahead_tokens: KV slots that the drafter fills ahead (vLLM: as many as it proposes; n-gram: none).
        draft_table: step times of the drafter; None: proposals cost nothing (n-gram look-up).
    """

    num_speculative_tokens: int
    acceptance_rate: float
    num_lookahead_tokens: int = 0
    draft_table: StepTable | None = None

    def __post_init__(self) -> None:
        if self.num_speculative_tokens < 1:
            raise InputError(f"num_speculative_tokens is {self.num_speculative_tokens}", where="speculative",
                             why="vLLM refuses this: it must be above 0", remedy="1 or more")  # fmt: skip
        if not 0.0 <= self.acceptance_rate <= 1.0:
            raise InputError(f"acceptance_rate is {self.acceptance_rate:g}", where="speculative",
                             why="it is a share of the proposed tokens", remedy="0 to 1")  # fmt: skip
        if self.num_lookahead_tokens < 0:
            raise InputError(f"num_lookahead_tokens is {self.num_lookahead_tokens}", where="speculative",
                             remedy="0 or more")  # fmt: skip

    @property
    def tokens_per_step(self) -> float:
        """Expected tokens of a step, (1 - a^(k+1)) / (1 - a): Leviathan et al. 2023, equation 1."""
        k, a = self.num_speculative_tokens, self.acceptance_rate
        return float(k + 1) if a == 1.0 else (1.0 - a ** (k + 1)) / (1.0 - a)


@dataclass(frozen=True)
class SwapSpace:
    """Preemption by swap.

    Attributes:
        num_blocks: KV blocks that host memory holds.
        block_copy_s: seconds in which one is copied, one way.
    """

    num_blocks: int
    block_copy_s: float


@dataclass(frozen=True)
class Adapters:
    """LoRA adapters.

    Attributes:
        num_adapters: that requests ask for, all equally often.
        max_loras: slots on the GPU, and different adapters in one step.
        copy_s: seconds in which one is copied from host memory into its slot.
    """

    num_adapters: int
    max_loras: int
    copy_s: float


@dataclass(frozen=True)
class KvOffload:
    """Tiers of the prefix cache beyond the GPU.

    Attributes:
        num_cpu_blocks, num_disk_blocks: blocks that each tier holds; 0: there is none.
        cpu_block_s, disk_block_s: seconds in which a block is loaded from it.
        overlap: loads run beside the step's compute, layer by layer, so that a step lasts at least as long as they do;
            else the step waits for them.
    """

    num_cpu_blocks: int
    cpu_block_s: float
    num_disk_blocks: int = 0
    disk_block_s: float = 0.0
    overlap: bool = False
