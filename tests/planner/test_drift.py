"""What really ran against what was planned: load, promises, step times, spot, prices."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from planner.explain import replica_of
from planner.spend.bill import COLUMNS, Bill
from planner.spend.drift import (
    cheaper_plan,
    load_drift,
    load_trend,
    predicted_step_s,
    repriced,
    slo_burn,
    spot_share,
    step_time_drift,
)  # fmt: skip
from planner.spend.observed import Histogram, Observed

PLAN: dict[str, Any] = {
    "model": "llama-3.1-8b", "region": "us-east-1", "verified": True,
    "plan": {
        "lines": [{"instance_type": "g6e.xlarge", "gpu": "L40S", "tensor_parallel_size": 1, "precision": "bf16",
                   "framework": "vllm", "purchase": "on_demand", "instances": [2], "usd_per_hour": 3.722}],
        "usd_per_hour": 3.722, "requests_per_s": 8.0, "output_tokens_per_s": 1600.0,
    },
    "slo": {"ttft_p95_s": {"limit": 1.0, "simulated": 0.6, "ok": True},
            "tpot_p95_s": {"limit": 0.05, "simulated": 0.04, "ok": True}},
}  # fmt: skip


def observed(**changes: Any) -> Observed:
    hour = {"start_s": 0.0, "end_s": 3600.0, "framework": "vllm", "counts": {}, "means": {}, "peaks": {}, "latency": {},
            "load": (), "num_replicas": 1.0}  # fmt: skip
    return Observed(**{**hour, **changes})


def test_load_near_the_plan_is_no_finding() -> None:
    assert load_drift(observed(counts={"requests": 3600 * 8.5}), PLAN) == []
    (found,) = load_drift(observed(counts={"requests": 3600 * 12.0}), PLAN)
    assert found.usd == pytest.approx(3.722 / 2)  # half as much again, for an hour


def test_longer_answers_than_planned_are_found() -> None:
    (found,) = load_drift(observed(counts={"requests": 3600 * 8.0, "output_tokens": 3600 * 8.0 * 300}), PLAN)
    assert "300 tokens" in found.text


def test_a_steady_load_has_no_trend_and_a_growing_one_says_when_it_passes_the_plan() -> None:
    def days(rates: list[float]) -> Observed:
        return observed(load=tuple((d * 86400.0 + h * 3600, r) for d, r in enumerate(rates) for h in range(24)))

    assert load_trend(days([5.0, 5.1, 4.9, 5.0, 5.1, 4.9, 5.0]), PLAN) == []
    (found,) = load_trend(days([5.0, 5.1, 5.2, 5.3, 5.4, 5.5]), PLAN)
    assert "passes the plan's 8.00 requests a second on 1970-01-31" in found.text
    (found,) = load_trend(days([5e-4, 5.1e-4, 5.2e-4, 5.3e-4, 5.4e-4, 5.5e-4]), PLAN)  # a trial beside a large plan
    assert "grows" in found.text and "passes" not in found.text


def test_step_times_off_the_profile_ask_for_recalibration() -> None:
    counts = {"requests": 3600 * 2.0, "input_tokens": 3600 * 2.0 * 500, "output_tokens": 3600 * 2.0 * 200}
    base = observed(counts=counts, means={"running": 16.0})
    predicted = predicted_step_s(base, replica_of(PLAN["plan"]["lines"][0], "llama-3.1-8b"))
    assert predicted is not None
    for factor, expected in ((1.0, 0), (1.6, 1)):
        between = Histogram({1.0: 1.0, float("inf"): 1.0}, factor * predicted, "x")
        seen = observed(counts=counts, means={"running": 16.0}, latency={"itl_s": between})
        assert len(step_time_drift(seen, PLAN, "llama-3.1-8b")) == expected
    own = {"plan": {**PLAN["plan"], "lines": [{**PLAN["plan"]["lines"][0], "gpu": "Groq-9"}]}}
    assert not step_time_drift(seen, own, "llama-3.1-8b")  # a capacity table's GPU: nothing to predict with


def test_a_promise_kept_is_no_finding() -> None:
    kept = Histogram({0.5: 96.0, 1.0: 100.0, float("inf"): 100.0}, 0.3, "x")
    assert slo_burn(observed(latency={"ttft_s": kept}), PLAN) == []


def bill_of(spot_hours: float, other_hours: float) -> Bill:
    at = pd.Timestamp("2026-11-02", tz="UTC")
    rows = [(at, at, "g6e.xlarge", "us-east-1", p, h, h, h, h, "", "", {})
            for p, h in (("spot", spot_hours), ("on_demand", other_hours))]  # fmt: skip
    return Bill(pd.DataFrame(rows, columns=list(COLUMNS)))


def test_less_spot_than_planned_costs_the_difference() -> None:
    line = PLAN["plan"]["lines"][0]
    plan = {"plan": {"lines": [line | {"purchase": "spot", "instances": [3]}, line | {"instances": [1]}]}}
    (found,) = spot_share(bill_of(25, 75), plan, "us-east-1")
    assert found.usd == pytest.approx(0.5 * 100 * (1.861 - 0.9971))
    assert spot_share(bill_of(75, 25), plan, "us-east-1") == []


def test_a_cheaper_plan_is_named_with_its_saving() -> None:
    other = {"plan": {"usd_per_hour": 2.722, "lines": PLAN["plan"]["lines"]}, "verified": True}
    (found,) = cheaper_plan(PLAN, other)
    assert found.usd == pytest.approx(730.0)
    assert cheaper_plan(PLAN, PLAN) == []


def test_a_plan_is_repriced_at_todays_prices() -> None:
    assert repriced(PLAN, "us-east-1") == []
    line = PLAN["plan"]["lines"][0] | {"usd_per_instance_hour": 2.0}
    (found,) = repriced({"plan": {"lines": [line]}}, "us-east-1")
    assert found.usd == pytest.approx(2 * (1.861 - 2.0) * 730)
