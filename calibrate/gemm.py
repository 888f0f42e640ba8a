"""Time of a linear layer: waves of tiles over the GPU's multiprocessors, its traffic, a launch floor, a correction.

For a tile of (a, b) results and k split s ways, ``ceil(m/a) ceil(n/b) s`` blocks run in waves of one block a
multiprocessor; a block takes k/s steps, each as long as its arithmetic at the tile's efficiency or its loads at one
multiprocessor's bandwidth, whichever is longer. The library is taken to choose the best tile and split. Traffic is
weights, activations and results once, from L2 where a benchmark leaves them there (``cold=False``), else from DRAM.
Formats with quantized activations also read and write those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate import residual
from calibrate.precisions import Precision
from calibrate.roofline import peak_flops
from catalogs.schema import Gpu

FloatArray = NDArray[np.float64]
TILES = ((1, 64), (16, 64), (32, 64), (64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
SPLITS = (1, 2, 4, 8)
SHARPNESS = 6.0  # of the rounded corner between compute and traffic


def physics_s(
    fit: Mapping[str, Any], gpu: Gpu, form: Precision, shape: tuple[FloatArray, Any, Any], cold: bool = False
) -> FloatArray:
    """Seconds before the correction.

    Args:
        fit: parameters. tile_axb: share of one multiprocessor's peak with tiles of a x b; sm_bytes_per_flop: loads of
            one multiprocessor, bytes for each 16-bit FLOP at its peak; eff_bandwidth: share of DRAM's;
            l2_bytes_per_flop: L2's bandwidth, likewise for the whole GPU; l2_copies: footprints that a benchmark keeps
            in L2; launch_s, wave_s, split_s, quantize_s: floors; quantize_bytes: traffic an activation value that is
            quantized on the way.
        shape: m, n, k, broadcast together.
        cold: weights come from DRAM, as in a served model whose other layers have passed through L2.
    """
    m, n, k = (np.asarray(x, dtype=np.float64) for x in shape)
    bandwidth, num_sms = gpu.memory_bandwidth_bytes_per_s, gpu.num_sms
    sm_flops = peak_flops(gpu, form.compute) / num_sms
    sm_loads = peak_flops(gpu, "bf16") / num_sms
    weight = 2.0 if form.weight_only else max(form.weight_bytes, 0.5)  # widened weights feed the units as 16 bit
    blocks = np.full(np.broadcast_shapes(m.shape, n.shape, k.shape), np.inf)
    for a, b in TILES:
        efficiency = fit.get(f"tile_{a}x{b}")
        if efficiency is None:
            continue
        loads = np.minimum(a, m) * form.activation_bytes + np.minimum(b, n) * weight
        step = np.maximum(2.0 * a * b / (sm_flops * efficiency), loads / (sm_loads * fit["sm_bytes_per_flop"]))
        tiles = np.ceil(m / a) * np.ceil(n / b)
        for split in SPLITS:
            waves = np.ceil(tiles * split / num_sms)
            extra = fit["split_s"] + split * m * n * 2.0 / bandwidth if split > 1 else 0.0
            blocks = np.minimum(blocks, waves * (k / split * step + fit["wave_s"]) + extra)
    traffic = _traffic_s(fit, gpu, form, (m, n, k), cold)
    time = fit["launch_s"] + (blocks**SHARPNESS + traffic**SHARPNESS) ** (1.0 / SHARPNESS)
    if form.activation_bytes < 2.0:
        time = time + quantize_time_s(fit, gpu, m, k)
    return np.asarray(time)


def quantize_time_s(fit: Mapping[str, Any], gpu: Gpu, m: FloatArray, k: FloatArray | float) -> FloatArray:
    """Seconds in which (m, k) activations are rounded to the GEMM's format: part of what was timed as the GEMM."""
    moved = fit.get("quantize_bytes", 0.0) * m * k
    return np.asarray(fit.get("quantize_s", 0.0) + moved / gpu.memory_bandwidth_bytes_per_s)


def _traffic_s(
    fit: Mapping[str, Any], gpu: Gpu, form: Precision, shape: tuple[FloatArray, FloatArray, FloatArray], cold: bool
) -> FloatArray:
    m, n, k = shape
    moved = n * k * form.weight_bytes + m * k * form.activation_bytes + 2.0 * m * n
    dram = moved / (fit["eff_bandwidth"] * gpu.memory_bandwidth_bytes_per_s)
    if cold:
        return np.asarray(dram)
    hit = 1.0 / (1.0 + (moved * fit["l2_copies"] / gpu.l2_bytes) ** 4)
    near = moved / (fit["l2_bytes_per_flop"] * peak_flops(gpu, "bf16"))
    return np.asarray(dram * (1.0 - hit) + np.minimum(dram, near) * hit)


def raw_time_s(
    fit: Mapping[str, Any], gpu: Gpu, form: Precision, shape: tuple[FloatArray, Any, Any], cold: bool = False
) -> FloatArray:
    """Seconds with the correction, never below arithmetic at peak."""
    m, n, k = (np.asarray(x, dtype=np.float64) for x in shape)
    correction = residual.evaluate_all(fit.get("residual"), axes(gpu, m, n, k))
    time = physics_s(fit, gpu, form, shape, cold) * np.exp(correction)
    return np.asarray(np.maximum(time, 2.0 * m * n * k / peak_flops(gpu, form.compute)))


def axes(gpu: Gpu, m: FloatArray, n: FloatArray, k: FloatArray) -> Sequence[Mapping[str, FloatArray]]:
    """What the two corrections depend on: the shape, and how many waves of 128 x 128 tiles it makes."""
    waves = np.ceil(m / 128.0) * np.ceil(n / 128.0) / gpu.num_sms
    return {"m": m, "n": n, "k": k}, {"waves": waves, "k": k}


def lattice(last: float) -> FloatArray:
    """Numbers of tokens at which time is computed, both sides of each tile edge, up to ``last`` or beyond."""
    edges = np.concatenate([np.arange(16, 256, 16), np.arange(256, 4096, 128), np.arange(4096, 32769, 1024)])
    points = np.unique(np.concatenate([np.arange(1, 16), edges, edges + 1])).astype(np.float64)
    return points[: int(np.searchsorted(points, last)) + 1]


def gemm_time_s(fit: Mapping[str, Any], gpu: Gpu, form: Precision, m: FloatArray, n: float, k: float) -> FloatArray:
    """Seconds of (m, k) x (k, n) in a served model for each m: monotone in m, never above the GPU's peak.

    Args:
        fit: a profile's parameters of the family. gpu: data sheet. form: number format as this GPU runs it.
        m: tokens. n, k: widths.
    """
    points = lattice(float(np.max(m, initial=1.0)))
    time = np.maximum.accumulate(raw_time_s(fit, gpu, form, (points, n, k), cold=True))
    inside = np.interp(m, points, time)
    return np.asarray(np.where(m > points[-1], time[-1] * m / points[-1], inside))
