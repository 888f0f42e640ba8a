"""The sliders under a plan: they answer at once, say that nothing is verified, and begin what verifies it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.runs import load_run, save_run
from app.web import parts
from planner.inputs.problem import problem_from
from planner.recommend import recommend
from tests.web.test_pages import ANSWER
from tests.web.test_views import metrics
from tests.web.visitor import answered, captions, commands, finish, press, said, visit

pytestmark = [pytest.mark.usefixtures("clean_home"), pytest.mark.filterwarnings("ignore:Implicitly cleaning up")]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """A question, its answer and its trace."""
    path = tmp_path_factory.mktemp("trace") / "requests.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{i / 40},300,60\n" for i in range(1200)))
    problem = problem_from({
        "model": "llama-3.1-8b", "workload": {"trace": str(path)}, "slo": {"ttft_p95_s": 1.0, "tpot_p95_s": 0.05},
        "candidates": {"gpus": ["L40S"], "precision": ["fp8"]},
    })  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return problem.model_dump(mode="json"), recommend(problem), path


def opened(asked: tuple[dict[str, Any], dict[str, Any], Path], **query: str) -> Any:
    inputs, answer, path = asked
    return visit("recommend", run=save_run("recommend", inputs, answer, files={"trace": path}), **query)


def slide(found: Any, label: str, value: float) -> Any:
    next(s for s in found.select_slider if s.label == label).set_value(value)
    return found.run()


def test_a_slider_is_answered_and_said_not_to_be_verified(asked: Any) -> None:
    found = opened(asked)
    before = metrics(found)
    assert "Not verified" not in said(found)
    slide(found, "Load, times this plan's", 4.0)
    assert metrics(found)["USD an hour"] == before["USD an hour"]  # the plan stands as it was
    assert float(metrics(found)["With these changes (USD an hour)"]) > float(before["USD an hour"])
    assert "Not verified: solved again" in said(found)
    assert "--load 4 --slo 1" in commands(found)
    assert found.query_params["if_load"] in ("4", ["4"])


def test_the_address_restores_the_sliders_and_names_what_it_cannot_have(asked: Any) -> None:
    found = opened(asked, if_load="2", if_price="3", if_price_of="L40S", if_slo="9")
    values = {s.label: s.value for s in found.select_slider}
    assert values == {"Load, times this plan's": 2.0, "Latency limits, times these": 1.0,
                      "That price, times today's": 3.0}  # fmt: skip
    assert "outside 0.75 to 1.5" in captions(found)
    assert "--price L40S=3" in commands(found)


def test_asking_anew_begins_the_changed_question_and_the_form_takes_it(asked: Any, monkeypatch: Any) -> None:
    begun: list[dict[str, Any]] = []

    def answered_before(_slot: str, settings: dict[str, Any]) -> Any:
        begun.append(settings)
        return lambda _progress: {**asked[1], "run": None}

    monkeypatch.setattr(parts, "apart", answered_before)
    found = slide(opened(asked), "Latency limits, times these", 0.8)
    slide(found, "That price, times today's", 2.0)
    press(found, "Ask this anew and verify it")
    assert begun[0]["slo"] == {"ttft_p95_s": pytest.approx(0.8), "tpot_p95_s": pytest.approx(0.04)}
    assert Path(begun[0]["prices"]).read_text().startswith("instance_type,region,purchase,usd_per_hour,upfront_usd\n")
    finish(found, "recommend")
    assert next(n.value for n in found.number_input if n.label == "TTFT p95 (s)") == pytest.approx(0.8)
    assert "plan what-if" in commands(found)


def test_a_run_that_vanished_is_said_when_it_is_asked_anew(asked: Any) -> None:
    from app.runs import remove_run

    found = opened(asked, if_load="2")
    remove_run(load_run("last").run_id)
    press(found, "Ask this anew and verify it")
    assert "no run" in said(found)


def test_a_plan_without_a_model_says_so() -> None:
    shown = captions(answered(visit("recommend"), "recommend", ANSWER))
    assert "No sliders here" in shown
    assert "a table of measurements" in shown


def test_a_plan_made_without_explore_says_why_its_limits_have_no_slider(asked: Any) -> None:
    inputs, answer, path = asked
    told = {**answer, "what_if": {**answer["what_if"], "slo_factors": [1.0]}}
    found = opened((inputs, told, path))
    assert "without `explore`" in captions(found)
    assert {s.label for s in found.select_slider} == {"Load, times this plan's", "That price, times today's"}
    assert "too many to keep" in captions(opened(({**inputs, "seed": 1}, {**answer, "what_if": None}, path)))
