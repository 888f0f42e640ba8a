"""Pipelines and lock-step ranks, from a replica's description to what the engine does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica
from simulator.engine.records import Records
from simulator.engine.simulate import Plane, ReplicaSpec, simulate_replicas
from simulator.run import simulate
from simulator.scenario.replicas import Line, build_line
from simulator.scenario.spec import Scenario
from simulator.workload.requests import Requests
from tests.simulator.test_engine_against_theory import constant_steps

REQUESTS = Requests(np.zeros(256), np.full(256, 500, np.int64), np.full(256, 100, np.int64))


def line(model: str, **parallel: int) -> Line:
    engine = Engine(max_num_seqs=256, max_num_batched_tokens=2048)
    return build_line(Replica(find_model(model), find_gpu("H100-SXM"), engine=engine, **parallel))


def end_s(line: Line) -> float:
    return simulate_replicas(REQUESTS, [line.spec] * line.num_engines, check=True).end_s


def test_a_pipeline_of_two_stages_has_two_micro_batches_under_way() -> None:
    whole, halves = (
        line("llama-3.1-70b", tensor_parallel_size=4),
        line("llama-3.1-70b", tensor_parallel_size=4, pipeline_parallel_size=2),
    )
    assert halves.num_engines == halves.spec.pipeline_stages == 2
    assert halves.spec.max_num_seqs == 256  # of all batches together
    assert halves.spec.num_gpu_blocks > whole.spec.num_gpu_blocks  # a stage holds half of the weights
    assert 1.3 < end_s(whole) / end_s(halves) < 2.0  # twice the GPUs, less twice the work


def test_ranks_that_share_experts_end_together() -> None:
    ranks = line("qwen3-30b-a3b", data_parallel_size=2, expert_parallel_size=2)
    assert ranks.spec.lockstep_ranks == ranks.num_engines == 2
    records = simulate_replicas(REQUESTS, [ranks.spec] * 2, check=True)
    assert records.iterations[0] == records.iterations[1]
    assert records.busy_s[0] == records.busy_s[1]


def test_a_lockstep_group_is_whole() -> None:
    ranks = line("qwen3-30b-a3b", data_parallel_size=2, expert_parallel_size=2)
    with pytest.raises(InputError, match="a group of 2 lock-step ranks is not complete"):
        simulate_replicas(REQUESTS, [ranks.spec])
    plane = Plane(REQUESTS, [ranks.spec] * 2)
    with pytest.raises(InputError, match="lock-step group"):
        plane.kill(0)


def steps_of(seconds: float, **kw: object) -> ReplicaSpec:
    """Batches of a pipeline of four stages, whose steps take so long whatever they compute."""
    settings = {"pipeline_stages": 4, "async_scheduling": False, "max_num_batched_tokens": 512, **kw}
    return ReplicaSpec(constant_steps(seconds), 4001, enable_prefix_caching=False, **settings)  # type: ignore[arg-type]


def serve(spec: ReplicaSpec, arrival_s: list[float], inputs: list[int], outputs: list[int]) -> Records:
    requests = Requests(np.array(arrival_s), np.array(inputs), np.array(outputs))
    return simulate_replicas(requests, [spec] * spec.pipeline_stages, check=True)


def test_a_request_passes_all_stages_for_each_token() -> None:
    alone = serve(steps_of(4.0), [0.0], [100], [10])
    assert alone.finish_s[0] == pytest.approx(40.0)


def test_a_full_pipeline_puts_out_a_batch_each_stage_time() -> None:
    # each prompt fills the budget, so that four batches are formed and follow each other by a stage's second
    records = serve(steps_of(4.0, max_num_seqs=4), [0.0] * 4, [512] * 4, [11] * 4)
    assert records.first_token_s == pytest.approx([4.0, 5.0, 6.0, 7.0])
    assert records.finish_s == pytest.approx([44.0, 45.0, 46.0, 47.0])
    assert records.iterations.tolist() == [11] * 4


def test_a_request_joins_the_batch_that_comes_out_next() -> None:
    # one batch is under way, and nothing is decided until it has come out; with a second one, the older comes first
    assert serve(steps_of(4.0), [0.0, 1.5], [10, 10], [10, 1]).first_token_s[1] == pytest.approx(8.0)
    two = serve(steps_of(4.0), [0.0, 0.0, 4.5], [512, 512, 10], [20, 20, 1])
    assert two.first_token_s[2] == pytest.approx(9.0)  # with the second batch, which comes out at 5
    assert two.replica[2] == two.replica[1]


def test_a_pipeline_has_one_cache_and_one_set_of_seats() -> None:
    long = serve(steps_of(4.0, max_num_seqs=4), [0.0], [60_000], [3])  # most of the cache, in chunks of the budget
    assert long.status[0] == 0
    crowded = serve(steps_of(4.0, max_num_seqs=2), [0.0] * 6, [512] * 6, [5] * 6)
    for at_s in np.arange(0.5, crowded.end_s, 1.0):
        assert ((crowded.scheduled_s <= at_s) & (at_s < crowded.finish_s)).sum() <= 2


def test_a_pipeline_refuses_what_its_scheduler_cannot() -> None:
    for change in ({"async_scheduling": True}, {"lockstep_ranks": 4}, {"policy": "static"}):
        with pytest.raises(InputError, match="pipeline stages with"):
            steps_of(1.0, **change)
    asked = Engine(version="0.15", options={"async_scheduling": True})
    with pytest.raises(InputError, match="pipeline stages with async_scheduling"):
        build_line(Replica(find_model("llama-3.1-8b"), find_gpu("L40S"), pipeline_parallel_size=2, engine=asked))
    with pytest.raises(InputError, match="4 batches of a pipeline is not complete"):
        simulate_replicas(REQUESTS, [steps_of(1.0)] * 3)


def test_a_prefix_that_one_batch_computed_is_found_by_the_next_and_kv_offload_is_shared() -> None:
    unit = 16
    requests = Requests(
        np.array([0.0, 100.0]), np.full(2, 20 * unit), np.full(2, 5, np.int64),
        hash_ids=np.concatenate([np.arange(20)] * 2), hash_offsets=np.array([0, 20, 40]), hash_block_tokens=unit,
    )  # fmt: skip
    spec = replace(steps_of(4.0), enable_prefix_caching=True)
    records = simulate_replicas(requests, [spec] * 4, check=True)
    assert records.num_cached_tokens.tolist() == [0, 19 * unit]
    engine = Engine(options={"kv_offload": {"cpu_gib": 64}})
    gpu, parallel = find_gpu("H100-SXM"), {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    made = build_line(Replica(find_model("llama-3.1-70b"), gpu, engine=engine, **parallel))
    assert made.spec.kv_offload is not None and made.num_schedulers == 1 and made.num_engines == 2
    all_layers = 2 * 80 * 8 * 128 * 2 * 16  # K and V of 16 tokens
    assert made.spec.kv_offload.num_cpu_blocks == 64 * 2**30 // all_layers


def test_a_live_fleet_refuses_a_pipeline() -> None:
    scenario = Scenario.model_validate(
        {
            "model": "llama-3.1-8b",
            "workload": {
                "arrivals": {"process": "poisson", "rate_rps": 1, "num_requests": 10},
                "input_tokens": {"distribution": "fixed", "value": 100},
                "output_tokens": {"distribution": "fixed", "value": 10},
            },
            "fleet": [{"gpu": "L40S", "pipeline_parallel_size": 2}],
            "failures": {"crash_mtbf_h": 1.0},
        }
    )
    with pytest.raises(InputError, match="pipeline_parallel_size"):
        simulate(scenario)


def test_asynchronous_steps_pass_the_stages_one_at_a_time() -> None:
    """vLLM from 0.16 on: the first stage waits for the tokens that the last one has sampled."""

    def pipelined(model: str = "llama-3.1-8b", version: str = "0.19.0", **kw: object) -> Line:
        sizes = {"pipeline_parallel_size": 2, **{k: v for k, v in kw.items() if k.endswith("size")}}
        options = {k: v for k, v in kw.items() if not k.endswith("size")}
        engine = Engine(version=version, max_num_seqs=256, max_num_batched_tokens=2048, options=options)
        return build_line(Replica(find_model(model), find_gpu("H100-SXM"), engine=engine, **sizes))  # type: ignore[arg-type]

    made = pipelined()
    assert (made.num_engines, made.spec.pipeline_stages, made.spec.async_scheduling) == (1, 1, True)
    for older in (pipelined(version="0.15"), pipelined(async_scheduling=False)):
        assert (older.num_engines, older.spec.pipeline_stages, older.spec.async_scheduling) == (2, 2, False)
    # prompts gain by filling the pipeline; one batch at a time leaves each stage idle half of the time
    prompts = Requests(np.zeros(64), np.full(64, 2048, np.int64), np.ones(64, np.int64))
    filled, one_by_one = (simulate_replicas(prompts, [line.spec] * line.num_engines).end_s for line in (older, made))
    assert 1.8 < one_by_one / filled < 2.0
    moe = {"model": "qwen3-30b-a3b", "data_parallel_size": 2, "expert_parallel_size": 2}
    ranks, rounds = pipelined(**moe), pipelined(async_scheduling=False, **moe)  # type: ignore[arg-type]
    assert (ranks.num_engines, ranks.spec.lockstep_ranks, ranks.spec.front_end_ranks) == (2, 2, 2)
    assert (rounds.num_engines, rounds.spec.lockstep_ranks, rounds.spec.front_end_ranks) == (4, 4, 1)


@pytest.mark.parametrize("router", ["least_loaded", "power_of_two"])
def test_a_router_sees_a_pipeline_as_one(router: str) -> None:
    """Requests that come one by one find a free pipeline each, and the plain engine says the same."""
    pipeline = line("llama-3.1-8b", pipeline_parallel_size=2)
    num = 40
    requests = Requests(np.arange(num) * 0.05, np.full(num, 200, np.int64), np.full(num, 60, np.int64))
    specs = [pipeline.spec] * 16
    fast, plain = (simulate_replicas(requests, specs, router, fast=quick) for quick in (True, False))
    np.testing.assert_array_equal(fast.replica, plain.replica)
    each = np.bincount(fast.replica // 2, minlength=8)
    assert each.max() <= num // 4 and (each > 0).all()
