"""What really ran, from Prometheus: load, latency, KV use and GPU use, under each engine's own metric names.

Names: vLLM V1 ``vllm/v1/metrics/loggers.py``, SGLang ``metrics/collector.py``, TGI ``reference/metrics.md``,
TensorRT-LLM ``metrics/collector.py``, NVIDIA DCGM exporter ``default-counters.csv``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from catalogs.errors import InputError, MissingError
from planner.spend.prometheus import MAX_POINTS, Prometheus, quantile

if TYPE_CHECKING:
    import pandas as pd

COUNTERS = ("requests", "input_tokens", "output_tokens", "preemptions")
GAUGES = ("running", "waiting", "kv_cache_usage")
HISTOGRAMS = ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s")
# what we call it: the engine's names, the newest first; a counter's name is its exposed one
METRICS: dict[str, dict[str, tuple[str, ...]]] = {
    "vllm": {
        "requests": ("vllm:request_success_total",),
        "input_tokens": ("vllm:prompt_tokens_total",),
        "output_tokens": ("vllm:generation_tokens_total",),
        "preemptions": ("vllm:num_preemptions_total",),
        "running": ("vllm:num_requests_running",),
        "waiting": ("vllm:num_requests_waiting",),
        "kv_cache_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        "ttft_s": ("vllm:time_to_first_token_seconds",),
        "tpot_s": ("vllm:request_time_per_output_token_seconds",),
        "itl_s": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        "e2e_s": ("vllm:e2e_request_latency_seconds",),
        "queue_s": ("vllm:request_queue_time_seconds",),
    },
    "sglang": {
        "requests": ("sglang:num_requests_total",),
        "input_tokens": ("sglang:prompt_tokens_total",),
        "output_tokens": ("sglang:generation_tokens_total",),
        "running": ("sglang:num_running_reqs",),
        "waiting": ("sglang:num_queue_reqs",),
        "kv_cache_usage": ("sglang:token_usage",),
        "ttft_s": ("sglang:time_to_first_token_seconds",),
        "itl_s": ("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
        "e2e_s": ("sglang:e2e_request_latency_seconds",),
        "queue_s": ("sglang:queue_time_seconds",),
    },
    "tgi": {
        "requests": ("tgi_request_success",),
        "input_tokens": ("tgi_request_input_length_sum",),
        "output_tokens": ("tgi_request_generated_tokens_sum",),
        "running": ("tgi_batch_current_size",),
        "waiting": ("tgi_queue_size",),
        "tpot_s": ("tgi_request_mean_time_per_token_duration",),
        "e2e_s": ("tgi_request_duration",),
        "queue_s": ("tgi_request_queue_duration",),
    },
    "tensorrt-llm": {
        "requests": ("trtllm_request_success_total",),
        "input_tokens": ("trtllm_prompt_tokens_total",),
        "output_tokens": ("trtllm_generation_tokens_total",),
        "running": ("trtllm_num_requests_running",),
        "waiting": ("trtllm_num_requests_waiting",),
        "kv_cache_usage": ("trtllm_kv_cache_utilization",),
        "ttft_s": ("trtllm_time_to_first_token_seconds",),
        "tpot_s": ("trtllm_time_per_output_token_seconds",),
        "e2e_s": ("trtllm_e2e_request_latency_seconds",),
        "queue_s": ("trtllm_request_queue_time_seconds",),
    },
}
GPU_BUSY = ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_DEV_GPU_UTIL")  # 0 to 1, and 0 to 100
GPU_TENSOR, GPU_DRAM, GPU_POWER = (
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
    "DCGM_FI_PROF_DRAM_ACTIVE",
    "DCGM_FI_DEV_POWER_USAGE",
)
MACHINE_LABELS = ("resource_id", "instance_id", "node", "Hostname", "hostname", "instance")
GAP_STEPS = 3  # so many steps without a sample are a gap


@dataclass(frozen=True)
class Histogram:
    """What a latency histogram counted over the period: cumulative counts by upper edge, and the mean."""

    buckets: Mapping[float, float]
    mean_s: float | None
    name: str

    def percentile(self, q: float) -> float | None:
        """The q-quantile, q from 0 to 1."""
        return quantile(self.buckets, q)


@dataclass(frozen=True)
class Observed:
    """What the metrics say of a period.

    Attributes:
        start_s, end_s: Unix seconds.
        framework: whose metrics were found.
        counts: requests, input_tokens, output_tokens, preemptions over the period; absent where unknown.
        means: running, waiting (over all replicas together), kv_cache_usage (mean over replicas, 0 to 1).
        peaks: the same at their highest.
        latency: ttft_s, tpot_s, itl_s, e2e_s, queue_s.
        load: (instant, requests a second) pairs.
        num_replicas: engines seen at once, on average.
        gpus: a row a GPU: machine, gpu, busy_share, tensor_share, dram_share, power_w.
        gaps: (start, end) of stretches without samples.
        notes: what could not be seen, and why.
    """

    start_s: float
    end_s: float
    framework: str
    counts: Mapping[str, float]
    means: Mapping[str, float]
    peaks: Mapping[str, float]
    latency: Mapping[str, Histogram]
    load: tuple[tuple[float, float], ...]
    num_replicas: float | None
    gpus: tuple[Mapping[str, object], ...] = ()
    gaps: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def counted_s(self) -> float:
        """Seconds that the counters cover: gaps within the period are seen through, those at its ends are not."""
        ends = [end - start for start, end in self.gaps if start <= self.start_s or end >= self.end_s]
        return self.end_s - self.start_s - sum(ends)

    @property
    def requests_per_s(self) -> float | None:
        """Mean rate over the time that the counters cover."""
        count = self.counts.get("requests")
        return count / self.counted_s if count is not None and self.counted_s > 0 else None

    @property
    def busy(self) -> pd.DataFrame:
        """Mean GPU busy share by machine: resource_id, busy_share."""
        import pandas as pd

        shares: dict[str, list[float]] = {}
        for row in self.gpus:
            if isinstance(row["busy_share"], float):
                shares.setdefault(str(row["machine"]), []).append(row["busy_share"])
        means = [(machine, sum(found) / len(found)) for machine, found in sorted(shares.items())]
        return pd.DataFrame(means, columns=["resource_id", "busy_share"])


def observe(
    server: Prometheus,
    start: datetime,
    end: datetime,
    *,
    selector: str = "",
    framework: str | None = None,
    step_s: float = 60.0,
) -> Observed:
    """Ask a Prometheus server what ran from ``start`` to ``end``.

    Args:
        selector: label matchers that choose the service, as in PromQL: ``namespace="prod",model_name="llama"``.
        framework: vllm, sglang, tgi or tensorrt-llm; otherwise the one whose metrics are there.
        step_s: resolution of the series.

    Raises:
        InputError: an empty period, a selector that is no PromQL, two frameworks and none chosen.
        MissingError: the server cannot be asked, or holds no metrics of an engine in the period.
    """
    start_s, end_s = start.astimezone(UTC).timestamp(), end.astimezone(UTC).timestamp()
    if end_s <= start_s:
        raise InputError(f"the period from {start} to {end} is empty", where="--from, --to")
    step = max(min(step_s, end_s - start_s), (end_s - start_s) / MAX_POINTS)  # which a server would widen to
    query = _Queries(server, selector.strip().strip("{}"), start_s, end_s, step)
    engine = framework or _framework(query)
    if engine not in METRICS:
        raise InputError(f"unknown framework {engine!r}", where="--framework", remedy=f"one of {', '.join(METRICS)}")
    notes: list[str] = []
    running = query.series(_first(query, engine, "running", notes))
    if not running:
        raise MissingError(
            f"no metrics of {engine} between {start:%Y-%m-%d %H:%M} and {end:%Y-%m-%d %H:%M}", where=server.url,
            remedy="another period, or loosen --selector",
        )  # fmt: skip
    gaps = _gaps([at for at, _ in running], start_s, end_s, query.step_s)
    if gaps:
        lost = sum(b - a for a, b in gaps) / (end_s - start_s)
        notes.append(
            f"no metrics for {lost:.1%} of the period, in {len(gaps)} gaps: counts go on through a gap, gauges do not"
        )
    skew = _clock_skew_s(server)
    if skew is not None and abs(skew) > 60:
        notes.append(f"the clock of Prometheus is {skew:+.0f} s from ours")
    names = {kind: _first(query, engine, kind, notes) for kind in (*COUNTERS, *GAUGES, *HISTOGRAMS)}
    counts = {k: v for k in COUNTERS if names[k] and (v := query.increase(names[k])) is not None}
    means = {k: v for k in GAUGES if names[k] and (v := query.over_time("avg", names[k], k)) is not None}
    peaks = {k: v for k in GAUGES if names[k] and (v := query.over_time("max", names[k], k)) is not None}
    latency = {k: h for k in HISTOGRAMS if names[k] and (h := query.histogram(names[k])) is not None}
    gpus = _gpus(query, notes)
    replicas = query.replicas(names["running"])
    return Observed(
        start_s, end_s, engine, counts, means, peaks, latency, tuple(query.rate(names["requests"])), replicas,
        tuple(gpus), tuple(gaps), tuple(notes),
    )  # fmt: skip


@dataclass(frozen=True)
class _Queries:
    """PromQL over one period and one selection."""

    server: Prometheus
    selector: str
    start_s: float
    end_s: float
    step_s: float

    def of(self, name: str, more: str = "") -> str:
        """A metric with its label matchers; the name as a label, since names with a colon are common."""
        matchers = ",".join(m for m in (f'__name__="{name}"', self.selector, more) if m)
        return f"{{{matchers}}}"

    @property
    def window(self) -> str:
        return f"[{max(1, round(self.end_s - self.start_s))}s]"

    def exists(self, name: str) -> bool:
        return bool(self.server.instant(f"count(last_over_time({self.of(name)}{self.window}))", self.end_s))

    def increase(self, name: str) -> float | None:
        """What a counter grew by; restarts of the engine (resets) are seen through."""
        return self.server.scalar(f"sum(increase({self.of(name)}{self.window}))", self.end_s)

    def over_time(self, how: str, name: str, kind: str) -> float | None:
        """The mean or peak over the period; of the sum over replicas, or of their mean for a share."""
        across = "avg" if kind == "kv_cache_usage" else "sum"
        inner = f"{across}({self.of(name)})"
        window = self.window[:-1] + f":{max(1, round(self.step_s))}s]"
        value = self.server.scalar(f"{how}_over_time({inner}{window})", self.end_s)
        return value / 100 if value is not None and kind == "kv_cache_usage" and value > 1.0 else value

    def histogram(self, name: str) -> Histogram | None:
        bucket = f"sum by (le) (increase({self.of(name + '_bucket')}{self.window}))"
        try:
            found = {
                float(s.labels["le"]): s.value
                for s in self.server.instant(bucket, self.end_s)
                if "le" in s.labels and s.value is not None
            }
        except ValueError as error:
            raise MissingError(f"a bucket's edge is no number: {error}", where=name) from error
        if not found or max(found.values()) <= 0:
            return None
        total, count = self.increase(name + "_sum"), self.increase(name + "_count")
        return Histogram(found, total / count if total is not None and count else None, name)

    def series(self, name: str) -> list[tuple[float, float]]:
        found = self.server.range(f"sum({self.of(name)})", self.start_s, self.end_s, self.step_s) if name else []
        return list(found[0].points) if found else []

    def rate(self, name: str) -> list[tuple[float, float]]:
        window = max(60.0, 4 * self.step_s)
        asked = f"sum(rate({self.of(name)}[{round(window)}s]))"
        found = self.server.range(asked, self.start_s, self.end_s, self.step_s) if name else []
        return list(found[0].points) if found else []

    def replicas(self, name: str) -> float | None:
        window = self.window[:-1] + f":{max(1, round(self.step_s))}s]"
        return self.server.scalar(f"avg_over_time(count({self.of(name)}){window})", self.end_s)


def _framework(query: _Queries) -> str:
    there = [f for f, names in METRICS.items() if any(query.exists(n) for n in names["running"])]
    if len(there) == 1:
        return there[0]
    if there:
        raise InputError(f"metrics of {' and '.join(there)}", where="--framework", remedy="choose one")
    raise MissingError(
        "no metrics of vLLM, SGLang, TGI or TensorRT-LLM in the period", where=query.server.url,
        remedy="scrape the engines' /metrics; check the period and --selector",
    )  # fmt: skip


def _first(query: _Queries, engine: str, kind: str, notes: list[str]) -> str:
    """The name under which this engine's version exposes a metric; ``""`` where it does not."""
    names = METRICS[engine].get(kind, ())
    suffix = "_bucket" if kind in HISTOGRAMS else ""
    for name in names:
        if query.exists(name + suffix):
            return name
    if names and f"{kind} is not exposed" not in "".join(notes):
        notes.append(f"{kind} is not exposed by {engine} here")
    return ""


def _gaps(instants: Sequence[float], start_s: float, end_s: float, step_s: float) -> list[tuple[float, float]]:
    """Stretches of ``GAP_STEPS`` steps or more without a sample."""
    edges = [start_s, *instants, end_s]
    found = []
    for before, after in pairwise(edges):
        if after - before > GAP_STEPS * step_s:
            found.append((before, after))
    return found


def _clock_skew_s(server: Prometheus) -> float | None:
    import time

    here = time.time()
    try:
        found = server.instant("time()", here)
    except MissingError:
        return None
    return (found[0].value or here) - here if found else None


def _gpus(query: _Queries, notes: list[str]) -> list[dict[str, object]]:
    """Mean busy, tensor and memory share and power of each GPU; DCGM's metrics carry no serving labels."""
    bare = _Queries(query.server, "", query.start_s, query.end_s, query.step_s)
    name = next((n for n in GPU_BUSY if bare.exists(n)), "")
    if not name:
        notes.append("no DCGM metrics: how busy the GPUs were is not known")
        return []
    rows: dict[tuple[str, str], dict[str, object]] = {}
    for kind, metric in (("busy_share", name), ("tensor_share", GPU_TENSOR), ("dram_share", GPU_DRAM),
                         ("power_w", GPU_POWER)):  # fmt: skip
        for s in bare.server.instant(f"avg_over_time({bare.of(metric)}{bare.window})", bare.end_s):
            machine = next((s.labels[k] for k in MACHINE_LABELS if s.labels.get(k)), "")
            gpu = s.labels.get("UUID") or s.labels.get("gpu") or s.labels.get("device") or "0"
            unknown = dict.fromkeys(("busy_share", "tensor_share", "dram_share", "power_w"))
            row = rows.setdefault((machine, gpu), {"machine": machine, "gpu": gpu, **unknown})
            scale = 100.0 if metric == "DCGM_FI_DEV_GPU_UTIL" else 1.0
            row[kind] = None if s.value is None else s.value / scale
    return list(rows.values())
