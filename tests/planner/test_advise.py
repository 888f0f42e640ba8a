"""Advice walks from today's fleet to the cheapest, and never backwards."""

from __future__ import annotations

import pytest

from app.cli.advise import _title
from catalogs.errors import InputError
from planner import advise
from planner.inputs.problem import problem_from


def problem(trace, **more):
    return problem_from(
        {"model": "llama-3.1-8b", "workload": {"trace": str(trace)},
         "slo": {"ttft_p95_s": 1.0, "tpot_p95_s": 0.05}, "explore": False, **more}
    )  # fmt: skip


def test_without_a_fleet_of_today_there_is_nothing_to_advise(trace):
    with pytest.raises(InputError, match="no fleet"):
        advise.advise(problem(trace))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("purchase", "on_demnd", "on_demand"), ("precision", "fp3", "fp8"), ("framework", "vlm", "vllm")],
)
def test_a_fleet_that_nobody_can_run_is_refused_with_the_nearest(trace, key, value, says):
    with pytest.raises(InputError) as refused:
        problem(trace, today=[{"instance_type": "g6e.xlarge", "count": 1, key: value}])
    assert says in str(refused.value) and key in str(refused.value)


@pytest.fixture(scope="module")
def answer(trace, tmp_path_factory):
    asked = problem(
        trace,
        today=[{"instance_type": "g6e.xlarge", "count": 6, "purchase": "on_demand"}],
    )
    with pytest.MonkeyPatch.context() as patch:  # own_cache is a test's own, and comes later
        patch.setenv("PLAN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return advise.advise(asked)


def test_every_step_is_tried_and_costs_no_more_than_the_last(answer):
    assert [s["step"] for s in answer["steps"]] == ["today", *(s.name for s in advise.STEPS)]
    costs = [s["usd_per_hour"] for s in answer["steps"] if s["usd_per_hour"] is not None]
    assert costs == sorted(costs, reverse=True) and costs[0] == pytest.approx(6 * 1.861)
    assert answer["best_usd_per_hour"] == costs[-1]
    assert all(s["slo"]["tpot_p95_s"] <= 0.05 for s in answer["steps"][1:] if s["slo"])
    assert sum(s["saving_usd_per_hour"] for s in answer["steps"]) == pytest.approx(answer["saving_usd_per_hour"])
    assert all(s["plan"] or s["why_not"] for s in answer["steps"])


def test_today_is_simulated_with_what_bounds_it(answer):
    today = answer["steps"][0]
    assert 0 < today["busy_share"] < 1 and today["slo"]["ttft_p95_s"] > 0
    assert "memory" in today["bottleneck"] or "compute" in today["bottleneck"] or "overhead" in today["bottleneck"]


def test_the_title_says_what_the_money_buys(answer):
    assert answer["today_keeps_the_promise"] is True and _title(answer).endswith("less)")
    dear = {"today_usd_per_hour": 1.0, "best_usd_per_hour": 3.2, "saving_share": -2.2, "today_keeps_the_promise": False}
    assert "misses the promise" in _title(dear) and _title(dear).endswith("$3.20 (220% more)")
    same = {**dear, "best_usd_per_hour": 1.0, "saving_share": 0.0, "today_keeps_the_promise": True}
    assert "no step makes it cheaper" in _title(same)


def test_a_fleet_that_is_cheaper_than_any_plan_stays(trace):
    bargain = [{"instance_type": "g6e.xlarge", "count": 6, "purchase": "on_demand", "usd_per_hour": 0.01}]
    answer = advise.advise(problem(trace, today=bargain))
    assert answer["today_keeps_the_promise"] and answer["best_usd_per_hour"] == pytest.approx(0.06)
    assert all("saves nothing" in s["why_not"] for s in answer["steps"][1:] if s["usd_per_hour"] is not None)


def test_what_a_step_settles_the_next_one_keeps(trace):
    asked = problem(trace, today=[{"instance_type": "g6.xlarge", "count": 9, "precision": "bf16"}])
    first = advise.settings_of(asked)
    assert first["instances"] == ["g6.xlarge"] and first["precision"] == ["bf16"]
    for step in advise.STEPS:
        first = step.widen(first)
    assert first["gpus"] == "all" and set(first["precision"]) >= {"bf16", "fp8", "int8", "int4-awq"}
