"""Certificates hold in exact arithmetic, and refuse whatever was changed."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner

from catalogs.errors import GateError, InputError
from planner.optimizer import certificate as proof
from planner.optimizer.fleet_model import FleetModel, Limits, Option, SavingsPlan, State
from planner.optimizer.milp import solve


def model(seed=0, num=3, buckets=3):
    rng = np.random.default_rng(seed)
    options = tuple(
        Option(f"g{j}", f"g{j}", f"g{j}", "on_demand", "on_demand", round(rng.uniform(0.5, 4), 2),
               1 / rng.uniform(0.5, 8, buckets))
        for j in range(num)
    )  # fmt: skip
    return FleetModel(options, rng.uniform(1, 12, (1, 1, buckets)))


@pytest.mark.parametrize("seed", range(12))
def test_a_certificate_proves_the_optimum(seed, tmp_path):
    fleet = model(seed)
    plan = solve(fleet, 1e-6)
    assert plan is not None
    path = tmp_path / "proof.json"
    proof.write_certificate(proof.make_certificate(fleet, plan.usd_per_hour), path)
    found = proof.verify_certificate(path)
    assert found["gap"] <= 1e-3 and found["usd_per_hour"] == pytest.approx(plan.usd_per_hour)


def tampered(body, change):
    body = json.loads(json.dumps(body))
    change(body)
    return body


def cheaper_price(b):
    b["program"]["cost"][0] = "1/100"


def claim_more(b):
    b["proven_usd_per_hour"] *= 1.01
    b["usd_per_hour"] *= 1.01


def drop_machines(b):
    b["plan"] = b["plan"][1:]


def inflate_leaf(b):
    node = b["proof"]
    while "leaf" not in node:
        node = node["below"]
    node["leaf"] = [[i, f"-{v}".replace("--", "")] for i, v in node["leaf"]]


@pytest.mark.parametrize("change", [cheaper_price, claim_more, drop_machines, inflate_leaf])
@pytest.mark.parametrize("rehash", [False, True])
def test_a_changed_certificate_is_refused_even_with_a_new_hash(tmp_path, change, rehash):
    fleet = model(4)
    plan = solve(fleet, 1e-6)
    body = tampered(proof.make_certificate(fleet, plan.usd_per_hour), change)
    if rehash:
        body["sha256"] = proof._digest({k: v for k, v in body.items() if k != "sha256"})
    path = tmp_path / "proof.json"
    path.write_text(json.dumps(body))
    with pytest.raises(GateError, match="refused"):
        proof.verify_certificate(path)


def test_the_command_exits_1_on_a_forgery_and_2_on_nonsense(tmp_path):
    from app.cli.verify import verify

    path = tmp_path / "x.json"
    path.write_text("{}")
    assert isinstance(CliRunner().invoke(verify, [str(path)]).exception, InputError)
    fleet = model(1)
    body = proof.make_certificate(fleet, solve(fleet, 1e-6).usd_per_hour)
    path.write_text(json.dumps(body))
    assert CliRunner().invoke(verify, [str(path), "--format", "json"]).exit_code == 0
    body["usd_per_hour"] = 0.01
    path.write_text(json.dumps(body))
    assert isinstance(CliRunner().invoke(verify, [str(path)]).exception, GateError)


def over_hours(kind, seed=0, types=2, hours=4):
    """Hours with commitments, Savings Plans, or spot machines in several states: what makes a proof wide."""
    rng = np.random.default_rng(seed)
    options = base = [*model(seed, num=types, buckets=2).options]
    more, scenarios = {}, 1
    if kind in ("reserved", "all"):
        options = options + [replace(o, name=f"{o.name} r", kind="committed", usd_per_hour=0.6 * o.usd_per_hour)
                             for o in base]  # fmt: skip
    if kind in ("savings plan", "all"):
        shares = rng.uniform(0.4, 0.8, (2, types))
        more["savings_plans"] = tuple(
            SavingsPlan(f"plan {p}", 1.0, {o.instance: float(shares[p, j] * o.usd_per_hour) for j, o in
                                           enumerate(base) if j >= p}) for p in range(2)
        )  # fmt: skip
    if kind in ("spot", "all"):
        options = options + [replace(o, name=f"{o.name} s", kind="spot", usd_per_hour=0.5 * o.usd_per_hour)
                             for o in base]  # fmt: skip
        more |= {"states": (State(0.9), State(0.08, 0.5), State(0.02, 0.0)),
                 "limits": Limits(availability=0.99, spot_max_share=0.7)}  # fmt: skip
    if kind == "all":
        scenarios, more["probability"] = 2, np.full(2, 0.5)
    return FleetModel(tuple(options), rng.uniform(1, 9, (scenarios, hours, 2)), np.ones(hours), **more)


KINDS = ("on demand", "reserved", "savings plan", "spot", "all")


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_hours_are_proven_one_by_one(kind, tmp_path):
    fleet, path = over_hours(kind), tmp_path / "proof.json"
    plan = solve(fleet, 1e-4)
    body = proof.make_certificate(fleet, plan.objective)
    proof.write_certificate(body, path)
    assert proof.verify_certificate(path)["gap"] <= 1e-3
    assert "parts" in json.dumps(body["proof"])
    assert body["proven_usd_per_hour"] <= plan.objective + 1e-6


def parts_of(node):
    return node if "parts" in node else parts_of(node["below"])


def dearer_share(b):  # one part takes more of a shared column's cost; what is left of it falls as much
    part = parts_of(b["proof"])["parts"][0]
    part["prices"] = [[i, str(2 * Fraction(v))] for i, v in part["prices"]]


def row_twice(b):
    first, second, *_ = parts_of(b["proof"])["parts"]
    second["rows"] = first["rows"]


def column_left_out(b):
    part = parts_of(b["proof"])["parts"][0]
    part["columns"] = part["columns"][1:]


def wrong_sign(b):
    b["proof"] = {"leaf": [[i, "-1"] for i in range(len(b["program"]["right"])) if i not in b["program"]["equal"]]}


@pytest.mark.parametrize("change", [dearer_share, row_twice, column_left_out, wrong_sign])
def test_a_changed_part_is_refused(tmp_path, change):
    fleet = over_hours("reserved")
    body = tampered(proof.make_certificate(fleet, solve(fleet, 1e-6).objective), change)
    body["sha256"] = proof._digest({k: v for k, v in body.items() if k != "sha256"})
    path = tmp_path / "proof.json"
    path.write_text(json.dumps(body))
    with pytest.raises(GateError, match="refused"):
        proof.verify_certificate(path)


@pytest.mark.bench
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_how_far_a_proof_gets(kind, seed, tmp_path):
    fleet, path = over_hours(kind, seed, types=4, hours=6), tmp_path / "proof.json"
    plan = solve(fleet, 1e-4)
    start = time.process_time()
    proof.write_certificate(proof.make_certificate(fleet, plan.objective), path)
    made = time.process_time()
    found = proof.verify_certificate(path)
    seconds = f"made in {made - start:.1f} s of CPU, checked in {time.process_time() - made:.1f}"
    print(f"\n{kind}: gap {found['gap']:.3%}, {found['leaves']} leaves, {seconds}, {path.stat().st_size / 1e6:.1f} MB")
    assert found["gap"] <= (1e-3 if kind != "all" else 0.2)
