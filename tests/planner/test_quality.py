"""Quality: sourced, never guessed, the user's own results first."""

from __future__ import annotations

import csv

import pytest

from catalogs.errors import InputError
from catalogs.load import find_model
from planner.inputs.problem import problem_from
from planner.inputs.quality import CATALOGUE, evaluation_of, score_of


def problem(**quality):
    return problem_from(
        {"model": "llama-3.1-8b", "workload": {"trace": "x.csv"}, "slo": {"ttft_p95_s": 1}, "quality": quality}
    )


def test_every_row_has_a_source_a_date_and_a_share_that_can_be():
    with CATALOGUE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 20
    for row in rows:
        assert row["source"] and row["as_of"] and 0.3 < float(row["retained"]) < 1.2


def test_the_unquantized_model_keeps_all_and_the_unknown_is_unknown():
    model = find_model("llama-3.1-8b")
    assert score_of(problem(), model, "bf16") == 1.0
    assert score_of(problem(), model, "int4-awq") is None
    assert score_of(problem(), find_model("phi-4"), "fp8") is None


def test_the_lowest_task_counts_unless_one_is_named():
    model = find_model("llama-3.1-8b")
    assert score_of(problem(), model, "int4-gptq") == 0.93
    assert score_of(problem(task="OpenLLM v1"), model, "int4-gptq") == 0.989
    assert "w4a16" in evaluation_of(problem(), model, "int4-gptq").source


def test_own_results_come_first(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("model,precision,task,score,baseline_score\nllama-3.1-8b,int4-awq,support tickets,47,50\n")
    assert score_of(problem(results=str(path)), find_model("llama-3.1-8b"), "int4-awq") == pytest.approx(0.94)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("llama-9,fp8,t,1,1", "unknown model"),
        ("llama-3.1-8b,fp9,t,1,1", "precision"),
        ("llama-3.1-8b,fp8,t,1,0", "share"),
    ],
)
def test_bad_results_are_refused_with_their_line(tmp_path, row, says):
    path = tmp_path / f"bad-{says.replace(' ', '')}.csv"
    path.write_text("model,precision,task,score,baseline_score\n" + row + "\n")
    with pytest.raises(InputError, match=says):
        score_of(problem(results=str(path)), find_model("llama-3.1-8b"), "fp8")
