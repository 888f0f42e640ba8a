"""Builds the profiles that come with the project: fitted where tables are present, carried over elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from calibrate.fit import fit_frames
from calibrate.importers.aiconfigurator import read_frames
from calibrate.profiles import SCHEMA_VERSION, SHIPPED
from catalogs.files import write_text
from catalogs.load import find_gpu

AICONFIGURATOR = "kernels/aiconfigurator"
SOURCE = "AIConfigurator kernel tables, ai-dynamo/aiconfigurator 095f58a (Apache-2.0)"
# profile name: (GPU, folder of its system, backend, framework)
FITTED: Mapping[str, tuple[str, str, str, str]] = {
    "a100-80gb": ("A100-80GB", "a100_sxm", "vllm", "vllm"),
    "h100-sxm": ("H100-SXM", "h100_sxm", "vllm", "vllm"),
    "h100-sxm-tensorrt-llm": ("H100-SXM", "h100_sxm", "trtllm", "tensorrt-llm"),
    "h200": ("H200", "h200_sxm", "vllm", "vllm"),
    "l40s": ("L40S", "l40s", "vllm", "vllm"),
    "b200": ("B200", "b200_sxm", "vllm", "vllm"),
}


def dump(document: Mapping[str, Any]) -> str:
    """JSON with one parameter a line and long lists on one."""

    def text(value: Any, indent: int) -> str:
        if not isinstance(value, dict) or not value:
            return json.dumps(value, separators=(",", ":") if isinstance(value, list) else None)
        pad = " " * (indent + 1)
        lines = [f"{pad}{json.dumps(k)}: {text(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"

    return text(dict(document), 0) + "\n"


def fitted_document(name: str, data: Path) -> dict[str, Any]:
    """The profile of a GPU with tables."""
    gpu_name, system, backend, framework = FITTED[name]
    gpu = find_gpu(gpu_name)
    _, frames = read_frames(data / AICONFIGURATOR / system, gpu, backend)
    families, errors = fit_frames(gpu, frames)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "kind": "kernels",
        "gpu": gpu_name,
        "framework": framework,
        "source": f"{SOURCE}, {system}, {backend}",
        "as_of": "2026-11-23",
        "method": "physics and a smooth correction, fitted on four fifths of the shapes; errors are of the other fifth",
        "versions": _versions(data / AICONFIGURATOR / system, backend),
        "families": families,
        "error": errors,
    }


def _versions(folder: Path, backend: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        what, _, version = path.name.rpartition("-")
        if what in (backend, "nccl"):
            found[what] = version
    return found


def build_fitted(data: Path, say: Callable[[str], None], out: Path = SHIPPED) -> list[Path]:
    """Write the fitted profiles; returns their paths."""
    written = []
    for name in FITTED:
        if not (data / AICONFIGURATOR / FITTED[name][1]).is_dir():
            say(f"{name}: no tables, left as it is")
            continue
        say(f"{name}: fitting")
        path = out / f"{name}.json"
        write_text(path, dump(fitted_document(name, data)))
        written.append(path)
    return written
