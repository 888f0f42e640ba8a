"""Profiles from LLMServingSim's kernel tables: one model's layers, as its profiler timed them in a real vLLM.

A folder holds ``meta.yaml`` and, for each tensor-parallel degree that was timed, ``tp<N>/`` with
``dense.csv`` (layer, tokens), ``per_sequence.csv`` (layer, sequences), ``attention.csv`` (prefill_chunk, kv_prefill,
n_decode, kv_decode), for mixtures of experts ``moe.csv`` (tokens, activated_experts), and, where it was swept,
``skew_fit.csv``; times are microseconds of one layer on one GPU, without the exchanges between GPUs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrate.profiles import Profile
from catalogs.errors import InputError, MissingError, PlanError
from catalogs.files import read_text
from catalogs.load import find_gpu, find_model

KIND = "llmservingsim"
# What a step costs beyond its kernels, from the instants of single steps in two recorded runs of vLLM 0.19.0
# (Llama-3.1-8B, 32 layers). RTX PRO 6000: a decode step takes 0 to 0.5 ms more than its kernels, one with prompt tokens
# 5.7 ms more, and 0.6 of what mixed attention takes beyond prompts and decodes apart is seen there. RTX 4090: -0.4 ms,
# 0 to 2 ms, less than 0.5. These stand between the two, nearer to the first, whose steps are seen more clearly.
OVERHEADS = {
    "step_overhead_s": 1e-4,
    "mixed_layer_overhead_s": 180e-6,
    "per_sequence_s": 0.0,
    "mixed_attention_share": 0.6,
}
# files of a ``tp<N>`` folder: key columns, and whether it must be there
FILES: dict[str, tuple[tuple[str, ...], bool]] = {
    "dense": (("layer", "tokens"), True),
    "per_sequence": (("layer", "sequences"), True),
    "attention": (("prefill_chunk", "kv_prefill", "n_decode", "kv_decode"), True),
    "moe": (("tokens", "activated_experts"), False),
}


def import_profile(folder: str | Path) -> Profile:
    """A profile from a folder of LLMServingSim tables.

    Args:
        folder: the one with ``meta.yaml`` and the ``tp<N>`` folders, or one above it that holds a single such folder.

    Raises:
        MissingError: no such folder or file. InputError: a table that cannot be read.
    """
    root = _root(Path(folder)).resolve()
    meta = _meta(root)
    tables = {path.name: _read_degree(path) for path in sorted(root.glob("tp*")) if path.is_dir()}
    _add_skew(root, meta, tables)
    if not tables:
        raise MissingError(
            f"{root} has no tp<N> folder", why="the kernel tables lie in them", remedy="the whole folder"
        )
    hardware, model = str(meta.get("hardware", root.parent.parent.name)), str(meta.get("model", root.parent.name))
    precision = str(meta.get("variant", root.name))
    return Profile(
        name=f"llmservingsim-{hardware}-{model.split('/')[-1]}-{precision}".lower(),
        kind=KIND,
        gpu=_known(find_gpu, hardware, str(meta.get("gpu", ""))),
        source=f"LLMServingSim profiler {meta.get('profiler_version', '')}, {meta.get('gpu', hardware)}".strip(),
        as_of=str(meta.get("profiled_at", "not stated"))[:10],
        method="kernel times of one layer in vLLM, eager mode, mean of "
        f"{meta.get('measurement_iterations', 'some')} runs; collectives are not in them",
        model=_known(find_model, model),
        precision=precision,
        framework="vllm",
        # vLLM since 0.14 schedules while the device computes: no host time stands between steps
        versions={k: str(meta[k]) for k in ("vllm_version", "cuda_version", "profiler_version") if k in meta},
        engine_overheads={"vllm": OVERHEADS},
        tables=tables,
    )


def _root(folder: Path) -> Path:
    if not folder.is_dir():
        raise MissingError(f"no folder {folder}", remedy="the folder that holds meta.yaml and tp1/")
    if (folder / "meta.yaml").exists() or list(folder.glob("tp*/attention.csv")):
        return folder
    below = sorted({path.parent for path in folder.rglob("meta.yaml") if list(path.parent.glob("tp*"))})
    if len(below) != 1:
        raise InputError(
            f"{folder} holds {len(below)} profiles",
            why="a profile is of one model on one GPU",
            remedy=f"one of {', '.join(map(str, below[:4]))}" if below else "a folder with meta.yaml and tp1/",
        )
    return below[0]


def _meta(root: Path) -> Mapping[str, Any]:
    import yaml

    path = root / "meta.yaml"
    if not path.exists():
        return {}
    try:
        meta = yaml.safe_load(read_text(path, "the profiler's notes"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"cannot be read: {str(error)[:200]}", where=str(path)) from error
    return meta if isinstance(meta, dict) else {}


def _known(find: Any, *names: str) -> str:
    """The catalogue's name of the first that it knows, else the first as it is."""
    for name in names:
        try:
            return str(find(name).name)
        except PlanError:
            continue
    return names[0]


def _read_degree(folder: Path) -> dict[str, Any]:
    """The tables of one tensor-parallel degree: table -> (layer ->) columns."""
    tables: dict[str, Any] = {}
    for name, (keys, needed) in FILES.items():
        path = folder / f"{name}.csv"
        if not path.exists():
            if needed:
                raise MissingError(f"no {path}", why="a step cannot be composed without it", remedy="profile it again")
            continue
        rows = _rows(path, keys)
        if keys[0] == "layer":
            by_layer: dict[str, dict[str, list[float]]] = {}
            for row in rows:
                columns = by_layer.setdefault(row["layer"], {keys[1]: [], "time_us": []})
                columns[keys[1]].append(_number(row[keys[1]], path))
                columns["time_us"].append(_number(row["time_us"], path))
            tables[name] = by_layer
        else:
            tables[name] = {key: [_number(row[key], path) for row in rows] for key in (*keys, "time_us")}
    return tables


def _rows(path: Path, keys: tuple[str, ...]) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(read_text(path, "a table"), newline="")))
    missing = [key for key in (*keys, "time_us") if not rows or key not in rows[0]]
    if missing:
        raise InputError(
            f"{path} lacks {', '.join(missing)}", why="the table cannot be read", remedy=f"columns {', '.join(keys)}"
        )
    if "decode_q_len" in rows[0]:  # speculative decoding was swept too; a plain decode has one token
        rows = [row for row in rows if _number(row["decode_q_len"] or "1", path) <= 1]
    if path.stem == "attention" and "layer" in rows[0]:
        rows = [row for row in rows if row["layer"] == "attention"]
    return rows


def _add_skew(root: Path, meta: Mapping[str, Any], tables: dict[str, Any]) -> None:
    """The effect of unequal decode contexts, where the profiler says that it was fitted."""
    fitted = _section(meta, "skew_fit", root)
    if not fitted.get("enabled"):
        return
    by_degree = _section(fitted, "per_tp", root)
    for degree in by_degree:
        path = root / f"tp{degree}" / "skew_fit.csv"
        if f"tp{degree}" in tables and path.exists():
            known = _section(by_degree, degree, root).get("alpha_default", 0.0)
            tables[f"tp{degree}"]["skew"] = {**_skew_rows(path), "default": _number(str(known), root / "meta.yaml")}


def _section(meta: Mapping[str, Any], name: str, root: Path) -> Mapping[str, Any]:
    """A mapping inside ``meta.yaml``; empty where it is absent."""
    found = meta.get(name) or {}
    if not isinstance(found, Mapping):
        raise InputError(f"{name} holds no keys", where=str(root / "meta.yaml"), remedy="profile it again")
    return found


def _skew_rows(path: Path) -> dict[str, list[float]]:
    """Columns of ``skew_fit.csv`` with each bucket's label as its upper edge."""
    names = {"pc": "prefill_chunk", "n_label": "num_decode", "skew_rate_label": "share", "kv_big_label": "longest"}
    columns: dict[str, list[float]] = {name: [] for name in (*names.values(), "history", "alpha", "num_samples")}
    for row in csv.DictReader(io.StringIO(read_text(path, "a table"), newline="")):
        if row.get("layer", "attention") != "attention":
            continue
        for key, name in {**names, "kp_label": "history"}.items():
            columns[name].append(_edge(row.get(key) or "", path))
        columns["alpha"].append(_number(row.get("alpha"), path))
        columns["num_samples"].append(_number(row.get("n_samples"), path))
    return columns


def _edge(label: str, path: Path) -> float:
    """The upper edge that a bucket's label names: ``n<=16`` 16, ``sr<=40%`` 0.4, ``kvB>16k`` infinity, ``kp=0`` 0."""
    if ">" in label:
        return 1e12
    text = label.split("=")[-1]
    unit = {"%": 0.01, "k": 1024.0}.get(text[-1:], 1.0)
    return _number(text.rstrip("%k"), path) * unit


def _number(text: str | None, path: Path) -> float:
    try:
        return float(text or "")
    except ValueError as error:
        raise InputError(f"{path} holds {text!r} where a number belongs") from error
