"""Attention backends besides the engine's own: time and memory of each, and which GPU has which.

Eager attention writes its scores to memory and reads them back, computes those that the causal mask drops, and needs
room for them all: bytes grow with tokens times context. The others keep a row of statistics a token. Prefill of eager,
memory-efficient (as xFormers) and the first FlashAttention is fitted on one table of whole-prompt attention on an A100
(fxmarty/efficient-attention-benchmark); elsewhere the same shares of the GPU's peaks are assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.physics.attention import Heads
from calibrate.physics.work import split
from catalogs.errors import InputError
from catalogs.names import normalise, resolve
from catalogs.schema import Engine, Gpu, Model

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Backend:
    """An attention backend.

    Attributes:
        variant: of the fitted prefill kernels; "": the engine's own kernel tables.
        oldest, newest: compute capability of the GPUs that have it.
        hopper_slowdown: prefill time over the engine's own on Hopper (which is FlashAttention 3).
        score_bytes: memory a score (query token x key x head) that is alive at once.
        rests_on: where its time comes from.
    """

    variant: str = ""
    oldest: float = 7.0
    newest: float = 99.0
    hopper_slowdown: float = 1.0
    score_bytes: float = 0.0
    rests_on: str = ""


_OWN = "the engine's own kernel tables"
_TABLE = "fitted on one table of an A100 (held-out shapes: {}); the same shares of the peaks assumed on other GPUs"
# Eager scores alive at once: 16-bit scores, their fp32 softmax and its 16-bit copy (eager_attention_forward of Hugging
# Face transformers 4.50). FlashAttention 3 over 2 on H100, forward: 1.5 to 2.0 times as
# fast (Shah et al., arXiv 2407.08608).
_EAGER = Backend("eager", score_bytes=8.0, rests_on=_TABLE.format("4 % in the median, p90 25 %"))
_EFFICIENT = Backend("mem_efficient", rests_on=_TABLE.format("19 %, p90 28 %"))
_FLASH_2 = Backend("", 8.0, hopper_slowdown=1.75, rests_on=f"{_OWN}; on Hopper 1.75 times FlashAttention 3's time")
# Engines' names (vLLM's --attention-backend, SGLang's, torch's) and plain ones. Oldest GPUs: FlashAttention 1 Turing, 2
# Ampere, 3 Hopper only (Dao-AILab/flash-attention, README); FlashInfer Turing (its README); Triton and xFormers Volta.
BACKENDS: Mapping[str, Backend] = {
    "auto": Backend(rests_on=_OWN),
    "FLASH_ATTN": Backend("", 8.0, rests_on=_OWN),
    "FLASHINFER": Backend("", 7.5, rests_on=_OWN),
    "TRITON_ATTN": Backend(rests_on=f"{_OWN}, which Triton's kernels are taken to equal"),
    "eager": _EAGER,
    "xformers": _EFFICIENT,
    "TORCH_SDPA": _EFFICIENT,
    "mem_efficient": _EFFICIENT,
    "flash1": Backend("flash1", 7.5, rests_on=_TABLE.format("24 %, p90 42 %")),
    "flash2": _FLASH_2,
    "flash3": Backend("", 9.0, 9.9, rests_on=_OWN),
}
_ALIASES = {
    "flashattention1": "flash1", "flashattention2": "flash2", "flashattention3": "flash3", "fa2": "flash2",
    "fa3": "flash3", "sdpa": "TORCH_SDPA", "math": "eager",
}  # fmt: skip
EAGER_DECODE_PASSES = 2.0  # keys and values repeated for each query head: written and read again (repeat_kv)
STATISTICS_BYTES = 4.0  # log-sum-exp of a token and head


def backend_of(engine: Engine, gpu: Gpu) -> Backend:
    """The backend that an engine's ``attention_backend`` option asks for.

    Raises:
        InputError: no such backend, or the GPU has no kernels for it.
    """
    asked = str(engine.options.get("attention_backend", "auto"))
    name = resolve(_ALIASES.get(normalise(asked), asked), BACKENDS, "attention_backend", "engine.attention_backend")
    backend = BACKENDS[name]
    if not backend.oldest <= gpu.compute_capability <= backend.newest:
        usable = [n for n, b in BACKENDS.items() if b.oldest <= gpu.compute_capability <= b.newest and n != "auto"]
        span = f"{backend.oldest:g}" + (" to 9.x (Hopper)" if backend.newest < 99 else " or later")
        raise InputError(
            f"{gpu.name} has no {name}",
            where="engine.attention_backend",
            why=f"its kernels need compute capability {span}, and this GPU is {gpu.compute_capability:g}",
            remedy=f"one of {', '.join(usable)}",
        )
    return backend


def demand_own_backend(engine: Engine, gpu: Gpu, what: str) -> None:
    """Refuse a backend of other kernels where times were measured with one backend only, that of ``what``.

    Raises:
        InputError: the engine asks for another.
    """
    if backend_of(engine, gpu).variant:
        raise InputError(f"an attention_backend besides that of {what}", where="engine.attention_backend",
                         why="its times were measured with one backend", remedy="auto")  # fmt: skip


def prefill_factor(backend: Backend, gpu: Gpu) -> float:
    """Prefill time over that of the backend's kernel tables."""
    return backend.hopper_slowdown if 9.0 <= gpu.compute_capability < 10.0 else 1.0


def attention_workspace_bytes(backend: Backend, model: Model, num_tokens: int, context: int, tp: int = 1) -> float:
    """Memory of one layer's attention beside its inputs and output, on one GPU.

    Args:
        num_tokens: query tokens of a step. context: keys that the longest sequence has.
    """
    heads = split(model.num_attention_heads, tp)
    rows = heads * float(num_tokens)
    return rows * context * backend.score_bytes if backend.score_bytes else rows * STATISTICS_BYTES


def eager_decode_extra_s(gpu: Gpu, heads: Heads, batch: FloatArray, context: FloatArray) -> FloatArray:
    """Seconds that eager decode takes beyond reading the cache once: repeated keys and values, and the scores.

    At the full bandwidth: a lower bound.
    """
    group = heads.num_heads / heads.num_kv_heads
    values = batch * context * heads.num_kv_heads * heads.kv_width * heads.kv_bytes
    repeated = EAGER_DECODE_PASSES * group * values if group > 1 else 0.0 * values
    scores = 2.0 * _EAGER.score_bytes * batch * context * heads.num_heads
    return np.asarray((repeated + scores) / gpu.memory_bandwidth_bytes_per_s)
