"""Reads Prometheus' text form, and the serving metrics of vLLM, SGLang, TGI and TensorRT-LLM under one set of names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from catalogs.errors import InputError

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')

# our name -> the metric's name in each engine, newest first; a histogram gives its mean, a gauge its value
_ENGINES: dict[str, Mapping[str, tuple[str, ...]]] = {
    "vllm": {
        "ttft_s": ("vllm:time_to_first_token_seconds",),
        "itl_s": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        "queue_s": ("vllm:request_queue_time_seconds",),
        "num_running": ("vllm:num_requests_running",),
        "num_waiting": ("vllm:num_requests_waiting",),
        "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        "prefix_hits": ("vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits"),
        "prefix_queries": ("vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries"),
        "num_preemptions": ("vllm:num_preemptions",),
    },
    "sglang": {
        "ttft_s": ("sglang:time_to_first_token_seconds",),
        "itl_s": ("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
        "queue_s": ("sglang:queue_time_seconds",),
        "num_running": ("sglang:num_running_reqs",),
        "num_waiting": ("sglang:num_queue_reqs",),
        "kv_usage": ("sglang:token_usage",),
        "prefix_hit_rate": ("sglang:cache_hit_rate",),
    },
    "tgi": {
        "itl_s": ("tgi_request_mean_time_per_token_duration",),
        "queue_s": ("tgi_request_queue_duration",),
        "num_running": ("tgi_batch_current_size",),
        "num_waiting": ("tgi_queue_size",),
    },
    "tensorrt-llm": {
        "ttft_s": ("trtllm_time_to_first_token_seconds",),
        "itl_s": ("trtllm_time_per_output_token_seconds",),
        "queue_s": ("trtllm_request_queue_time_seconds",),
        "num_running": ("trtllm_num_requests_running",),
        "num_waiting": ("trtllm_num_requests_waiting",),
        "kv_usage": ("trtllm_kv_cache_utilization",),
        "prefix_hit_rate": ("trtllm_kv_cache_hit_rate",),
    },
    "triton-tensorrt-llm": {
        "num_running": ('nv_trt_llm_request_metrics{request_type="active"}',),
        "num_waiting": ('nv_trt_llm_request_metrics{request_type="waiting"}',),
        "kv_usage": ('nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction"}',),
    },
}
_HISTOGRAMS = ("ttft_s", "itl_s", "queue_s")
_SHARES = ("kv_usage", "prefix_hit_rate")  # 0 to 1: their mean over engines and ranks; of other gauges the sum


@dataclass(frozen=True)
class Sample:
    """One line: name, labels, value."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Scrape:
    """An engine's metrics at one instant under our names; histograms as (sum, count) to take differences of."""

    engine: str
    gauges: Mapping[str, float]
    sums: Mapping[str, tuple[float, float]]

    def means_since(self, earlier: Scrape) -> dict[str, float]:
        """Means over the requests between two scrapes, seconds; a histogram without new entries is left out."""
        means = {}
        for name, (total, num) in self.sums.items():
            before, num_before = earlier.sums.get(name, (0.0, 0.0))
            if num > num_before:
                means[name] = (total - before) / (num - num_before)
        return means


def parse(text: str, where: str = "") -> list[Sample]:
    """The samples of an exposition (Prometheus text format 0.0.4, OpenMetrics' too).

    Raises:
        InputError: a line is neither a comment nor a sample.
    """
    samples = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = _SAMPLE.match(line)
        value = _value(found.group(3)) if found else None
        if found is None or value is None:
            raise InputError(
                f"not a Prometheus sample: {line[:60]!r}",
                where=f"{where}:{number}" if where else "",
                remedy="pass the text that the /metrics path of a server gives",
            )
        labels = dict(_LABEL.findall(found.group(2) or ""))
        samples.append(Sample(found.group(1), labels, value))
    return samples


def scrape(text: str, where: str = "") -> Scrape | None:
    """A serving engine's metrics; None where the text holds none of an engine that is known."""
    samples = parse(text, where)
    for engine, names in _ENGINES.items():
        gauges: dict[str, float] = {}
        sums: dict[str, tuple[float, float]] = {}
        for ours, theirs in names.items():
            for name in theirs:
                if ours in _HISTOGRAMS:
                    total, num = total_of(samples, name + "_sum"), total_of(samples, name + "_count")
                    if total is not None and num is not None:
                        sums[ours] = (total, num)
                        break
                values = values_of(samples, name) or values_of(samples, name + "_total")
                if values and ours not in _HISTOGRAMS:
                    gauges[ours] = sum(values) / (len(values) if ours in _SHARES else 1)
                    break
        if gauges or sums:
            return Scrape(engine, gauges, sums)
    return None


def total_of(samples: Iterable[Sample], name: str) -> float | None:
    """The sum of a metric over its series (engines, ranks); ``None`` without any."""
    values = values_of(samples, name)
    return sum(values) if values else None


def values_of(samples: Iterable[Sample], name: str) -> list[float]:
    """A metric's value in each of its series; ``name`` may hold one label: ``x{kind="y"}``."""
    bare, _, condition = name.partition("{")
    wanted = dict(_LABEL.findall(condition))
    return [s.value for s in samples if s.name == bare and all(s.labels.get(k) == v for k, v in wanted.items())]


def _value(text: str) -> float | None:
    try:
        return float(text)  # takes NaN, +Inf and -Inf as Prometheus writes them
    except ValueError:
        return None
