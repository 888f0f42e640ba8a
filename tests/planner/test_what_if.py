"""A model that was handed on: solved again it agrees with the plan, with the fronts, and says what it does not know."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from app.cli.main import cli
from catalogs.errors import InputError, MissingError
from planner.inputs.problem import problem_from, read_problem
from planner.recommend import recommend
from planner.what_if import Change, _periods, _runs, model_of, price_names, solve_again

SETTINGS = {"model": "llama-3.1-8b", "slo": {"ttft_p95_s": 1.0, "tpot_p95_s": 0.05},
            "candidates": {"gpus": ["L40S", "L4"], "purchase": ["on_demand", "spot"]}}  # fmt: skip


@pytest.fixture(scope="module")
def answer(trace, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("PLAN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    try:
        found = recommend(problem_from({**SETTINGS, "workload": {"trace": str(trace)}}))
    finally:
        patch.undo()
    return json.loads(json.dumps(found))


def usd(answer, **change):
    return solve_again(answer["what_if"], Change(**change))["plan"]["usd_per_hour"]


def test_unchanged_it_is_the_plan(answer):
    again = solve_again(answer["what_if"], Change())
    assert again["plan"]["usd_per_hour"] == pytest.approx(answer["plan"]["usd_per_hour"], rel=1e-3)
    assert again["verified"] is False
    assert again["cost_range"] is None
    assert again["usd_per_hour_before"] == answer["plan"]["usd_per_hour"]


def test_more_load_costs_more_and_never_less_than_the_model_with_bounds_says(answer):
    costs = [usd(answer, load=f) for f in (0.5, 1.0, 1.2, 3.0, 10.0)]
    assert costs == sorted(costs)
    assert costs[-1] > 2 * costs[1]
    row = next(r for r in answer["tornado"] if r["what"] == "load")
    assert costs[2] >= row["high_usd_per_hour"] * (1 - 2e-3)


def test_at_the_simulated_limits_it_is_the_front(answer):
    for point in answer["pareto"]["cost_against_latency"]:
        assert usd(answer, slo=point["slo_factor"]) == pytest.approx(point["usd_per_hour"], rel=2e-3)


def test_between_them_the_known_ends_are_said(answer):
    found = solve_again(answer["what_if"], Change(slo=0.9, load=4.0))
    ends = found["cost_range"]
    assert ends["cheap"] * (1 - 2e-3) <= found["plan"]["usd_per_hour"] <= ends["dear"] * (1 + 2e-3)
    assert any("interpolated" in text for text in found["assumptions"])


def test_all_prices_doubled_double_the_cost(answer):
    double = {"on_demand": 2.0, "spot": 2.0}
    assert usd(answer, prices=double) == pytest.approx(2 * usd(answer), rel=2e-3)
    dear = usd(answer, prices={line["gpu"]: 50.0 for line in answer["plan"]["lines"]})
    assert usd(answer) < dear <= 50 * usd(answer)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"load": 0.0}, "outside 0.01"), ({"load": float("nan")}, "outside"), ({"slo": 0.5}, "outside 0.75 to 1.5"),
        ({"prices": {"spott": 1.0}}, "'spott'"), ({"prices": {"spot": -1.0}}, "outside 0 to 100"),
    ],
)  # fmt: skip
def test_what_it_cannot_answer_is_refused(answer, change, said):
    with pytest.raises(InputError, match=r"outside|called") as refused:
        usd(answer, **change)
    assert said in str(refused.value)


def test_an_answer_without_a_model_says_so():
    with pytest.raises(MissingError, match="no model"):
        model_of({"plan": {}}, "last")


@given(st.lists(st.booleans(), max_size=40))
def test_stretches_are_the_same_periods_again(active):
    assert _periods(_runs(np.array(active, dtype=bool)), len(active)).tolist() == active


def test_the_command_answers_and_writes_the_question_that_verifies_it(answer, trace, tmp_path):
    flags = ["--model", "llama-3.1-8b", "--trace", str(trace), "--gpus", "L40S,L4", "--purchase", "on_demand,spot",
             "--slo", "ttft_p95_s=1", "--slo", "tpot_p95_s=0.05"]  # fmt: skip
    asked = CliRunner().invoke(cli, ["recommend", *flags, "--format", "json"], catch_exceptions=False)
    assert asked.exit_code == 0
    path = tmp_path / "changed.yaml"
    done = CliRunner().invoke(
        cli,
        ["what-if", "last", "--load", "1.5", "--slo", "0.9", "--price", "spot=2", "-o", str(path), "--format", "json"],
        catch_exceptions=False,
    )
    found = json.loads(done.stdout)
    assert found["plan"]["usd_per_hour"] == usd(answer, load=1.5, slo=0.9, prices={"spot": 2.0})
    written = read_problem(path)
    assert written.workload.scale == 1.5
    assert [s.limit_s for s in written.slos] == pytest.approx([0.9, 0.045])
    with written.prices.open() as file:
        rows = list(csv.DictReader(file))
    assert rows and {r["purchase"] for r in rows} == {"spot"}
    assert set(price_names(answer["what_if"])) >= {"spot", "on_demand", "L40S"}
    for wrong in (["--price", "spot"], ["--load", "x"], ["--slo", "9"]):
        assert CliRunner().invoke(cli, ["what-if", "last", *wrong]).exit_code in (1, 2)
