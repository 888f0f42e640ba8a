"""Makes a whole profile of fitted kernels: what was fitted, what a sibling lends, what is assumed, each said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from calibrate.device.measurements import MeasurementFile
from calibrate.device.probe import measured_gpu
from calibrate.fitting.fit import Frames, fit_frames
from calibrate.physics.roofline import ELEMENTWISE
from calibrate.profiles import SCHEMA_VERSION, Profile, shipped_profiles
from catalogs.errors import InputError
from catalogs.load import known_gpu
from catalogs.schema import Gpu

NEEDED = ("gemm", "prefill_attention", "decode_attention", "moe", "all_reduce", "all_gather", "all_to_all")

# Multi-head latent attention in decode: DeepSeek's FlashMLA on H800, 3000 GB/s of 3350 and 580 TFLOPS of 989
# (github deepseek-ai/FlashMLA, README).
MLA_DECODE = {"eff_bandwidth": 0.9, "eff_flops": 0.59, "block_s": 1e-6, "sharpness": 3.0,
              "l2_bytes_per_flop": 1.0, "l2_copies": 1.0, "l2_sharpness": 4.0}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """Where a profile's measurements come from."""

    name: str
    source: str
    as_of: str
    method: str = "physics and a smooth correction, fitted on four fifths of the shapes; errors are of the other fifth"
    framework: str = ""
    versions: Mapping[str, str] | None = None


def profile_document(gpu: Gpu, frames: Frames, origin: Origin) -> dict[str, Any]:
    """The JSON form of a profile fitted on frames.

    Raises:
        InputError: no kernels of a known family.
    """
    known = {key: rows for key, rows in frames.items() if key[0] != "elementwise" and len(rows)}
    if not known:
        raise InputError("no kernels that a profile can be fitted on", remedy="GEMM or attention kernels at least")
    families, errors = fit_frames(gpu, known)
    families["elementwise"] = {"default": _elementwise(gpu, frames)}
    decode = families.get("decode_attention")
    if decode is not None:
        launch = next(iter(decode.values()))["launch_s"]
        decode["mla"] = {**MLA_DECODE, "launch_s": launch}
        errors["decode_attention"]["mla"] = {"basis": "assumed from FlashMLA's published speeds; not checked here"}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": origin.name,
        "kind": "kernels",
        "gpu": gpu.name,
        "framework": origin.framework,
        "source": origin.source,
        "as_of": origin.as_of,
        "method": origin.method,
        "versions": dict(origin.versions or {}),
        "families": families,
        "error": errors,
    }


def _elementwise(gpu: Gpu, frames: Frames) -> dict[str, float]:
    """Launch and bandwidth share of the small kernels: measured where frames have them, else the project's."""
    rows = frames.get(("elementwise", "default"))
    if rows is None or len(rows) < 10:
        return dict(ELEMENTWISE)
    large, small = rows.nlargest(max(3, len(rows) // 10), "bytes"), rows.nsmallest(max(3, len(rows) // 10), "bytes")
    launch = float(small["time_s"].median())
    share = (large["bytes"] / large["time_s"]).median() / gpu.memory_bandwidth_bytes_per_s
    return {"eff_bandwidth": round(float(min(max(share, 0.05), 1.5)), 3), "launch_s": float(f"{launch:.3g}")}


def complete(document: dict[str, Any], donor: Profile) -> dict[str, Any]:
    """The document with the families that it lacks taken from ``donor``, and said to be."""
    for family in NEEDED:
        lent = donor.families.get(family)
        if family in document["families"] or lent is None:
            continue
        document["families"][family] = {variant: dict(fit) for variant, fit in lent.items()}
        error = donor.error.get(family, {})
        document["error"][family] = {
            variant: {**error.get(variant, {}), "basis": f"taken from profile {donor.name}, not measured here"}
            for variant in lent
        }
    return document


def donor_for(gpu: Gpu, framework: str = "") -> Profile | None:
    """The shipped profile that lends a GPU what its own tables lack; for an unknown device the A100's."""
    shipped = [p for p in shipped_profiles().values() if p.kind == "kernels"]
    own = [p for p in shipped if p.gpu == gpu.name]
    framed = [p for p in own if p.framework == framework]
    for group in (framed, own, [p for p in shipped if p.gpu == "A100-80GB"]):
        if group:
            return group[0]
    return None


_GEMM_VARIANTS = {"fp16": "bf16", "bf16": "bf16", "fp8": "fp8", "int8": "int8", "fp32": "fp32", "tf32": "tf32"}
_DEFAULT_BACKENDS = {
    "prefill_attention": ("flash", "mem_efficient", "math"),
    "decode_attention": ("paged", "flash", "math"),
}


def measured_frames(file: MeasurementFile, gpu: Gpu) -> dict[tuple[str, str], pd.DataFrame]:
    """A measurements file as frames: the fastest usual backend of attention, dense and weight-only GEMMs."""
    frames: dict[tuple[str, str], list[dict[str, float]]] = {}
    for point in file.points:
        key = _frame_key(point.family, point.dtype, point.variant, gpu)
        if key is None or not _is_chosen(file, point.family, point.variant):
            continue
        shape = dict(point.shape)
        row = {**shape, "time_s": point.median_s}
        if point.family.endswith("attention"):
            row |= {"query_tokens": shape.get("tokens", 1.0), "context_tokens": shape.get("context", 0.0)}
            row |= {"window": 0.0, "kv_bytes": 4.0 if point.dtype == "fp32" else 2.0}
        if point.family in ("elementwise", "norm"):
            row["bytes"] = 2.0 * (4.0 if point.dtype == "fp32" else 2.0) * shape["tokens"] * shape["width"]
        frames.setdefault(key, []).append(row)
    return {key: pd.DataFrame(rows) for key, rows in frames.items()}


def _frame_key(family: str, dtype: str, variant: str, gpu: Gpu) -> tuple[str, str] | None:
    if family == "gemm":
        if variant == "weight_only":
            return ("gemm", "int4_wo" if dtype == "int4" else "int8_wo")
        return ("gemm", _GEMM_VARIANTS[dtype]) if variant in ("", "dense") and dtype in _GEMM_VARIANTS else None
    if family in ("prefill_attention", "decode_attention"):
        return (family, "bf16") if dtype in ("bf16", "fp16", "fp32") else None
    if family == "all_reduce":
        return (family, "nvlink" if gpu.nvlink_bytes_per_s else "pcie")
    if family == "norm" or (family == "elementwise" and variant in ("silu_mul", "add", "gelu", "rope")):
        return ("elementwise", "default")
    return None


def _is_chosen(file: MeasurementFile, family: str, variant: str) -> bool:
    """Whether this is the backend that stands for attention: the first of the usual ones that was measured."""
    order = _DEFAULT_BACKENDS.get(family)
    if order is None:
        return True
    measured = {p.variant for p in file.points if p.family == family}
    return variant == next((b for b in order if b in measured), variant)


def fit_measurements(file: MeasurementFile, name: str) -> dict[str, Any]:
    """A profile document of a measurements file: this device's own peaks, kernels fitted, the rest lent.

    Raises:
        InputError: the file holds no kernels to fit.
    """
    measured = measured_gpu(file.header, file.path)
    gpu = known_gpu(measured.name) or measured  # its data sheet: shares of it stay comparable between GPUs
    origin = Origin(
        name=name,
        source=f"measured here on {gpu.name}: {file.path}",
        as_of=str(file.header.get("date", "")),
        versions={k: str(v) for k, v in file.header.items() if k.endswith("version")},
    )
    # these kernels were timed with the cache flushed before each run: none of their operands lay in L2
    document = profile_document(replace(gpu, l2_bytes=1.0), measured_frames(file, gpu), origin)
    donor = donor_for(gpu)
    if donor is not None:
        document = complete(document, donor)
    if gpu is not measured:
        return document
    document["device"] = {
        "peak_flops": dict(gpu.peak_flops),
        "memory_bandwidth_bytes_per_s": gpu.memory_bandwidth_bytes_per_s,
        "num_sms": gpu.num_sms,
        "l2_bytes": gpu.l2_bytes,
    }
    return document
