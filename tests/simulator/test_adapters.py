"""LoRA adapters: who waits for a slot, who passes, and what copies cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica
from simulator.engine.plain.adapters import AdapterSlots
from simulator.engine.simulate import ReplicaSpec, simulate_replicas
from simulator.engine.techniques import Adapters
from simulator.run import simulate
from simulator.scenario.replicas import build_line
from simulator.scenario.spec import Scenario
from simulator.workload.requests import Requests
from tests.simulator.test_engine_against_theory import constant_steps


def spec(**adapters: float) -> ReplicaSpec:
    slots = Adapters(**adapters)  # type: ignore[arg-type]
    return ReplicaSpec(constant_steps(), 10_001, enable_prefix_caching=False, async_scheduling=False, adapters=slots)


def adapters_of(num: int, num_adapters: int) -> np.ndarray:
    slots = AdapterSlots(Adapters(num_adapters, 1, 0.0), seed=0)
    return np.array([slots.adapter_of(i) for i in range(num)])


def test_adapters_are_asked_for_equally_often() -> None:
    counts = np.bincount(adapters_of(20_000, 8), minlength=8)
    assert counts.sum() == 20_000
    assert np.abs(counts - 2500).max() < 4 * np.sqrt(2500)


@pytest.mark.parametrize("max_loras", [1, 2, 3])
def test_no_step_has_more_adapters_than_slots(max_loras: int) -> None:
    n = 200
    rng = np.random.default_rng(0)
    requests = Requests(np.sort(rng.uniform(0, 100, n)), rng.integers(1, 300, n), rng.integers(1, 40, n))
    records = simulate_replicas(requests, [spec(num_adapters=6, max_loras=max_loras, copy_s=0.0)], check=True)
    mine = adapters_of(n, 6)
    starts, ends = records.scheduled_s, records.finish_s
    for at_s in np.linspace(1.0, records.end_s, 400):
        at_work = (starts <= at_s) & (at_s < ends - 1e-9)
        assert len(set(mine[at_work].tolist())) <= max_loras
    assert (records.status == 0).all()


def test_a_request_whose_adapter_is_in_the_batch_passes_one_that_waits_for_a_slot() -> None:
    mine = adapters_of(40, 2)
    first = 0
    other = int(np.flatnonzero(mine != mine[first])[0])
    same = int(np.flatnonzero(mine[other:] == mine[first])[0]) + other
    arrival_s = np.full(40, 1000.0) + np.arange(40)
    arrival_s[: same + 1] = 1e-3 * np.arange(same + 1)
    output = np.full(40, 2)
    output[first] = 30
    requests = Requests(arrival_s, np.full(40, 10), output)
    records = simulate_replicas(requests, [spec(num_adapters=2, max_loras=1, copy_s=0.0)])
    assert records.scheduled_s[same] < records.finish_s[first] - 10  # it came later and did not wait
    assert records.scheduled_s[other] >= records.finish_s[first] - 1e-9
    free = simulate_replicas(requests, [spec(num_adapters=2, max_loras=2, copy_s=0.0)])
    assert free.scheduled_s[other] < records.scheduled_s[other]


def test_each_miss_makes_a_step_longer_by_a_copy_and_the_least_recently_used_adapter_goes() -> None:
    mine = adapters_of(60, 3)
    requests = Requests(100.0 * np.arange(60), np.full(60, 10), np.full(60, 3))  # one at a time
    for max_loras in (1, 2, 3):
        records = simulate_replicas(requests, [spec(num_adapters=3, max_loras=max_loras, copy_s=0.25)], check=True)
        held: list[int] = []
        misses = 0
        for adapter in mine.tolist():
            misses += adapter not in held
            held = [a for a in held if a != adapter][-(max_loras - 1) :] if max_loras > 1 else []
            held.append(adapter)
        assert records.counts["lora_loads"][0] == misses
        assert records.copied_s is not None and records.copied_s[0] == pytest.approx(0.25 * misses)
        assert records.busy_s[0] == pytest.approx(60 * 3 + 0.25 * misses)


def test_a_scenario_with_adapters_says_how_often_they_were_copied() -> None:
    base = {
        "model": "llama-3.1-8b",
        "workload": {
            "arrivals": {"process": "poisson", "rate_rps": 4, "num_requests": 200},
            "input_tokens": {"distribution": "fixed", "value": 400},
            "output_tokens": {"distribution": "fixed", "value": 100},
        },
    }

    def played(max_loras: int) -> dict[str, object]:
        engine = {"lora": {"num_adapters": 8, "rank": 16, "max_loras": max_loras}}
        fleet = [{"gpu": "H100-SXM", "engine": engine}]
        return simulate(Scenario.model_validate(base | {"fleet": fleet})).document

    few, all_of_them = played(2), played(8)
    assert all_of_them["engine"]["lora"]["copies"] == 8  # type: ignore[index]
    assert few["engine"]["lora"]["copies"] > 50  # type: ignore[index]
    assert few["queue_s"]["mean"] > all_of_them["queue_s"]["mean"]  # type: ignore[index]
    shares = few["time_breakdown"]["engine"]  # type: ignore[index]
    assert 0 < shares["copy"] < 0.1 and sum(shares.values()) == pytest.approx(1.0)


def test_a_replica_without_adapters_has_no_slots() -> None:
    replica = Replica(find_model("llama-3.1-8b"), find_gpu("H100-SXM"), engine=Engine())
    assert build_line(replica).spec.adapters is None
    with_them = replace(replica, engine=Engine(options={"lora": {"num_adapters": 4, "max_loras": 2}}))
    assert build_line(with_them).spec.adapters == Adapters(
        4, 2, pytest.approx(83_886_080 / replica.gpu.pcie_bytes_per_s)
    )
