"""Reads results that users already have into load points: vllm bench serve, GuideLLM, AIPerf, genai-perf.

The form is recognised by its keys. All of these give milliseconds, except GuideLLM's ``request_latency`` (seconds);
AIPerf and genai-perf name the unit beside each metric, and it is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calibrate.server.load_points import LoadPoint, statistics
from catalogs.errors import InputError
from catalogs.files import parse_json, read_text
from catalogs.units import MILLISECONDS_PER_SECOND

Reader = Callable[[Any, str], list[LoadPoint]]
_UNITS = {"ms": 1e-3, "milliseconds": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0, "us": 1e-6, "ns": 1e-9}
_STATISTICS = {"avg": "mean", "mean": "mean", "p50": "p50", "median": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}
FORMS = "vllm bench serve (--save-result), GuideLLM benchmarks.json, AIPerf profile_export*.json[l], genai-perf JSON"


def read_results(path: str | Path) -> list[LoadPoint]:
    """The load points in a file.

    Raises:
        InputError: no such file, not JSON, none of the known forms, or no finished request in it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", where=str(path), remedy=f"one of: {FORMS}")
    documents = _documents(path)
    points = _detailed_aiperf(documents, str(path)) if "metadata" in documents[0] and "metrics" in documents[0] else []
    for document in documents if not points else ():
        points += _points(document, str(path))
    if not points:
        raise InputError("the results hold no finished request", where=str(path), remedy="run the benchmark again")
    return points


def _points(document: Mapping[str, Any], where: str) -> list[LoadPoint]:
    reader = _reader(document, where)
    try:
        return reader(document, where)
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise InputError(
            f"a field holds what it should not: {error}", where=where,
            why="its form was recognised, so it was changed or cut after the benchmark wrote it",
            remedy="the file as the benchmark wrote it",
        ) from None  # fmt: skip


def _documents(path: Path) -> list[dict[str, Any]]:
    text = read_text(path, "benchmark results")
    if path.suffix in (".yaml", ".yml"):
        import yaml

        try:
            found = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise InputError(f"not YAML: {str(error)[:200]}", where=str(path), remedy=f"one of: {FORMS}") from None
        documents = found if isinstance(found, list) else [found]
    else:
        try:
            found = parse_json(text)
            documents = found if isinstance(found, list) else [found]
        except json.JSONDecodeError:
            documents = [_line(path, i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not documents or not all(isinstance(d, dict) for d in documents):
        raise InputError("not benchmark results", where=str(path), remedy=f"one of: {FORMS}")
    return documents


def _line(path: Path, number: int, line: str) -> Any:
    try:
        return parse_json(line)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg}", where=f"{path}:{number}", remedy=f"one of: {FORMS}") from None


def _reader(document: Mapping[str, Any], where: str) -> Reader:
    if "benchmarks" in document:
        return _guidellm
    if "mean_ttft_ms" in document or ("request_throughput" in document and "total_input_tokens" in document):
        return _vllm
    if "time_to_first_token" in document or "request_latency" in document:
        return _perf
    raise InputError(
        f"benchmark results of an unknown form (keys: {', '.join(map(str, list(document)[:6]))})",
        where=where,
        remedy=FORMS,
    )


def _vllm(document: Mapping[str, Any], where: str) -> list[LoadPoint]:
    num = int(document.get("completed") or 0)
    if num == 0:
        return []
    rate = document.get("request_rate")
    limit = document.get("max_concurrency")
    open_loop = isinstance(rate, (int, float)) or (isinstance(rate, str) and rate not in ("inf", "Infinity"))
    inputs, outputs = document.get("total_input_tokens"), document.get("total_output_tokens")
    if not inputs or not outputs:
        raise InputError(
            "total_input_tokens or total_output_tokens is missing", where=where, remedy="vLLM 0.4 or later"
        )
    return [
        LoadPoint(
            input_tokens=inputs / num,
            output_tokens=outputs / num,
            num_requests=num,
            concurrency=None if limit is None else float(limit),
            rate_rps=float(rate) if open_loop and rate is not None else None,
            ttft_s=_vllm_times(document, "ttft", _seconds_each(document.get("ttfts"))),
            tpot_s=_vllm_times(document, "tpot", ()),
            itl_s=_vllm_times(document, "itl", [gap for row in document.get("itls") or () for gap in row]),
            e2e_s=_vllm_times(document, "e2el", ()),
            requests_per_s=document.get("request_throughput"),
            output_tokens_per_s=document.get("output_throughput"),
            num_failed=int(document.get("failed") or 0),
            source=f"vllm bench serve, {document.get('model_id', 'unknown model')}",
        )
    ]


def _seconds_each(values: Iterable[Any] | None) -> list[float]:
    return [float(v) for v in values or () if isinstance(v, (int, float)) and v > 0]  # failed requests have 0


def _vllm_times(document: Mapping[str, Any], metric: str, each_s: Sequence[float]) -> dict[str, float]:
    found = statistics(each_s)
    for key, ours in _STATISTICS.items():
        value = document.get(f"{key}_{metric}_ms")
        if isinstance(value, (int, float)) and value > 0:
            found[ours] = value / MILLISECONDS_PER_SECOND
    return found


def _guidellm(document: Mapping[str, Any], where: str) -> list[LoadPoint]:
    version = (document.get("metadata") or {}).get("version", 1)
    if version not in (1, 2):
        raise InputError(
            f"GuideLLM results of version {version}; 1 and 2 are known",
            where=where,
            why="the fields may mean something else",
            remedy="update this program, or pass results of another benchmark",
        )
    points = []
    for benchmark in document["benchmarks"]:
        metrics = benchmark.get("metrics") or {}
        latency = _guide(metrics, "request_latency", 1.0)
        num = _guide_field(metrics, "request_latency", "count") or 0
        if not num:
            continue
        outputs = _guide(metrics, "output_token_count", 1.0).get("mean", 0.0)
        ttft = _guide(metrics, "time_to_first_token_ms", 1e-3)
        gap = _guide(metrics, "inter_token_latency_ms", 1e-3)
        strategy = _guide_strategy(benchmark)
        points.append(
            LoadPoint(
                input_tokens=_guide(metrics, "prompt_token_count", 1.0).get("mean", 0.0),
                output_tokens=outputs,
                num_requests=int(num),
                concurrency=_guide_concurrency(strategy, metrics),
                rate_rps=strategy.get("rate") if strategy.get("type_") in ("constant", "poisson") else None,
                ttft_s=ttft,
                # GuideLLM's time_per_output_token counts the first token in; its inter-token latency is our TPOT
                tpot_s=gap,
                itl_s=gap,
                e2e_s=latency,
                requests_per_s=_guide(metrics, "requests_per_second", 1.0).get("mean"),
                output_tokens_per_s=_guide(metrics, "output_tokens_per_second", 1.0).get("mean"),
                num_failed=int((metrics.get("request_totals") or {}).get("errored") or 0),
                source="GuideLLM",
            )
        )
    return points


def _guide_strategy(benchmark: Mapping[str, Any]) -> Mapping[str, Any]:
    for holder in (benchmark.get("config"), benchmark.get("args"), benchmark.get("scheduler"), benchmark):
        strategy = holder.get("strategy") if isinstance(holder, dict) else None
        if isinstance(strategy, dict):
            return strategy
    return {}


def _guide_concurrency(strategy: Mapping[str, Any], metrics: Mapping[str, Any]) -> float | None:
    kind = strategy.get("type_")
    if kind == "synchronous":
        return 1.0
    for name in ("streams", "max_concurrency"):
        if kind == "concurrent" and isinstance(strategy.get(name), (int, float)):
            return float(strategy[name])
    return _guide(metrics, "request_concurrency", 1.0).get("mean")


def _guide_field(metrics: Mapping[str, Any], name: str, field: str) -> float | None:
    block = (metrics.get(name) or {}).get("successful") or {}
    value = block.get(field)
    return float(value) if isinstance(value, (int, float)) else None


def _guide(metrics: Mapping[str, Any], name: str, factor: float) -> dict[str, float]:
    block = (metrics.get(name) or {}).get("successful") or {}
    flat = {**block, **(block.get("percentiles") or {})}
    return {
        ours: flat[theirs] * factor
        for theirs, ours in _STATISTICS.items()
        if theirs != "median" and isinstance(flat.get(theirs), (int, float))
    }


def _perf(document: Mapping[str, Any], where: str) -> list[LoadPoint]:
    """AIPerf's and genai-perf's summary: a block with a unit for each metric."""
    config = document.get("input_config") or {}
    num = _perf_block(document, "request_count", where, None).get("mean")
    latency = _perf_block(document, "request_latency", where, "ms")
    # newer files name ITL and TPOT apart; in both tools inter_token_latency is (e2e - ttft) / (tokens - 1), our TPOT
    tpot = _perf_block(document, "inter_token_latency", where, "ms")
    load = _perf_load(config)
    return [
        LoadPoint(
            input_tokens=_perf_block(document, "input_sequence_length", where, None).get("mean", 0.0),
            output_tokens=_perf_block(document, "output_sequence_length", where, None).get("mean", 0.0),
            num_requests=int(num or 0),
            concurrency=load.get("concurrency"),
            rate_rps=load.get("request_rate"),
            ttft_s=_perf_block(document, "time_to_first_token", where, "ms"),
            tpot_s=tpot,
            itl_s={},
            e2e_s=latency,
            requests_per_s=_perf_block(document, "request_throughput", where, None).get("mean"),
            output_tokens_per_s=_perf_block(document, "output_token_throughput", where, None).get("mean"),
            num_failed=int(_perf_block(document, "error_request_count", where, None).get("mean") or 0),
            source="AIPerf" if "schema_version" in document or "loadgen" in config else "genai-perf",
        )
    ]


def _perf_load(config: Mapping[str, Any]) -> dict[str, float]:
    """Concurrency and rate, wherever the version at hand keeps them."""
    found = {}
    stimulus = (config.get("perf_analyzer") or {}).get("stimulus") or {}
    for holder in (stimulus, config.get("loadgen") or {}, config):
        for name in ("concurrency", "request_rate"):
            value = holder.get(name)
            if isinstance(value, (int, float)) and name not in found:
                found[name] = float(value)
    return found


def _perf_block(document: Mapping[str, Any], name: str, where: str, unit: str | None) -> dict[str, float]:
    """A metric's statistics; times in seconds by the unit in the file, ``unit`` where it names none."""
    block = document.get(name)
    if not isinstance(block, dict):
        return {}
    factor = 1.0
    if unit is not None:
        said = str(block.get("unit", unit)).lower()
        if said not in _UNITS:
            raise InputError(
                f"{name} is in {said!r}, which is no unit of time that is known",
                where=where,
                remedy=f"one of {', '.join(_UNITS)}",
            )
        factor = _UNITS[said]
    return {
        ours: block[theirs] * factor
        for theirs, ours in _STATISTICS.items()
        if isinstance(block.get(theirs), (int, float))
    }


def _detailed_aiperf(documents: Sequence[Mapping[str, Any]], where: str) -> list[LoadPoint]:
    """AIPerf's profile_export.jsonl: a record a request, each metric with its value and unit."""
    good = [d for d in documents if not d.get("error") and (d.get("metadata") or {}).get("benchmark_phase") != "warmup"]
    if not good:
        return []

    def values(name: str, is_time: bool) -> list[float]:
        found = []
        for document in good:
            block = (document.get("metrics") or {}).get(name) or {}
            value = block.get("value")
            if isinstance(value, (int, float)):
                factor = _UNITS.get(str(block.get("unit", "ms")).lower(), 1e-3) if is_time else 1.0
                found.append(float(value) * factor)
        return found

    inputs, outputs = values("input_sequence_length", False), values("output_sequence_length", False)
    if not inputs or not outputs:
        raise InputError(
            "the records hold no input_sequence_length or output_sequence_length", where=where, remedy=FORMS
        )
    spans = [(m["request_start_ns"], m["request_end_ns"]) for d in good if "request_end_ns" in (m := d["metadata"])]
    wall_s = (max(e for _, e in spans) - min(b for b, _ in spans)) * 1e-9 if spans else None
    busy_s = sum(e - b for b, e in spans) * 1e-9
    return [
        LoadPoint(
            input_tokens=sum(inputs) / len(inputs),
            output_tokens=sum(outputs) / len(outputs),
            num_requests=len(good),
            concurrency=busy_s / wall_s if wall_s else None,
            ttft_s=statistics(values("time_to_first_token", True)),
            tpot_s=statistics(values("inter_token_latency", True)),
            e2e_s=statistics(values("request_latency", True)),
            requests_per_s=len(good) / wall_s if wall_s else None,
            output_tokens_per_s=sum(outputs) / wall_s if wall_s else None,
            num_failed=len(documents) - len(good),
            source="AIPerf records",
        )
    ]
