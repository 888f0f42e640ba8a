"""Advice walks from today's fleet to the cheapest, and never backwards."""

from __future__ import annotations

import pytest

from catalogs.errors import InputError
from planner import advise
from planner.problem import problem_from


def problem(trace, **more):
    return problem_from(
        {"model": "llama-3.1-8b", "workload": {"trace": str(trace)},
         "slo": {"ttft_p95_s": 1.0, "tpot_p95_s": 0.05}, "explore": False, **more}
    )  # fmt: skip


def test_without_a_fleet_of_today_there_is_nothing_to_advise(trace):
    with pytest.raises(InputError, match="no fleet"):
        advise.advise(problem(trace))


def test_each_step_is_verified_and_costs_no_more_than_the_last(trace, monkeypatch):
    asked = problem(trace, today=[{"instance_type": "g6e.xlarge", "count": 6, "purchase": "on_demand"}])
    first = advise.steps_of(asked)[:3]
    monkeypatch.setattr(advise, "steps_of", lambda _problem: first)
    answer = advise.advise(asked)
    costs = [s["usd_per_hour"] for s in answer["steps"] if s["usd_per_hour"] is not None]
    assert costs == sorted(costs, reverse=True) and costs[0] == pytest.approx(6 * 1.861)
    assert answer["best_usd_per_hour"] == costs[-1]
    assert all(s["slo"]["tpot_p95_s"] <= 0.05 for s in answer["steps"][1:] if s["slo"])
    assert sum(s["saving_usd_per_hour"] for s in answer["steps"]) == pytest.approx(answer["saving_usd_per_hour"])
