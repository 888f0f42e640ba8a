"""Plans for encoders and vision models: whole batches, no tokens, and what deploys them."""

from __future__ import annotations

import numpy as np
import pytest

from catalogs.errors import GateError, InputError
from planner.explain import explain_lines
from planner.export import EXPORTERS, deployment_of
from planner.inputs.problem import Problem, problem_from
from planner.recommend import recommend
from simulator.run import simulate
from simulator.scenario.spec import Scenario


def problem(**more: object) -> Problem:
    settings = {
        "model": "bert-base",
        "workload": {
            "arrivals": {"process": "poisson", "rate_rps": 1500, "num_requests": 6000},
            "input_tokens": {"distribution": "uniform", "low": 10, "high": 400},
            "output_tokens": {"distribution": "uniform", "low": 0, "high": 50},
        },
        "slo": {"e2e_p99_s": 0.1},
        "candidates": {"gpus": ["T4"]},
        "solver": {"time_limit_s": 20},
        "explore": False,
        **more,
    }
    return problem_from(settings)


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return recommend(problem())


def test_the_plan_serves_batches_within_the_promise(answer: dict) -> None:
    assert answer["verified"] is True and answer["slo"]["e2e_p99_s"]["ok"]
    assert {line["framework"] for line in answer["plan"]["lines"]} == {"onnxruntime"}
    assert {line["precision"] for line in answer["plan"]["lines"]} == {"fp16"}
    assert answer["plan"]["usd_per_million_output_tokens"] is None
    assert answer["plan"]["usd_per_thousand_requests"] > 0
    for candidate in answer["candidates"]:
        assert candidate["max_rps"] <= candidate["bound_rps"] * 1.06


def test_a_machine_fewer_breaks_the_promise(answer: dict) -> None:
    (line,) = answer["plan"]["lines"]
    asked = problem()

    def e2e_p99_s(count: int) -> float:
        fleet = [{"gpu": line["gpu"], "count": count, "precision": line["precision"],
                  "engine": {"framework": "onnxruntime", "max_num_seqs": line["engine"]["max_num_seqs"]}}]  # fmt: skip
        scenario = Scenario.model_validate({
            "model": asked.model, "workload": asked.workload.model_dump(), "fleet": fleet, "router": asked.router,
            "seed": asked.seed,
        })  # fmt: skip
        return float(simulate(scenario).document["e2e_s"]["p99"])

    (count,) = line["instances"]
    assert count > 1
    assert e2e_p99_s(count) == pytest.approx(answer["slo"]["e2e_p99_s"]["simulated"], rel=1e-9)
    assert e2e_p99_s(count - 1) > 0.1


def test_what_bounds_it_is_a_step_of_whole_prompts(answer: dict) -> None:
    (row,) = explain_lines(answer, "bert-base")
    assert row["mfu"] > 0.05 and row["sequences_at_once"] >= 1
    assert np.isfinite(row["step_s"]) and 0 < row["step_s"] < 0.1


def test_triton_gets_the_batch_that_was_planned(answer: dict) -> None:
    deployment = deployment_of({"model": "bert-base"}, answer)
    text = EXPORTERS["triton"](deployment)
    largest = {line["engine"]["max_num_seqs"] for line in answer["plan"]["lines"]}
    assert all(f"max_batch_size: {size}\n" in text for size in largest)
    assert text.count("dynamic_batching { max_queue_delay_microseconds: 0 }") == len(answer["plan"]["lines"])
    waits = [{**line, "engine": {**line["engine"], "max_queue_delay_s": 0.002}} for line in answer["plan"]["lines"]]
    slower = deployment_of({"model": "bert-base"}, {**answer, "plan": {**answer["plan"], "lines": waits}})
    assert "max_queue_delay_microseconds: 2000 }" in EXPORTERS["triton"](slower)
    for target in ("vllm", "skypilot", "keda", "hpa"):
        with pytest.raises(InputError) as caught:
            EXPORTERS[target](deployment)
        assert "plan export triton" in str(caught.value)


def test_a_time_per_token_cannot_be_promised() -> None:
    with pytest.raises(InputError, match="no time per output token"):
        recommend(problem(slo={"tpot_p95_s": 0.05}))


def test_prompts_beyond_the_context_are_counted() -> None:
    longer = {**problem().workload.model_dump(), "input_tokens": {"distribution": "uniform", "low": 10, "high": 530}}
    with pytest.raises(GateError, match=r"\d+ of 6,000 requests have prompts longer than a context of 512") as caught:
        recommend(problem(workload=longer))
    assert "e2e_p99_s bears 1 % of lost requests" in str(caught.value)


def test_an_engine_for_text_serves_no_images() -> None:
    with pytest.raises(GateError) as caught:
        recommend(problem(model="resnet50", candidates={"gpus": ["T4"], "frameworks": ["vllm"]}))
    assert "vllm serves no images alone" in str(caught.value)
