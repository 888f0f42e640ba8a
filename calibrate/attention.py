"""Time of attention kernels: decode reads the cache, prefill computes scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.roofline import peak_flops
from catalogs.schema import Gpu

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Heads:
    """Attention as one GPU runs it.

    Attributes:
        num_heads, num_kv_heads: on this GPU. head_dim: width of a query and key.
        value_dim: width of a value. kv_width: values a token keeps in a KV head's cache (2 head_dim; MLA: the latent).
        kv_bytes: bytes of a cached value. window: sliding window in tokens, or None. causal: decoders.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    kv_width: int
    kv_bytes: float
    window: int | None = None
    causal: bool = True


def decode_time_s(fit: Mapping[str, Any], gpu: Gpu, heads: Heads, batch: FloatArray, context: FloatArray) -> FloatArray:
    """Seconds in which ``batch`` sequences each attend one token to ``context`` keys, on average."""
    keys = np.minimum(context, heads.window) if heads.window else context
    num_bytes = batch * keys * heads.num_kv_heads * heads.kv_width * heads.kv_bytes
    flops = 2.0 * batch * keys * heads.num_heads * (heads.head_dim + heads.value_dim)
    traffic = num_bytes / (fit["eff_bandwidth"] * gpu.memory_bandwidth_bytes_per_s)
    compute = flops / (fit["eff_flops"] * peak_flops(gpu, "bf16"))
    time = np.maximum(traffic, compute) + fit["launch_s"]
    return np.where(batch > 0, time, 0.0)


def prefill_time_s(
    fit: Mapping[str, Any], gpu: Gpu, heads: Heads, tokens: FloatArray, mean_context: FloatArray
) -> FloatArray:
    """Seconds in which ``tokens`` prompt tokens attend to ``mean_context`` keys each, on average."""
    keys = np.minimum(mean_context, heads.window) if heads.window else mean_context
    flops = 2.0 * tokens * keys * heads.num_heads * (heads.head_dim + heads.value_dim)
    time = flops / (fit["eff_flops"] * peak_flops(gpu, "bf16")) + fit["launch_s"]
    return np.where(tokens > 0, time, 0.0)
