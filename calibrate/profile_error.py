"""How wrong a profile may be for a replica: the error of the kernels it uses, widened outside the range they know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from calibrate.kernel_sums import EXPERT_VARIANTS, VARIANTS, KernelSums
from calibrate.physics import work
from calibrate.profiles import Profile
from catalogs.schema import Model, Replica

# Measured runs that no fit has seen, by kind of model: section of the validation report, metric, and the figure of its
# error that stands for a model that was not measured. Served mixtures of experts were compared with one set only.
SERVED: Mapping[str, tuple[str, str, str]] = {
    "dense": ("Closed loops, group left out", "tpot_s", "p90"),
    "experts": (
        "MiniMax-M2.5 in FP8 blocks on 8 x H200, experts spread over all GPUs (InferenceX, experimental)",
        "output_tokens_per_s", "median",
    ),
    "batches": ("Encoder and vision batches, GPU left out", "batch_s", "p90"),
}  # fmt: skip
WIDENING = 0.5  # of the error, for each doubling beyond the range


def error_at(profile: Profile, family: str, variant: str, shape: Mapping[str, float]) -> dict[str, Any]:
    """Held-out error of a variant, widened by half for each doubling of a shape's value beyond the valid range.

    Args:
        shape: some of the family's columns (``m``, ``n``, ``k``, ``context_tokens`` ...) and their values.

    Returns:
        median, p90 (ratios; None where nothing was checked), basis, and ``outside``: what lies outside, in words.
    """
    known = profile.error.get(family, {}).get(variant, {})
    valid = profile.families.get(family, {}).get(variant, {}).get("valid_range", {})
    doublings, outside = 0.0, []
    for name, value in shape.items():
        if name not in valid or value <= 0:
            continue
        low, high = valid[name]
        beyond = max(np.log2(value / high) if high > 0 else 0.0, np.log2(low / value) if low > 0 else 0.0, 0.0)
        if beyond > 0:
            doublings += float(beyond)
            outside.append(f"{name} {value:g} is outside {low:g} to {high:g}")
    wider = 1.0 + WIDENING * doublings
    return {
        "median": known["median"] * wider if "median" in known else None,
        "p90": known["p90"] * wider if "p90" in known else None,
        "basis": known.get("basis", "not checked"),
        "outside": outside,
    }


def replica_error(replica: Replica, profile: Profile) -> dict[str, dict[str, Any]]:
    """Error of each kernel family that a replica uses, at its own widths and longest context.

    A profile of another kind (tables of one model, a measured server) gives its own errors as they are.
    """
    if profile.kind != "kernels" or replica.model.kind != "decoder":
        return dict(profile.error)
    kernels, model, tp = KernelSums(replica, profile), replica.model, replica.tensor_parallel_size
    found = {}
    gemms = [*work.attention_gemms(model, tp), *work.mlp_gemms(model, tp)]
    variant = _first(profile, "gemm", VARIANTS.get(kernels.form.gemm, (kernels.form.gemm,)))
    errors = [error_at(profile, "gemm", variant, {"n": g.n, "k": g.k}) for g in gemms]
    found["gemm"] = {"variant": variant, **_widest(errors)}
    reach = {"context_tokens": float(replica.engine.max_model_len or 0), "head_dim": float(model.head_dim)}
    cache = _first(profile, "decode_attention", kernels.cache_variants(None))
    found["decode_attention"] = {"variant": cache, **error_at(profile, "decode_attention", cache, reach)}
    cache = _first(profile, "prefill_attention", kernels.cache_variants(None))
    found["prefill_attention"] = {"variant": cache, **error_at(profile, "prefill_attention", cache, {})}
    if model.moe is not None:
        variant = _first(profile, "moe", EXPERT_VARIANTS.get(kernels.form.gemm, (kernels.form.gemm,)))
        shape = {"hidden": float(model.hidden_size), "inter": float(model.moe.expert_intermediate_size)}
        found["moe"] = {"variant": variant, **error_at(profile, "moe", variant, shape)}
    if tp > 1:
        shape = {"num_gpus": float(tp)}
        found["all_reduce"] = {"variant": kernels.link, **error_at(profile, "all_reduce", kernels.link, shape)}
    return found


def _first(profile: Profile, family: str, variants: tuple[str, ...]) -> str:
    known = profile.families.get(family, {})
    return next((v for v in (*variants, "default", "bf16") if v in known), variants[0])


def _widest(errors: list[dict[str, Any]]) -> dict[str, Any]:
    worst = max(errors, key=lambda e: e["median"] or 0.0)
    return {**worst, "outside": [text for e in errors for text in e["outside"]]}


@cache
def measured_accuracy() -> list[dict[str, Any]]:
    """The rows of docs/validation.md: what was measured, metric, number of points, median, p90, worst (ratios), fit."""
    return list(json.loads((files("calibrate") / "accuracy.json").read_text())["rows"])


def served_error(model: Model) -> float | None:
    """By how much served steps of such a model may take longer than told (ratio); None where none were measured."""
    kind = "batches" if model.kind != "decoder" else "dense" if model.moe is None else "experts"
    what, metric, figure = SERVED[kind]
    return next((float(r[figure]) for r in measured_accuracy() if (r["what"], r["metric"]) == (what, metric)), None)
