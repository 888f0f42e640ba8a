"""What the pages show beyond opening: made loads, forecasts, living fleets, quality, errors, and the commands."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.cli.main import cli
from app.runs import save_run
from app.web.workload_state import demo_trace
from tests.app.test_calibrate_validate import TIDY
from tests.docs_blocks import ROOT
from tests.web.test_pages import ANSWER
from tests.web.visitor import TRACE, answered, captions, commands, finish, go, press, said, tables, upload, visit

pytestmark = [pytest.mark.usefixtures("clean_home"), pytest.mark.filterwarnings("ignore:Implicitly cleaning up")]


def metrics(found: Any) -> dict[str, str]:
    return {m.label: m.value for m in found.metric}


def test_a_made_load_is_the_workload_of_every_page_and_its_url_makes_it_again() -> None:
    found = visit("workload", tab="Make a load", process="gamma", num_requests="700", sessions="1", mean_turns="2")
    assert "700" not in metrics(found)
    press(found, "Use this load on every page")
    address = dict(found.query_params)
    other = visit("workload", **{k: v[0] if isinstance(v, list) else v for k, v in address.items()})
    assert captions(other) == captions(found)  # the same load from the URL, in another session
    go(found, "workload", tab="The requests")
    assert "seen before" in captions(found)
    assert len(found.get("plotly_chart")) == 3
    made = metrics(found)["Requests"]
    go(found, "simulate", gpu="L40S", precision="fp8")
    press(found, "Simulate")
    finish(found, "simulate")
    text = commands(found)
    assert '"process": "gamma"' in text
    assert "plan init demo" not in text
    assert made != "700"  # conversations have more requests than starts


def test_the_demo_comes_back_after_a_made_load() -> None:
    found = press(visit("workload", tab="Make a load"), "Use this load on every page")
    press(found, "Back to the demo trace")
    assert "Showing the demo trace" in captions(found)


def test_a_forecast_draws_its_band_and_says_its_error() -> None:
    found = visit("workload", tab="Forecast", bin="10 s", season="1 min", horizon="10 min", method="seasonal_naive")
    assert not found.error
    figure = json.loads(found.get("plotly_chart")[0].proto.spec)
    names = [t.get("name") for t in figure["data"]]
    assert {"the trace", "forecast (seasonal naive)", "10th to 90th percentile", "last quarter, foretold"} <= set(names)
    assert tables(found)[0]["used"].tolist().count("yes") == 1
    assert "--method seasonal_naive" in commands(found)


def test_a_forecast_that_the_trace_is_too_short_for_is_said() -> None:
    assert "less than one bin" in said(visit("workload", tab="Forecast", bin="1 h"))


def test_a_living_fleet_draws_replicas_by_purchase_and_marks_what_it_lost() -> None:
    found = upload(visit(), "mine.csv", TRACE)
    go(found, "simulate", gpu="L40S", precision="fp8", count="2", zones="us-east-1", hours="3", scaling="hpa")
    press(found, "Simulate")
    finish(found, "simulate")
    assert not found.error
    figure = json.loads(found.get("plotly_chart")[1].proto.spec)
    names = [t["name"] for t in figure["data"]]
    assert {"spot", "on demand", "target"} <= set(names)
    lost = next(t for t in tables(found) if "what" in t and "kind" in t)
    assert any(n.startswith(f"spot notice ({(lost.kind == 'spot notice').sum()})") for n in names)
    assert metrics(found)["USD for the run"] != "–"
    assert found.query_params["zones"] == ["us-east-1"] or found.query_params["zones"] == "us-east-1"


def test_the_answer_marks_the_chosen_point_on_both_fronts_with_its_range() -> None:
    answer = {**ANSWER, "plan": {**ANSWER["plan"], "lines": [{**x, "quality_score": 0.985} for x in
                                                             ANSWER["plan"]["lines"]]}}  # fmt: skip
    found = answered(visit("recommend", tab="What would change it"), "recommend", answer)
    figures = [json.loads(c.proto.spec) for c in found.get("plotly_chart")]
    chosen = [t for f in figures for t in f["data"] if str(t.get("name", "")).startswith("this plan,")]
    assert [t["x"] for t in chosen] == [[1.0], [98.5]]
    assert all(t["error_y"]["arrayminus"] == [pytest.approx(0.4)] for t in chosen)


def test_a_kept_answer_is_shown_again_by_its_url_and_a_lost_one_is_said() -> None:
    run = save_run("recommend", {"scale": 1}, ANSWER, title="kept")
    found = visit("recommend", run=run)
    assert metrics(found)["USD an hour"] == "7.40"
    assert f"plan explain {run}" in commands(found)
    assert "no run" in said(visit("recommend", run="feedfeed"))


def test_a_model_that_answers_at_once_is_promised_its_whole_time() -> None:
    assert "bert-large answers at once: promise its E2E" in said(visit("recommend", model="bert-large"))
    plan = {**ANSWER["plan"], "usd_per_million_output_tokens": None, "usd_per_thousand_requests": 0.002}
    found = visit("recommend", model="bert-large", e2e="0.2")
    shown = "".join(commands(found))
    assert "--slo e2e_p95_s=0.2" in shown and "ttft" not in shown
    found = answered(found, "recommend", {**ANSWER, "plan": plan})
    assert metrics(found)["USD per M requests"] == "2.000"


def test_a_result_outlives_a_reload_by_its_url() -> None:
    found = answered(visit("recommend"), "recommend", ANSWER)
    job = found.session_state["job-recommend"]
    again = visit("recommend", job=job)
    assert metrics(again)["USD an hour"] == "7.40"
    assert not metrics(visit("advise", job=job))  # another page does not take it for its own


def test_a_page_is_as_it_was_left_when_the_menu_leads_back_to_it() -> None:
    found = visit("calibration", gpu="L4", precision="fp8", batch="17")
    go(found, "runs")
    go(found, "calibration")
    assert [s.value for s in found.selectbox][:3] == ["llama-3.1-8b", "L4", "fp8"]
    assert found.slider[0].value == 17


@pytest.mark.parametrize(
    ("name", "query", "beside"),
    [
        ("recommend", {"ttft": "-5"}, "outside 0.01 to 600"),
        ("recommend", {"precision": "bf9"}, "names, which there is not"),
        ("simulate", {"count": "9" * 5000}, "no whole number from 1 to 512"),
        ("simulate", {"gpu": "<b>"}, "another one, which there is not"),
        ("workload", {"tab": "Make a load", "rate_rps": "nan"}, "outside 0.001"),
    ],
)
def test_what_the_address_asks_for_and_cannot_have_is_said_beside_the_field(
    name: str, query: dict[str, str], beside: str
) -> None:
    assert beside in captions(visit(name, **query))


def test_a_measured_table_is_held_against_the_prediction() -> None:
    found = upload(visit("calibration", tab="Predicted against measured"), "serving.csv",
                   TIDY.format(ttft=40, tpot=7.5).encode())  # fmt: skip
    press(found, "Predict them")
    finish(found, "validate")
    assert not said(found)
    assert "Predicted against measured ttft_s" in captions(found)
    assert any("worst_name" in t for t in tables(found))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.pdf", b"%PDF", "no table of measurements"),
        ("m.csv", b"a,b\n1,2\n", "column"),
        ("m.csv", b"\0\xff", "text"),
        ("m.csv", TIDY.encode(), "is not a number"),
    ],
)
def test_a_broken_table_of_measurements_is_said(name: str, content: bytes, words: str) -> None:
    found = upload(visit("calibration", tab="Predicted against measured"), name, content)
    press(found, "Predict them")
    if "job-validate" in found.session_state:
        finish(found, "validate")
    assert words in said(found)


def test_a_commitment_costs_what_the_formula_says_and_the_url_keeps_it() -> None:
    found = visit("spend", instance="g6e.xlarge", form="reserved_3yr", peak="10", commit="0")
    assert found.slider[0].value == 0
    shown = metrics(found)
    assert shown["A year with these (USD)"] == shown["A year all on demand (USD)"]
    assert float(shown["A year at the cheapest (USD)"].replace(",", "")) < float(
        shown["A year all on demand (USD)"].replace(",", "")
    )


def test_the_commitments_command_gives_the_shown_numbers() -> None:
    found = visit("spend", instance="g6e.xlarge", form="reserved_3yr", peak="10", commit="2")
    words = shlex.split(next(c.value for c in found.code).splitlines()[-1])
    assert words[:3] == ["plan", "prices", "commitment"]
    words[words.index("--trace") + 1] = str(demo_trace())
    done = CliRunner().invoke(cli, [*words[1:], "--format", "json"], catch_exceptions=False)
    answer = json.loads(done.stdout)
    shown = metrics(found)
    for name, key in (("with these", "chosen"), ("all on demand", "on_demand"),
                      ("at the cheapest", "cheapest")):  # fmt: skip
        assert shown[f"A year {name} (USD)"] == f"{answer['usd_per_year'][key]:,.0f}"
    assert min(answer["usd_per_year_by_machines"]) == answer["usd_per_year"]["cheapest"]
    assert shown["A machine pays if needed"] == f"{answer['break_even_utilisation']:.0%} of the time"
    wrong = CliRunner().invoke(cli, ["prices", "commitment", "--trace", str(demo_trace()), "--instance", "p5.48xlarg",
                                     "--peak", "3"])  # fmt: skip
    assert "did you mean" in str(wrong.exception)


def test_the_shown_command_gives_the_shown_numbers(tmp_path: Path) -> None:
    found = visit("simulate", gpu="L40S", precision="fp8", count="1", ttft="2")
    press(found, "Simulate")
    finish(found, "simulate")
    script = commands(found).split("plan simulate scenario.yaml")[0] + "plan simulate scenario.yaml --format json"
    plan = f"{shlex.quote(sys.executable)} -m app.cli"
    script = script.replace("plan init", f"{plan} init").replace("plan simulate", f"{plan} simulate")
    done = subprocess.run(
        ["sh", "-c", script[script.index(plan) :]], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PLAN_HOME": str(tmp_path / "h"), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    answer = json.loads(done.stdout[done.stdout.index("{") :])
    assert metrics(found)["TTFT p95 (s)"] == f"{answer['ttft_s']['p95']:.3f}"
    assert metrics(found)["Output tokens a second"] == f"{answer['output_tokens_per_s']:,.0f}"
    assert metrics(found)["USD for the run"] == f"{answer['usd']:,.2f}"


def test_the_engines_techniques_are_fields_and_what_it_refuses_is_said() -> None:
    found = upload(visit(), "mine.csv", TRACE)
    go(found, "simulate", gpu="L40S", precision="fp8", count="1", speculation="ngram", spec_tokens="4",
       spec_accept="0.5", offload_gib="8", max_num_seqs="32", prefix_caching="on", kv_dtype="fp8")  # fmt: skip
    press(found, "Simulate")
    finish(found, "simulate")
    assert not found.error, said(found)
    text = commands(found)
    for key in ('"num_speculative_tokens": 4', '"acceptance_rate": 0.5', '"cpu_gib": 8.0', '"max_num_seqs": 32',
                '"enable_prefix_caching": true', '"kv_cache_dtype": "fp8"'):  # fmt: skip
        assert key in text
    run = next(t for t in tables(found) if "what" in t and "value" in t)
    did = dict(zip(run["what"], run["value"], strict=True))
    assert int(did["speculation: accepted tokens"].replace(",", "")) > 0
    assert "kv offload: cpu hit rate" in did
    found = press(visit("simulate", gpu="L40S", precision="fp8", preemption="swap"), "Simulate")
    assert "Try:" in said(finish(found, "simulate"))  # vLLM of today has no swap
