"""The main job by simulation: verified plans, honest bounds, and every question that has no answer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from catalogs.errors import GateError, InputError, MissingError
from catalogs.load import find_model
from planner.inputs.candidates import enumerate_candidates
from planner.inputs.market import offers_of, user_prices
from planner.inputs.problem import problem_from
from planner.inputs.purchase import Extra
from planner.optimizer.fleet_model import FleetModel, Option
from planner.optimizer.milp import solve
from planner.recommend import recommend
from planner.search import _sketch


def problem(trace, **more):
    settings = {
        "model": "llama-3.1-8b",
        "workload": {"trace": str(trace)},
        "slo": {"ttft_p95_s": 1.0, "tpot_p95_s": 0.05},
        **more,
    }
    return problem_from(settings)


@pytest.fixture(scope="module")
def answer(trace, tmp_path_factory):
    import os

    os.environ["PLAN_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    return recommend(problem(trace))


def test_the_plan_is_verified_within_its_gap(answer):
    assert answer["verified"] is True
    assert answer["mip_gap"] <= 1e-3
    assert all(s["ok"] and s["simulated"] <= s["limit"] for s in answer["slo"].values())
    plan = answer["plan"]
    assert plan["usd_per_hour"] == pytest.approx(sum(line["usd_per_hour"] for line in plan["lines"]))
    assert plan["usd_per_month"] == pytest.approx(plan["usd_per_hour"] * 730, rel=1e-6)
    assert answer["lower_bound_usd_per_hour"] <= plan["usd_per_hour"] + 1e-6
    assert answer["profiles"] and answer["prices_as_of"]


def test_no_alternative_is_cheaper_than_the_plan(answer):
    usd = answer["plan"]["usd_per_hour"]
    costs = [a["usd_per_hour"] for a in answer["alternatives"] if a["usd_per_hour"] is not None]
    assert costs and min(costs) >= usd * (1 - 1e-3)
    assert any(a["label"].startswith("cheapest single type") for a in answer["alternatives"])
    assert all(a["why_not"] for a in answer["alternatives"])


def test_simulated_capacities_stay_below_their_bounds(answer):
    for candidate in answer["candidates"]:
        assert candidate["max_rps"] <= candidate["bound_rps"] * 1.06


def test_the_same_question_gets_the_same_answer(trace, answer):
    again = recommend(problem(trace))
    again["simulations"] = answer["simulations"]  # what was remembered need not be simulated again
    assert json.dumps(again, sort_keys=True) == json.dumps(answer, sort_keys=True)


def test_more_load_never_costs_less(trace):
    few = {"gpus": ["L40S", "L4"]}
    once = recommend(problem(trace, candidates=few))
    more = recommend(problem(trace, workload={"trace": str(trace), "scale": 2.5}, candidates=few))
    assert more["verified"] and more["plan"]["usd_per_hour"] >= once["plan"]["usd_per_hour"] - 1e-6


def test_the_command_answers_in_every_form(trace):
    from app.cli.main import cli

    args = ["recommend", "--model", "llama-3.1-8b", "--trace", str(trace), "--slo", "ttft_p95_s=1", "--slo",
            "tpot_p95_s=0.05", "--gpus", "L40S"]  # fmt: skip
    for form in ("table", "json", "csv", "md"):
        done = CliRunner().invoke(cli, [*args, "--format", form], catch_exceptions=False)
        assert done.exit_code == 0 and "g6e" in done.stdout


def test_an_slo_below_the_floor_names_the_floor_and_its_cause(trace):
    with pytest.raises(GateError) as refused:
        recommend(problem(trace, slo={"tpot_p95_s": 0.0005}))
    assert "physical floor" in refused.value.what and "memory bandwidth" in refused.value.why
    with pytest.raises(GateError, match=r"ttft_p95_s of 0\.001 s is below the physical floor"):
        recommend(problem(trace, slo={"ttft_p95_s": 0.001}))


def test_a_model_that_fits_nowhere_says_why(trace):
    with pytest.raises(GateError, match="runs on none") as refused:
        recommend(problem(trace, model="llama-3.1-405b", candidates={"gpus": ["T4", "L4"]}))
    assert "does not fit" in refused.value.why


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"model": "llama-3.1-9b"}, InputError, "llama-3.1-8b"),
        ({"candidates": {"gpus": ["L40X"]}}, InputError, "L40S"),
        ({"candidates": {"instances": ["g6e.xlrge"]}}, InputError, "g6e.xlarge"),
        ({"region": "us-esat-1"}, InputError, "us-east-1"),
        ({"model": "bert-large"}, InputError, "answers at once"),
        ({"slo": {"chat": {"ttft_p95_s": 1.0}}}, InputError, "class 'chat'"),
        ({"quotas": {"g6e.xlrge": 1}}, InputError, "g6e.xlarge"),
        ({"commitments": {"existing": [{"instance_type": "g6e.xlrge", "count": 1}]}}, InputError, "g6e.xlarge"),
        ({"today": [{"instance_type": "g6e.xlrge", "count": 1}]}, InputError, "g6e.xlarge"),
        ({"candidates": {"gpus": ["H200"], "purchase": ["reserved_1yr"]}}, MissingError, "no reserved_1yr price"),
        ({"quality": {"min_score": 0.99}, "candidates": {"precision": ["gguf-q2_k"]}}, GateError, "runs on none"),
        ({"quality": {"task": "mlmu"}}, InputError, "one of mmlu"),
        ({"candidates": {"kv_cache_dtype": ["fp9"]}}, InputError, "unknown kv_cache_dtype"),
        ({"savings_plans": "absent.csv"}, InputError, "absent.csv"),
    ],
)
def test_bad_questions_are_refused_in_words(trace, settings, error, says):
    with pytest.raises(error) as refused:
        recommend(problem(trace, **settings))
    assert says in str(refused.value)


def test_a_budget_that_is_too_small_says_what_would_do(trace):
    with pytest.raises(GateError, match="the budget is too tight") as refused:
        recommend(problem(trace, budget_usd_per_month=100, candidates={"gpus": ["L40S"]}))
    assert "budget_usd_per_month" in refused.value.remedy


def test_a_closed_loop_has_no_rate_to_plan_for(trace):
    load = {
        "arrivals": {"process": "closed_loop", "concurrency": 8, "num_requests": 64},
        "input_tokens": {"distribution": "fixed", "value": 100},
        "output_tokens": {"distribution": "fixed", "value": 10},
    }
    with pytest.raises(InputError, match="closed loop"):
        recommend(problem(trace, workload=load))


def test_a_region_without_prices_says_which_and_where_to_get_them(trace):
    with pytest.raises(MissingError, match="eu-west-3") as error:
        recommend(problem(trace, region="eu-west-3"))
    assert error.value.exit_code == 3 and "plan prices refresh --region eu-west-3" in error.value.remedy


def test_a_commitment_that_outlasts_the_horizon_is_paid_for_whole_within_it(trace):
    forms = {"purchase": ["reserved_3yr"], "gpus": ["L40S"]}
    whole, half = (
        offers_of(problem(trace, candidates=forms, commitments={"horizon_months": m}), "g6e.xlarge") for m in (36, 18)
    )
    assert half["reserved_3yr"].usd_per_hour == pytest.approx(2 * whole["reserved_3yr"].usd_per_hour)
    assert half["reserved_3yr"].upfront_usd == pytest.approx(whole["reserved_3yr"].upfront_usd)


def test_money_upfront_in_part_or_not_at_all_is_spread_over_the_term(trace, tmp_path):
    prices = tmp_path / "prices.csv"
    head = "instance_type,region,purchase,usd_per_hour,upfront_usd\ng6e.xlarge,,on_demand,1.861,\n"

    def offer(row, **more):
        prices.write_text(head + f"g6e.xlarge,,reserved_1yr,{row}\n", encoding="utf-8")
        user_prices.cache_clear()
        asked = problem(trace, candidates={"purchase": ["reserved_1yr"], "gpus": ["L40S"]}, prices=str(prices), **more)
        return offers_of(asked, "g6e.xlarge")["reserved_1yr"]

    whole, part, none = offer("1.2,"), offer("0.6,5256"), offer("1.2,0")
    assert whole.usd_per_hour == pytest.approx(1.2) and whole.upfront_usd == pytest.approx(1.2 * 8760)
    assert part.usd_per_hour == pytest.approx(1.2) and part.upfront_usd == 5256 and none.upfront_usd == 0
    late = {"commitments": {"discount_rate": 0.1}}
    rates = [offer(row, **late).usd_per_hour for row in ("1.2,", "0.6,5256", "1.2,0")]
    assert rates[0] > rates[1] > rates[2] == pytest.approx(1.2)  # money paid later costs less
    half = offer("1.2,0", commitments={"horizon_months": 6})
    assert half.usd_per_hour == pytest.approx(2.4)  # paid for whole, needed for half of it
    for wrong in ("1.2,-5", "1.2,much"):
        with pytest.raises(InputError, match="upfront_usd is"):
            offer(wrong)


def test_engine_settings_are_searched_as_a_product_and_a_typo_is_named(trace):
    engine = {"enable_prefix_caching": [True, False], "enable_chunked_prefill": [True, False]}
    asked = problem(trace, candidates={"gpus": ["L40S"], "instances": ["g6e.xlarge"], "engine": engine})
    found, _ = enumerate_candidates(asked, find_model("llama-3.1-8b"))
    settings = {(c.replica.engine.enable_prefix_caching, c.replica.engine.enable_chunked_prefill) for c in found}
    assert settings == {(True, True), (True, False), (False, True), (False, False)}
    assert len({c.label for c in found}) == len(found)
    for wrong, said in (
        ({"enable_prefix_cachin": [True]}, "did you mean 'enable_prefix_caching'"),
        ({"max_num_seqs": [64]}, "stands beside"),
        ({"block_size": []}, "empty list"),
        ({"block_size": ["big"]}, "block_size"),
    ):
        with pytest.raises(InputError, match=said):
            problem(trace, candidates={"engine": wrong})


def test_an_hour_that_is_given_twice_is_refused_and_unusable_holdings_are_named(trace, tmp_path):
    (tmp_path / "rates.csv").write_text("hour,rate_rps\n0,1\n0,5\n", encoding="utf-8")
    with pytest.raises(InputError, match="given twice") as refused:
        recommend(problem(trace, time={"demand": str(tmp_path / "rates.csv")}))
    assert refused.value.where.endswith("rates.csv:3")
    held = {"existing": [{"instance_type": "p5.48xlarge", "count": 2}]}
    answer = recommend(problem(trace, candidates={"gpus": ["L40S"]}, commitments=held, explore=False))
    assert any("2 x p5.48xlarge" in text and "does not use them" in text for text in answer["assumptions"])


def test_capacity_blocks_are_days_up_to_two_weeks_and_weeks_beyond():
    option = Option("block", "p5.48xlarge", "c", "capacity_block", "committed", 30.0, np.ones(1))
    found = Extra(0.0, (), 1.0).forms(option, FleetModel((), np.ones((1, 24 * 21, 1))))
    days = {int(o.active.sum()) // 24 for o in found}
    assert days == {*range(1, 15), 21} and all(o.max_count == 64 for o in found)


def test_a_capacity_block_is_paid_for_in_whole_days_and_looked_at_in_the_first_sketch():
    option = Option("block", "p5.48xlarge", "c", "capacity_block", "committed", 30.0, np.ones(1))
    rates = np.ones((1, 36, 1))
    found = Extra(0.0, (), 1.0).forms(option, FleetModel((), rates))
    assert {o.name: o.usd_per_hour for o in found} == pytest.approx(
        {"block day 1": 30.0, "block days 1-2": 30.0 * 48 / 36, "block day 2": 30.0 * 24 / 12}
    )
    rates[0, :24] = 0.0
    sketch = _sketch(FleetModel(tuple(found), rates, np.ones(36)))
    assert {o.name for o in sketch.options} == {"block days 1-2", "block day 2"}
    plan = solve(sketch)
    assert plan is not None and plan.committed.sum() == 1


def test_hours_without_demand_have_no_machines_and_are_played(trace, tmp_path):
    (tmp_path / "rates.csv").write_text("hour,rate_rps\n0,0\n1,5\n2,0\n", encoding="utf-8")
    answer = recommend(
        problem(trace, candidates={"gpus": ["L40S"]}, time={"demand": str(tmp_path / "rates.csv")}, explore=False)
    )
    counts = np.array([line["instances"] for line in answer["plan"]["lines"]]).sum(0)
    assert counts[0] == counts[2] == 0 and counts[1] >= 1
    assert answer["live"]["kept"] == answer["live"]["draws"] and "played live" in answer["verified_why"]
