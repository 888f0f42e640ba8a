"""Percentiles, promises, steady state and overload are those of a run whose answer is known."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from scipy.signal import lfilter

from simulator.engine import metrics
from simulator.engine.metrics import Latencies
from simulator.engine.records import COMPLETED, FAILED, REJECTED, Records
from simulator.workload.requests import Requests, Slo

RNG = np.random.default_rng(0)


def run_of(
    ttft: np.ndarray, output: np.ndarray | None = None, status: np.ndarray | None = None, tpot_s: float = 0.01
) -> tuple[Requests, Records, Latencies]:
    """A run in which each request has the given TTFT, queues half of it and then decodes at ``tpot_s``."""
    num = len(ttft)
    output = np.full(num, 11) if output is None else output
    arrival = np.arange(num) * 0.1
    requests = Requests(arrival, np.full(num, 100), output)
    zero = np.zeros(1, dtype=np.int64)
    records = Records(
        arrival, arrival + ttft / 2, arrival + ttft, arrival + ttft + tpot_s * np.maximum(output - 1, 0),
        np.zeros(num, dtype=np.int64), np.zeros(num, dtype=np.int8) if status is None else status,
        np.zeros(num, dtype=np.int64), np.zeros(num, dtype=np.int64),
        zero, zero, np.zeros(1), zero, zero, zero, float(arrival[-1] + 10),
    )  # fmt: skip
    return requests, records, Latencies.of(requests, records)


def test_latencies_follow_their_definitions() -> None:
    _, _, found = run_of(np.array([0.2, 0.4, 0.6]), output=np.array([11, 1, 2]))
    assert found.ttft == pytest.approx([0.2, 0.4, 0.6])
    assert found.tpot == pytest.approx([0.01, np.nan, 0.01], nan_ok=True)
    assert found.e2e == pytest.approx([0.3, 0.4, 0.61])
    assert found.queue == pytest.approx([0.1, 0.2, 0.3])


def test_percentiles_are_linear_between_ranks() -> None:
    values = RNG.exponential(1, 997)
    found = metrics.summary(values)
    assert found["p95"] == pytest.approx(np.sort(values)[int(0.95 * 996)], rel=0.05)
    assert found == {"mean": values.mean(), **{f"p{p}": np.percentile(values, p) for p in (50, 90, 95, 99)}}


def test_a_metric_that_no_request_has_is_absent() -> None:
    _, _, found = run_of(np.array([0.2, 0.4]), output=np.array([1, 1]))
    assert metrics.summary(found.tpot) == {"mean": None, "p50": None, "p90": None, "p95": None, "p99": None}


def test_a_lost_request_counts_as_infinitely_late() -> None:
    status = np.full(100, COMPLETED, dtype=np.int8)
    status[:3] = [REJECTED, FAILED, REJECTED]
    requests, records, found = run_of(np.linspace(0.1, 0.2, 100), status=status)
    assert metrics.status_counts(records) == {"completed": 97, "rejected": 2, "failed": 1}
    slos = (Slo("ttft", 95, 1.0), Slo("ttft", 99, 1.0), Slo("e2e", 50, 1.0))
    verdicts = metrics.check_slos(slos, requests, found)
    assert verdicts["ttft_p95_s"]["ok"] and verdicts["ttft_p95_s"]["simulated"] > np.nanpercentile(found.ttft, 95)
    assert not verdicts["ttft_p99_s"]["ok"] and "rejected" in verdicts["ttft_p99_s"]["why"]
    assert not metrics.all_ok(verdicts)
    assert metrics.goodput_share(slos, requests, found) == 0.97


def test_promises_of_a_class_look_at_that_class_alone() -> None:
    requests, records, found = run_of(np.array([0.1, 0.5] * 50))
    classed = Requests(
        requests.arrival_s, requests.input_tokens, requests.output_tokens,
        request_class=np.array([0, 1] * 50), class_names=("chat", "batch"),
    )  # fmt: skip
    slos = (Slo("ttft", 95, 0.2, "chat"), Slo("ttft", 95, 0.2, "batch"), Slo("ttft", 95, 0.2, "other"))
    verdicts = metrics.check_slos(slos, classed, found)
    assert verdicts["chat"]["ttft_p95_s"]["ok"] and not verdicts["batch"]["ttft_p95_s"]["ok"]
    assert not verdicts["other"]["ttft_p95_s"]["ok"] and verdicts["other"]["ttft_p95_s"]["why"] == "no request has it"
    assert metrics.goodput_share(slos, classed, found) == 0.5
    parts = metrics.by_class(classed, records, found)
    assert parts["chat"]["requests"]["completed"] == 50 and parts["batch"]["ttft_s"]["mean"] == pytest.approx(0.5)


def test_the_warm_up_is_cut_where_the_run_settles() -> None:
    ttft = 0.2 + 0.02 * RNG.standard_normal(4000)
    ttft[:300] += np.linspace(2, 0, 300)
    requests, records, found = run_of(ttft)
    steady = metrics.steady_state(found, records.arrival_s)
    assert steady is not None and 200 <= steady["warm_up_requests"] <= 400 and steady["settled"]
    assert steady["ttft_s"]["mean"] == pytest.approx(0.2, abs=0.005)
    assert metrics.steady_state(run_of(ttft[:100])[2], records.arrival_s) is None
    assert metrics.overload(requests, records, found) is None


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal(2100)
        correlated = np.convolve(noise, np.ones(10) / np.sqrt(10), "valid")[:2000]
        steady = metrics.steady_state(run_of(1.0 + 0.1 * correlated)[2], np.arange(2000) * 0.1)
        assert steady is not None
        part = steady["ttft_s"]
        held += abs(part["mean"] - 1.0) <= part["mean_half_width_95"]
    assert 180 <= held <= 200


def test_intervals_of_percentiles_hold_the_truth_too() -> None:
    # autocorrelated values with a standard normal marginal, so that each percentile is known
    names = ("mean", "p50", "p90", "p95", "p99")
    truth = [0.0, *(NormalDist().inv_cdf(p / 100) for p in metrics.PERCENTILES)]
    held = np.zeros(len(names))
    for seed in range(300):
        values = lfilter([0.6], [1.0, -0.8], np.random.default_rng(seed).standard_normal(5200))[200:]
        part = metrics.with_intervals(values)
        off = [abs((part[name] or 0.0) - t) for name, t in zip(names, truth, strict=True)]
        held += [o <= (part[f"{name}_half_width_95"] or 0.0) for o, name in zip(off, names, strict=True)]
    assert (held >= 0.9 * 300).all() and (held <= 0.985 * 300).all(), held


def test_a_percentile_of_too_few_values_has_no_interval() -> None:
    part = metrics.with_intervals(np.random.default_rng(0).exponential(size=600))
    assert part["p95_half_width_95"] is not None
    assert part["p99"] is not None and part["p99_half_width_95"] is None


def test_a_queue_that_grows_to_the_end_is_overload_and_its_rate_is_said() -> None:
    requests, records, found = run_of(np.arange(1000) * 0.1)  # one arrives each 0.1 s, one is served each 0.2 s
    said = metrics.overload(requests, records, found)
    assert said is not None
    assert (said["offered_rps"], said["served_rps"]) == (pytest.approx(10), pytest.approx(5, rel=0.01))
    steady = metrics.steady_state(found, records.arrival_s)
    assert steady is not None and not steady["settled"]


def test_inter_token_latency_weighs_tokens() -> None:
    requests, records, _ = run_of(np.array([0.1, 0.1]), output=np.array([2, 101]))
    assert metrics.inter_token_latency_mean(requests, records) == pytest.approx(0.01)
