"""Kernel families as data: each one's columns, physics, start values and bounds, correction axes, and held-out split.

A frame holds one timed kernel a row, in the columns of ``Family.columns`` and ``time_s``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibrate.physics import attention, collectives, gemm, moe
from calibrate.physics.precisions import PRECISIONS, Precision
from calibrate.physics.work import expected_experts_hit
from catalogs.schema import Gpu

FloatArray = NDArray[np.float64]
Fit = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """How one kernel family is fitted.

    Attributes:
        columns: shape columns. split: columns whose values are held out together.
        start: parameter -> (start, lowest, highest), in the parameter's unit.
        host_bound: whether its benchmarks may wait for their host. fixed: parameters that are not fitted.
        physics: (fit, gpu, form, frame) -> seconds. axes: frame -> coordinates of the corrections, one dict each.
        knots: the corrections' knots, one dict each. smoothness: of the corrections, one each.
        features: frame -> what trees ask, (rows,) each; None: the family keeps to smooth corrections.
    """

    columns: tuple[str, ...]
    split: tuple[str, ...]
    start: Mapping[str, tuple[float, float, float]]
    physics: Callable[[Fit, Gpu, Precision, pd.DataFrame], FloatArray]
    axes: Callable[[Gpu, pd.DataFrame], Sequence[Mapping[str, FloatArray]]]
    knots: Sequence[Mapping[str, Sequence[float]]]
    smoothness: Sequence[float | Mapping[str, float]]
    ridge: float = 0.05
    host_bound: bool = False
    fixed: Mapping[str, float] = field(default_factory=dict)
    features: Callable[[Fit, Gpu, Precision, pd.DataFrame], Mapping[str, FloatArray]] | None = None
    units: Mapping[str, str] = field(default_factory=dict)


def column(frame: pd.DataFrame, name: str) -> FloatArray:
    """A column as float64."""
    return np.asarray(frame[name], dtype=np.float64)


def variant_form(variant: str) -> Precision:
    """The number format of a GEMM or expert variant (``fp8_block``, ``nvfp4`` ...)."""
    names = {"fp8_block": "fp8-block", "int4_wo": "int4-gptq", "w4a16_mxfp4": "mxfp4", "fp4": "nvfp4"}
    return PRECISIONS[names.get(variant, variant)]


# --- GEMM -----------------------------------------------------------------------------------------------------------
_TILE_START = (0.03, 0.1, 0.2, 0.4, 0.6, 0.6, 0.8, 0.85, 0.85)
_GEMM_START = {
    **{f"tile_{a}x{b}": (e, 1e-3, 3.0) for (a, b), e in zip(gemm.TILES, _TILE_START, strict=True)},
    "sm_bytes_per_flop": (0.02, 0.002, 10.0),
    "eff_bandwidth": (0.8, 0.2, 1.0),
    "l2_bytes_per_flop": (0.008, 0.005, 10.0),
    "joules_per_flop": (7e-13, 1e-14, 1e-11),
    "l2_copies": (6.0, 5.5, 6.5),  # AIConfigurator's benchmark runs six copies in turn
    "launch_s": (3e-6, 1e-7, 3e-5),
    "wave_s": (5e-7, 1e-8, 1e-5),
    "split_s": (2e-6, 1e-8, 1e-4),
    "quantize_s": (1e-6, 1e-8, 3e-5),
    "quantize_bytes": (4.0, 0.1, 30.0),
}  # fmt: skip
_GEMM_M = (1, 2, 4, 16, 17, 32, 64, 65, 96, 128, 129, 192, 256, 257, 512, 1024, 2048, 4096, 8192, 32768)
_GEMM_NK = (32, 128, 256, 512, 1024, 2048, 4096, 6144, 8192, 16384, 65536)
_WAVES = tuple(float(x) for x in np.round(np.geomspace(0.05, 20.0, 60), 4))
_GEMM_K = (32, 256, 1024, 2048, 4096, 8192, 16384, 65536)


def _gemm_physics(fit: Fit, gpu: Gpu, form: Precision, frame: pd.DataFrame) -> FloatArray:
    return gemm.physics_s(fit, gpu, form, (column(frame, "m"), column(frame, "n"), column(frame, "k")))


def _gemm_axes(gpu: Gpu, frame: pd.DataFrame) -> Sequence[Mapping[str, FloatArray]]:
    return gemm.axes(gpu, column(frame, "m"), column(frame, "n"), column(frame, "k"))


def _gemm_features(fit: Fit, gpu: Gpu, form: Precision, frame: pd.DataFrame) -> Mapping[str, FloatArray]:
    return gemm.features(fit, gpu, form, column(frame, "m"), column(frame, "n"), column(frame, "k"))


# --- attention ------------------------------------------------------------------------------------------------------
def heads_of(frame: pd.DataFrame) -> attention.Heads:
    """The heads of each row; ``window`` 0 means none."""
    width, window = column(frame, "head_dim"), column(frame, "window")
    reach = np.where(window > 0, window, 1e12)
    return attention.Heads(
        column(frame, "num_heads"), column(frame, "num_kv_heads"), width, width, 2.0 * width,
        column(frame, "kv_bytes"), reach,
    )  # fmt: skip


def prefill_work(frame: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """(tokens over the batch, keys that a token attends to on average): chunks of equal length after a context."""
    chunk, context = column(frame, "query_tokens"), column(frame, "context_tokens")
    window = np.where(column(frame, "window") > 0, column(frame, "window"), 1e12)
    last = context + chunk
    full = np.clip(last - np.maximum(context, window), 0.0, chunk)  # tokens that see a whole window
    rest = chunk - full
    keys = (rest * (context + rest / 2.0) + full * np.minimum(window, last)) / chunk
    return column(frame, "batch") * chunk, keys


def _prefill_physics(fit: Fit, gpu: Gpu, form: Precision, frame: pd.DataFrame) -> FloatArray:
    return attention.prefill_physics_s(fit, gpu, heads_of(frame), *prefill_work(frame))


def _prefill_axes(gpu: Gpu, frame: pd.DataFrame) -> Sequence[Mapping[str, FloatArray]]:
    return (attention.prefill_axes(heads_of(frame), *prefill_work(frame)),)


def _decode_physics(fit: Fit, gpu: Gpu, form: Precision, frame: pd.DataFrame) -> FloatArray:
    batch, context = column(frame, "batch"), column(frame, "context_tokens")
    return attention.decode_physics_s(fit, gpu, heads_of(frame), batch, context)


def _decode_axes(gpu: Gpu, frame: pd.DataFrame) -> Sequence[Mapping[str, FloatArray]]:
    return (attention.decode_axes(heads_of(frame), column(frame, "batch"), column(frame, "context_tokens")),)


def _prefill_features(fit: Fit, gpu: Gpu, form: Precision, frame: pd.DataFrame) -> Mapping[str, FloatArray]:
    return attention.prefill_features(gpu, heads_of(frame), *prefill_work(frame))


def _decode_features(fit: Fit, gpu: Gpu, form: Precision, frame: pd.DataFrame) -> Mapping[str, FloatArray]:
    return attention.decode_features(gpu, heads_of(frame), column(frame, "batch"), column(frame, "context_tokens"))


_ATTENTION_COLUMNS = (
    "batch", "query_tokens", "context_tokens", "num_heads", "num_kv_heads", "head_dim", "window", "kv_bytes",
)  # fmt: skip


# --- experts --------------------------------------------------------------------------------------------------------
def experts_of(frame: pd.DataFrame) -> tuple[moe.Experts, moe.Load]:
    """Experts on one GPU and their load: tokens dealt evenly, or by a power law (``skew``) on one GPU."""
    num, ep, skew = column(frame, "num_experts"), column(frame, "ep"), column(frame, "skew")
    tokens, per_token = column(frame, "tokens"), column(frame, "per_token")
    experts = moe.Experts(
        num, num / ep, per_token, column(frame, "hidden"), np.maximum(column(frame, "inter") / column(frame, "tp"), 1),
        column(frame, "num_matrices"),
    )  # fmt: skip
    rows = np.maximum(tokens * per_token / ep, 1.0)
    hit = np.minimum(num / ep, rows)
    kinds = np.stack([num, per_token, skew], axis=1)
    for count, each, power in np.unique(kinds[skew > 0], axis=0):
        chosen = (num == count) & (per_token == each) & (skew == power)
        numbers, which = np.unique(tokens[chosen], return_inverse=True)
        hit[chosen] = expected_experts_hit(numbers, int(count), int(each), float(power))[which]
    hit = np.where(skew > 0, np.minimum(hit, rows), hit)
    return experts, moe.Load(rows, hit, np.maximum(tokens * per_token, rows))


def _experts_physics(fit: Fit, gpu: Gpu, form: Precision, frame: pd.DataFrame) -> FloatArray:
    return moe.experts_physics_s(fit, gpu, form, *experts_of(frame))


def _experts_axes(gpu: Gpu, frame: pd.DataFrame) -> Sequence[Mapping[str, FloatArray]]:
    return (moe.experts_axes(*experts_of(frame)),)


def _experts_features(fit: Fit, gpu: Gpu, form: Precision, frame: pd.DataFrame) -> Mapping[str, FloatArray]:
    return moe.experts_features(gpu, form, *experts_of(frame))


# --- exchanges ------------------------------------------------------------------------------------------------------
def _ring(passes: float) -> Callable[[Fit, Gpu, Precision, pd.DataFrame], FloatArray]:
    def physics(fit: Fit, gpu: Gpu, form: Precision, frame: pd.DataFrame) -> FloatArray:
        link = gpu.nvlink_bytes_per_s or gpu.pcie_bytes_per_s
        return collectives.ring_physics_s(fit, link, column(frame, "num_gpus"), column(frame, "bytes"), passes)

    return physics


def _ring_axes(gpu: Gpu, frame: pd.DataFrame) -> Sequence[Mapping[str, FloatArray]]:
    return ({"bytes": column(frame, "bytes"), "num_gpus": column(frame, "num_gpus")},)


def _ring_family(passes: float) -> Family:
    return Family(
        columns=("bytes", "num_gpus"),
        split=("bytes",),
        start={
            "launch_s": (8e-6, 1e-6, 1e-4),
            "hop_s": (1e-6, 1e-9, 2e-5),
            "eff_link": (0.6, 0.01, 1.5),
            "sharpness": (1.5, 1.0, 6.0),
        },
        physics=_ring(passes),
        axes=_ring_axes,
        knots=({"bytes": [2.0**i for i in range(8, 31, 1)], "num_gpus": [2, 4, 8]},),
        smoothness=({"bytes": 0.02, "num_gpus": 0.001},),
        ridge=0.002,
    )


_CORNER = (3.0, 1.0, 8.0)
FAMILIES: dict[str, Family] = {
    "gemm": Family(
        columns=("m", "n", "k"), split=("n", "k"), start=_GEMM_START, physics=_gemm_physics, axes=_gemm_axes,
        knots=({"m": _GEMM_M, "n": _GEMM_NK, "k": _GEMM_NK}, {"waves": _WAVES, "k": _GEMM_K}), smoothness=(0.1, 0.3),
        features=_gemm_features, host_bound=True, fixed={"latency_clock_hz": 2e9},
    ),
    "prefill_attention": Family(
        columns=_ATTENTION_COLUMNS, split=("num_heads", "num_kv_heads", "head_dim"),
        start={
            "eff_flops": (0.65, 0.05, 1.0), "eff_sm_flops": (0.3, 0.02, 2.0), "eff_bandwidth": (0.6, 0.05, 1.0),
            "key_overhead": (100.0, 0.1, 2000.0), "launch_s": (1.2e-5, 1e-6, 5e-5), "sharpness": _CORNER,
        },
        physics=_prefill_physics, axes=_prefill_axes, features=_prefill_features,
        knots=({
            "rows": [1, 16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 262144, 1048576, 4194304],
            "keys": [0.5, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192],
            "group": [1, 2, 4, 8, 16, 64], "head_dim": [64, 128, 192, 256, 512],
        },),
        smoothness=({"rows": 0.03, "keys": 0.03, "group": 0.015, "head_dim": 0.003},), ridge=0.02,
    ),
    "decode_attention": Family(
        columns=_ATTENTION_COLUMNS, split=("num_heads", "num_kv_heads", "head_dim"),
        start={
            "eff_bandwidth": (0.85, 0.1, 1.0), "eff_flops": (0.3, 0.005, 1.0), "l2_copies": (1.0, 0.3, 6.0),
            "l2_bytes_per_flop": (0.008, 0.001, 10.0), "l2_sharpness": (6.0, 1.0, 40.0),
            "launch_s": (1.2e-5, 1e-6, 5e-5), "block_s": (3e-6, 1e-8, 3e-5), "sharpness": (2.0, 1.0, 8.0),
        },
        physics=_decode_physics, axes=_decode_axes, features=_decode_features,
        knots=({
            "blocks": [1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384],
            "keys": [1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072],
            "group": [1, 2, 4, 8, 16, 64], "head_dim": [64, 128, 192, 256, 512],
        },),
        smoothness=({"blocks": 0.03, "keys": 0.03, "group": 0.015, "head_dim": 0.003},), ridge=0.02,
    ),
    "moe": Family(
        columns=("tokens", "hidden", "inter", "per_token", "num_experts", "tp", "ep", "skew", "num_matrices"),
        split=("hidden", "inter", "per_token", "num_experts", "tp"),
        start={
            "eff_sm_flops": (0.5, 0.01, 1.0), "eff_bandwidth": (0.7, 0.05, 1.0), "row_bytes": (4.0, 0.05, 100.0),
            "pair_bytes": (4.0, 0.01, 100.0), "block_depth": (100.0, 0.1, 5000.0),
            "launch_s": (2e-5, 1e-6, 3e-4), "l2_bytes_per_flop": (0.008, 0.001, 10.0), "l2_copies": (2.0, 0.5, 30.0),
            "sharpness": _CORNER,
        },
        physics=_experts_physics, axes=_experts_axes, features=_experts_features,
        knots=({
            "rows_per_expert": [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 32768],
            "experts_hit": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
            "inter": [64, 128, 256, 512, 1024, 2048, 4096, 16384], "hidden": [2048, 4096, 8192],
        },),
        smoothness=(0.05,),
    ),
    "all_reduce": _ring_family(2.0),
    "all_gather": _ring_family(1.0),
    "all_to_all": _ring_family(1.0),
}  # fmt: skip
