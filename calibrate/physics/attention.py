"""Time of attention kernels: decode reads the cache, prefill computes scores.

Decode: ``launch_s`` + blocks of (sequence, KV head) shared by the multiprocessors + the longer of reading the keys and
values and computing with them. Prefill: ``launch_s`` + reading queries and writing results + the longer of all blocks'
arithmetic and the longest single block's. A correction follows, over what the kernels' grids depend on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.physics import residual, trees
from calibrate.physics.roofline import peak_flops
from catalogs.schema import Gpu

FloatArray = NDArray[np.float64]
QUERY_BLOCK = 128.0  # query rows a block of FlashAttention computes


@dataclass(frozen=True)
class Heads:
    """Attention as one GPU runs it (numbers, or arrays for many shapes at once).

    Attributes:
        num_heads, num_kv_heads: on this GPU. head_dim: width of a query and key.
        value_dim: width of a value. kv_width: values a token keeps in a KV head's cache (2 head_dim; MLA: the latent).
        kv_bytes: bytes of a cached value. window: sliding window in tokens, or None. causal: decoders.
    """

    num_heads: Any
    num_kv_heads: Any
    head_dim: Any
    value_dim: Any
    kv_width: Any
    kv_bytes: Any
    window: Any = None
    causal: bool = True


def _keys(heads: Heads, context: FloatArray) -> FloatArray:
    return context if heads.window is None else np.minimum(context, heads.window)


def decode_physics_s(
    fit: Mapping[str, Any], gpu: Gpu, heads: Heads, batch: FloatArray, context: FloatArray, cold: bool = False
) -> FloatArray:
    """Decode seconds before the correction; ``cold``: no key is in L2 when the kernel starts (a served model).

    Args:
        fit: launch_s, block_s: floors; eff_bandwidth, eff_flops: shares of peak; l2_bytes_per_flop: L2's bandwidth,
            bytes for each 16-bit FLOP at peak;
            l2_copies: footprints that a benchmark keeps in L2; l2_sharpness: of the change from L2 to DRAM;
        sharpness: of the corner between reading and computing.
        batch: sequences. context: keys of each, on average.
    """
    keys = _keys(heads, context)
    moved = batch * keys * heads.num_kv_heads * heads.kv_width * heads.kv_bytes
    small = 4.0 * batch * heads.num_heads * heads.head_dim
    dram = moved / (fit["eff_bandwidth"] * gpu.memory_bandwidth_bytes_per_s)
    if not cold:
        hit = 1.0 / (1.0 + (moved * fit["l2_copies"] / gpu.l2_bytes) ** fit["l2_sharpness"])
        dram = dram * (1.0 - hit) + hit * np.minimum(dram, moved / (fit["l2_bytes_per_flop"] * peak_flops(gpu, "bf16")))
    flops = 2.0 * batch * keys * heads.num_heads * (heads.head_dim + heads.value_dim)
    compute = flops / (fit["eff_flops"] * peak_flops(gpu, "bf16"))
    blocks = batch * heads.num_kv_heads * fit["block_s"] / gpu.num_sms
    q = fit["sharpness"]
    work = (blocks**q + dram**q + compute**q) ** (1.0 / q)
    return np.asarray(fit["launch_s"] + work + small / gpu.memory_bandwidth_bytes_per_s)


def decode_axes(heads: Heads, batch: FloatArray, context: FloatArray) -> dict[str, FloatArray]:
    """What the decode correction depends on."""
    group = np.asarray(heads.num_heads / heads.num_kv_heads, dtype=np.float64)
    return {
        "blocks": np.asarray(batch * heads.num_kv_heads, dtype=np.float64),
        "keys": np.asarray(_keys(heads, context), dtype=np.float64),
        "group": group,
        "head_dim": np.asarray(heads.value_dim, dtype=np.float64),
    }


def decode_features(gpu: Gpu, heads: Heads, batch: FloatArray, context: FloatArray) -> dict[str, FloatArray]:
    """What the trees ask about decode: sizes in log2, blocks of keys, waves of (sequence, KV head)."""
    keys, group = _keys(heads, context), heads.num_heads / heads.num_kv_heads
    blocks = batch * heads.num_kv_heads
    moved = blocks * keys * heads.kv_width * heads.kv_bytes
    asked = {
        "batch": batch, "keys": keys, "context": context, "group": group, "head_dim": heads.value_dim,
        "num_heads": heads.num_heads, "num_kv_heads": heads.num_kv_heads, "blocks": blocks,
        "group*blocks": group * blocks, "blocks*keys": blocks * keys, "moved_l2": moved / gpu.l2_bytes,
        "scores": batch * heads.num_heads * keys,
    }  # fmt: skip
    found = {name: np.log2(value) for name, value in asked.items()}
    waves = blocks / gpu.num_sms
    found |= {"waves": waves, "idle": np.ceil(waves) / waves}
    for size in (64, 128, 256):
        splits = np.ceil(keys / size)
        found |= {f"splits_{size}": splits, f"split_waves_{size}": np.log2(splits * waves)}
    shape = np.broadcast_shapes(np.shape(batch), np.shape(context))
    return {name: np.broadcast_to(value, shape) for name, value in found.items()}


def decode_time_s(
    fit: Mapping[str, Any], gpu: Gpu, heads: Heads, batch: FloatArray, context: FloatArray, cold: bool = True
) -> FloatArray:
    """Seconds in which ``batch`` sequences each attend one token to ``context`` keys, on average; 0 for none."""
    n, keys = np.maximum(batch, 1.0), np.maximum(context, 1.0)
    time = decode_physics_s(fit, gpu, heads, n, keys, cold)
    time = time * np.exp(residual.evaluate_all(fit.get("residual"), (decode_axes(heads, n, keys),)))
    if "trees" in fit:
        time = time * np.exp(trees.evaluate(fit["trees"], decode_features(gpu, heads, n, keys)))
    return np.asarray(np.where(np.asarray(batch) > 0, time, 0.0))


def prefill_physics_s(
    fit: Mapping[str, Any], gpu: Gpu, heads: Heads, tokens: FloatArray, mean_context: FloatArray
) -> FloatArray:
    """Prefill seconds before the correction.

    Args:
        fit: launch_s: floor; eff_flops, eff_bandwidth: shares of peak; key_overhead: keys that starting and ending a
            query row costs; eff_sm_flops: share of one multiprocessor's peak that the longest block gets; of eager
            attention, score_bytes: traffic a score, and mask_waste: keys computed over keys needed.
        tokens: prompt tokens. mean_context: keys that each attends to, on average.
    """
    keys = _keys(heads, mean_context) * fit.get("mask_waste", 1.0)
    peak = peak_flops(gpu, "bf16")
    flops = 2.0 * tokens * (keys + fit["key_overhead"]) * heads.num_heads * (heads.head_dim + heads.value_dim)
    longest = keys + np.minimum(tokens / 2.0, keys)
    block = 2.0 * QUERY_BLOCK * longest * (heads.head_dim + heads.value_dim)
    compute = flops / (fit["eff_flops"] * peak)
    alone = block * gpu.num_sms / (fit["eff_sm_flops"] * peak)
    moved = 2.0 * tokens * (heads.num_heads + heads.num_kv_heads) * (heads.head_dim + heads.value_dim)
    moved = moved + fit.get("score_bytes", 0.0) * tokens * keys * heads.num_heads
    q = fit["sharpness"]
    traffic = moved / (fit["eff_bandwidth"] * gpu.memory_bandwidth_bytes_per_s)
    return np.asarray(fit["launch_s"] + ((compute + traffic) ** q + alone**q) ** (1.0 / q))


def prefill_axes(heads: Heads, tokens: FloatArray, mean_context: FloatArray) -> dict[str, FloatArray]:
    """What the prefill correction depends on."""
    return {
        "rows": np.asarray(tokens * heads.num_heads, dtype=np.float64),
        "keys": np.asarray(_keys(heads, mean_context), dtype=np.float64),
        "group": np.asarray(heads.num_heads / heads.num_kv_heads, dtype=np.float64),
        "head_dim": np.asarray(heads.value_dim, dtype=np.float64),
    }


def prefill_features(gpu: Gpu, heads: Heads, tokens: FloatArray, mean_context: FloatArray) -> dict[str, FloatArray]:
    """What the trees ask about prefill: sizes in log2, waves of query blocks by head and by group of heads."""
    keys, group = _keys(heads, mean_context), heads.num_heads / heads.num_kv_heads
    asked = {
        "tokens": tokens, "keys": keys, "group": group, "head_dim": heads.value_dim, "num_heads": heads.num_heads,
        "num_kv_heads": heads.num_kv_heads, "rows": tokens * heads.num_heads, "scores": tokens * heads.num_heads * keys,
        "tokens/keys": tokens / keys,
    }  # fmt: skip
    if heads.window is not None:
        asked["window"] = np.minimum(heads.window, 2.0**20)
    found = {name: np.log2(value) for name, value in asked.items()}
    for size in (64.0, QUERY_BLOCK):
        waves = np.ceil(tokens / size) * heads.num_heads / gpu.num_sms
        found |= {f"waves_{size:g}": np.log2(waves), f"idle_{size:g}": np.ceil(waves) / waves}
        waves = np.ceil(tokens * group / size) * heads.num_kv_heads / gpu.num_sms
        found |= {f"group_waves_{size:g}": np.log2(waves), f"group_idle_{size:g}": np.ceil(waves) / waves}
    shape = np.broadcast_shapes(np.shape(tokens), np.shape(mean_context))
    return {name: np.broadcast_to(value, shape) for name, value in found.items()}


def prefill_time_s(
    fit: Mapping[str, Any], gpu: Gpu, heads: Heads, tokens: FloatArray, mean_context: FloatArray
) -> FloatArray:
    """Seconds in which ``tokens`` prompt tokens attend to ``mean_context`` keys each; never above the GPU's peak."""
    c, keys = np.maximum(tokens, 1.0), np.maximum(mean_context, 0.5)
    time = prefill_physics_s(fit, gpu, heads, c, keys)
    time = time * np.exp(residual.evaluate_all(fit.get("residual"), (prefill_axes(heads, c, keys),)))
    if "trees" in fit:
        time = time * np.exp(trees.evaluate(fit["trees"], prefill_features(gpu, heads, c, keys)))
    flops = 2.0 * c * _keys(heads, keys) * heads.num_heads * (heads.head_dim + heads.value_dim)
    time = np.maximum(time, flops / peak_flops(gpu, "bf16"))
    return np.asarray(np.where(np.asarray(tokens) > 0, time, 0.0))
