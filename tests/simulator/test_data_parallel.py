"""Data-parallel ranks behind one front end, and lock-step ranks that share experts, by what must hold of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibrate.kernel_sums import KernelSums
from calibrate.profiles import best_profile
from calibrate.step import StepShape
from calibrate.step_time import step_model
from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica
from simulator.engine import ReplicaSpec, simulate_replicas
from simulator.replicas import build_line
from simulator.workload import Requests
from tests.simulator.test_engine_against_theory import constant_steps


def spec(**kw: object) -> ReplicaSpec:
    settings = {"num_gpu_blocks": 10_001, "max_model_len": 5000, "enable_prefix_caching": False, **kw}
    return ReplicaSpec(constant_steps(), **settings)  # type: ignore[arg-type]


def test_a_front_end_sends_between_two_updates_as_its_own_counts_say() -> None:
    n = 9
    requests = Requests(np.linspace(0.01, 0.09, n), np.full(n, 10), np.full(n, 5))
    ranks = [spec(front_end_ranks=3)] * 3
    records = simulate_replicas(requests, ranks, "random", check=True)  # the router has no say within a replica
    assert records.replica.tolist() == [0, 1, 2] * 3


def test_a_front_end_weighs_a_waiting_request_as_four_running_ones() -> None:
    # five long answers run on each rank; one more waits on rank 0 for a seat: 5 + 4 against 5
    arrival_s = np.concatenate([np.full(10, 0.0), [1.0], np.full(1, 5.25), np.full(1, 5.26)])
    requests = Requests(arrival_s, np.full(13, 10), np.full(13, 500))
    ranks = [spec(front_end_ranks=2, max_num_seqs=5)] * 2
    records = simulate_replicas(requests, ranks, check=True)
    assert records.replica[:10].tolist() == [0, 1] * 5
    assert records.replica[10:].tolist() == [0, 1, 0]


def test_a_front_end_looks_every_100_ms_only() -> None:
    # rank 0 is free again before 1.0 s has passed, but a step lasts a second: what it decided last still counts
    requests = Requests(np.array([0.0, 2.03, 2.04, 2.05]), np.full(4, 10), np.array([1, 1, 1, 1]))
    ranks = [spec(front_end_ranks=2, async_scheduling=False)] * 2
    assert simulate_replicas(requests, ranks).replica.tolist() == [0, 0, 1, 0]


def test_each_replica_has_a_front_end_of_its_own() -> None:
    requests = Requests(np.linspace(0.0, 0.05, 8), np.full(8, 10), np.full(8, 5))
    ranks = [spec(front_end_ranks=2)] * 4
    records = simulate_replicas(requests, ranks, "round_robin")
    assert sorted(np.bincount(records.replica, minlength=4).tolist()) == [2, 2, 2, 2]
    with pytest.raises(InputError, match="2 ranks behind a front end is not complete"):
        simulate_replicas(requests, ranks[:3])


def _experts_only(per_token_s: float, **kw: object) -> ReplicaSpec:
    """Lock-step ranks whose steps last a second, and a time for each token that the experts see."""
    table = constant_steps()._replace(experts_s=per_token_s * np.arange(8193.0))
    return replace(spec(**kw), step_table=table, async_scheduling=False)


def test_idle_ranks_run_a_dummy_token_and_small_steps_are_padded_to_one_graph() -> None:
    requests = Requests(np.zeros(1), np.array([11]), np.array([2]))
    for graph_tokens, prompt_tokens, decode_tokens in ((0, 11 + 3, 1 + 3), (8, 11 + 3, 4 * 1), (512, 4 * 16, 4 * 1)):
        ranks = [_experts_only(0.01, lockstep_ranks=4, graph_tokens=graph_tokens)] * 4
        records = simulate_replicas(requests, ranks, check=True)
        expected = 2.0 + 0.01 * (prompt_tokens + decode_tokens)
        assert records.finish_s[0] == pytest.approx(expected)
        assert set(records.iterations) == {2}
        plain = simulate_replicas(requests, ranks, fast=False)
        assert plain.finish_s[0] == pytest.approx(expected)


def test_a_step_of_lockstep_ranks_lasts_as_long_as_the_slowest_ranks_own() -> None:
    rng = np.random.default_rng(0)
    requests = Requests(np.sort(rng.uniform(0, 50, 200)), rng.integers(1, 300, 200), rng.integers(1, 60, 200))
    table = constant_steps()
    by_tokens = 0.05 + 0.0001 * np.arange(len(table.mixed_tokens_s))
    table = table._replace(mixed_tokens_s=by_tokens, decode_tokens_s=by_tokens)
    together = [replace(spec(lockstep_ranks=2), step_table=table)] * 2
    apart = [replace(spec(), step_table=table)] * 2
    with_group, alone = simulate_replicas(requests, together, check=True), simulate_replicas(requests, apart)
    assert with_group.busy_s[0] == with_group.busy_s[1] >= alone.busy_s.max() - 1e-9
    assert (with_group.finish_s - alone.finish_s).mean() >= 0.0  # company never helps


def test_a_replica_of_data_parallel_ranks_has_a_front_end_where_its_engine_has_one() -> None:
    def line(framework: str, **engine: object) -> ReplicaSpec:
        replica = Replica(
            find_model("qwen3-30b-a3b"), find_gpu("H100-SXM"), data_parallel_size=2, expert_parallel_size=2,
            engine=Engine(framework=framework, max_num_seqs=64, **engine),  # type: ignore[arg-type]
        )  # fmt: skip
        return build_line(replica).spec

    assert line("vllm").front_end_ranks == 2
    assert line("sglang").front_end_ranks == 1
    assert line("vllm").graph_tokens == 128  # twice the seats
    assert line("vllm", enforce_eager=True).graph_tokens == 0


def test_experts_are_timed_at_the_tokens_of_all_ranks() -> None:
    gpu, engine = find_gpu("H100-SXM"), Engine(max_num_seqs=256, max_num_batched_tokens=2048)
    model = find_model("qwen3-30b-a3b")
    replica = Replica(model, gpu, data_parallel_size=2, expert_parallel_size=2, engine=engine)
    profile = best_profile(replica)
    line = build_line(replica, profile)
    table = line.spec.step_table
    assert table.experts_s is not None and len(table.experts_s) == 2 * 2048 + 1
    whole = KernelSums(line.replica, profile).positionwise_s(np.array([16.0, 512.0, 2048.0]))
    for tokens, expected in zip((16, 512, 2048), whole, strict=True):
        assert table.decode_tokens_s[tokens] + table.experts_s[2 * tokens] == pytest.approx(expected, rel=0.03)
    # a prompt on one rank and few decodes on the other: shorter than a prompt on both, longer than the prompt alone
    shape = StepShape(2048, 1024, 0, 0, 1)
    both_s = step_model(line.replica, profile).step_time_s(shape)
    requests = Requests(np.zeros(1), np.array([2048]), np.array([1]))
    alone_s = float(simulate_replicas(requests, [line.spec] * 2).busy_s[0])
    two = Requests(np.zeros(2), np.array([2048, 2048]), np.array([1, 1]))
    assert alone_s < both_s == pytest.approx(float(simulate_replicas(two, [line.spec] * 2).busy_s[0]), rel=0.01)
