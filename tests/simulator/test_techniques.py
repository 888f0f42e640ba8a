"""Speculation, swap and KV offload: against theory, by hand, on a real trace, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from catalogs.errors import InputError
from simulator.engine.simulate import ReplicaSpec, simulate_replicas
from simulator.engine.techniques import KvOffload, Speculation, SwapSpace
from simulator.run import simulate
from simulator.scenario.replicas import build_fleet
from simulator.scenario.spec import read_scenario
from simulator.workload.requests import Requests
from simulator.workload.traces import read_trace
from tests.shared_data import shared_data
from tests.simulator.test_engine_against_theory import constant_steps

SCENARIO = """\
model: llama-3.1-8b
workload:
  arrivals: {process: poisson, rate_rps: 4, num_requests: 60}
  input_tokens: {distribution: fixed, value: 400}
  output_tokens: {distribution: fixed, value: 100}
fleet:
  - {gpu: H100-SXM, engine: {%s}}
"""


def spec(**kw: object) -> ReplicaSpec:
    settings = {"num_gpu_blocks": 1001, "max_model_len": 5000, "async_scheduling": False, **kw}
    return ReplicaSpec(constant_steps(), **settings)  # type: ignore[arg-type]


def read(tmp_path: Path, engine: str) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO % engine)
    return path


@pytest.mark.parametrize(("k", "rate"), [(1, 0.5), (3, 0.7), (5, 0.9), (4, 0.0), (2, 1.0)])
def test_tokens_per_step_are_those_of_leviathan_et_al_equation_1(k: int, rate: float) -> None:
    speculation = Speculation(k, rate)
    requests = Requests(np.zeros(1), np.array([10]), np.array([4001]))
    records = simulate_replicas(requests, [spec(speculation=speculation)], seed=3)
    steps = records.iterations[0] - 1  # the first computes the prompt, and its token
    expected = (k + 1) if rate == 1.0 else (1 - rate ** (k + 1)) / (1 - rate)
    assert speculation.tokens_per_step == pytest.approx(expected)
    assert 4000 / steps == pytest.approx(expected, rel=0.05)


def test_what_is_accepted_depends_on_neither_the_length_of_the_answer_nor_the_company() -> None:
    alone = Requests(np.zeros(1), np.array([50]), np.array([200]))
    longer = Requests(np.zeros(1), np.array([50]), np.array([400]))
    many = Requests(np.zeros(5), np.full(5, 50), np.full(5, 200))
    one = spec(speculation=Speculation(3, 0.6))
    short, long = (simulate_replicas(r, [one], seed=1).iterations[0] for r in (alone, longer))
    assert short < long
    finish = simulate_replicas(many, [one], seed=1)
    steps_of_first = finish.finish_s[0] - finish.first_token_s[0]
    base = simulate_replicas(alone, [one], seed=1)
    assert steps_of_first == pytest.approx(base.finish_s[0] - base.first_token_s[0])
    assert not np.array_equal(finish.finish_s, simulate_replicas(many, [one], seed=2).finish_s)


def test_a_step_that_verifies_uses_the_budget_of_its_proposals() -> None:
    requests = Requests(np.zeros(8), np.full(8, 4), np.full(8, 100))
    tight = spec(speculation=Speculation(3, 1.0), max_num_seqs=8, max_num_batched_tokens=8)
    records = simulate_replicas(requests, [tight], check=True)
    assert records.iterations[0] >= 8 * 99 / 8  # two sequences of four tokens a step, not eight


def test_swapped_sequences_wait_for_copies_by_hand() -> None:
    requests = Requests(np.zeros(2), np.array([32, 32]), np.array([40, 40]))
    swap = SwapSpace(100, 0.25)
    tight = spec(num_gpu_blocks=7, enable_prefix_caching=False, swap=swap, max_num_batched_tokens=256)
    records = simulate_replicas(requests, [tight], check=True)
    assert records.counts["swap_outs"][0] == records.counts["swap_ins"][0] == records.preemptions[0] == 1
    recomputed = simulate_replicas(requests, [replace(tight, swap=None)])
    # both have 48 tokens in 3 blocks each when no block is left, so that 3 go out and come in; a step takes a second
    # whatever it computes, and recomputing yields a token too, so that only the copies are between the two
    assert records.busy_s[0] - recomputed.busy_s[0] == pytest.approx(6 * 0.25)
    full = simulate_replicas(requests, [replace(tight, swap=SwapSpace(2, 0.25))], check=True)
    assert full.counts["swap_outs"][0] == 0
    np.testing.assert_allclose(full.finish_s, recomputed.finish_s)


def test_an_endless_tier_finds_what_the_mooncake_trace_holds() -> None:
    trace = read_trace(shared_data("traces/mooncake_conversation.csv"))
    assert trace.hash_ids is not None and trace.hash_offsets is not None
    seen: set[int] = set()
    found = 0
    for begin, end in zip(trace.hash_offsets[:-1], trace.hash_offsets[1:], strict=True):
        ids = trace.hash_ids[begin:end].tolist()
        found += next((place for place, key in enumerate(ids) if key not in seen), len(ids))
        seen.update(ids)
    known = found / len(trace.hash_ids)
    assert known == pytest.approx(0.366, abs=0.001)
    table = constant_steps(1e-6, 1e-12)  # so fast that each prompt is done before the next one comes
    trace = replace(trace, output_tokens=np.ones_like(trace.output_tokens))
    engine = spec(num_gpu_blocks=400, block_size=512, max_num_batched_tokens=200_000, max_model_len=200_000)
    engine = replace(engine, step_table=table)

    def shares(num_cpu_blocks: int, num_disk_blocks: int) -> tuple[float, float, float]:
        offload = KvOffload(num_cpu_blocks, 1e-9, num_disk_blocks, 1e-9)
        records = simulate_replicas(trace, [replace(engine, kv_offload=offload)])
        blocks = len(trace.hash_ids) * 512  # type: ignore[arg-type]
        in_tiers = (records.counts[f"{tier}_hits"].sum() / blocks for tier in ("cpu", "disk"))
        return float(records.num_cached_tokens.sum() / blocks), *(float(x) for x in in_tiers)  # type: ignore[return-value]

    endless, beyond, small = shares(10**7, 0), shares(1000, 10**7), shares(1000, 0)
    # the last token of a prompt is always computed, so that a block of it may be found and not used
    assert known - 0.001 < endless[0] <= known
    assert beyond[0] == pytest.approx(endless[0]) and beyond[2] > 0.3
    assert small[0] < 0.1


def test_loads_hold_up_a_step_or_run_beside_it() -> None:
    unit = 16
    requests = Requests(
        np.array([0.0, 1000.0, 2000.0]), np.full(3, 20 * unit), np.ones(3, np.int64),
        hash_ids=np.concatenate([np.arange(20), np.arange(100, 120), np.arange(20)]),
        hash_offsets=np.array([0, 20, 40, 60]), hash_block_tokens=unit,
    )  # fmt: skip
    engine = spec(num_gpu_blocks=22)
    none = simulate_replicas(requests, [engine])
    waits = simulate_replicas(requests, [replace(engine, kv_offload=KvOffload(100, 0.1))], check=True)
    beside = simulate_replicas(requests, [replace(engine, kv_offload=KvOffload(100, 0.1, overlap=True))], check=True)
    assert none.num_cached_tokens.tolist() == [0, 0, unit]  # one block was left of the first prompt's twenty
    assert waits.num_cached_tokens.tolist() == beside.num_cached_tokens.tolist() == [0, 0, 19 * unit]
    assert waits.busy_s[0] == pytest.approx(none.busy_s[0] + 18 * 0.1)
    assert beside.busy_s[0] == pytest.approx(none.busy_s[0] - 1.0 + max(1.0, 18 * 0.1))


def test_a_scenario_with_each_technique_runs_and_says_what_it_did(tmp_path: Path) -> None:
    eagle = "speculative: {method: eagle, num_speculative_tokens: 3, acceptance_rate: 0.7}"
    plain = simulate(read_scenario(read(tmp_path, "framework: vllm"))).document
    found = simulate(read_scenario(read(tmp_path, eagle))).document
    assert found["engine"]["num_gpu_blocks"] < plain["engine"]["num_gpu_blocks"]  # the head and its KV need room
    assert 0 < found["engine"]["speculation"]["accepted_tokens"] < found["engine"]["speculation"]["draft_tokens"]
    assert found["tpot_s"]["mean"] < plain["tpot_s"]["mean"]
    swap = 'version: "0.10", num_gpu_blocks: 80, max_model_len: 1000, preemption_mode: swap, swap_space_gib: 2'
    found = simulate(read_scenario(read(tmp_path, swap))).document
    assert found["engine"]["swap"]["out"] == found["engine"]["swap"]["in"] > 0
    offload = "kv_offload: {backend: lmcache, cpu_gib: 8, disk_gib: 20, disk_gb_per_s: 3}"
    found = simulate(read_scenario(read(tmp_path, offload))).document
    assert found["engine"]["kv_offload"]["cpu_blocks"] == 8 * 2**30 // (16 * 131072)


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("preemption_mode: swap", "preemption_mode: swap with vllm 0.19"),
        ("framework: sglang, preemption_mode: swap", "preemption_mode: swap with sglang"),
        ("version: '0.10', preemption_mode: swap, enable_prefix_caching: true", "swap with enable_prefix_caching"),
        ("swap_space_gib: 4", "swap_space_gib without preemption_mode"),
        ("framework: tgi, kv_offload: {cpu_gib: 4}", "kv_offload backend none with tgi"),
        ("kv_offload: {cpu_gib: 4, disk_gib: 9, disk_gb_per_s: 3}", "disk_gib with backend native"),
        ("kv_offload: {hicache_ratio: 2}", "hicache_ratio 2 with vllm"),
        ("kv_offload: {cpu_gib: 4}, enable_prefix_caching: false", "KV offload without enable_prefix_caching"),
        ("speculative: {method: mtp, num_speculative_tokens: 1, acceptance_rate: 0.8}", "mtp with llama-3.1-8b"),
        (
            "framework: tgi, speculative: {method: eagle, num_speculative_tokens: 1, acceptance_rate: 0.8}",
            "method eagle with tgi",
        ),
        (
            "options: {async_scheduling: true}, "
            "speculative: {method: ngram, num_speculative_tokens: 1, acceptance_rate: 0.8}",
            "speculative with async_scheduling: true",
        ),
    ],
)
def test_what_an_engine_does_not_offer_is_refused_with_its_rule(tmp_path: Path, engine: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        build_fleet(read_scenario(read(tmp_path, engine)))
    assert error.value.why and error.value.remedy


@pytest.mark.parametrize(
    "engine",
    [
        "speculative: {method: draft, num_speculative_tokens: 1, acceptance_rate: 0.8}",
        "speculative: {method: ngram, num_speculative_tokens: 0, acceptance_rate: 0.8}",
        "speculative: {method: ngram, num_speculative_tokens: 2, acceptance_rate: 1.8}",
        "kv_offload: {cpu_gib: 4, disk_gib: 9}",
        "kv_offload: {}",
        "preemption_mode: often",
    ],
)
def test_a_bad_section_is_refused_with_its_line(tmp_path: Path, engine: str) -> None:
    with pytest.raises(InputError, match=r"s\.yaml:7"):
        read_scenario(read(tmp_path, engine))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("speculative: 5", "speculative"),
        ("speculative: {method: draft, num_speculative_tokens: 1, acceptance_rate: 0.8}", "draft_model"),
        ("kv_offload: [1]", "kv_offload"),
        ("preemption_mode: often", "'often'"),
        ("preemption_mode: swap, swap_space_gib: much", "swap_space_gib is 'much'"),
        ("max_queue_delay_s: soon", "max_queue_delay_s is 'soon'"),
        ("async_scheduling: maybe", "async_scheduling is 'maybe'"),
        ("pad_batch: 1", "pad_batch is 1"),
        ("length_bucket: true", "length_bucket is True"),
    ],
)
def test_what_options_hold_is_checked_as_well(tmp_path: Path, options: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        build_fleet(read_scenario(read(tmp_path, f"version: '0.10', options: {{{options}}}")))
    assert said in str(error.value) and error.value.remedy
