"""Measured serving points in one form, and the fit of engine overheads on them.

A point is a load on one replica and what a client saw. The engine's overheads are what kernels do not explain: per
step, per sequence in a step, before a request's queue, and after its step. Predicting a point takes a simulation, which
is not this package's to run: callers hand in ``predict``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.names import normalise

Metrics = Mapping[str, float]
Predict = Callable[["ServingPoint", Mapping[str, float]], Metrics]
# least value that a fit starts from, for each overhead; the last is a tokenizer's speed and the same for all engines
FITTED = {"step_overhead_s": 1e-5, "per_sequence_s": 1e-7, "request_overhead_s": 1e-4, "prompt_token_s": 1e-6}
OF_AN_ENGINE = ("step_overhead_s", "per_sequence_s", "request_overhead_s")
LARGEST_COUNTED_ERROR = 0.25  # log; a fit counts larger ones as this
# Requests that are sent at once where a table says "maximum load": by (input, output) length, as TensorRT-LLM's
# performance overview describes its runs (docs/source/performance/perf-overview.md, "Preparing a Dataset"), and where a
# table says nothing. The same page has most runs use 0.95 of the free memory for KV.
MAX_LOAD_REQUESTS = 1000
TENSORRT_LLM_REQUESTS = {
    (128, 128): 30000, (128, 2048): 3000, (128, 4096): 1500, (500, 2000): 3000, (1000, 1000): 3000, (2048, 128): 3000,
    (2048, 2048): 1500, (5000, 500): 1500, (20000, 2000): 1000,
}  # fmt: skip
TENSORRT_LLM_SEATS = 2048  # max_batch_size: decodes beside the longest prompt that fit max_num_tokens
PUBLISHED = {"minimax-m2": "fp8-block"}  # the weights that its publisher offers, where a table states no precision
MOST_TOKENS, MOST_CLIENTS = 1e8, 1e6  # beyond these a table's number is a mistake
SHORT_PROMPT_TOKENS = 32  # assumed where a table says "short"; first tokens are then not compared
_FRAMEWORKS = {"vllm": "vllm", "trtllm": "tensorrt-llm", "tensorrtllm": "tensorrt-llm", "sglang": "sglang",
               "tgi": "tgi", "onnxruntime": "onnxruntime"}  # fmt: skip


@dataclass(frozen=True)
class ServingPoint:
    """A load on one replica and what was measured.

    Attributes:
        model, gpu: catalogue names. precision, kv_cache_dtype, framework, version: as served.
        tensor_parallel_size, data_parallel_size, expert_parallel_size: how the replica's GPUs share the model.
        input_tokens, output_tokens: longest of each; lengths are uniform down to ``shortest`` times that.
        concurrency: clients of a closed loop. num_requests: how many were sent in all.
        engine: settings that were said (``max_num_seqs``, ``max_num_batched_tokens`` ...).
        measured: metric -> value: ttft_s, tpot_s, e2e_s (means), output_tokens_per_s, duration_s.
        origin: file and row group.
    """

    model: str
    gpu: str
    precision: str
    framework: str
    tensor_parallel_size: int
    input_tokens: int
    output_tokens: int
    concurrency: int
    num_requests: int
    measured: Mapping[str, float]
    kv_cache_dtype: str = "auto"
    data_parallel_size: int = 1
    expert_parallel_size: int = 1
    version: str = ""
    shortest: float = 1.0
    engine: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""

    @property
    def group(self) -> str:
        """What is left out together: one engine serving one model on so many GPUs."""
        sizes = (
            ("tp", self.tensor_parallel_size), ("dp", self.data_parallel_size), ("ep", self.expert_parallel_size)
        )  # fmt: skip
        parallel = " ".join(f"{name}{size}" for name, size in sizes if size > 1 or name == "tp")
        return f"{self.framework} {self.model} {self.precision} {self.gpu} {parallel}"


def framework_of(name: str, where: str = "") -> str:
    """The framework that a label means (``trtllm``, ``vLLM V1``, ``TensorRT-LLM trtllm-bench ...``).

    Raises:
        InputError: none is meant.
    """
    key = normalise(name)
    for start, framework in _FRAMEWORKS.items():
        if key.startswith(start):
            return framework
    raise InputError(f"unknown framework {name!r}", where=where, remedy=f"one of {', '.join(_FRAMEWORKS)}")


def read_closed_loop(path: Path, requests_per_client: int = 8) -> list[ServingPoint]:
    """Points of a ``silicon_closed_loop`` table: means of TTFT and TPOT against lengths, concurrency and TP.

    The number of requests is not stated in it; ``requests_per_client`` a client, at least 64, is assumed.

    Raises:
        InputError: not such a table, or a name is unknown.
    """
    rows = _table(path, ["system", "model_path", "precision", "backend", "isl", "osl", "concurrency", "tp_size",
                         "silicon_ttft_ms", "silicon_tpot_ms"])  # fmt: skip
    rows["len_scale"] = rows["len_scale"].fillna(1.0) if "len_scale" in rows else 1.0
    points = []
    for line, row in enumerate(rows.to_dict("records"), 2):
        where = f"{path.name}:{line}"
        number = partial(_number, row, where)
        clients, scale = int(number("concurrency", most=MOST_CLIENTS)), number("len_scale")
        measured = {"ttft_s": number("silicon_ttft_ms") / 1e3, "tpot_s": number("silicon_tpot_ms") / 1e3}
        output = number("osl") * min(1.0, scale)
        measured["output_tokens_per_s"] = implied_throughput(clients, output, measured["ttft_s"], measured["tpot_s"])
        points.append(
            ServingPoint(
                find_model(str(row["model_path"]), where).name,
                find_gpu(str(row["system"]).replace("_", "-"), where).name,
                str(row["precision"]),
                framework_of(str(row["backend"]), where),
                int(number("tp_size")),
                int(number("isl")),
                int(number("osl")),
                clients,
                max(64, requests_per_client * clients),
                measured,
                version=str(row.get("backend_version", "")).replace("nan", ""),
                shortest=0.8 if scale < 1.0 else 1.0,
                origin=f"{path.stem}",
            )
        )
    return points


def implied_throughput(clients: int, output_tokens: float, ttft_s: float, tpot_s: float) -> float:
    """Output tokens a second of a closed loop, from its mean TTFT and TPOT (Little's law over one request)."""
    return clients * output_tokens / (ttft_s + tpot_s * (output_tokens - 1.0))


def read_tidy(path: Path) -> list[ServingPoint]:
    """Points of a tidy table, one for each load; rows whose model, GPU, lengths or load cannot be told are left out.

    Loads: ``batch=N`` and ``conc=N`` (a closed loop of N; a batch is sent once), ``N prompts`` and ``inf rate`` (all at
    once). Columns: ``gpu, tp, model, precision, framework, isl, osl, concurrency_or_rate, metric, value, unit, notes``.

    Raises:
        InputError: not such a table.
    """
    keys = ["gpu", "tp", "model", "precision", "framework", "isl", "osl", "concurrency_or_rate"]
    rows = _table(path, [*keys, "metric", "value", "unit", "notes"])
    points = []
    for _, group in rows.groupby([*keys, "notes"], dropna=False):
        point = _tidy_point(group, path.stem)
        if point is not None:
            points.append(point)
    return points


def _table(path: Path, columns: Sequence[str]) -> Any:
    import pandas as pd

    try:
        rows = pd.read_csv(path)
    except (OSError, ValueError) as error:  # of pandas: no columns, or rows that are none
        raise InputError(f"is no table: {error}".strip(), where=str(path), remedy="a CSV with a header line") from error
    missing = [c for c in columns if c not in rows.columns]
    if missing:
        raise InputError(f"columns missing: {', '.join(missing)}", where=str(path), remedy="the form is in the docs")
    return rows


def _number(row: Mapping[str, Any], where: str, column: str, most: float = MOST_TOKENS) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value <= most:
        remedy = f"a number above 0, up to {most:,.0f}"
        raise InputError(f"{column} is {row[column]!r}", where=where, remedy=remedy)
    return value


def _tidy_point(group: Any, origin: str) -> ServingPoint | None:
    row = group.iloc[0]
    try:
        model, gpu = find_model(_model_name(str(row["model"]))).name, find_gpu(_gpu_name(str(row["gpu"]))).name
        framework = framework_of(str(row["framework"]))
        isl, osl, assumed = *_lengths(row), "short" in str(row["isl"])
        tp, dp, ep = _parallel(row)
    except (InputError, ValueError, OverflowError):
        return None
    load, notes = str(row["concurrency_or_rate"]), str(row["notes"])
    clients, requests = _load(load)
    measured = {name: value for name, value in map(_metric, group.to_dict("records")) if name}
    if assumed:
        measured = {name: value for name, value in measured.items() if not name.startswith("ttft")}
    if not clients or not measured or "Pipeline" in notes:
        return None
    engine: dict[str, Any] = {
        k: int(v) for k, v in re.findall(r"(max_num_seqs|max_num_batched_tokens)=(\d{1,7})(?!\d)", f"{load} {notes}")
    }
    if load.startswith("batch="):
        engine |= {"max_num_seqs": clients, "max_num_batched_tokens": max(2048, clients, clients * isl)}
    if load.startswith("inf rate"):
        clients = requests = TENSORRT_LLM_REQUESTS.get((isl, osl), MAX_LOAD_REQUESTS)
        engine["gpu_memory_utilization"] = 0.95
        if isl + TENSORRT_LLM_SEATS > 8192:  # no prompt is cut: the budget must have held it
            engine["max_num_batched_tokens"] = isl + TENSORRT_LLM_SEATS
    if "cuda graph OFF" in notes:
        engine["enforce_eager"] = True
    done = re.search(r"\b(?:ok=)?(\d{1,6})(?: done|\b fail)", notes)
    requests = int(done[1]) if done else requests
    blocks = re.search(r"kv_tokens=(\d{1,12})(?!\d)", notes)
    if blocks:
        engine["num_gpu_blocks"] = int(blocks[1]) // 16
    precision = _precision(str(row["precision"])) or PUBLISHED.get(model, find_model(model).dtype)
    kv = "fp8" if framework == "tensorrt-llm" and precision == "fp8" else "auto"  # its FP8 recipe quantizes both
    return ServingPoint(
        model, gpu, precision, framework, tp, isl, osl, clients, requests, measured, kv, dp, ep,
        version=str(row.get("framework_version", "")).replace("nan", ""), engine=engine, origin=origin,
    )  # fmt: skip


def _lengths(row: Any) -> tuple[int, int]:
    """Input and output tokens of a row."""
    isl = str(row["isl"])
    found = SHORT_PROMPT_TOKENS if "short" in isl else int(float(isl)), max(1, int(float(row["osl"])))
    if max(found) > MOST_TOKENS:
        raise ValueError(f"{max(found)} tokens")
    return found


def _parallel(row: Any) -> tuple[int, int, int]:
    """Tensor, data and expert parallel sizes of a row; ``tep8`` and ``dep8`` spread experts over all GPUs."""
    spread = re.search(r"\b([td])ep(\d+)\b", f"{row['tp']} {row['notes']}".replace("_", " "))
    if spread is None:
        return int(float(row["tp"])), 1, 1
    size = int(spread[2])
    return (size, 1, size) if spread[1] == "t" else (1, size, size)


def _load(text: str) -> tuple[int, int]:
    """Clients and requests of a load; (0, 0) when it is not a closed loop or a batch."""
    found = re.match(r"(batch|conc)=(\d{1,6})(?!\d)", text)
    if found:
        clients = int(found[2])
        return clients, clients if found[1] == "batch" else max(64, 8 * clients)
    if text.startswith("inf rate"):
        return MAX_LOAD_REQUESTS, MAX_LOAD_REQUESTS
    prompts = re.search(r"(?<!\d)(\d{1,6}) prompts", text)
    return (int(prompts[1]), int(prompts[1])) if prompts else (0, 0)


def _metric(row: Mapping[str, Any]) -> tuple[str, float]:
    """A metric's name and value in seconds or tokens a second; an empty name when it is none of ours.

    Raises:
        InputError: a value that is not a number.
    """
    scale = 1e-3 if str(row["unit"]) == "ms" or str(row["metric"]).endswith("_ms") else 1.0
    name = re.sub(r"_ms$", "", str(row["metric"]))
    known = {
        "mean_ttft": "ttft_s", "ttft": "ttft_s", "first_token_latency": "ttft_s", "mean_tpot": "tpot_s",
        "e2e_latency": "e2e_s", "output_throughput": "output_tokens_per_s", "duration": "duration_s",
        "ttft_p50": "ttft_p50_s", "tpot_p50": "tpot_p50_s", "e2e_latency_p50": "e2e_p50_s",
        "median_ttft": "ttft_p50_s", "median_tpot": "tpot_p50_s", "median_e2el": "e2e_p50_s",
    }  # fmt: skip
    try:
        value = float(row["value"]) * (scale if "throughput" not in name else 1.0)
    except ValueError:
        raise InputError(f"{row['value']!r} is not a number", where=f"value of {row['metric']}") from None
    return (known.get(name, ""), value) if np.isfinite(value) and value > 0 else ("", 0.0)


def _model_name(name: str) -> str:
    known = {
        "LLaMA v3.1 8B": "llama-3.1-8b", "LLaMA 7B": "llama-2-7b", "Mistral 7B": "mistral-7b",
        "TheBloke/Mistral-7B-v0.1-AWQ": "mistral-7b", "MiniMaxAI/MiniMax-M2.5": "minimax-m2",
    }  # fmt: skip
    return known.get(name, name)


def _gpu_name(name: str) -> str:
    known = {
        "H100": "H100-SXM", "A100": "A100-80GB", "H100-SXM-80GB": "H100-SXM", "H200-141GB": "H200",
        "A100-SXM4-80GB": "A100-80GB", "A100-PCIE-80GB": "A100-80GB-PCIe", "H100-80GB": "H100-SXM",
    }  # fmt: skip
    short = name.split(" (")[0]
    return known.get(short, short)


def _precision(name: str) -> str:
    """A precision's name; empty where none is stated."""
    return "int4-awq" if "awq" in name.lower() else name.lower().replace("nan", "")


def relative_errors(point: ServingPoint, predicted: Metrics) -> dict[str, float]:
    """Predicted over measured, less one, for each metric that both have."""
    return {
        m: predicted[m] / v - 1.0 for m, v in point.measured.items() if v > 0 and np.isfinite(predicted.get(m, np.nan))
    }


def fit_overheads(
    points: Sequence[ServingPoint], predict: Predict, start: Mapping[str, float], names: Sequence[str] = tuple(FITTED)
) -> dict[str, float]:
    """The overheads of one framework that bring simulation nearest to measured points.

    Minimises the mean absolute log error of TTFT, TPOT and throughput, each capped so that a point that another effect
    decides (a cache that overflows) does not pull; Nelder-Mead on their logarithms.

    Args:
        points: of one framework.
        predict: simulates a point under given overheads.
        start: where to begin; other keys are kept.
        names: the overheads to fit.
    """
    from scipy.optimize import minimize

    def loss(logs: Any) -> float:
        overheads = dict(start) | dict(zip(names, np.exp(logs), strict=True))
        return float(np.mean([_capped(point, predict(point, overheads)) for point in points]))

    first = np.log([max(start.get(name, 0.0), FITTED[name]) for name in names])
    simplex = np.vstack([first, *(first + 1.5 * row for row in np.eye(len(first)))])
    options: Any = {"xatol": 0.02, "fatol": 1e-5, "maxfev": 300, "initial_simplex": simplex}
    found = minimize(loss, first, method="Nelder-Mead", options=options)
    return dict(start) | {name: float(v) for name, v in zip(names, np.exp(found.x), strict=True)}


def _capped(point: ServingPoint, predicted: Metrics) -> float:
    weights = {"ttft_s": 0.3}
    return sum(
        weights.get(name, 1.0) * min(abs(float(np.log1p(error))), LARGEST_COUNTED_ERROR)
        for name, error in relative_errors(point, predicted).items()
        if error > -1.0
    )


def left_out_errors(
    points: Sequence[ServingPoint], predict: Predict, start: Mapping[str, float], names: Sequence[str] = tuple(FITTED)
) -> list[tuple[ServingPoint, dict[str, float]]]:
    """Each point's errors under overheads fitted without its group (engine, model, precision, GPU, TP)."""
    out = []
    for group in sorted({p.group for p in points}):
        fit = fit_overheads([p for p in points if p.group != group], predict, start, names)
        out += [(p, relative_errors(p, predict(p, fit))) for p in points if p.group == group]
    return out
