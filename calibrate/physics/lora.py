"""LoRA adapters: what they hold of a GPU's memory and add to a step (Hu et al., arXiv 2106.09685).

As vLLM serves them (0.19, ``vllm/lora``): ``max_loras`` slots of ``max_lora_rank`` lie in GPU memory for every
projection of attention and the dense MLP, whatever the adapters' own rank; each projection gets two more kernels,
x A (shrink) and (x A) B (expand), which read the adapters that the batch uses and compute at ``max_lora_rank``. Over
tensor parallelism A is whole where its projection is split by columns, and B where it is by rows.

No measured run with adapters stands behind these costs: bytes, FLOPs and launches are counted, the shares of bandwidth
and peak assumed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from calibrate.physics.roofline import ELEMENTWISE, peak_flops
from calibrate.physics.work import Gemm, attention_gemms, expected_experts_hit, mlp_gemms
from catalogs.errors import InputError
from catalogs.schema import Engine, Replica

FloatArray = NDArray[np.float64]
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # max_lora_rank of vLLM 0.19
SLICES = {"qkv": 3, "gate_up": 2, "shared_gate_up": 2}  # adapters of their own in one projection
EFF_FLOPS = 0.3  # assumed: thin matrices leave most of a tensor core's tile empty
KERNELS = 2  # shrink and expand


@dataclass(frozen=True)
class Lora:
    """Adapters beside a model, under vLLM's names.

    Attributes:
        num_adapters: that requests ask for, all equally often. rank: of them.
        max_loras: slots on the GPU, and different adapters in one batch. max_lora_rank: of a slot; None: the smallest
            that vLLM has for ``rank``. max_cpu_loras: kept in host memory; None: all.
    """

    num_adapters: int = 1
    rank: int = 16
    max_loras: int = 1
    max_lora_rank: int | None = None
    max_cpu_loras: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(
                    f"{field.name} is {value!r}", where="engine.lora", remedy="a whole number of at least 1"
                )
        if self.slot_rank not in RANKS or self.rank > self.slot_rank:
            raise InputError(
                f"rank {self.rank} with max_lora_rank {self.max_lora_rank}", where="engine.lora.max_lora_rank",
                why="a slot must hold every adapter, and vLLM has slots of certain ranks only",
                remedy=f"one of {', '.join(map(str, RANKS))}, and at least the rank",
            )  # fmt: skip
        if self.max_cpu_loras is not None and self.max_cpu_loras < max(self.max_loras, self.num_adapters):
            raise InputError(
                f"max_cpu_loras is {self.max_cpu_loras}", where="engine.lora.max_cpu_loras",
                why="vLLM wants at least max_loras; with fewer than num_adapters each miss is read from disk, "
                "which is not simulated",
                remedy=f"{max(self.max_loras, self.num_adapters)} or more",
            )  # fmt: skip

    @property
    def slot_rank(self) -> int:
        """Rank of a slot."""
        return self.max_lora_rank or next((r for r in RANKS if r >= self.rank), self.rank)


def lora_of(engine: Engine) -> Lora | None:
    """The adapters of an engine's ``lora`` option; None without.

    Raises:
        InputError: unknown keys or values that vLLM refuses.
    """
    given = engine.options.get("lora")
    if given is None:
        return None
    known = [f.name for f in fields(Lora)]
    if not isinstance(given, dict) or set(given) - set(known):
        raise InputError(f"lora is {given!r}", where="engine.lora", remedy=f"keys {', '.join(known)}")
    return Lora(**given)


def _projections(replica: Replica) -> list[tuple[Gemm, int]]:
    """(projection on one GPU, slices) of a layer; routed experts and the router have no adapter."""
    tp = replica.tensor_parallel_size
    gemms = (*attention_gemms(replica.model, tp), *mlp_gemms(replica.model, tp))
    return [(g, SLICES.get(g.name, 1)) for g in gemms if g.name != "router"]


def slot_bytes(replica: Replica, rank: int) -> float:
    """Bytes of one adapter's slot on one GPU, 16 bit: A of (rank, k) a slice and B of (n, rank)."""
    values = sum(g.count * g.share * rank * (slices * g.k + g.n) for g, slices in _projections(replica))
    layers = -(-replica.model.num_layers // replica.pipeline_parallel_size)
    return 2.0 * layers * values


def lora_bytes(replica: Replica) -> float:
    """Bytes of all slots on one GPU; 0 without adapters."""
    lora = lora_of(replica.engine)
    return 0.0 if lora is None else lora.max_loras * slot_bytes(replica, lora.slot_rank)


def lora_step_s(replica: Replica, tokens: FloatArray) -> FloatArray:
    """Seconds that adapters add to a step of so many tokens, over all layers of the replica.

    Reading the adapters that the tokens use, moving the projections' inputs, the r-wide middle and the results that are
    added to (read and written), and two launches a projection.
    """
    lora = lora_of(replica.engine)
    if lora is None:
        return np.zeros_like(tokens)
    gpu, rank = replica.gpu, lora.slot_rank
    usable = min(lora.num_adapters, lora.max_loras)
    used = expected_experts_hit(tokens, usable, 1)
    total = np.zeros(np.shape(tokens))
    for gemm, slices in _projections(replica):
        weights = 2.0 * rank * (slices * gemm.k + gemm.n)
        moved = used * weights + tokens * (2.0 * gemm.k + 2.0 * 2.0 * slices * rank + 2.0 * 2.0 * gemm.n)
        read_s = moved / (ELEMENTWISE["eff_bandwidth"] * gpu.memory_bandwidth_bytes_per_s)
        flops = 2.0 * tokens * rank * (slices * gemm.k + gemm.n)
        compute_s = flops / (EFF_FLOPS * peak_flops(gpu, "bf16"))
        launches_s = KERNELS * ELEMENTWISE["launch_s"]
        total = total + gemm.count * gemm.share * (np.maximum(read_s, compute_s) + launches_s)
    return np.where(tokens > 0, replica.model.num_layers * total, 0.0)


def copy_s(replica: Replica) -> float:
    """Seconds in which an adapter is copied from host memory into its slot; 0 without adapters."""
    lora = lora_of(replica.engine)
    return 0.0 if lora is None else slot_bytes(replica, lora.slot_rank) / replica.gpu.pcie_bytes_per_s
