"""Builds the profiles that come with the project: fitted where tables are present, carried over elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calibrate.fitting.assembly import MLA_DECODE, Origin, profile_document
from calibrate.fitting.backend_fit import fit_backends
from calibrate.fitting.families import FAMILIES, column
from calibrate.fitting.fit import Frames, accuracy, fit_physics, form_of, held_out, predict
from calibrate.fitting.importers.aiconfigurator import read_frames
from calibrate.fitting.links import fit_links
from calibrate.fitting.shared_fit import cross_error, fit_shared
from calibrate.physics.roofline import ELEMENTWISE
from calibrate.physics.work import attention_gemms, lm_head, mlp_gemms
from calibrate.profile_text import dump
from calibrate.profiles import SCHEMA_VERSION, SHIPPED
from calibrate.static_batches import power_demand
from catalogs.files import write_text
from catalogs.load import find_gpu, find_model
from catalogs.schema import Gpu
from catalogs.units import MICROSECONDS_PER_SECOND

AICONFIGURATOR, LLMSERVINGSIM = "kernels/aiconfigurator", "kernels/llmservingsim"
SOURCE = "AIConfigurator kernel tables, ai-dynamo/aiconfigurator 095f58a (Apache-2.0)"
AS_OF = "2026-11-23"
# profile: (GPU, folder of its system, backend, framework)
FITTED: Mapping[str, tuple[str, str, str, str]] = {
    "a100-80gb": ("A100-80GB", "a100_sxm", "vllm", "vllm"),
    "h100-sxm": ("H100-SXM", "h100_sxm", "vllm", "vllm"),
    "h100-sxm-tensorrt-llm": ("H100-SXM", "h100_sxm", "trtllm", "tensorrt-llm"),
    "h200": ("H200", "h200_sxm", "vllm", "vllm"),
    "l40s": ("L40S", "l40s", "vllm", "vllm"),
    "b200": ("B200", "b200_sxm", "vllm", "vllm"),
}
# GPU: the profile whose parameters stand for it, on its own data sheet. The same chip or generation where one is
# measured; elsewhere what all measured GPUs share.
CARRIED: Mapping[str, str] = {
    "A100-40GB": "a100-80gb", "A100-80GB-PCIe": "a100-80gb", "H100-PCIe": "h100-sxm", "B300": "b200", "L4": "l40s",
    "RTX4090": "l40s", "RTX-PRO-6000": "shared", "RTX-PRO-4500": "shared", "A10G": "shared", "A10": "shared",
    "T4": "shared", "V100": "shared", "V100-32GB": "shared",
}  # fmt: skip
# The same for one engine's own kernels, on a chip where that engine was timed in another product:
# profile: (GPU, profile, framework).
CARRIED_ENGINES: Mapping[str, tuple[str, str, str]] = {
    "h200-tensorrt-llm": ("H200", "h100-sxm-tensorrt-llm", "tensorrt-llm"),
    "h100-pcie-tensorrt-llm": ("H100-PCIe", "h100-sxm-tensorrt-llm", "tensorrt-llm"),
}
SAME_CHIP = ("a100-80gb", "h100-sxm", "h100-sxm-tensorrt-llm", "b200")
SIBLINGS = ("h100-sxm", "h200")  # measured GPUs of one chip: their cross error stands for carried siblings
# GPUs of which one model's layers were timed (folder of LLMServingSim's tables): GEMM and attention are fitted to them.
ONE_MODEL: Mapping[str, tuple[str, str]] = {
    "RTX4090": ("RTX4090/Llama-3.1-8B/bf16/tp1", "llama-3.1-8b"),
    "RTX-PRO-6000": ("RTXPRO6000/Llama-3.1-8B/bf16/tp1", "llama-3.1-8b"),
}
Say = Callable[[str], None]


def fitted_document(name: str, gpu: Gpu, frames: Frames, data: Path) -> dict[str, Any]:
    """The profile of a GPU with tables."""
    _, system, backend, framework = FITTED[name]
    source = f"{SOURCE}, {system}, {backend}"
    versions = _versions(data / AICONFIGURATOR / system, backend)
    return profile_document(gpu, frames, Origin(name, source, AS_OF, framework=framework, versions=versions))


def _versions(folder: Path, backend: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        what, _, version = path.name.rpartition("-")
        if what in (backend, "nccl"):
            found[what] = version
    return found


def shared_document(measured: Mapping[str, tuple[Gpu, Frames]]) -> dict[str, Any]:
    """What all measured GPUs share, with the spread that leaving one out shows."""
    families, errors = fit_shared(measured)
    families["elementwise"] = {"default": dict(ELEMENTWISE)}
    launch = families["decode_attention"]["bf16"]["launch_s"]
    families["decode_attention"]["mla"] = {**MLA_DECODE, "launch_s": launch}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": "shared",
        "kind": "kernels",
        "gpu": "",
        "source": f"{SOURCE}, {', '.join(measured)} together",
        "as_of": AS_OF,
        "method": "one set of parameters for all; errors are of GPUs left out",
        "families": families,
        "error": errors,
    }


_POWER = "; dense arithmetic slowed by the board's lower power limit (energy a FLOP from MLPerf batches)"


def power_limits(gpu: Gpu, base: str) -> dict[str, float]:
    """Power that arithmetic at peak asks of a GPU's limit, and did of the one that profile ``base`` was measured on.

    The tables of ``base`` hold what its own limit costs; ``shared`` stands for the median of what was measured. Empty
    where the limit is no tighter: a higher one is not known to help.
    """
    measured = [find_gpu(FITTED[base][0])] if base in FITTED else [find_gpu(g) for g, *_ in FITTED.values()]
    reference = float(np.median([power_demand(each, "bf16") for each in measured]))
    demand = power_demand(gpu, "bf16")
    return {"demand": round(demand, 3), "measured": round(reference, 3)} if demand > 1.01 * reference else {}


def carried_document(
    gpu_name: str, base: str, shared: Mapping[str, Any], siblings: Mapping[str, Any], framework: str = ""
) -> dict[str, Any]:
    """A GPU without tables of its own (of that framework): profile ``base``'s parameters on its data sheet."""
    same_chip = base in SAME_CHIP
    power = power_limits(find_gpu(gpu_name), base)
    basis = "the spread between H100 and H200, one chip in two products" if same_chip else "GPUs left out"
    errors: dict[str, Any] = {}
    for family, variants in shared["error"].items():
        for variant, error in variants.items():
            known = siblings.get(family, {}).get(variant) if same_chip else None
            kept = {k: v for k, v in (known or error).items() if k in ("median", "p90", "worst")}
            label = {"basis": f"carried over: {basis}" if known or not same_chip else "carried over: GPUs left out"}
            errors.setdefault(family, {})[variant] = {**kept, **label}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": f"{gpu_name.lower()}-{framework}".rstrip("-"),
        "kind": "kernels",
        "gpu": gpu_name,
        **({"framework": framework} if framework else {}),
        "source": f"data sheet of {gpu_name}; parameters carried over from profile {base}",
        "as_of": AS_OF,
        "method": f"carried over from {base}: {basis} give the error" + _POWER * bool(power),
        "carried_from": base,
        **({"power": power} if power else {}),
        "families": {},
        "error": errors,
    }


def one_model_frames(folder: Path, model_name: str) -> dict[tuple[str, str], pd.DataFrame]:
    """Kernels of one model's timed layers (LLMServingSim's dense, per_sequence and attention tables, microseconds)."""
    model = find_model(model_name)
    head = lm_head(model)
    layers = {
        f"{g.name}_proj": (g.n, g.k) for g in (*attention_gemms(model), *mlp_gemms(model))
    }  # qkv_proj, o_proj, gate_up_proj, down_proj
    dense = pd.read_csv(folder / "dense.csv").rename(columns={"tokens": "m"})
    dense = dense[dense["layer"].isin(layers)]
    rows = [dense.assign(n=[layers[x][0] for x in dense["layer"]], k=[layers[x][1] for x in dense["layer"]])]
    if head is not None:
        ends = pd.read_csv(folder / "per_sequence.csv").rename(columns={"sequences": "m"})
        rows.append(ends[ends["layer"] == "lm_head"].assign(n=head.n, k=head.k))
    gemm = pd.concat(rows, ignore_index=True)
    table = pd.read_csv(folder / "attention.csv")
    table["time_s"] = table["time_us"] / MICROSECONDS_PER_SECOND
    same = {
        "num_heads": model.num_attention_heads, "num_kv_heads": model.num_kv_heads, "head_dim": model.head_dim,
        "window": 0.0, "kv_bytes": 2.0,
    }  # fmt: skip
    decode = table[(table["prefill_chunk"] == 0) & (table["n_decode"] > 0)]
    decode = decode.assign(batch=decode["n_decode"], query_tokens=1, context_tokens=decode["kv_decode"], **same)
    prefill = table[(table["prefill_chunk"] > 0) & (table["n_decode"] == 0)]
    prefill = prefill.assign(
        batch=1, query_tokens=prefill["prefill_chunk"], context_tokens=prefill["kv_prefill"], **same
    )
    gemm = gemm.assign(time_s=gemm["time_us"] / MICROSECONDS_PER_SECOND)[["m", "n", "k", "time_s"]]
    return {("gemm", "bf16"): gemm, ("decode_attention", "bf16"): decode, ("prefill_attention", "bf16"): prefill}


_ONE_MODEL_SPLIT = {
    "gemm": ("n", "k"),
    "decode_attention": ("batch", "context_tokens"),
    "prefill_attention": ("query_tokens", "context_tokens"),
}


def fit_one_model(document: dict[str, Any], gpu: Gpu, frames: Frames, base: Mapping[str, Any]) -> dict[str, Any]:
    """Refit a carried profile's physics to one model's layers; each GEMM shape is predicted from the others."""
    for (name, variant), frame in frames.items():
        family, form = FAMILIES[name], form_of(name, variant)
        near = base["families"][name][variant]
        groups = frame[list(_ONE_MODEL_SPLIT[name])].drop_duplicates()
        folds = [(frame[list(groups.columns)] == row).all(axis=1) for row in groups.to_numpy()]
        if name != "gemm":
            folds = [pd.Series(held_out(frame, _ONE_MODEL_SPLIT[name]), index=frame.index)]
        predicted, measured = [], []
        for unseen in folds:
            fit = fit_physics(family, form, [(gpu, frame[~unseen])], near)
            predicted.append(predict(family, gpu, form, frame[unseen], fit))
            measured.append(column(frame[unseen], "time_s"))
        error = accuracy(np.concatenate(predicted), np.concatenate(measured))
        document["families"].setdefault(name, {}).update(base["families"][name])
        document["families"][name][variant] = fit_physics(family, form, [(gpu, frame)], near)
        document["error"][name][variant] = {**error, "basis": "shapes left out of one model's layers"}
    document["source"] += "; 16-bit GEMM and attention fitted on LLMServingSim 5daddb2 (MIT), Llama-3.1-8B, vLLM 0.19"
    return document


def build(data: Path, say: Say, out: Path = SHIPPED, refit: bool = True) -> list[Path]:
    """Write all shipped profiles from published tables; returns their paths.

    Args:
        data: folder of published tables. say: told what is being done. out: folder of the profiles.
        refit: False keeps the fitted profiles that stand there and renews those that are carried over.
    """
    frames = {
        name: (find_gpu(gpu), read_frames(data / AICONFIGURATOR / system, find_gpu(gpu), backend)[1])
        for name, (gpu, system, backend, _) in FITTED.items()
    }
    documents: dict[str, dict[str, Any]] = {}
    for name, (gpu, rows) in frames.items():
        if refit:
            say(f"{name}: fitting")
            documents[name] = fitted_document(name, gpu, rows, data)
        else:
            documents[name] = json.loads((out / f"{name}.json").read_text())
    if refit or not (out / "shared.json").exists():
        say("shared: fitting, each GPU left out in turn")
        together = {sheet.name: (sheet, rows) for name, (sheet, rows) in frames.items() if "tensor" not in name}
        documents["shared"] = shared_document(together)
    else:
        documents["shared"] = json.loads((out / "shared.json").read_text())
    _add_backends(documents["shared"], data / "kernels/attention_a100_flash_sdpa_eager.csv")
    siblings = _sibling_errors(documents, frames)
    for gpu_name, base in CARRIED.items():
        say(f"{gpu_name}: carried over from {base}")
        document = carried_document(gpu_name, base, documents["shared"], siblings)
        if gpu_name in ONE_MODEL:
            folder, model = ONE_MODEL[gpu_name]
            one = one_model_frames(data / LLMSERVINGSIM / folder, model)
            document = fit_one_model(document, find_gpu(gpu_name), one, documents[base])
        documents[gpu_name.lower()] = fit_links(document, find_gpu(gpu_name), documents[base])
    for name, (gpu_name, base, framework) in CARRIED_ENGINES.items():
        documents[name] = carried_document(gpu_name, base, documents["shared"], siblings, framework)
    for name, document in documents.items():
        write_text(out / f"{name}.json", dump(document))
    return [out / f"{name}.json" for name in documents]


def _add_backends(shared: dict[str, Any], path: Path) -> None:
    """Attention backends that no engine's own tables have, for all GPUs."""
    if path.exists():
        fits, errors = fit_backends(path, find_gpu("A100-80GB"))
        shared["families"]["prefill_attention"] |= fits
        shared["error"]["prefill_attention"] |= errors


def _sibling_errors(documents: Mapping[str, Any], frames: Mapping[str, tuple[Gpu, Frames]]) -> dict[str, Any]:
    """Error of one product's fit on the other of the same chip, by family and variant."""
    source, target = SIBLINGS
    gpu, rows = frames[target]
    found: dict[str, Any] = {}
    for (family, variant), frame in rows.items():
        fit = documents[source]["families"].get(family, {}).get(variant)
        if fit is not None and family in FAMILIES:
            found.setdefault(family, {})[variant] = cross_error(family, variant, fit, (gpu, frame))
    return found


def main(arguments: list[str]) -> int:
    """Rebuild the shipped profiles: ``python -m calibrate.fitting.shipping DATA [--keep-fitted]``; 3 without tables."""
    data = Path(arguments[0]) if arguments else Path("../shared/data")
    if not (data / AICONFIGURATOR).is_dir():
        print(f"no tables at {data / AICONFIGURATOR}: the shipped profiles stay as they are", file=sys.stderr)
        return 3
    build(data, lambda text: print(text, file=sys.stderr), refit="--keep-fitted" not in arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
