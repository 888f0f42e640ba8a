"""Real engine runs, request by request, beside the simulation of the same requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.fitting.validate import Comparison
from calibrate.profiles import Profile
from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica
from simulator.engine.simulate import simulate_replicas
from simulator.scenario.replicas import build_line
from simulator.workload.requests import Requests

PERCENTILES = (50, 90, 95, 99)
_ENGINE_KEYS = ("max_num_seqs", "max_num_batched_tokens", "max_model_len")


@dataclass(frozen=True)
class RealRun:
    """A recorded run of one vLLM engine.

    Attributes:
        name: of its file. requests: as they were queued. replica: as its configuration says.
        ttft_s, tpot_s, e2e_s: (n,) measured from the queue, NaN where a request has none.
    """

    name: str
    requests: Requests
    replica: Replica
    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    e2e_s: NDArray[np.float64]


def read_run(path: Path, gpu: str) -> RealRun:
    """A run's CSV (``queued_s, input_tokens, output_tokens, first_token_s, last_token_s``) with its ``.meta.json``.

    Args:
        path: the CSV; the engine's own configuration lies beside it.
        gpu: catalogue name of the device.

    Raises:
        InputError: columns or the configuration are missing.
    """
    import pandas as pd

    rows = pd.read_csv(path)
    missing = {"queued_s", "input_tokens", "output_tokens", "first_token_s", "last_token_s"} - set(rows.columns)
    meta = path.with_suffix(".meta.json")
    if missing or not meta.exists():
        raise InputError(f"not a recorded run: {', '.join(sorted(missing)) or meta.name} is missing", where=str(path))
    rows = rows.sort_values("queued_s", kind="stable")
    queued, first, last = (rows[c].to_numpy(float) for c in ("queued_s", "first_token_s", "last_token_s"))
    output = rows.output_tokens.to_numpy(np.int64)
    requests = Requests(queued - queued[0], rows.input_tokens.to_numpy(np.int64), output)
    tpot = np.where(output > 1, (last - first) / np.maximum(output - 1, 1), np.nan)
    return RealRun(
        path.stem, requests, _replica(json.loads(meta.read_text()), gpu), first - queued, tpot, last - queued
    )


def _replica(meta: Mapping[str, Any], gpu: str) -> Replica:
    settings, cache = meta["engine_kwargs"], meta.get("kv_cache") or {}
    engine = {k: settings[k] for k in _ENGINE_KEYS if settings.get(k)}
    if cache.get("num_gpu_blocks"):
        engine["num_gpu_blocks"] = cache["num_gpu_blocks"]
    tensor, data = (settings.get(f"{name}_parallel_size") or 1 for name in ("tensor", "data"))
    return Replica(
        find_model(settings["model"]),
        find_gpu(gpu),
        tensor_parallel_size=tensor,
        data_parallel_size=data,
        expert_parallel_size=tensor * data if settings.get("enable_expert_parallel") else 1,
        engine=Engine(version=meta.get("vllm_version"), **engine),
    )


def compare_run(run: RealRun, profile: Profile) -> list[Comparison]:
    """Mean and percentiles of TTFT, TPOT and E2E, simulated and measured."""
    line = build_line(run.replica, profile)
    records = simulate_replicas(run.requests, [line.spec] * line.num_engines)
    output = run.requests.output_tokens
    ttft, e2e = records.first_token_s - records.arrival_s, records.finish_s - records.arrival_s
    tpot = np.where(output > 1, (e2e - ttft) / np.maximum(output - 1, 1), np.nan)
    pairs = (("ttft_s", ttft, run.ttft_s), ("tpot_s", tpot, run.tpot_s), ("e2e_s", e2e, run.e2e_s))
    return [
        Comparison(metric, run.name, statistic, mine, real)
        for metric, simulated, measured in pairs
        for (statistic, mine), (_, real) in zip(_statistics(simulated), _statistics(measured), strict=True)
    ]


def _statistics(values: NDArray[np.float64]) -> list[tuple[str, float]]:
    kept = values[~np.isnan(values)]
    return [("mean", float(kept.mean())), *((f"p{p}", float(np.percentile(kept, p))) for p in PERCENTILES)]
