"""Latencies and rates of a run, all vectorised: percentiles, promises kept, steady state with its confidence.

TTFT runs from arrival to the first output token; TPOT is (e2e - ttft) / (output_tokens - 1), absent where output_tokens
is 1 or 0; E2E runs from arrival to the last token; queue time from arrival until the request is first scheduled.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.engine.records import COMPLETED, REJECTED, STATUS_NAMES, Records
from simulator.engine.replica_spec import ReplicaSpec
from simulator.workload.requests import Requests, Slo

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
METRICS = ("ttft", "tpot", "e2e", "queue")
NUM_BATCHES = 20
MIN_BATCHES = 5
TAIL_VALUES = 5
# two-sided 95 % quantile of Student's t, from MIN_BATCHES - 1 to NUM_BATCHES - 1 degrees of freedom
STUDENT_T = (
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
)
MIN_STEADY_REQUESTS = 200  # below this, batch means say nothing
MAX_WARM_UP_SHARE = 0.5  # MSER's own bound: a later cut means that the run never settled
Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Latencies:
    """Per-request latencies in seconds, (n,) each; NaN where a request has none."""

    ttft: Float
    tpot: Float
    e2e: Float
    queue: Float
    completed: Bool

    @classmethod
    def of(cls, requests: Requests, records: Records) -> Latencies:
        """Latencies of every request that completed."""
        completed = records.status == COMPLETED
        first, finish = records.first_token_s, records.finish_s
        ttft = np.where(completed & (requests.output_tokens > 0), first - records.arrival_s, np.nan)
        e2e = np.where(completed, finish - records.arrival_s, np.nan)
        queue = np.where(completed, records.scheduled_s - records.arrival_s, np.nan)
        steps = np.maximum(requests.output_tokens - 1, 1)
        tpot = np.where(completed & (requests.output_tokens > 1), (finish - first) / steps, np.nan)
        return cls(ttft, tpot, e2e, queue, completed)

    def of_metric(self, metric: str) -> Float:
        """A metric's values, one a request."""
        values: Float = getattr(self, metric)
        return values


def summary(values: Float) -> dict[str, float | None]:
    """Mean and percentiles (linear between ranks) of the values that are not NaN; None where there are none."""
    values = values[~np.isnan(values)]
    if not len(values):
        return {"mean": None, **{f"p{p:g}": None for p in PERCENTILES}}
    found = np.percentile(values, PERCENTILES)
    return {"mean": float(values.mean()), **{f"p{p:g}": float(v) for p, v in zip(PERCENTILES, found, strict=True)}}


def promised_percentile(values: Float, completed: Bool, percentile: float) -> float:
    """A percentile in which a request that was rejected or failed counts as infinitely late; NaN without requests."""
    num_lost = int(len(completed) - completed.sum())
    present = values[~np.isnan(values)]
    if not num_lost:
        return float(np.percentile(present, percentile)) if len(present) else float("nan")
    rank = percentile / 100 * (len(present) + num_lost - 1)
    if rank > len(present) - 1:
        return float("inf")
    return float(np.percentile(present, 100 * rank / max(1, len(present) - 1)))


def check_slos(slos: Sequence[Slo], requests: Requests, latencies: Latencies) -> dict[str, Any]:
    """Limit, simulated value and verdict of each promise; promises of a class stand under its name."""
    answer: dict[str, Any] = {}
    for slo in slos:
        chosen = class_mask(requests, slo.request_class)
        values = latencies.of_metric(slo.metric)[chosen]
        found = promised_percentile(values, latencies.completed[chosen], slo.percentile)
        ok = bool(found <= slo.limit_s)
        verdict: dict[str, Any] = {"limit": slo.limit_s, "simulated": found if np.isfinite(found) else None, "ok": ok}
        if not np.isfinite(found):
            verdict["why"] = "no request has it" if np.isnan(found) else "too many requests were rejected or failed"
        place = answer if slo.request_class is None else answer.setdefault(slo.request_class, {})
        place[slo.name] = verdict
    return answer


def all_ok(verdicts: Mapping[str, Any]) -> bool:
    """Whether every promise in the answer of ``check_slos`` is kept."""
    return all(v["ok"] if "ok" in v else all_ok(v) for v in verdicts.values())


def class_mask(requests: Requests, name: str | None) -> Bool:
    """Which requests are of a class; all of them for None, none for a class that does not occur."""
    if name is None:
        return np.ones(len(requests), dtype=np.bool_)
    if requests.request_class is None or name not in requests.class_names:
        return np.zeros(len(requests), dtype=np.bool_)
    mask: Bool = requests.request_class == requests.class_names.index(name)
    return mask


def goodput_share(slos: Sequence[Slo], requests: Requests, latencies: Latencies) -> float:
    """Share of all requests that completed within every limit that is promised to them, each taken for itself."""
    good = latencies.completed.copy()
    for slo in slos:
        values = latencies.of_metric(slo.metric)
        good &= ~class_mask(requests, slo.request_class) | np.isnan(values) | (values <= slo.limit_s)
    return float(good.mean())


def status_counts(records: Records) -> dict[str, int]:
    """Requests by how they ended."""
    counts = np.bincount(records.status, minlength=len(STATUS_NAMES))
    return {name: int(counts[i]) for i, name in enumerate(STATUS_NAMES)}


def by_class(requests: Requests, records: Records, latencies: Latencies) -> dict[str, Any]:
    """Counts and latencies of each request class; empty where there is one class."""
    if requests.request_class is None:
        return {}
    answer: dict[str, Any] = {}
    for number, name in enumerate(requests.class_names):
        chosen = requests.request_class == number
        if chosen.any():
            counts = np.bincount(records.status[chosen], minlength=len(STATUS_NAMES))
            answer[name] = {
                "requests": {s: int(counts[i]) for i, s in enumerate(STATUS_NAMES)},
                **{f"{m}_s": summary(latencies.of_metric(m)[chosen]) for m in METRICS},
            }
    return answer


def warm_up_cut(values: Float) -> int:
    """How many values from the start to leave out: the MSER-5 rule.

    Of all cuts in the first half, the one with the smallest squared standard error of what remains, over means of five
    (White, "An effective truncation heuristic for bias reduction in simulation output", Simulation 69, 1997).
    """
    means = values[: len(values) // 5 * 5].reshape(-1, 5).mean(axis=1)
    num = len(means)
    if num < 10:
        return 0
    left = np.arange(num, 0, -1, dtype=np.float64)
    tail_sum = np.cumsum(means[::-1])[::-1]
    tail_squares = np.cumsum((means**2)[::-1])[::-1]
    error = (tail_squares - tail_sum**2 / left) / left**2
    return 5 * int(np.argmin(error[: int(num * MAX_WARM_UP_SHARE) + 1]))


def with_intervals(values: Float) -> dict[str, float | None]:
    """``summary`` of correlated values in their order of time, and half of a 95 % interval of each of its figures.

    Up to ``NUM_BATCHES`` consecutive batches, each with ``TAIL_VALUES`` beyond the percentile; their spread about the
    figure of all values (sectioning: Asmussen and Glynn, "Stochastic Simulation", 2007, III.5). None where there are
    too few values for ``MIN_BATCHES``.
    """
    found = summary(values)
    widths: dict[str, float | None] = {f"{name}_half_width_95": None for name in found}
    by_number: dict[int, list[float]] = {}
    for p in PERCENTILES:
        by_number.setdefault(min(NUM_BATCHES, int(len(values) * min(p, 100.0 - p) / 100.0 / TAIL_VALUES)), []).append(p)
    for num_batches, chosen in by_number.items():
        if num_batches < MIN_BATCHES:
            continue
        batches, names = np.array_split(values, num_batches), [f"p{p:g}" for p in chosen]
        each = np.array([np.percentile(batch, chosen) for batch in batches])
        if num_batches == max(by_number):
            each, names = np.column_stack([each, [batch.mean() for batch in batches]]), [*names, "mean"]
        variance = ((each - [found[name] for name in names]) ** 2).sum(axis=0) / (num_batches - 1)
        half = STUDENT_T[num_batches - MIN_BATCHES] * np.sqrt(variance / num_batches)
        widths |= {f"{name}_half_width_95": float(w) for name, w in zip(names, half, strict=True)}
    return found | widths


def steady_state(latencies: Latencies, arrival_s: Float) -> dict[str, Any] | None:
    """Latencies without the warm-up, each with a 95 % interval; None for a run that is too short.

    The cut is made where TTFT settles. A run that does not settle in its first half is not steady: its load may be more
    than the fleet can carry.
    """
    done = np.flatnonzero(latencies.completed & ~np.isnan(latencies.ttft))
    if len(done) < MIN_STEADY_REQUESTS:
        return None
    cut = warm_up_cut(latencies.ttft[done])
    rest = done[cut:]
    answer: dict[str, Any] = {
        "warm_up_s": float(arrival_s[rest[0]] - arrival_s[done[0]]),
        "warm_up_requests": cut,
        "settled": bool(cut < MAX_WARM_UP_SHARE * len(done) - 10),
    }
    for metric in ("ttft", "tpot", "e2e"):
        values = latencies.of_metric(metric)[rest]
        values = values[~np.isnan(values)]
        if len(values) < MIN_STEADY_REQUESTS // 2:
            continue
        answer[f"{metric}_s"] = with_intervals(values)
    return answer


def overload(requests: Requests, records: Records, latencies: Latencies) -> dict[str, float] | None:
    """The rate at which the fleet really serves, where its queue grows from start to end; None where it does not.

    A queue grows if the mean queue time of each quarter of the arrivals exceeds that of the one before, the last is
    more than twice the second and more than 5 % of the span of arrivals.
    """
    if requests.concurrency is not None:
        return None
    queue = latencies.queue[latencies.completed]
    span = float(records.arrival_s[-1] - records.arrival_s[0])
    if len(queue) < 40 or span <= 0:
        return None
    quarters = [float(part.mean()) for part in np.array_split(queue, 4)]
    grows = all(b > a for a, b in itertools.pairwise(quarters))
    if not grows or quarters[3] < 2 * quarters[1] or quarters[3] < 0.05 * span:
        return None
    busy_until = float(np.nanmax(records.finish_s))
    offered = (len(requests) - 1) / span
    served = len(queue) / (busy_until - float(records.arrival_s[0]))
    return {"offered_rps": offered, "served_rps": served}


def rejections(requests: Requests, records: Records, specs: Sequence[ReplicaSpec]) -> dict[str, int]:
    """How many requests engines of these settings refused, by reason; a live fleet's gateway has reasons of its own."""
    longest = min(spec.longest_sequence for spec in specs)
    whole = min((spec.max_num_batched_tokens for spec in specs if not spec.enable_chunked_prefill), default=longest)
    rejected = (records.status == REJECTED) & (records.replica >= 0)
    no_answer = rejected & (requests.output_tokens < 1)
    too_long = rejected & ~no_answer & (requests.input_tokens >= longest)
    not_whole = rejected & ~no_answer & ~too_long & (requests.input_tokens > whole)
    found = {
        "no output token is asked for": no_answer,
        f"the prompt leaves no room in {longest:,} tokens of context or KV cache": too_long,
        f"without chunked prefill the prompt exceeds max_num_batched_tokens {whole:,}": not_whole,
    }
    return {reason: int(which.sum()) for reason, which in found.items() if which.any()}


def inter_token_latency_mean(requests: Requests, records: Records) -> float | None:
    """Mean gap between consecutive tokens over all tokens (long answers weigh more than in TPOT)."""
    chosen = (records.status == COMPLETED) & (requests.output_tokens > 1)
    gaps = int((requests.output_tokens[chosen] - 1).sum())
    return float((records.finish_s - records.first_token_s)[chosen].sum() / gaps) if gaps else None
