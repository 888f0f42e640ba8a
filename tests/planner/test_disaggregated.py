"""Plans with prefill and decode replicas of their own: ratios, capacity, price, and the simulator's word on them."""

from __future__ import annotations

import json
import math

import pytest
from click.testing import CliRunner

from catalogs.errors import GateError, InputError
from planner.export.deployment import deployment_of
from planner.inputs.candidates import MOST_REPLICAS, ratios
from planner.inputs.problem import problem_from
from planner.recommend import recommend
from planner.what_if import Change, solve_again
from simulator.run import simulate
from simulator.scenario.spec import Scenario

WORKLOAD = {
    "arrivals": {"process": "poisson", "rate_rps": 16, "num_requests": 500},
    "input_tokens": {"distribution": "lognormal", "mean": 3000, "cv": 0.3},
    "output_tokens": {"distribution": "fixed", "value": 60},
}
SLO = {"ttft_p95_s": 1.0, "tpot_p95_s": 0.012}  # a prompt beside decodes takes longer than this
P5 = {"gpus": ["H100-SXM"], "instances": ["p5.4xlarge"], "precision": ["fp8"], "tensor_parallel_size": [1]}


def problem(disaggregated=(False, True), slo=SLO, candidates=P5, **more):
    settings = {"model": "llama-3.1-8b", "workload": WORKLOAD, "slo": slo, "explore": False, **more}
    return problem_from({**settings, "candidates": {**candidates, "disaggregated": list(disaggregated)}})


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return recommend(problem())


def test_ratios_are_whole_machines_and_none_is_a_multiple_of_another():
    for per_machine in (1, 2, 3, 4, 8):
        found = list(ratios(per_machine))
        assert found and len(found) == len(set(found))
        for p, d, machines in found:
            assert p >= 1 and d >= 1 and p + d == machines * per_machine <= MOST_REPLICAS
            assert math.gcd(p, d, machines) == 1


def test_roles_of_their_own_are_chosen_where_they_are_cheaper(answer):
    [line] = answer["plan"]["lines"]
    [num_prefill], [num_decode] = line["roles"]["prefill"], line["roles"]["decode"]
    assert num_prefill >= 1 and num_decode >= 1
    assert line["instances"] == [num_prefill + num_decode]  # one GPU a machine
    assert line["usd_per_hour"] == pytest.approx(line["instances"][0] * line["usd_per_instance_hour"])
    assert answer["verified"] and answer["mip_gap"] <= 1e-3
    together = recommend(problem([False]))
    assert together["plan"]["usd_per_hour"] > answer["plan"]["usd_per_hour"]
    assert together["plan"]["lines"][0].get("roles") is None
    for c in answer["candidates"]:
        assert c["max_rps"] <= c["bound_rps"] * 1.06


def test_the_verdict_is_what_simulate_says_of_the_same_fleet(answer):
    [line] = answer["plan"]["lines"]
    fleet = [
        {"gpu": line["gpu"], "instance": line["instance_type"], "precision": line["precision"], "role": role,
         "count": line["roles"][role][0]}
        for role in ("prefill", "decode")
    ]  # fmt: skip
    scenario = {"model": "llama-3.1-8b", "workload": WORKLOAD, "fleet": fleet, "router": "least_loaded", "seed": 0}
    document = simulate(Scenario.model_validate(scenario)).document
    assert document["ttft_s"]["p95"] == pytest.approx(answer["slo"]["ttft_p95_s"]["simulated"], rel=1e-9)
    assert document["tpot_s"]["p95"] == pytest.approx(answer["slo"]["tpot_p95_s"]["simulated"], rel=1e-9)


def test_what_if_solves_it_again_and_exports_refuse_it_in_words(answer):
    handed = json.loads(json.dumps(answer["what_if"]))
    same = solve_again(handed, Change())
    assert same["plan"]["usd_per_hour"] == pytest.approx(answer["plan"]["usd_per_hour"])
    assert same["plan"]["lines"][0]["roles"] == answer["plan"]["lines"][0]["roles"]
    twice = solve_again(handed, Change(load=2.0))
    assert twice["plan"]["lines"][0]["instances"][0] > answer["plan"]["lines"][0]["instances"][0]
    with pytest.raises(InputError, match="prefill and decode replicas of their own"):
        deployment_of({"model": "llama-3.1-8b"}, answer)


def test_a_quota_counts_every_machine_of_a_pool():
    with pytest.raises(GateError, match="quota"):
        recommend(problem([True], quotas={"p5.4xlarge": 1}))


def test_the_command_shows_both_roles_and_refuses_what_has_none(tmp_path):
    from app.cli.main import cli

    plan = tmp_path / "plan.yaml"
    text = {"model": "llama-3.1-8b", "workload": WORKLOAD, "slo": SLO, "explore": False,
            "candidates": {**P5, "disaggregated": [True]}}  # fmt: skip
    plan.write_text(json.dumps(text))
    shown = CliRunner().invoke(cli, ["recommend", "-c", str(plan)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0 and "prefill + " in shown.output
    for change, kind, said in (
        ({"disaggregated": ["sometimes"]}, InputError, "candidates.disaggregated.0 is 'sometimes'"),
        ({"disaggregated": []}, InputError, "candidates.disaggregated"),
        ({"disaggregated": [True], "frameworks": ["tgi"]}, GateError, "tgi has no prefill or decode role"),
        ({"disaggregated": [True], "pipeline_parallel_size": [2], "instances": ["p5.48xlarge"]}, GateError,
         "a role with pipeline_parallel_size above 1"),
    ):  # fmt: skip
        plan.write_text(json.dumps({**text, "candidates": {**P5, **change}}))
        refused = CliRunner().invoke(cli, ["recommend", "-c", str(plan)])
        assert isinstance(refused.exception, kind) and said in f"{refused.exception} {refused.exception.why}"
