"""A profile's kernels and batches beside measured ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibrate.device.measurements import Measurement
from calibrate.fitting.validate import Comparison
from calibrate.physics.attention import Heads, decode_time_s, prefill_time_s
from calibrate.physics.collectives import all_reduce_time_s
from calibrate.physics.gemm import gemm_time_s
from calibrate.physics.precisions import on_gpu
from calibrate.profiles import Profile
from catalogs.errors import PlanError
from catalogs.schema import Gpu

FAMILIES = ("gemm", "prefill_attention", "decode_attention", "all_reduce")


def compare_kernels(profile: Profile, gpu: Gpu, points: Sequence[Measurement]) -> tuple[list[Comparison], list[str]]:
    """Predicted and measured seconds of each kernel that the profile has, and why others were left out.

    Args:
        profile: of kind ``kernels``.
        gpu: data sheet of the device that was measured.
        points: as ``plan calibrate run`` wrote them.
    """
    compared, left_out = [], {}
    for point in points:
        if point.family not in FAMILIES or point.variant not in ("", "dense", "flash", "paged"):
            left_out[f"{point.family} {point.variant}".strip()] = "no such kernel in a profile"
            continue
        try:
            predicted = _predicted_s(profile, gpu, point)
        except PlanError as error:
            left_out[f"{point.family} {point.dtype}"] = error.what
            continue
        shape = " ".join(f"{k}={v:g}" for k, v in point.shape.items())
        group = " ".join(part for part in (point.dtype, point.variant, gpu.name) if part)
        compared.append(Comparison(f"{point.family}_s", group, shape, predicted, point.median_s))
    return compared, [f"{what}: {why}" for what, why in left_out.items()]


def _predicted_s(profile: Profile, gpu: Gpu, point: Measurement) -> float:
    shape, one = point.shape, np.ones(1)
    if point.family == "gemm":
        form = on_gpu(point.dtype, gpu)
        fit = profile.family("gemm", form.gemm)
        return float(gemm_time_s(fit, gpu, form, one * shape["m"], shape["n"], shape["k"])[0])
    if point.family == "all_reduce":
        link, speed = ("nvlink", gpu.nvlink_bytes_per_s) if gpu.nvlink_bytes_per_s else ("pcie", gpu.pcie_bytes_per_s)
        fit = profile.family("all_reduce", link)
        return float(all_reduce_time_s(fit, speed or 1.0, int(shape["num_gpus"]), one * shape["bytes"])[0])
    head = shape["head_dim"]
    width = 2.0 if point.dtype in ("fp16", "bf16") else 4.0
    heads = Heads(int(shape["num_heads"]), int(shape["num_kv_heads"]), int(head), int(head), int(2 * head), width)
    kind = "fp8" if point.dtype == "fp8" else "bf16"
    if point.family == "decode_attention":
        fit = profile.family("decode_attention", kind)
        return float(decode_time_s(fit, gpu, heads, one * shape["batch"], one * shape["context"])[0])
    fit = profile.family("prefill_attention", kind)
    context = shape["context"] + shape["tokens"] / 2.0
    return float(prefill_time_s(fit, gpu, heads, one * shape["batch"] * shape["tokens"], one * context)[0])
