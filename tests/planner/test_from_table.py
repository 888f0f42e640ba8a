"""Plans from a user's capacity table, and every bad table."""

from __future__ import annotations

import csv
import json

import pytest
from click.testing import CliRunner

from catalogs.errors import GateError, InputError, MissingError
from planner.explain import explain_lines
from planner.inputs.problem import problem_from, read_problem
from planner.recommend import recommend

SIZES = [(100, 100), (100, 500), (1000, 100), (1000, 500)]
RATES = {"A10G": (1.01, [2, 1, 5, 2]), "A100-80GB": (3.67, [20, 20, 40, 20])}


@pytest.fixture
def melange(tmp_path):
    rows = [
        [g, "bf16", i, o, rate, usd]
        for g, (usd, rates) in RATES.items()
        for (i, o), rate in zip(SIZES, rates, strict=True)
    ]
    with (tmp_path / "capacity.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["gpu", "precision", "input_tokens", "output_tokens", "max_rps", "usd_per_hour"])
        out.writerows(rows)
    shares = [0.2, 0.1, 0.5, 0.2]
    lines = [f"{i},{o},{30 * s}" for (i, o), s in zip(SIZES, shares, strict=True)]
    (tmp_path / "demand.csv").write_text("input_tokens,output_tokens,rate_rps\n" + "\n".join(lines) + "\n")
    return tmp_path


def problem(folder, **more):
    settings = {
        "model": "llama-2-7b",
        "workload": {"buckets": str(folder / "demand.csv")},
        "slo": {"tpot_p95_s": 0.12},
        "capacity_table": str(folder / "capacity.csv"),
        **more,
    }
    return problem_from(settings)


def test_melanges_example_costs_4_68_and_is_said_to_be_unverified(melange):
    answer = recommend(problem(melange))
    assert answer["plan"]["usd_per_hour"] == pytest.approx(4.68)
    assert {line["gpu"]: line["instances"] for line in answer["plan"]["lines"]} == {"A10G": [1], "A100-80GB": [1]}
    assert answer["verified"] is False and "simulate" in answer["verified_why"]
    assert answer["mip_gap"] <= 1e-3
    labels = [a["label"] for a in answer["alternatives"]]
    assert any(label.startswith("cheapest single type: A100-80GB") for label in labels)
    assert any(label.startswith("runner-up") for label in labels)


def test_the_command_prints_one_json_document_and_keeps_the_run(melange, monkeypatch):
    from app.cli.main import cli

    monkeypatch.setenv("PLAN_HOME", str(melange / "home"))
    plan = melange / "plan.yaml"
    plan.write_text(
        "model: llama-2-7b\nworkload: {buckets: demand.csv}\nslo: {tpot_p95_s: 0.12}\n"
        "candidates: {purchase: [on_demand]}\ncapacity_table: capacity.csv\n"
    )
    done = CliRunner().invoke(cli, ["recommend", "-c", str(plan), "--format", "json"], catch_exceptions=False)
    answer = json.loads(done.stdout)
    assert answer["plan"]["usd_per_hour"] == pytest.approx(4.68)
    from app.runs import load_run

    assert load_run(answer["run"]).answer["plan"] == answer["plan"]


def test_a_gpu_that_the_catalogue_does_not_know_is_fine_when_priced_and_refused_when_not(melange):
    text = (melange / "capacity.csv").read_text()
    (melange / "capacity.csv").write_text(text.replace("A10G", "Groq-9"))
    assert recommend(problem(melange))["plan"]["usd_per_hour"] == pytest.approx(4.68)
    (melange / "capacity.csv").write_text(
        "gpu,precision,input_tokens,output_tokens,max_rps\n" + "".join(f"Groq-9,bf16,{i},{o},5\n" for i, o in SIZES)
    )
    with pytest.raises(MissingError, match="no price for Groq-9"):
        recommend(problem(melange))


def test_a_known_gpu_without_a_price_in_the_table_takes_the_catalogues(melange):
    (melange / "capacity.csv").write_text(
        "gpu,precision,input_tokens,output_tokens,max_rps\n" + "".join(f"L40S,bf16,{i},{o},5\n" for i, o in SIZES)
    )
    answer = recommend(problem(melange))
    assert answer["plan"]["lines"][0]["instance_type"].startswith("g6e.")
    assert answer["prices_as_of"]
    [bound] = explain_lines(answer, "llama-2-7b")
    assert bound["step_s"] > 0 and bound["context_tokens"] > 100  # of the sizes that the table gives


def test_a_gpu_in_the_table_may_go_by_any_of_its_names(melange):
    rows = "".join(f"Tesla T4,fp16,{i},{o},5\n" for i, o in SIZES)
    (melange / "capacity.csv").write_text("gpu,precision,input_tokens,output_tokens,max_rps\n" + rows)
    answer = recommend(problem(melange))
    assert {line["gpu"] for line in answer["plan"]["lines"]} == {"T4"}


def test_gaps_and_zero_rates_are_said_and_serve_nothing(melange):
    text = (melange / "capacity.csv").read_text().replace("A10G,bf16,100,100,2,1.01\n", "")
    (melange / "capacity.csv").write_text(text.replace("A10G,bf16,100,500,1,1.01", "A10G,bf16,100,500,0,1.01"))
    answer = recommend(problem(melange))
    said = " ".join(answer["assumptions"])
    assert "A10G bf16 has no row for 100/100" in said and "has a rate of 0 for 100/500" in said
    a10g = [line for line in answer["plan"]["lines"] if line["gpu"] == "A10G"]
    assert all(line["share_by_size"][:2] == [0.0, 0.0] for line in a10g)


def test_spot_in_a_table_is_lost_with_its_zones_and_what_a_table_cannot_plan_is_refused(melange):
    (melange / "capacity.csv").write_text(
        "gpu,precision,input_tokens,output_tokens,max_rps\n" + "".join(f"L40S,bf16,{i},{o},5\n" for i, o in SIZES)
    )
    both = {"candidates": {"purchase": ["on_demand", "spot"]}}
    half = recommend(problem(melange, **both, spot={"availability": 0.99, "max_share": 0.5}))
    every = recommend(problem(melange, **both, spot={"availability": 0.5, "zone_availability": 1.0}))
    spot = sum(sum(x["requests_per_s"]) for x in half["plan"]["lines"] if x["purchase"] == "spot")
    assert spot <= 15 + 1e-6 and all(x["purchase"] == "spot" for x in every["plan"]["lines"])
    assert every["plan"]["usd_per_hour"] < half["plan"]["usd_per_hour"]
    for more in (
        {"time": {"periods": "hour"}},
        {"commitments": {"existing": [{"instance_type": "g6e.xlarge", "count": 1}]}},
    ):
        with pytest.raises(InputError, match="one load"):
            recommend(problem(melange, **more))


def test_a_size_that_nothing_serves_is_named(melange):
    text = (melange / "capacity.csv").read_text()
    kept = [line for line in text.splitlines() if ",1000,500," not in line]
    (melange / "capacity.csv").write_text("\n".join(kept) + "\n")
    with pytest.raises(GateError, match="1000 input and 500 output"):
        recommend(problem(melange))


def test_limits_that_cannot_be_kept_name_the_smallest_set_and_what_would_do(melange):
    with pytest.raises(GateError) as tight:
        recommend(problem(melange, budget_usd_per_month=3000, quotas={"A10G": 5}))
    assert "the budget" in tight.value.what and "quota" not in tight.value.what
    assert "budget_usd_per_month: 3417" in tight.value.remedy
    with pytest.raises(GateError) as few:
        recommend(problem(melange, quotas={"A10G": 3, "A100-80GB": 0}))
    assert "quota of 0 A100-80GB" in few.value.what or "quota of 3 A10G" in few.value.what


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("max_rps", "maxrps", "no column 'max_rps'"),
        ("A10G,bf16,100,100,2", "A10G,bf16,100,100,-2", "max_rps is '-2'"),
        ("A10G,bf16,100,100,2", "A10G,bf16,100,100,nan", "max_rps is 'nan'"),
        ("A10G,bf16,100,500", "A10G,bf16,100,100", "two rates"),
        ("A10G,bf16,100,100,2,1.01", "A10G,bf16,100,100,2,1.5", "two prices"),
    ],
)
def test_a_bad_capacity_table_is_refused_with_its_line(melange, old, new, says):
    path = melange / "capacity.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=says) as refused:
        recommend(problem(melange))
    assert "capacity.csv" in refused.value.where


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("model: x\nworklod: {trace: a.csv}\nslo: {ttft_p95_s: 1}\n", ":2", "workload"),
        ("model: x\nworkload: {trace: a.csv}\nslo: {ttft_p95: 1}\n", ":3", "ttft_p95_s"),
        ("model: x\nworkload: {trace: a.csv}\nslo: {ttft_p95_s: 0}\n", ":3", "ttft_p95_s"),
        ("model: x\nworkload: {trace: a.csv}\nslo: {ttft_p95_s: 1}\nspot: {max_share: 2}\n", ":4", "max_share"),
        ("model: x\nworkload: {trace: a.csv}\nslo: {}\n", ":3", "no limit"),
        ("model: x\nworkload: {trace: a.csv}\nslo: {ttft_p95_s: 1}\ncandidates: {purchase: [spots]}\n", ":4", "spot"),
    ],
)
def test_a_bad_plan_file_names_the_line_and_the_nearest_key(tmp_path, text, line, says):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_problem(path)
    assert refused.value.where.endswith(line)
    assert says in str(refused.value)


def test_relative_paths_start_at_the_plan_files_folder(melange):
    plan = melange / "plan.yaml"
    plan.write_text("model: x\nworkload: {buckets: demand.csv}\nslo: {tpot_p95_s: 1}\ncapacity_table: capacity.csv\n")
    read = read_problem(plan, {"seed": 3})
    assert read.capacity_table == melange / "capacity.csv" and read.seed == 3
