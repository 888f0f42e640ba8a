"""`plan calibrate validate`: forms of measured files, the picture, the gate, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli.calibrate_validate import validate
from catalogs.errors import GateError, PlanError
from tests.shared_data import shared_data

TIDY = """source,gpu,tp,model,precision,framework,framework_version,isl,osl,concurrency_or_rate,metric,value,unit,notes
x,H100-SXM,1,llama-3.1-8b,bf16,vLLM,0.19.0,512,64,conc=4,ttft,{ttft},ms,
x,H100-SXM,1,llama-3.1-8b,bf16,vLLM,0.19.0,512,64,conc=4,mean_tpot_ms,{tpot},ms,
x,H100-SXM,1,no-such-model,bf16,vLLM,0.19.0,512,64,conc=4,ttft,50,ms,
"""


def run(*args: object) -> Result:
    return CliRunner().invoke(validate, [str(a) for a in args])


@pytest.fixture
def tidy(tmp_path: Path) -> Path:
    path = tmp_path / "measured.csv"
    path.write_text(TIDY.format(ttft=40, tpot=7.5))
    return path


def test_tidy_points_are_simulated_and_compared(tidy: Path, tmp_path: Path) -> None:
    out = tmp_path / "errors.svg"
    result = run("best", tidy, "--limit", "1000", "--plot", out, "--format", "json", "--points")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert {s["metric"] for s in document["summary"]} == {"ttft_s", "tpot_s"}
    assert len(document["points"]) == 2
    assert out.read_text().startswith("<svg")


def test_gate_fails_with_exit_code_1_after_the_answer(tidy: Path) -> None:
    result = run("best", tidy, "--limit", "ttft_s=0.001")
    assert isinstance(result.exception, GateError)
    assert result.exception.exit_code == 1
    assert "ttft_s" in result.output


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("best", "nothing.csv"), 2),
        (("no-such-profile", "nothing.csv"), 3),
        (("best", "nothing.csv", "--limit", "ttft_s=many"), 2),
    ],
)
def test_bad_input_is_refused(args: tuple[str, ...], code: int) -> None:
    error = run(*args).exception
    assert isinstance(error, PlanError)
    assert error.exit_code == code


def test_a_table_without_the_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("a,b\n1,2\n")
    error = run("best", path).exception
    assert isinstance(error, PlanError)
    assert "columns missing" in str(error)


def test_closed_loops_on_h100_are_within_the_targets() -> None:
    path = shared_data("serving/silicon_closed_loop_h100.csv")
    result = run("best", path, "--limit", "ttft_s=20", "--limit", "tpot_s=6", "--limit", "output_tokens_per_s=6")
    assert result.exit_code == 0, result.output
