"""Serving points and recorded runs in the simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibrate.fitting.importers.llmservingsim import import_profile
from calibrate.fitting.serving import ServingPoint
from calibrate.memory import memory_plan
from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica
from simulator.engine.records import Records
from simulator.engine.simulate import simulate_replicas
from simulator.real_runs import compare_run, read_run
from simulator.scenario.replicas import build_line
from simulator.serving_points import Predictor, compare_points, requests_of
from simulator.workload.requests import Requests
from tests.shared_data import shared_data

POINT = ServingPoint("llama-3.1-8b", "H100-SXM", "bf16", "vllm", 1, 512, 64, 4, 64, {"ttft_s": 0.03, "tpot_s": 0.007})
NO_OVERHEAD = {"step_overhead_s": 0.0, "per_sequence_s": 0.0, "request_overhead_s": 0.0}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor()


def test_overheads_slow_each_step_by_themselves(predictor: Predictor) -> None:
    plain, slow = (predictor(POINT, NO_OVERHEAD | {"step_overhead_s": s}) for s in (0.0, 5e-3))
    assert slow["tpot_s"] - plain["tpot_s"] == pytest.approx(5e-3, rel=0.1)


def test_more_clients_never_lower_the_throughput(predictor: Predictor) -> None:
    rates = [
        predictor(replace(POINT, concurrency=c, num_requests=8 * c))["output_tokens_per_s"] for c in (8, 16, 32, 64)
    ]
    assert rates == sorted(rates)


def test_one_client_of_tensorrt_llm_waits_in_a_closed_loop(predictor: Predictor) -> None:
    loop = replace(POINT, framework="tensorrt-llm", concurrency=8, num_requests=64)
    batch = replace(loop, num_requests=8)
    assert predictor(loop, NO_OVERHEAD)["ttft_s"] > 1.5 * predictor(batch, NO_OVERHEAD)["ttft_s"]


def test_lengths_vary_only_where_the_point_says_so() -> None:
    fixed, short = requests_of(POINT), requests_of(replace(POINT, shortest=0.8))
    assert set(fixed.input_tokens) == {512}
    assert short.input_tokens.min() >= 409 and short.input_tokens.max() <= 512
    assert np.array_equal(short.input_tokens, requests_of(replace(POINT, shortest=0.8)).input_tokens)


def test_each_measured_figure_is_compared(predictor: Predictor) -> None:
    compared = compare_points([POINT], predictor)
    assert {c.metric for c in compared} == {"ttft_s", "tpot_s"}
    assert compared[0].group == "vllm llama-3.1-8b bf16 H100-SXM tp1"


def test_a_recorded_run_on_its_own_kernel_tables() -> None:
    path = shared_data("vllm_runs/RTX4090_Llama-3.1-8B.csv")
    profile = import_profile(shared_data("kernels/llmservingsim/RTX4090/Llama-3.1-8B/bf16"))
    errors = {(c.metric, c.name): abs(c.error) for c in compare_run(read_run(path, "RTX4090"), profile)}
    assert errors["ttft_s", "mean"] < 0.05
    assert errors["tpot_s", "p50"] < 0.05
    assert errors["e2e_s", "mean"] < 0.05


def test_derived_blocks_are_those_that_the_run_logged() -> None:
    run = read_run(shared_data("vllm_runs/RTX4090_Llama-3.1-8B.csv"), "RTX4090")
    derived = replace(run.replica, engine=replace(run.replica.engine, num_gpu_blocks=None))
    assert memory_plan(derived).num_gpu_blocks == pytest.approx(run.replica.engine.num_gpu_blocks, rel=0.005)


def test_tensorrt_llm_and_tgi_reserve_a_whole_answer_and_preempt_no_one() -> None:
    """Blocks of the prompt and of all that may be answered are taken at admission (guaranteed no evict)."""
    requests = Requests(np.zeros(300), np.full(300, 100), np.full(300, 900))

    def run(framework: str, **options: object) -> Records:
        engine = Engine(framework=framework, num_gpu_blocks=500, block_size=16, max_num_seqs=256, options=options)
        line = build_line(Replica(find_model("llama-3.1-8b"), find_gpu("H100-SXM"), engine=engine))
        return simulate_replicas(requests, [line.spec])

    reserved, needed = run("tensorrt-llm"), run("tensorrt-llm", capacity_scheduler_policy="max_utilization")
    assert reserved.preemptions.sum() == run("tgi").preemptions.sum() == 0 < needed.preemptions.sum()
    with pytest.raises(InputError, match="capacity_scheduler_policy with framework vllm"):
        run("vllm", capacity_scheduler_policy="max_utilization")
    with pytest.raises(InputError, match="no capacity_scheduler_policy 'some'"):
        run("tensorrt-llm", capacity_scheduler_policy="some")
