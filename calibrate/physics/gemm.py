"""Time of a linear layer: waves of tiles over the GPU's multiprocessors, its traffic, a launch floor, corrections.

For a tile of (a, b) results and k split s ways, ``ceil(m/a) ceil(n/b) s`` blocks run in waves of one block a
multiprocessor; a block takes k/s steps, each as long as its arithmetic at the tile's efficiency or its loads at one
multiprocessor's bandwidth, whichever is longer. The library is taken to choose the best tile and split. Traffic is
weights, activations and results once, from L2 where a benchmark leaves them there (``cold=False``), else from DRAM.
Formats with quantized activations also read and write those. A benchmark that launches kernels one by one from Python
never sees less than its host's time (``host_s``); a served model replays them as a CUDA graph, and does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.physics import residual, trees
from calibrate.physics.precisions import Precision
from calibrate.physics.roofline import clock_hz, peak_flops
from catalogs.schema import Gpu

FloatArray = NDArray[np.float64]
TILES = ((1, 64), (16, 64), (32, 64), (64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
SPLITS = (1, 2, 4, 8)
# Weight-only kernels (Marlin, arXiv 2408.11743) read weights as they are stored and come near the fourfold speed of
# that up to 16 to 32 rows on A10 and A100: tiles of so many rows reach at least these shares of the peak. Tables of
# 16-bit kernels, whose traffic hides such tiles, cannot tell.
MARLIN_ROWS = 64
MARLIN_SHARE = {16: 0.3, 32: 0.5, 64: 0.6}
SHARPNESS = 6.0  # of the rounded corner between compute and traffic
L2_SHARPNESS = 12  # of the change from L2 to DRAM


def physics_s(
    fit: Mapping[str, Any], gpu: Gpu, form: Precision, shape: tuple[FloatArray, Any, Any], cold: bool = False
) -> FloatArray:
    """Seconds before the correction.

    Args:
        fit: parameters. tile_axb: share of one multiprocessor's peak with tiles of a x b; sm_bytes_per_flop: loads of
            one multiprocessor, bytes for each 16-bit FLOP at its peak; eff_bandwidth: share of DRAM's;
            joules_per_flop: energy of a 16-bit FLOP at latency_clock_hz;
            l2_bytes_per_flop: L2's bandwidth, likewise for the whole GPU; l2_copies: footprints that a benchmark keeps
            in L2; launch_s, wave_s, split_s, quantize_s: floors, the first two cycles of a GPU that runs at
            latency_clock_hz (absent: as they are); quantize_bytes: traffic an activation value that is
            quantized on the way; host_s: least time of a benchmark that was bound by its host.
        shape: m, n, k, broadcast together.
        cold: weights come from DRAM, as in a served model whose other layers have passed through L2.
    """
    m, n, k = (np.asarray(x, dtype=np.float64) for x in shape)
    bandwidth, num_sms = gpu.memory_bandwidth_bytes_per_s, gpu.num_sms
    sm_flops = _sustained_share(fit, gpu) * peak_flops(gpu, form.compute) / num_sms
    sm_loads = peak_flops(gpu, "bf16") / num_sms
    clock = clock_hz(gpu)
    slower = fit["latency_clock_hz"] / clock if clock and "latency_clock_hz" in fit else 1.0
    blocks = np.full(np.broadcast_shapes(m.shape, n.shape, k.shape), np.inf)
    for a, b in TILES:
        efficiency = fit.get(f"tile_{a}x{b}")
        if efficiency is None:
            continue
        weight: Any = max(form.weight_bytes, 0.5)
        if form.weight_only:  # widened in registers, again for each row of tiles
            few = m <= MARLIN_ROWS
            weight = np.where(few, weight, 2.0)
            efficiency = np.where(few, np.maximum(efficiency, MARLIN_SHARE.get(a, 0.0)), efficiency)
        loads = np.minimum(a, m) * form.activation_bytes + np.minimum(b, n) * weight
        step = np.maximum(2.0 * a * b / (sm_flops * efficiency), loads / (sm_loads * fit["sm_bytes_per_flop"]))
        tiles = np.ceil(m / a) * np.ceil(n / b)
        for split in SPLITS:
            waves = np.ceil(tiles * split / num_sms)
            extra = fit["split_s"] + split * m * n * 2.0 / bandwidth if split > 1 else 0.0
            blocks = np.minimum(blocks, waves * (k / split * step + slower * fit["wave_s"]) + extra)
    traffic = _traffic_s(fit, gpu, form, (m, n, k), cold)
    time = slower * fit["launch_s"] + (blocks**SHARPNESS + traffic**SHARPNESS) ** (1.0 / SHARPNESS)
    if form.activation_bytes < 2.0:
        time = time + quantize_time_s(fit, gpu, m, k)
    if "host_s" in fit and not cold:
        time = (time**SHARPNESS + fit["host_s"] ** SHARPNESS) ** (1.0 / SHARPNESS)
    return np.asarray(time)


def _sustained_share(fit: Mapping[str, Any], gpu: Gpu) -> float:
    """Share of the peak within the power limit: power goes with the clock's cube, energy a FLOP with its square."""
    clock = clock_hz(gpu)
    if clock is None or "joules_per_flop" not in fit:
        return 1.0
    at_peak_w = fit["joules_per_flop"] * (clock / fit["latency_clock_hz"]) ** 2 * peak_flops(gpu, "bf16")
    return float(min(1.0, (gpu.tdp_w / at_peak_w) ** (1.0 / 3.0)))


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
    hit = 1.0 / (1.0 + (moved * fit["l2_copies"] / gpu.l2_bytes) ** L2_SHARPNESS)
    near = moved / (fit["l2_bytes_per_flop"] * peak_flops(gpu, "bf16"))
    return np.asarray(dram * (1.0 - hit) + np.minimum(dram, near) * hit)


def raw_time_s(
    fit: Mapping[str, Any], gpu: Gpu, form: Precision, shape: tuple[FloatArray, Any, Any], cold: bool = False
) -> FloatArray:
    """Seconds with the corrections, never below arithmetic at peak."""
    m, n, k = (np.asarray(x, dtype=np.float64) for x in shape)
    correction = residual.evaluate_all(fit.get("residual"), axes(gpu, m, n, k))
    if "trees" in fit:
        correction = correction + trees.evaluate(fit["trees"], features(fit, gpu, form, m, n, k))
    if "host_s" in fit and cold:  # what was learned of the host says nothing about the device
        device = physics_s({**fit, "host_s": 0.0}, gpu, form, shape) ** SHARPNESS
        correction = correction * device / (device + fit["host_s"] ** SHARPNESS)
    time = physics_s(fit, gpu, form, shape, cold) * np.exp(correction)
    return np.asarray(np.maximum(time, 2.0 * m * n * k / peak_flops(gpu, form.compute)))


def axes(gpu: Gpu, m: FloatArray, n: FloatArray, k: FloatArray) -> Sequence[Mapping[str, FloatArray]]:
    """What the two corrections depend on: the shape, and how many waves of 128 x 128 tiles it makes."""
    waves = np.ceil(m / 128.0) * np.ceil(n / 128.0) / gpu.num_sms
    return {"m": m, "n": n, "k": k}, {"waves": waves, "k": k}


def features(
    fit: Mapping[str, Any], gpu: Gpu, form: Precision, m: FloatArray, n: FloatArray, k: FloatArray
) -> dict[str, FloatArray]:
    """What the trees ask about a shape: its size in log2, its place on the roofline, its tiles and waves.

    Shapes outside the valid range count as the nearest inside: there the correction holds and physics goes on.
    """
    valid = fit.get("valid_range", {})
    m, n, k = (np.clip(x, *valid.get(name, (1.0, np.inf))) for name, x in (("m", m), ("n", n), ("k", k)))
    flops = 2.0 * m * n * k / peak_flops(gpu, form.compute)
    moved = n * k * form.weight_bytes + m * k * form.activation_bytes + 2.0 * m * n
    traffic = moved / gpu.memory_bandwidth_bytes_per_s
    asked = {
        "m": m, "n": n, "k": k, "m*n": m * n, "m*k": m * k, "n*k": n * k, "m*n*k": m * n * k,
        "m/n": m / n, "n/k": n / k, "m/k": m / k, "max(m,n)": np.maximum(m, n), "min(m,n)": np.minimum(m, n),
        "moved_l2": moved / gpu.l2_bytes, "intensity": flops / traffic, "roofline_s": np.maximum(flops, traffic),
    }  # fmt: skip
    found = {name: np.log2(value) for name, value in asked.items()}
    for a, b in ((64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128)):
        waves = np.ceil(m / a) * np.ceil(n / b) / gpu.num_sms
        found |= {f"waves_{a}x{b}": waves, f"idle_{a}x{b}": np.ceil(waves) / waves, f"work_{a}x{b}": np.log2(waves * k)}
    for size in (16, 64, 128, 256):
        found[f"m_filled_{size}"] = m / (np.ceil(m / size) * size)
    for size in (128, 256):
        found[f"n_filled_{size}"] = n / (np.ceil(n / size) * size)
    shape = np.broadcast_shapes(m.shape, n.shape, k.shape)
    return {name: np.broadcast_to(value, shape) for name, value in found.items()}


@cache
def lattice() -> FloatArray:
    """Numbers of tokens at which time is computed, both sides of each tile edge."""
    edges = np.concatenate([np.arange(16, 256, 16), np.arange(256, 4096, 128), np.arange(4096, 32769, 1024)])
    return np.unique(np.concatenate([np.arange(1, 16), edges, edges + 1])).astype(np.float64)


class _Kernels:
    """Parameters of the family on a GPU, told apart by identity: they never change, and are too many to compare."""

    def __init__(self, fit: Mapping[str, Any], gpu: Gpu) -> None:
        self.fit, self.gpu = fit, gpu

    def __hash__(self) -> int:
        return hash((id(self.fit), id(self.gpu)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kernels) and self.fit is other.fit and self.gpu is other.gpu


@lru_cache(maxsize=4096)
def _lattice_s(kernels: _Kernels, form: Precision, n: float, k: float) -> FloatArray:
    """Seconds at each number of tokens of the lattice, monotone."""
    return np.maximum.accumulate(raw_time_s(kernels.fit, kernels.gpu, form, (lattice(), n, k), cold=True))


def gemm_time_s(fit: Mapping[str, Any], gpu: Gpu, form: Precision, m: FloatArray, n: float, k: float) -> FloatArray:
    """Seconds of (m, k) x (k, n) in a served model for each m: monotone in m, never above the GPU's peak.

    Args:
        fit: a profile's parameters of the family. gpu: data sheet. form: number format as this GPU runs it.
        m: tokens. n, k: widths.
    """
    points, time = lattice(), _lattice_s(_Kernels(fit, gpu), form, float(n), float(k))
    inside = np.interp(m, points, time)
    return np.asarray(np.where(m > points[-1], time[-1] * m / points[-1], inside))


def widened_gemm_time_s(
    fit: Mapping[str, Any], gpu: Gpu, half: Precision, m: FloatArray, n: float, k: float, stored_bytes: float
) -> FloatArray:
    """Seconds by slow weight-only kernels: all weights are widened to memory, then multiplied in 16 bit (``half``).

    What vLLM's AWQ kernels do from 256 tokens on and bitsandbytes' from 2; assumed for fewer, an upper bound.

    Args:
        fit: parameters of 16-bit GEMMs. stored_bytes: of a weight, before it is widened.
    """
    widening_s = n * k * (stored_bytes + 2.0) / gpu.memory_bandwidth_bytes_per_s
    return gemm_time_s(fit, gpu, half, m, n, k) + widening_s
