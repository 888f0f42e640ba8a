"""What a replica sustains: all of its engines count, and neither workers nor what is remembered change the answer."""

from __future__ import annotations

import json

import numpy as np
import pytest

from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica
from planner.capacity.step_tables import StepTables, unpacked
from planner.capacity.store import CapacityStore
from planner.capacity.sustained import Capacities
from planner.capacity.verify import Group, simulate_fleet
from planner.inputs.demand import demand_of
from planner.inputs.problem import problem_from
from planner.recommend import recommend
from simulator.scenario.replicas import build_line
from simulator.scenario.spec import parse_slos
from simulator.workload.traces import read_trace

SLO = {"ttft_p95_s": 1.0, "tpot_p95_s": 0.05}


def line(**sizes):
    return build_line(Replica(find_model("llama-3.1-8b"), find_gpu("L4"), precision="fp8", **sizes))


@pytest.fixture
def capacities(trace):
    return Capacities(demand_of(read_trace(trace)), parse_slos(SLO), "least_loaded", 0, CapacityStore(None))


def test_a_replica_of_two_ranks_sustains_what_two_replicas_do(capacities):
    everything = tuple(range(len(capacities.demand.names)))
    one, two = line(), line(data_parallel_size=2)
    assert capacities.bound_rps(two, everything) == pytest.approx(2 * capacities.bound_rps(one, everything), rel=0.01)
    assert capacities.work(two, 0) == pytest.approx(capacities.work(one, 0) / 2, rel=0.01)
    single, double = capacities.rps([(one, everything), (two, everything)])
    assert 1.8 * single <= double <= 2.3 * single  # and a little more, since they pool


def test_verification_runs_every_engine_of_a_replica(capacities):
    share = np.ones(len(capacities.demand.names))
    ranks = simulate_fleet(capacities, capacities.demand, [Group(line(data_parallel_size=2), 3, share, "ranks")])
    plain = simulate_fleet(capacities, capacities.demand, [Group(line(), 6, share, "plain")])
    halves = simulate_fleet(capacities, capacities.demand, [Group(line(), 3, share, "halves")])
    whole, half, replica = (np.nanmean(v.latencies.of_metric("e2e")) for v in (plain, halves, ranks))
    assert replica == pytest.approx(whole, rel=0.1)  # a front end spreads a little otherwise than a router
    assert half > 1.1 * replica
    stages = simulate_fleet(capacities, capacities.demand, [Group(line(pipeline_parallel_size=2), 1, share, "stages")])
    assert 0 < stages.busy[0] <= 1


def ask(trace, folder, workers, monkeypatch, **more):
    monkeypatch.setenv("PLAN_CACHE", str(folder))
    asked = problem_from(
        {"model": "llama-3.1-8b", "workload": {"trace": str(trace)}, "slo": SLO, "explore": False,
         "candidates": {"gpus": ["L4"], **more}}
    )  # fmt: skip
    return recommend(asked, workers=workers)


def test_the_answer_does_not_depend_on_the_number_of_workers(trace, tmp_path, monkeypatch):
    one, four = (ask(trace, tmp_path / str(n), n, monkeypatch) for n in (1, 4))
    assert json.dumps(one, sort_keys=True) == json.dumps(four, sort_keys=True)


def test_plans_of_pipelines_and_ranks_say_so_and_are_verified(trace, tmp_path, monkeypatch):
    sizes = {"tensor_parallel_size": [1], "pipeline_parallel_size": [2], "data_parallel_size": [1, 2]}
    answer = ask(trace, tmp_path, None, monkeypatch, **sizes)
    lines = answer["plan"]["lines"]
    assert answer["verified"]
    assert all(x["pipeline_parallel_size"] == 2 and x["gpus_per_replica"] >= 2 for x in lines)
    assert all("pp2" in c["config"] for c in answer["candidates"])


def test_a_kept_step_table_is_the_computed_one_and_a_damaged_one_is_computed_anew(tmp_path):
    replica = Replica(find_model("llama-3.1-8b"), find_gpu("L40S"), engine=Engine())
    computed = build_line(replica).spec.step_table
    store = CapacityStore(tmp_path / "capacity.sqlite3")
    for _ in range(2):  # the second time it is read
        found = build_line(replica, table_of=StepTables(store)).spec.step_table
        for name, value in computed._asdict().items():
            assert np.array_equal(getattr(found, name), value) if value is not None else getattr(found, name) is None
    [(key, body)] = store._db.execute("SELECT key, body FROM step_table").fetchall()
    assert unpacked(body).attention_s.flags.writeable
    for damaged in (body[:-8], b"", b"{}\n", b"[1]\nxx"):
        store.put_table(key, damaged)
        assert np.array_equal(build_line(replica, table_of=StepTables(store)).spec.step_table.attention_s,
                              computed.attention_s)  # fmt: skip
    store.close()
