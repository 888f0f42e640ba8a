"""Vidur's profiling tables: linear layers of a model by tokens and TP degree, and all-reduces; milliseconds.

A folder is one GPU's (``a100``, holding ``<model>/mlp.csv``), one model's, or a network's (``a100_dgx`` with
``all_reduce.csv``, sizes in bytes). ``profiling/compute`` and ``profiling/network`` of a checkout
may be given as one root: sub-folders are searched.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from calibrate.fitting.fit import Frames
from calibrate.fitting.importers.tables import check_unit, one_folder, positive_times, read_table
from catalogs.errors import InputError, MissingError
from catalogs.schema import Gpu
from catalogs.units import MILLISECONDS_PER_SECOND

_MS = 1.0 / MILLISECONDS_PER_SECOND
_SHAPE = (
    "n_head",
    "n_kv_head",
    "n_embd",
    "n_expanded_embd",
    "use_gated_mlp",
    "num_tokens",
    "num_tensor_parallel_workers",
)
_GEMMS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
_NORM_BYTES, _ADD_BYTES = 4.0, 6.0  # a 16-bit value read and written; two read and one written


def _mlp(path: Path, gpu: Gpu) -> dict[tuple[str, str], pd.DataFrame]:
    times = tuple(f"time_stats.{name}.median" for name in _GEMMS)
    table = read_table(path, (*times, *_SHAPE))
    tp, tokens = table["num_tensor_parallel_workers"], table["num_tokens"]
    hidden, inter = table["n_embd"], table["n_expanded_embd"]
    head_dim = hidden / table["n_head"]
    heads, kv_heads = np.ceil(table["n_head"] / tp), np.ceil(table["n_kv_head"] / tp)
    ups = np.where(table["use_gated_mlp"].astype(bool), 2, 1)
    shapes = {
        "attn_pre_proj": ((heads + 2 * kv_heads) * head_dim, hidden),
        "attn_post_proj": (hidden, heads * head_dim),
        "mlp_up_proj": (ups * np.ceil(inter / tp), hidden),
        "mlp_down_proj": (hidden, np.ceil(inter / tp)),
    }
    rows = []
    for name, (n, k) in shapes.items():
        time_s = positive_times(table, f"time_stats.{name}.median", _MS, path)
        rows.append(pd.DataFrame({"m": tokens, "n": n, "k": k, "time_s": time_s}))
    gemm = pd.concat(rows, ignore_index=True)
    check_unit(2.0 * gemm["m"] * gemm["n"] * gemm["k"], gemm["time_s"], gpu, "fp16", "time_stats.*.median", path)
    return {("gemm", "bf16"): gemm, ("elementwise", "default"): _elementwise(table, path)}


def _elementwise(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Norms, additions and activations as bytes moved."""
    rows = []
    inter = (table["n_expanded_embd"] / table["num_tensor_parallel_workers"]).apply(np.ceil)
    width = {
        "input_layernorm": _NORM_BYTES * table["n_embd"],
        "add": _ADD_BYTES * table["n_embd"],
        "mlp_act": 6.0 * inter,
    }
    for name, each in width.items():
        column = f"time_stats.{name}.median"
        if column in table:
            time_s = positive_times(table, column, _MS, path)
            rows.append(pd.DataFrame({"bytes": table["num_tokens"] * each, "time_s": time_s}))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame({"bytes": [], "time_s": []})


def _all_reduce(path: Path) -> pd.DataFrame:
    time = "time_stats.all_reduce.median"
    table = read_table(path, (time, "num_workers", "size", "devices_per_node"))
    table = table[table["devices_per_node"] == table["num_workers"]]
    rows = pd.DataFrame({"bytes": table["size"], "num_gpus": table["num_workers"]})
    rows["time_s"] = positive_times(table, time, _MS, path)
    return rows[rows["num_gpus"] > 1]


def read_frames(folder: Path, gpu: Gpu | None = None) -> tuple[Gpu, Frames]:
    """All kernels under a folder: (family, variant) -> one timed kernel a row.

    Args:
        folder: see the module. gpu: the measured device; None: a parent folder's name (``a100``, ``h100_dgx``).

    Raises:
        MissingError: no tables. InputError: a column is missing or in another unit; an unknown device.
    """
    one_folder(folder, "mlp.csv or all_reduce.csv")
    compute, network = sorted(folder.rglob("mlp.csv")), sorted(folder.rglob("all_reduce.csv"))
    if not compute and not network:
        raise MissingError(f"no mlp.csv or all_reduce.csv under {folder}", remedy="a folder of Vidur's data/profiling")
    device = gpu or _device((*compute, *network)[0])
    parts: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for path in compute:
        for key, rows in _mlp(path, device).items():
            parts.setdefault(key, []).append(rows)
    link = "nvlink" if device.nvlink_bytes_per_s else "pcie"
    for path in network:
        parts.setdefault(("all_reduce", link), []).append(_all_reduce(path))
    return device, {key: pd.concat(rows, ignore_index=True) for key, rows in parts.items()}


_DEVICES = {"a100": "A100-80GB", "h100": "H100-SXM"}


def _device(path: Path) -> Gpu:
    from catalogs.load import find_gpu

    for part in reversed(path.parts[:-1]):
        name = part.lower().split("_")[0]
        if name in _DEVICES:
            return find_gpu(_DEVICES[name])
    raise InputError("the folders' names do not tell the GPU", where=str(path), remedy="name it with --gpu")
