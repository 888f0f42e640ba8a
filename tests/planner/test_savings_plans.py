"""Savings Plans: promises of dollars equal exhaustive search, are proven, read from where they are known, and said."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from catalogs.errors import InputError, MissingError
from planner.answer import promised_documents
from planner.inputs.problem import problem_from, read_problem
from planner.inputs.savings_plans import plans_of, user_rates
from planner.optimizer import certificate, solve
from planner.optimizer.fleet_model import FleetModel, Limits, Option, SavingsPlan, State
from planner.optimizer.milp import build
from planner.optimizer.relaxation import relax


def on_demand(name, usd, rps):
    return Option(name, name, name, "on_demand", "on_demand", usd, np.array([1 / rps]))


def one_plan(seed):
    """Two types, four periods, one plan over both."""
    rng = np.random.default_rng(seed)
    price, rps = rng.uniform(0.5, 2.5, 2).round(2), rng.uniform(1.0, 3.0, 2).round(2)
    rates = (price * rng.uniform(0.35, 0.9, 2)).round(2)
    options = tuple(on_demand(n, float(u), float(r)) for n, u, r in zip("ab", price, rps, strict=True))
    demand = rng.uniform(0.0, 6.0, (1, 4, 1))
    plan = SavingsPlan("compute", 1.0, {"a": float(rates[0]), "b": float(rates[1])})
    return FleetModel(options, demand, np.ones(4), savings_plans=(plan,))


def saved(counts, promised, price, rates):
    """What a promise saves in an hour: it pays first for machines with the largest share saved, as AWS does."""
    usd, left = 0.0, promised
    for j in sorted(range(len(counts)), key=lambda j: rates[j] / price[j]):
        part = min(left, rates[j] * counts[j])
        usd, left = usd + part * (price[j] / rates[j] - 1), left - part
    return usd + (promised - left)


def brute_force(model):
    """Every promise at which a whole number of machines is just paid for, and every fleet of every period beside it."""
    price, rps = model.usd_per_hour, 1 / model.load[:, 0]
    rates = np.array([model.savings_plans[0].rates[o.instance] for o in model.options])
    most = [int(np.ceil(model.demand.max() / r)) for r in rps]
    fleets = list(itertools.product(*[range(m + 1) for m in most]))
    best = np.inf
    for promised in {round(float(np.dot(f, rates)), 9) for f in fleets}:
        hours = [
            min(
                float(np.dot(f, price)) - saved(f, promised, price, rates) for f in fleets if np.dot(f, rps) >= d - 1e-9
            )
            for d in model.demand[0, :, 0]
        ]
        best = min(best, promised + float(np.mean(hours)))
    return best


@pytest.mark.parametrize("seed", range(40))
def test_equals_brute_force(seed):
    model = one_plan(seed)
    found = solve.solve(model, 1e-9)
    assert found is not None
    assert found.usd_per_hour == pytest.approx(brute_force(model), abs=1e-6)
    assert found.bound <= found.usd_per_hour + 1e-6


def partly_held(seed):
    """The same, with a promise of some size held already; more of it is for sale in every other model."""
    model = one_plan(seed)
    plan = model.savings_plans[0]
    usd = float(np.random.default_rng(seed).uniform(0.2, 3.0))
    held = replace(plan, name="held", usd_per_hour=0.0, held_usd_per_hour=usd)
    return replace(model, savings_plans=(held, plan) if seed % 2 else (held,)), usd


def brute_force_beside(model, held_usd):
    """As ``brute_force``, where some dollars are promised already, and paid for."""
    price, rps = model.usd_per_hour, 1 / model.load[:, 0]
    rates = np.array([model.savings_plans[0].rates[o.instance] for o in model.options])
    fleets = list(itertools.product(*[range(int(np.ceil(model.demand.max() / r)) + 1) for r in rps]))
    more = {0.0} | {max(float(np.dot(f, rates)) - held_usd, 0.0) for f in fleets if len(model.savings_plans) > 1}
    return min(
        bought + float(np.mean([
            min(float(np.dot(f, price)) - saved(f, held_usd + bought, price, rates)
                for f in fleets if np.dot(f, rps) >= d - 1e-9) for d in model.demand[0, :, 0]
        ])) for bought in more
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_what_is_held_equals_brute_force_and_costs_nothing_more(seed, tmp_path):
    model, usd = partly_held(seed)
    found = solve.solve(model, 1e-9)
    assert found.usd_per_hour == pytest.approx(brute_force_beside(model, usd), abs=1e-6)
    [held, *_] = promised_documents(model, found)
    assert held["held"] and held["usd_per_hour"] == 0 and held["promised_usd_per_hour"] == pytest.approx(usd, abs=1e-6)
    if seed in (0, 2):
        path = tmp_path / "proof.json"
        certificate.write_certificate(certificate.make_certificate(model, found.usd_per_hour), path)
        assert certificate.verify_certificate(path)["gap"] <= 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_a_certificate_proves_a_plan_with_promises(seed, tmp_path):
    model = one_plan(seed)
    plan, path = solve.solve(model, 1e-6), tmp_path / "proof.json"
    certificate.write_certificate(certificate.make_certificate(model, plan.usd_per_hour), path)
    proven = certificate.verify_certificate(path)
    assert proven["gap"] <= 1e-3 and proven["usd_per_hour"] == pytest.approx(plan.usd_per_hour, abs=1e-6)


def over_days(seed, spot=False):
    rng = np.random.default_rng(seed)
    options = [on_demand(f"g{j}", float(rng.uniform(0.5, 3)), float(rng.uniform(1, 6))) for j in range(4)]
    states = (State(1.0),)
    if spot:
        options.append(
            replace(options[0], name="spot", kind="spot", purchase="spot", usd_per_hour=options[0].usd_per_hour * 0.7)
        )
        states = (State(0.8, 1.0), State(0.2, 0.0))
    demand = (30 + 20 * np.sin(np.arange(8)) + rng.uniform(0, 5, 8))[None, :, None]
    plans = tuple(
        SavingsPlan(f"plan {p}", 1.0, {o.instance: float(o.usd_per_hour * rng.uniform(0.4, 0.8)) for o in options[p:3]})
        for p in range(2)
    )
    return FleetModel(tuple(options), demand, np.ones(8), states=states, savings_plans=plans,
                      limits=Limits(availability=0.99) if spot else Limits())  # fmt: skip


@pytest.mark.parametrize("spot", [False, True])
def test_a_large_model_is_bounded_by_its_relaxation_and_near_its_optimum(monkeypatch, spot):
    model = over_days(1, spot)
    best = solve.solve(model, 1e-3)
    relaxed = relax(model)
    assert relaxed.usd_per_hour == pytest.approx(build(model)[0].solve(relax=True).objective, rel=1e-6)
    monkeypatch.setattr(solve, "LARGE", 1)
    monkeypatch.setattr(solve, "ONE_SIZE_LARGE", 1)
    large = solve.solve(model, 5e-3)
    assert large.bound <= best.usd_per_hour * (1 + 1e-6) and large.usd_per_hour >= best.bound * (1 - 1e-6)
    assert large.usd_per_hour <= best.usd_per_hour * 1.01
    without = solve.solve(replace(model, savings_plans=()), 1e-3)
    assert large.usd_per_hour < without.usd_per_hour
    used = promised_documents(model, large)
    assert used and all(0 < p["used_share"] <= 1 + 1e-6 for p in used)


def test_what_is_held_bounds_a_large_model_too(monkeypatch):
    model = over_days(1)
    held = replace(model.savings_plans[0], usd_per_hour=0.0, held_usd_per_hour=3.0)
    model = replace(model, savings_plans=(held, *model.savings_plans))
    best = solve.solve(model, 1e-3)
    monkeypatch.setattr(solve, "LARGE", 1)
    monkeypatch.setattr(solve, "ONE_SIZE_LARGE", 1)
    large = solve.solve_with_savings_plans(model, 5e-3, time_limit_s=3.0)
    assert large.bound <= best.usd_per_hour * (1 + 1e-6) and large.usd_per_hour >= best.bound * (1 - 1e-6)
    assert large.usd_per_hour <= best.usd_per_hour * 1.01
    assert (large.promised[0] <= 3.0 + 1e-6) and relax(model).usd_per_hour < relax(over_days(1)).usd_per_hour


RATES = "plan,term_years,payment,instance_type,usd_per_hour,region\n"


def problem(**more):
    settings = {"model": "llama-3.1-8b", "workload": {"arrivals": {"process": "poisson", "rate_rps": 1,
                "num_requests": 300}, "input_tokens": {"distribution": "fixed", "value": 500},
                "output_tokens": {"distribution": "fixed", "value": 100}},
                "slo": {"ttft_p95_s": 2.0}, "explore": False, **more}  # fmt: skip
    return problem_from({"candidates": {"purchase": ["on_demand", "savings_plan"]}, **settings})


def test_rates_come_from_the_catalogue_or_the_user_and_are_never_guessed(tmp_path):
    family = plans_of(problem(), ["g7e.2xlarge", "g7e.4xlarge", "g6e.xlarge"])
    assert [p.name for p in family] == ["EC2 Instance Savings Plan of g7e, 3 years, all upfront"]
    assert set(family[0].rates) == {"g7e.2xlarge", "g7e.4xlarge"} and family[0].upfront_usd == 3 * 8760
    with pytest.raises(MissingError, match="no Savings Plan rate of any candidate is known in us-east-1"):
        plans_of(problem(), ["g6e.xlarge"])
    mine = tmp_path / "rates.csv"
    mine.write_text(RATES + "compute,1,partial_upfront,g6e.xlarge,1.3,\ncompute,1,partial_upfront,g5.xlarge,0.7,\n"
                    "compute,1,partial_upfront,g5.xlarge,0.6,eu-west-1\n")  # fmt: skip
    short = {"horizon_months": 6.0}  # a year's promise is paid within half a year
    [plan] = plans_of(problem(savings_plans=str(mine), commitments=short), ["g6e.xlarge", "g5.xlarge"])
    assert plan.rates == {"g5.xlarge": 0.7, "g6e.xlarge": 1.3} and plan.usd_per_hour == pytest.approx(2.0)
    assert plan.upfront_usd == pytest.approx(8760 / 2)


HELD = {"plan": "compute", "term_years": 3, "payment": "no_upfront", "usd_per_hour": 2.5}


def test_a_held_plan_stands_at_its_rates_without_being_for_sale(tmp_path):
    mine = tmp_path / "rates.csv"
    mine.write_text(RATES + "compute,3,no_upfront,g6e.xlarge,0.9,\nec2_instance,1,no_upfront,g5.xlarge,0.7,\n")
    asked = {"savings_plans": str(mine), "candidates": {"purchase": ["on_demand"]}}
    [plan] = plans_of(problem(**asked, commitments={"existing_savings_plans": [HELD]}), ["g6e.xlarge", "g5.xlarge"])
    assert plan.rates == {"g6e.xlarge": 0.9} and (plan.usd_per_hour, plan.held_usd_per_hour) == (0.0, 2.5)
    unknown = {**HELD, "plan": "ec2_instance", "family": "g6e"}
    with pytest.raises(MissingError, match="no rate of the EC2 Instance Savings Plan of g6e") as refused:
        plans_of(problem(**asked, commitments={"existing_savings_plans": [HELD, unknown]}), ["g6e.xlarge"])
    assert refused.value.where == "commitments.existing_savings_plans[1]"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"plan": "ec2_instance"}, "holds for one family"),
        ({"family": "g6e"}, "holds for one family"),
        ({"term_years": 2}, "plans.0.term_years cannot be 2"),
        ({"usd_per_hour": 0}, "plans.0.usd_per_hour is 0: should be greater than 0"),
        ({"payment": "half"}, "plans.0.payment cannot be 'half'"),
        ({"dollars": 1}, "unknown key 'dollars'"),
    ],
)
def test_a_held_plan_that_makes_no_sense_is_refused(tmp_path, change, said):
    path = tmp_path / "plan.yaml"
    asked = {"model": "llama-3.1-8b", "workload": {"trace": "t.csv"}, "slo": {"ttft_p95_s": 2.0}}
    path.write_text(json.dumps({**asked, "commitments": {"existing_savings_plans": [{**HELD, **change}]}}))
    with pytest.raises(InputError, match=said):
        read_problem(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("lambda,1,no_upfront,g6e.xlarge,1,", "unknown plan 'lambda'"),
        ("compute,2,no_upfront,g6e.xlarge,1,", "unknown term_years '2'"),
        ("compute,1,half,g6e.xlarge,1,", "unknown payment 'half'"),
        ("compute,1,no_upfront,g6e.xlarg,1,", "g6e.xlarg"),
        ("compute,1,no_upfront,g6e.xlarge,free,", "usd_per_hour is 'free'"),
        ("compute,1,no_upfront,g6e.xlarge,nan,", "usd_per_hour is 'nan'"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, said):
    path = tmp_path / "rates.csv"
    path.write_text(RATES + row + "\n")
    with pytest.raises(InputError, match=said) as refused:
        user_rates(path, "us-east-1")
    assert str(path) + ":2" in str(refused.value)


def test_the_command_lists_what_to_promise(tmp_path):
    from app.cli.main import cli

    rates, plan = tmp_path / "rates.csv", tmp_path / "plan.yaml"
    rates.write_text(RATES + "compute,3,no_upfront,g6e.xlarge,0.9,\n")
    demand = tmp_path / "demand.csv"
    demand.write_text("hour,rate_rps\n" + "".join(f"{h},{4 if h < 16 else 16}\n" for h in range(24)))
    settings = {"model": "llama-3.1-8b", "workload": {**problem().workload.model_dump(exclude_unset=True)},
                "slo": {"ttft_p95_s": 2.0, "tpot_p95_s": 0.05}, "explore": False, "savings_plans": "rates.csv",
                "time": {"demand": "demand.csv"},
                "candidates": {"instances": ["g6e.xlarge"], "purchase": ["on_demand", "savings_plan"]}}  # fmt: skip
    plan.write_text(json.dumps(settings))
    asked = CliRunner().invoke(cli, ["recommend", "-c", str(plan), "--format", "json"], catch_exceptions=False)
    answer = json.loads(asked.stdout)
    [promised] = answer["plan"]["savings_plans"]
    [line] = answer["plan"]["lines"]
    assert promised["promised_usd_per_hour"] == pytest.approx(0.9 * min(line["instances"]))  # the hours' base
    listed = promised["usd_per_hour"] + line["usd_per_hour"] + answer["plan"]["beside_lines_usd_per_hour"]
    assert answer["plan"]["usd_per_hour"] == pytest.approx(listed, abs=1e-4)
    assert any(b["purchase"] == promised["name"] and b["months"] is not None for b in answer["break_even"])
    shown = CliRunner().invoke(cli, ["recommend", "-c", str(plan)], env={"COLUMNS": "200"})
    assert "Compute Savings Plan, 3 years, no upfront" in shown.output and "under Savings Plans" in shown.output
    changed = tmp_path / "changed.yaml"
    again = CliRunner().invoke(
        cli, ["what-if", "last", "--price", "savings_plan=3", "-o", str(changed), "--format", "json"],
        catch_exceptions=False,
    )  # fmt: skip
    assert "savings_plans" not in json.loads(again.stdout)["plan"]
    [plan_anew] = plans_of(read_problem(changed), ["g6e.xlarge"])
    assert plan_anew.rates == {"g6e.xlarge": pytest.approx(2.7)}
    bad = json.dumps({**settings, "candidates": {"purchase": ["savings_plan"]}})
    plan.write_text(bad)
    refused = CliRunner().invoke(cli, ["recommend", "-c", str(plan)])
    assert isinstance(refused.exception, InputError) and "name on_demand" in str(refused.exception)
