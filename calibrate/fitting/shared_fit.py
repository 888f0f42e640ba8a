"""One set of parameters for all measured GPUs, for those that are known by their data sheet alone, and how wrong it is.

The spread is found by leaving each measured GPU out, fitting the others together, and predicting it from its data
sheet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from calibrate.fitting.families import FAMILIES, column
from calibrate.fitting.fit import Frames, Part, accuracy, fit_corrections, fit_physics, form_of, predict
from catalogs.schema import Gpu

ROWS_A_GPU = 3000
# One scale a tensor of FP8 experts is left out: its kernels differ too much between GPUs to be shared.
SHARED = (
    ("gemm", "bf16"), ("gemm", "fp8"), ("prefill_attention", "bf16"), ("prefill_attention", "fp8"),
    ("prefill_attention", "bf16-window"), ("decode_attention", "bf16"), ("decode_attention", "fp8"),
    ("decode_attention", "bf16-window"), ("moe", "bf16"), ("moe", "int4_wo"), ("moe", "mxfp4"),
    ("all_reduce", "nvlink"), ("all_reduce", "pcie"), ("all_gather", "nvlink"), ("all_gather", "pcie"),
    ("all_to_all", "nvlink"), ("all_to_all", "pcie"),
)  # fmt: skip
ByGpu = Mapping[str, Mapping[str, Any]]  # GPU left out -> its error
Measured = Mapping[str, tuple[Gpu, Frames]]  # GPU name -> its data sheet and kernels


def _fit(name: str, variant: str, parts: list[Part], corrected: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """(physics alone, physics with a smooth correction); the same twice for families that are not corrected."""
    family, form = FAMILIES[name], form_of(name, variant)
    rows = [(gpu, frame.sample(min(ROWS_A_GPU, len(frame)), random_state=0)) for gpu, frame in parts]
    fit: dict[str, Any] = fit_physics(family, form, rows)
    return fit, {**fit, "residual": fit_corrections(family, form, rows, fit)[:1]} if corrected else fit


def fit_shared(measured: Measured) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """(families, errors) fitted on all GPUs together; the errors are of GPUs left out.

    The correction is kept where it lowers the error of the GPU that is predicted worst: what one generation's library
    does seldom holds for another's. An error holds ``by_gpu`` (GPU left out -> median and p90) and the median of those.
    """
    families: dict[str, dict[str, Any]] = {}
    errors: dict[str, dict[str, Any]] = {}
    for name, variant in SHARED:
        parts = {gpu: (sheet, f[name, variant]) for gpu, (sheet, f) in measured.items() if (name, variant) in f}
        if not parts:
            continue
        corrected = name == "gemm"  # elsewhere kernels differ between generations too much for one to carry over
        error: dict[str, Any] = {"basis": "one GPU's tables; never checked on another"}
        keep = corrected
        if len(parts) > 2:
            plain, with_correction = _left_out(name, variant, parts, corrected)
            keep = corrected and _worst(with_correction) < _worst(plain)
            by_gpu = with_correction if keep else plain
            p90 = float(np.median([e["p90"] for e in by_gpu.values()]))
            error = {"basis": "GPUs left out, predicted from their data sheets", "median": round(_middle(by_gpu), 4)}
            error |= {"p90": round(p90, 4), "worst": max(e["worst"] for e in by_gpu.values()), "by_gpu": by_gpu}
        families.setdefault(name, {})[variant] = _fit(name, variant, list(parts.values()), keep)[1]
        errors.setdefault(name, {})[variant] = error
    return families, errors


def _middle(by_gpu: ByGpu) -> float:
    return float(np.median([e["median"] for e in by_gpu.values()]))


def _worst(by_gpu: ByGpu) -> float:
    return max(float(e["median"]) for e in by_gpu.values())


def _left_out(name: str, variant: str, parts: Mapping[str, Part], corrected: bool) -> tuple[ByGpu, ByGpu]:
    """Errors of each GPU as the others predict it: (by physics alone, with the correction)."""
    plain: dict[str, dict[str, Any]] = {}
    with_correction: dict[str, dict[str, Any]] = {}
    for gpu, (sheet, frame) in parts.items():
        fits = _fit(name, variant, [p for other, p in parts.items() if other != gpu], corrected)
        for fit, found in zip(fits, (plain, with_correction), strict=True):
            predicted = predict(FAMILIES[name], sheet, form_of(name, variant), frame, fit)
            found[gpu] = accuracy(predicted, column(frame, "time_s"))
    return plain, with_correction


def cross_error(name: str, variant: str, fit: Mapping[str, Any], target: Part) -> dict[str, Any]:
    """Error of one GPU's fit on another's kernels."""
    gpu, frame = target
    return accuracy(predict(FAMILIES[name], gpu, form_of(name, variant), frame, fit), column(frame, "time_s"))
