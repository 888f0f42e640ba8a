"""AIConfigurator's kernel tables: Parquet files (or CSV) of one system, latencies in milliseconds.

A folder is one system's (``h100_sxm``, holding ``<backend>-<version>`` folders) or one backend's of it. Files:
``gemm_perf``, ``context_attention_perf``, ``generation_attention_perf``, ``moe_perf``, ``custom_allreduce_perf``,
``nccl_perf``. Message sizes are in elements of ``*_dtype``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from calibrate.fitting.fit import Frames
from calibrate.fitting.importers.tables import check_unit, one_folder, positive_times, read_table
from catalogs.errors import InputError, MissingError
from catalogs.load import find_gpu
from catalogs.schema import Gpu
from catalogs.units import DTYPE_BYTES, MILLISECONDS_PER_SECOND

DTYPES = {
    "bfloat16": "bf16", "float16": "bf16", "half": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4",
    "int8": "int8", "int8_wo": "int8_wo", "int4_wo": "int4_wo", "w4a16_mxfp4": "mxfp4",
}  # fmt: skip
SKEWS = {"balanced": 0.0, "power_law_1.01": 1.01, "power_law_1.2": 1.2}
# Experts without a gate (up and down matrices alone), by (width, experts, chosen): the Nemotron 3 family. The table of
# TensorRT-LLM on H100 names the first and third so in ``kernel_source``; tables of other backends do not say.
UNGATED_EXPERTS = {(1856, 128, 6), (2688, 512, 22), (5120, 512, 22)}
_MS = 1.0 / MILLISECONDS_PER_SECOND
Reader = Callable[[Path, Gpu], dict[tuple[str, str], pd.DataFrame]]


def _gemm(path: Path, gpu: Gpu) -> dict[tuple[str, str], pd.DataFrame]:
    table = read_table(path, ("gemm_dtype", "m", "n", "k", "latency"))
    table = table.assign(time_s=positive_times(table, "latency", _MS, path), dtype=table["gemm_dtype"].map(DTYPES))
    half = table[table["dtype"] == "bf16"]
    if len(half):
        check_unit(2.0 * half["m"] * half["n"] * half["k"], half["time_s"], gpu, "bf16", "latency", path)
    return {
        ("gemm", str(dtype)): rows[["m", "n", "k", "time_s"]] for dtype, rows in table.groupby("dtype") if len(rows)
    }


_ATTENTION = (
    "batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "attn_dtype", "kv_cache_dtype", "step",
    "latency",
)  # fmt: skip


def _attention(path: Path, decode: bool) -> dict[tuple[str, str], pd.DataFrame]:
    table = read_table(path, _ATTENTION)
    table = table.assign(time_s=positive_times(table, "latency", _MS, path))
    table = table[table["attn_dtype"].map(DTYPES) == "bf16"]
    window = table["window_size"] if "window_size" in table else pd.Series(0, index=table.index)
    rows = pd.DataFrame(
        {
            "batch": table["batch_size"], "query_tokens": 1 if decode else table["isl"],
            "context_tokens": table["step"] + table["isl"] if decode else table["step"],
            "num_heads": table["num_heads"], "num_kv_heads": table["num_key_value_heads"],
            "head_dim": table["head_dim"], "window": window,
            "kv_bytes": table["kv_cache_dtype"].map(DTYPES).map(DTYPE_BYTES), "time_s": table["time_s"],
        }
    ).dropna()  # fmt: skip
    family = "decode_attention" if decode else "prefill_attention"
    found: dict[tuple[str, str], pd.DataFrame] = {}
    for size, cache in ((2.0, "bf16"), (1.0, "fp8")):
        of_type = rows[rows["kv_bytes"] == size]
        for windowed, name in ((False, cache), (True, f"{cache}-window")):
            part = of_type[(of_type["window"] > 0) == windowed]
            if len(part):
                found[family, name] = part
    return found


def _context(path: Path, gpu: Gpu) -> dict[tuple[str, str], pd.DataFrame]:
    found = _attention(path, decode=False)
    rows = found.get(("prefill_attention", "bf16"))
    if rows is not None:
        flops = 2.0 * rows["batch"] * rows["query_tokens"] ** 2 * rows["num_heads"] * rows["head_dim"]
        check_unit(flops, rows["time_s"], gpu, "bf16", "latency", path)
    return found


def _generation(path: Path, gpu: Gpu) -> dict[tuple[str, str], pd.DataFrame]:
    return _attention(path, decode=True)


_MOE = (
    "moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size",
    "distribution", "latency",
)  # fmt: skip


def _moe(path: Path, gpu: Gpu) -> dict[tuple[str, str], pd.DataFrame]:
    """Even loads on any number of GPUs, skewed ones on one GPU (elsewhere the busiest GPU's share is not recorded)."""
    table = read_table(path, _MOE)
    rows = pd.DataFrame(
        {
            "dtype": table["moe_dtype"].map(DTYPES), "tokens": table["num_tokens"], "hidden": table["hidden_size"],
            "inter": table["inter_size"], "per_token": table["topk"], "num_experts": table["num_experts"],
            "tp": table["moe_tp_size"], "ep": table["moe_ep_size"], "skew": table["distribution"].map(SKEWS),
            "time_s": positive_times(table, "latency", _MS, path), "num_matrices": expert_matrices(table),
        }
    ).dropna()  # fmt: skip
    rows = rows[(rows["skew"] == 0.0) | (rows["ep"] == 1)]
    return {("moe", str(dtype)): part.drop(columns="dtype") for dtype, part in rows.groupby("dtype")}


def expert_matrices(table: pd.DataFrame) -> list[float]:
    """Matrices of an expert: 2 without a gate, which the kernel's name or the model's shape tells, else 3."""
    shapes = zip(table["inter_size"], table["num_experts"], table["topk"], strict=True)
    ungated = np.array([shape in UNGATED_EXPERTS for shape in shapes], dtype=bool)
    if "kernel_source" in table:
        ungated |= table["kernel_source"].astype(str).str.contains("nongated").to_numpy()
    return [2.0 if x else 3.0 for x in ungated]


def _link(gpu: Gpu) -> str:
    return "nvlink" if gpu.nvlink_bytes_per_s else "pcie"


def _all_reduce(path: Path, gpu: Gpu) -> dict[tuple[str, str], pd.DataFrame]:
    table = read_table(path, ("allreduce_dtype", "num_gpus", "message_size", "latency"))
    if "backend" in table and table["backend"].astype(str).str.contains("graph").any():
        table = table[table["backend"].astype(str).str.contains("graph")]
    size = table["allreduce_dtype"].map(DTYPES).map(DTYPE_BYTES)
    rows = pd.DataFrame({"bytes": table["message_size"] * size, "num_gpus": table["num_gpus"]})
    rows["time_s"] = positive_times(table, "latency", _MS, path)
    return {("all_reduce", _link(gpu)): rows.dropna()}


_NCCL = {"all_gather": "all_gather", "alltoall": "all_to_all", "all_reduce": "all_reduce"}


def _nccl(path: Path, gpu: Gpu) -> dict[tuple[str, str], pd.DataFrame]:
    table = read_table(path, ("op_name", "nccl_dtype", "num_gpus", "message_size", "latency"))
    table = table.assign(time_s=positive_times(table, "latency", _MS, path))
    found: dict[tuple[str, str], pd.DataFrame] = {}
    for op, family in _NCCL.items():
        part = table[(table["op_name"] == op) & (table["nccl_dtype"].map(DTYPES) == "bf16")]
        if len(part):
            rows = pd.DataFrame({"bytes": part["message_size"] * 2.0, "num_gpus": part["num_gpus"]})
            found[family, f"nccl-{_link(gpu)}" if op == "all_reduce" else _link(gpu)] = rows.assign(
                time_s=part["time_s"]
            )
    return found


READERS: Mapping[str, Reader] = {
    "gemm_perf": _gemm,
    "context_attention_perf": _context,
    "generation_attention_perf": _generation,
    "moe_perf": _moe,
    "custom_allreduce_perf": _all_reduce,
    "nccl_perf": _nccl,
}


def table_files(folder: Path, backend: str | None = None) -> dict[str, Path]:
    """Table name -> file: of the folder itself and of its sub-folders, the newest version of each.

    Args:
        folder: a system's or a backend's. backend: of a system's folder, ``vllm``, ``trtllm`` ...; None: the only one.

    Raises:
        MissingError: no tables, or several backends and none named.
    """
    one_folder(folder, "gemm_perf.parquet and others of one system")
    own = _tables_in(folder)
    if own:
        return own
    by_version = sorted((p for p in folder.iterdir() if p.is_dir() and _tables_in(p)), key=_version)
    backends = {p.name.rsplit("-", 1)[0] for p in by_version} - {"nccl"}
    if backend is None and len(backends) > 1:
        raise MissingError(
            f"{folder} holds several backends: {', '.join(sorted(backends))}",
            remedy=f"name one of its folders, such as {by_version[-1]}",
        )
    wanted = backend or next(iter(backends), "nccl")
    found: dict[str, Path] = {}
    for path in by_version:
        if path.name.rsplit("-", 1)[0] in (wanted, "nccl"):
            found |= _tables_in(path)
    if not found:
        raise MissingError(
            f"no kernel tables under {folder}", remedy=f"expected {', '.join(f'{n}.parquet' for n in READERS)}"
        )
    return found


def _tables_in(folder: Path) -> dict[str, Path]:
    return {p.stem: p for p in sorted(folder.iterdir()) if p.stem in READERS and p.suffix in (".parquet", ".csv")}


def _version(path: Path) -> tuple[tuple[int, ...], str]:
    return tuple(int(x) for x in re.findall(r"\d+", path.name.rsplit("-", 1)[-1])), path.name


def _device(files: Mapping[str, Path]) -> Gpu:
    """The catalogue GPU that the tables name in their ``device`` column.

    Raises:
        InputError: it is not in the catalogue, or no table names one.
    """
    tables = (read_table(path, ()) for path in files.values())
    name = next((str(table["device"].iloc[0]) for table in tables if "device" in table), "")
    try:
        return find_gpu(name)
    except InputError as error:
        raise InputError(
            f"device {name!r} of the tables is not in the catalogue", remedy="name the GPU with --gpu"
        ) from error


def read_frames(folder: Path, gpu: Gpu | None = None, backend: str | None = None) -> tuple[Gpu, Frames]:
    """All kernels of a folder: (family, variant) -> one timed kernel a row.

    Raises:
        MissingError: no tables. InputError: a column is missing or in another unit; an unknown device.
    """
    files = table_files(folder, backend)
    device = gpu or _device(files)
    frames: dict[tuple[str, str], pd.DataFrame] = {}
    for name, path in files.items():
        for key, rows in READERS[name](path, device).items():
            frames[key] = rows[np.isfinite(rows["time_s"])]
    return device, frames
