"""Prefill/decode disaggregation: the compiled planes equal the plain ones, and conserve requests and blocks."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from calibrate.step import StepTable
from catalogs.errors import InputError
from simulator.engine.disaggregation import simulate_disaggregated
from simulator.engine.plain.adapters import AdapterSlots
from simulator.engine.pools import Pools
from simulator.engine.records import COMPLETED, Records
from simulator.engine.simulate import ROUTERS, ReplicaSpec, simulate_replicas
from simulator.engine.techniques import Adapters, KvOffload
from simulator.run import simulate
from simulator.scenario.spec import Scenario
from simulator.workload.requests import Requests
from tests.simulator.engine_cases import ADAPTERS, requests, speculations, step_table
from tests.simulator.test_engine_against_theory import constant_steps
from tests.simulator.test_engine_equals_reference import assert_equal


@dataclass(frozen=True)
class Case:
    """One run through two pools."""

    requests: Requests
    pools: Pools
    router: str
    seed: int


def times(rng: np.random.Generator, skew: bool) -> StepTable:
    """Made-up times that grow with a prompt's context too: single tokens see long ones, beyond the table's end."""
    table = step_table(rng, skew=skew)
    return table._replace(attention_s=np.cumsum(table.attention_s, axis=1))


@st.composite
def cases(draw: st.DrawFn, hashes: bool = False, techniques: bool = False) -> Case:
    """Up to 60 requests on up to three prefill and three decode replicas, often short of blocks and links."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    block_size = draw(st.sampled_from([1, 4, 16]))

    def pool(num: int, tiers: bool = False) -> tuple[ReplicaSpec, ...]:
        specs = []
        for _ in range(num):
            seats = draw(st.sampled_from([1, 3, 8, 16]))
            speculation = draw(speculations(rng)) if techniques and draw(st.booleans()) else None
            offload = KvOffload(draw(st.sampled_from([5, 1000])), 0.02, 0, 0.0, draw(st.booleans())) if tiers else None
            specs.append(
                ReplicaSpec(
                    times(rng, draw(st.booleans())),
                    num_gpu_blocks=draw(st.integers(70, 300)) // block_size + 2,
                    block_size=block_size,
                    max_num_seqs=seats,
                    max_num_batched_tokens=draw(st.sampled_from([seats, seats + 7, 64])),
                    max_model_len=draw(st.sampled_from([80, 1000])),
                    enable_prefix_caching=tiers or draw(st.booleans()),
                    enable_chunked_prefill=draw(st.sampled_from([True, True, False])),
                    policy=draw(st.sampled_from(["continuous", "continuous", "prefill_first"])),
                    reserve_output_tokens=draw(st.sampled_from([0, 0, 0, 30])),
                    async_scheduling=speculation is None and draw(st.booleans()),
                    speculation=speculation,
                    kv_offload=offload,
                    adapters=draw(st.sampled_from(ADAPTERS)) if techniques else None,
                )
            )
        return tuple(specs)

    prefill, decode = pool(draw(st.integers(1, 3)), techniques), pool(draw(st.integers(1, 3)))
    links = rng.uniform(1.0, 100.0, len(prefill) + len(decode))
    pools = Pools(
        prefill, decode, tuple(links.tolist()), block_bytes=block_size * draw(st.sampled_from([0.1, 3.0])),
        latency_s=draw(st.sampled_from([0.0, 0.3])), hidden_share=draw(st.sampled_from([0.0, 0.5, 0.97])),
        first_token=draw(st.sampled_from(["decode", "prefill"])),
        decode_router=draw(st.sampled_from(sorted(ROUTERS))),
    )  # fmt: skip
    closed = draw(st.sampled_from([None, None, 1, 4, 20]))
    made = requests(rng, draw(st.integers(1, 60)), draw(st.sampled_from([0.02, 0.2, 2.0])), closed, hashes)
    return Case(made, pools, draw(st.sampled_from(sorted(ROUTERS))), draw(st.integers(0, 9)))


def both(case: Case) -> tuple[Records, Records]:
    fast, plain = (
        simulate_disaggregated(case.requests, case.pools, case.router, case.seed, fast=fast) for fast in (True, False)
    )
    return fast, plain


def assert_handovers_equal(fast: Records, plain: Records) -> None:
    assert fast.handover is not None and plain.handover is not None
    for field in fields(fast.handover):
        one, two = getattr(fast.handover, field.name), getattr(plain.handover, field.name)
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-9, err_msg=field.name)


@given(cases())
def test_compiled_equals_plain(case: Case) -> None:
    fast, plain = both(case)
    assert_equal(fast, plain)
    assert_handovers_equal(fast, plain)


@given(cases(hashes=True))
def test_compiled_equals_plain_with_shared_prefixes(case: Case) -> None:
    fast, plain = both(case)
    assert_equal(fast, plain)
    assert_handovers_equal(fast, plain)


@given(cases(hashes=True, techniques=True))
def test_compiled_equals_plain_with_speculation_and_kv_offload(case: Case) -> None:
    fast, plain = both(case)
    assert_equal(fast, plain)
    assert_handovers_equal(fast, plain)


@given(cases(hashes=True, techniques=True))
def test_requests_and_blocks_are_conserved_at_any_instant(case: Case) -> None:
    records = simulate_disaggregated(case.requests, case.pools, case.router, case.seed, check=True)
    served = case.requests.output_tokens > 0
    assert (records.status[served] != 2).all()  # none is lost or left
    again = simulate_disaggregated(case.requests, case.pools, case.router, case.seed)
    assert records.finish_s.tobytes() == again.finish_s.tobytes()


def alone(output_tokens: int = 5) -> tuple[Requests, ReplicaSpec]:
    rng = np.random.default_rng(3)
    spec = ReplicaSpec(step_table(rng), 100, block_size=4, async_scheduling=False)
    return Requests(np.zeros(1), np.array([20]), np.array([output_tokens])), spec


def test_one_request_by_hand() -> None:
    """Prompt, then transfer of its five blocks, then its last token again and four decode steps."""
    made, spec = alone()
    table = spec.step_table
    spec = replace(spec, step_table=table._replace(request_overhead_s=0.0, output_overhead_s=0.0, prompt_token_s=0.0))
    pools = Pools((spec,), (spec,), (10.0, 5.0), block_bytes=2.0, latency_s=0.25)
    records = simulate_disaggregated(made, pools)
    whole = simulate_replicas(made, [spec])
    way = records.handover
    assert way is not None
    assert way.prefill_end_s[0] == pytest.approx(whole.first_token_s[0])  # computed as in one place
    assert way.end_s[0] - way.start_s[0] == pytest.approx(0.25 + 5 * 2.0 / 5.0)  # 20 tokens, 5 blocks, slower link
    assert way.num_bytes[0] == 10.0
    # after the first token all goes as in one place
    assert records.finish_s[0] - records.first_token_s[0] == pytest.approx(whole.finish_s[0] - whole.first_token_s[0])
    first = simulate_disaggregated(made, replace(pools, first_token="prefill"))
    assert first.first_token_s[0] == pytest.approx(whole.first_token_s[0])


def test_layer_by_layer_only_what_the_link_could_not_carry_during_the_prompt_moves_after_it() -> None:
    made, spec = alone()
    table = spec.step_table
    spec = replace(spec, step_table=table._replace(request_overhead_s=0.0, output_overhead_s=0.0, prompt_token_s=0.0))
    whole = Pools((spec,), (spec,), (10.0, 5.0), block_bytes=2.0, latency_s=0.25)
    plain = simulate_disaggregated(made, whole)
    computing_s = float(plain.handover.prefill_end_s[0] - plain.scheduled_s[0])  # type: ignore[union-attr]
    for link, share in ((1e9, 0.75), (5.0, 0.75), (0.1, 0.75)):
        pools = replace(whole, link_bytes_per_s=(link, link), hidden_share=share)
        way = simulate_disaggregated(made, pools).handover
        assert way is not None and way.num_bytes[0] == 10.0
        left = 10.0 - min(share * 10.0, link * computing_s)
        assert way.end_s[0] - way.start_s[0] == pytest.approx(0.25 + left / link)
    # a link that another prompt's KV takes meanwhile has less to spare
    two = Requests(np.zeros(2), np.full(2, 20), np.full(2, 5))
    both = [simulate_disaggregated(two, replace(whole, hidden_share=share)).finish_s.max() for share in (0.0, 0.9)]
    assert both[1] < both[0]


def test_a_link_carries_one_transfer_at_a_time() -> None:
    rng = np.random.default_rng(5)
    spec = ReplicaSpec(step_table(rng), 4000, block_size=4, max_num_batched_tokens=2048, enable_prefix_caching=False)
    made = Requests(np.zeros(8), np.full(8, 40), np.full(8, 3))
    slow = simulate_disaggregated(made, Pools((spec,), (spec, spec), (1.0, 9.0, 9.0), block_bytes=3.0)).handover
    assert slow is not None
    order = np.argsort(slow.start_s)
    assert (slow.start_s[order][1:] >= slow.end_s[order][:-1] - 1e-9).all()
    assert slow.end_s - slow.start_s == pytest.approx(np.full(8, 30.0))


def test_blocks_stay_with_the_prefill_replica_until_they_are_fetched() -> None:
    """A prefill replica with room for one prompt starts the second only when the first has been fetched."""
    rng = np.random.default_rng(7)
    spec = ReplicaSpec(step_table(rng), 12, block_size=4, enable_prefix_caching=False)
    made = Requests(np.zeros(2), np.full(2, 40), np.full(2, 3))
    records = simulate_disaggregated(made, Pools((spec,), (replace(spec, num_gpu_blocks=90),), (1.0, 1.0), 5.0))
    assert records.handover is not None
    assert records.scheduled_s[1] >= records.handover.end_s[0]
    assert (records.status == COMPLETED).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"decode": ()}, "no decode replica"),
        ({"first_token": "both"}, "first_token"),
        ({"link_bytes_per_s": (1.0, 0.0)}, "link_bytes_per_s"),
        ({"latency_s": -1.0}, "latency_s"),
        ({"hidden_share": 1.0}, "hidden_share"),
    ],
)
def test_refusals(change: dict[str, object], says: str) -> None:
    _, spec = alone()
    with pytest.raises(InputError, match=says):
        replace(Pools((spec,), (spec,), (1.0, 1.0), 1.0), **change)  # type: ignore[arg-type]


def test_pools_that_do_not_fit_together_are_refused() -> None:
    _, spec = alone()
    with pytest.raises(InputError, match="block_size"):
        Pools((spec,), (replace(spec, block_size=8),), (1.0, 1.0), 1.0)
    with pytest.raises(InputError, match="continuously"):
        Pools((replace(spec, policy="static"),), (spec,), (1.0, 1.0), 1.0)


SCENARIO = {
    "model": "llama-3.1-8b",
    "workload": {
        "arrivals": {"process": "poisson", "rate_rps": 8, "num_requests": 60},
        "input_tokens": {"distribution": "fixed", "value": 1000},
        "output_tokens": {"distribution": "fixed", "value": 20},
    },
    "fleet": [{"gpu": "L40S", "role": "prefill"}, {"gpu": "L40S", "role": "decode"}],
    "disaggregation": {"link_bytes_per_s": 1e9, "latency_s": 0.0},
}


def scenario(**changes: object) -> Scenario:
    return Scenario.model_validate(copy.deepcopy(SCENARIO) | changes)


def test_roles_speculate_and_a_prefill_replica_has_a_second_tier_as_vllm_allows() -> None:
    eagle = {"speculative": {"method": "eagle", "num_speculative_tokens": 3, "acceptance_rate": 0.7}}
    offload = {"kv_offload": {"cpu_gib": 4}}

    def fleet(prefill: dict[str, object], decode: dict[str, object]) -> list[dict[str, object]]:
        return [
            {"gpu": "L40S", "role": "prefill", "engine": prefill},
            {"gpu": "L40S", "role": "decode", "engine": decode},
        ]

    plain = simulate(scenario()).document
    found = simulate(scenario(fleet=fleet(offload, eagle))).document
    assert found["engine"]["speculation"]["accepted_tokens"] > 0 and "kv_offload" in found["engine"]
    assert found["tpot_s"]["mean"] < plain["tpot_s"]["mean"]
    with pytest.raises(InputError, match="kv_offload with role: decode"):
        simulate(scenario(fleet=fleet({}, offload)))


def test_a_scenario_moves_kv_layer_by_layer() -> None:
    link = {"link_bytes_per_s": 4e9, "latency_s": 0.0}
    whole, layers = (
        simulate(scenario(disaggregation=link | {"transfer": way})).document for way in ("after_prompt", "layerwise")
    )
    assert layers["kv_transfer"]["bytes"] == whole["kv_transfer"]["bytes"]
    # 33 ms of KV behind a prompt that takes longer: all but a layer of 32 is sent meanwhile, where the link is free
    assert whole["kv_transfer"]["transfer_s"]["mean"] == pytest.approx(63 * 16 * 131072 / 4e9)
    assert layers["kv_transfer"]["transfer_s"]["p50"] == pytest.approx(63 * 16 * 131072 / 4e9 / 32)
    assert layers["ttft_s"]["mean"] < whole["ttft_s"]["mean"]


def test_a_scenario_reports_both_pools_and_what_moved() -> None:
    result = simulate(scenario())
    document, way = result.document, result.records.handover
    assert way is not None
    prefill, decode = document["fleet"]
    assert (prefill["role"], decode["role"]) == ("prefill", "decode")
    assert prefill["decodes_per_iteration"] == 0 and decode["decodes_per_iteration"] > 0
    # 32 layers x 8 KV heads x 128 x K and V x 2 bytes a token; 1000 tokens are 63 blocks of 16
    assert document["kv_transfer"]["bytes"] == 60 * 63 * 16 * 32 * 8 * 128 * 2 * 2
    assert document["kv_transfer"]["transfer_s"]["mean"] == pytest.approx(63 * 16 * 131072 / 1e9)
    assert sum(document["time_breakdown"]["request"].values()) == pytest.approx(1.0)
    # over a link without limits it costs a second computation of one token
    free = simulate(scenario(disaggregation={"link_bytes_per_s": 1e18, "latency_s": 0.0})).document
    assert free["kv_transfer"]["transfer_s"]["mean"] == pytest.approx(0.0, abs=1e-9)


def test_a_run_in_which_nothing_moves_says_so() -> None:
    workload = scenario().workload.model_dump(exclude_unset=True)
    workload["input_tokens"] = {"distribution": "fixed", "value": 1_000_000}
    moved = simulate(scenario(workload=workload)).document["kv_transfer"]
    assert moved["transfers"] == 0 and moved["prompt_tokens_per_transfer"] is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fleet": [{"gpu": "L40S", "role": "prefill"}, {"gpu": "L40S"}]}, "without a role"),
        ({"fleet": [{"gpu": "L40S"}]}, "without roles"),
        ({"fleet": [{"gpu": "L40S", "role": "prefill"}]}, "no decode replica"),
        ({"disaggregation": {"link": "nvlink"}}, "no NVLink"),
        ({"disaggregation": None}, "link between"),
        ({"failures": {"crash_mtbf_h": 1.0}}, "scaled"),
        ({"disaggregation": {"link_bytes_per_s": 1e9, "decode_router": "nearest"}}, "router"),
        (
            {"fleet": [{"gpu": "L40S", "role": r, "engine": {"framework": "tgi"}} for r in ("prefill", "decode")]},
            "tgi has no",
        ),
        (
            {"fleet": [{"gpu": "L40S", "role": "prefill", "kv_cache_dtype": "fp8"}, {"gpu": "L40S", "role": "decode"}]},
            "kv_cache_dtype",
        ),
    ],
)
def test_scenarios_that_cannot_be(changes: dict[str, object], says: str) -> None:
    with pytest.raises((InputError, ValidationError), match=says):
        simulate(scenario(**changes))


def test_a_decode_replica_passes_over_a_request_whose_adapter_has_no_slot() -> None:
    """Two adapters, one slot: at no instant do sequences of both decode, and each change of adapter is a copy."""
    n, slots = 30, Adapters(2, 1, 0.5)
    requests = Requests(np.arange(n) * 0.5, np.full(n, 10), np.full(n, 6))
    spec = ReplicaSpec(constant_steps(), 10_001, enable_prefix_caching=False, async_scheduling=False, adapters=slots)
    pools = Pools((spec,), (spec,), (1e12, 1e12), block_bytes=1.0)
    records = simulate_disaggregated(requests, pools, "round_robin", 0, check=True)
    free = simulate_disaggregated(requests, replace(pools, prefill=(replace(spec, adapters=None),)), "round_robin", 0)
    assert records.handover is not None and (records.status == COMPLETED).all()
    mine = np.array([AdapterSlots(slots, 0).adapter_of(i) for i in range(n)])
    from_s, until_s = records.handover.decode_scheduled_s, records.finish_s
    for at_s in np.concatenate([from_s, until_s - 0.25]):
        decoding = (from_s <= at_s) & (at_s < until_s)
        assert len(set(mine[decoding].tolist())) <= 1
    first_of_each = np.flatnonzero(np.diff(mine[np.argsort(from_s, kind="stable")]) != 0)
    assert records.counts["lora_loads"][1] == 1 + len(first_of_each)
    assert free.counts["lora_loads"].tolist()[0] == 0 < free.counts["lora_loads"].tolist()[1]
