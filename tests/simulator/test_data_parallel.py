"""Data-parallel ranks behind one front end, and lock-step ranks that share experts, by what must hold of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibrate.kernel_sums import KernelSums
from calibrate.physics.cuda_graphs import largest_graph
from calibrate.physics.expert_exchange import dispatched_bytes, exchange_family
from calibrate.physics.expert_layout import expert_slices, splits_tokens
from calibrate.physics.work import replica_weight_bytes
from calibrate.profiles import best_profile
from calibrate.step import StepShape
from calibrate.step_time import step_model
from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica
from simulator.engine.simulate import ReplicaSpec, simulate_replicas
from simulator.scenario.replicas import build_line
from simulator.workload.requests import Requests
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


def _counting(per_token_s: float, **kw: object) -> ReplicaSpec:
    """Two lock-step ranks whose own layers last a second and so much for each token; nothing else takes time."""
    table = constant_steps()
    tokens = np.arange(len(table.mixed_tokens_s))
    by_tokens = 1.0 + per_token_s * tokens
    table = table._replace(mixed_tokens_s=by_tokens + 0.5, decode_tokens_s=by_tokens, experts_s=np.zeros(2 * 8192 + 1))
    return replace(spec(lockstep_ranks=2, **kw), step_table=table, async_scheduling=False)


def test_every_rank_computes_the_padding_and_runs_the_graph_of_a_step_with_a_prompt() -> None:
    # rank 0 has one long context, rank 1 a prompt of 100 tokens: rank 0's attention on top of 104 padded tokens
    ranks = [_counting(0.01, graph_tokens=512)] * 2
    attention = np.zeros((2, 2, 2, 2))
    attention[:, :, 1, :] = 7.0  # of each decoding sequence
    ranks = [replace(r, step_table=r.step_table._replace(attention_s=attention)) for r in ranks]
    requests = Requests(np.array([0.0, 1.0]), np.array([8, 100]), np.array([3, 1]))
    records = simulate_replicas(requests, ranks, check=True)
    first_s = 1.5 + 0.08  # a prompt of 8 tokens
    assert records.first_token_s[0] == pytest.approx(first_s)
    assert records.first_token_s[1] == pytest.approx(first_s + 1.5 + 1.04 + 7.0)
    assert records.finish_s[0] == pytest.approx(first_s + 1.5 + 1.04 + 7.0 + 1.01 + 7.0)
    assert simulate_replicas(requests, ranks, fast=False).finish_s == pytest.approx(records.finish_s)


def test_idle_ranks_run_dummy_steps_until_the_32nd_and_a_request_waits_for_the_end_of_one() -> None:
    # three steps (a prompt and two tokens) end at 3.5; dummy steps of a second each follow, the last ends at 32.5
    arrival_s = np.array([0.0, 5.0, 100.0, 101.0])
    ranks = [_counting(0.0)] * 2
    requests = Requests(arrival_s, np.full(4, 5), np.array([3, 1, 1, 1]))
    for fast in (True, False):
        records = simulate_replicas(requests, ranks, fast=fast)
        assert records.finish_s[0] == pytest.approx(3.5)
        assert records.scheduled_s[1:] == pytest.approx([5.5, 100.0, 101.5])
    late = replace(requests, arrival_s=np.array([0.0, 32.6, 100.0, 101.0]))
    assert simulate_replicas(late, ranks, check=True).scheduled_s[1] == pytest.approx(32.6)
    alone = [replace(ranks[0], lockstep_ranks=1)] * 2  # ranks that share nothing stop at once
    assert simulate_replicas(requests, alone).scheduled_s[1] == pytest.approx(5.0)


def test_without_expert_parallelism_all_ranks_of_vllm_share_each_experts_width() -> None:
    model, gpu = find_model("qwen3-30b-a3b"), find_gpu("H100-SXM")

    def replica(framework: str = "vllm", **kw: int) -> Replica:
        return Replica(model, gpu, engine=Engine(framework=framework, max_num_seqs=64), **kw)

    one, two, four = replica(), replica(data_parallel_size=2), replica(data_parallel_size=2, tensor_parallel_size=2)
    experts = 48 * 128 * 3 * 2048 * 768 * 2.0
    assert replica_weight_bytes(one) - replica_weight_bytes(two) == pytest.approx(experts / 2)
    assert [expert_slices(r) for r in (one, two, four)] == [1, 2, 4]
    whole = replica(data_parallel_size=2, expert_parallel_size=2)
    assert replica_weight_bytes(whole) == replica_weight_bytes(two)  # whole experts of half as many
    assert build_line(two).spec.lockstep_ranks == build_line(whole).spec.lockstep_ranks == 2
    apart = build_line(replica("sglang", data_parallel_size=2))  # a router over whole replicas
    assert apart.spec.lockstep_ranks == 1 and replica_weight_bytes(apart.replica) == replica_weight_bytes(one)
    dense = build_line(Replica(find_model("llama-3.1-8b"), gpu, data_parallel_size=2))
    assert dense.spec.lockstep_ranks == 1 and dense.spec.step_table.experts_s is None


def test_gathering_brings_the_routers_logits_and_deepep_takes_away_the_graphs() -> None:
    model, gpu = find_model("qwen3-30b-a3b"), find_gpu("H100-SXM")

    def replica(backend: str = "allgather_reducescatter", ep: int = 4, **kw: object) -> Replica:
        sizes = {"tensor_parallel_size": 2, "data_parallel_size": 2, "expert_parallel_size": ep}
        return Replica(model, gpu, engine=Engine(options={"all2all_backend": backend}), **sizes, **kw)  # type: ignore[arg-type]

    assert dispatched_bytes(replica(), 2.0) == 2 * (2048 + 128)
    assert dispatched_bytes(replica(), 1.0) == 2048 + 8 * 8  # as the experts read them, and whose they are
    assert splits_tokens(replica()) and not splits_tokens(replica(ep=1))
    assert exchange_family(replica("deepep_low_latency")) == "all_to_all"
    assert exchange_family(replica("deepep_low_latency", ep=1)) == exchange_family(replica("pplx")) == "all_gather"
    assert largest_graph(replica("deepep_high_throughput")) == 0 < largest_graph(replica())
    kernels = KernelSums(replica(), best_profile(replica()))
    tokens = np.array([64.0])
    assert 0 < kernels.after_mlp_s(tokens)[0] != kernels.all_reduce_s(tokens)[0]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor_parallel_size": 2, "expert_parallel_size": 4}, "expert_parallel_size 4 with tensor_parallel_size 2"),
        ({"data_parallel_size": 4, "expert_parallel_size": 2}, "expert_parallel_size 2 with"),
        ({"data_parallel_size": 5}, "5 GPUs cannot share the width 768"),
        ({"data_parallel_size": 256, "expert_parallel_size": 256}, "exceeds qwen3-30b-a3b's 128 experts"),
    ],
)
def test_experts_are_shared_as_the_engine_can(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_line(Replica(find_model("qwen3-30b-a3b"), find_gpu("H100-SXM"), **sizes))
    with pytest.raises(InputError, match="expert_parallel_size 2 for llama"):
        build_line(Replica(find_model("llama-3.1-8b"), find_gpu("H100-SXM"), expert_parallel_size=2))
