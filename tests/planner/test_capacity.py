"""What a replica sustains: all of its engines count, and neither workers nor what is remembered change the answer."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica
from planner.capacity.confidence import slo_document
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


def test_a_promise_of_a_time_that_no_request_has_is_kept_and_has_no_figures(capacities):
    length = len(capacities.demand.requests.arrival_s)
    ones = replace(capacities.demand.requests, output_tokens=np.ones(length, np.int64))
    demand = demand_of(ones)
    verdict = simulate_fleet(capacities, demand, [Group(line(), 4, np.ones(len(demand.names)), "plain")])
    found = slo_document(capacities.slos, demand, verdict.latencies)
    assert verdict.ok and all(s["ok"] for s in found.values())
    assert found["tpot_p95_s"]["simulated"] is None and found["tpot_p95_s"]["interval_95"] is None


def settings(trace, **more):
    return {"model": "llama-3.1-8b", "workload": {"trace": str(trace)}, "slo": SLO, "explore": False,
            "candidates": {"gpus": ["L4"], **more}}  # fmt: skip


def ask(trace, folder, workers, monkeypatch, **more):
    monkeypatch.setenv("PLAN_CACHE", str(folder))
    return recommend(problem_from(settings(trace, **more)), workers=workers)


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
        store.put_body("step_table", key, damaged)
        assert np.array_equal(build_line(replica, table_of=StepTables(store)).spec.step_table.attention_s,
                              computed.attention_s)  # fmt: skip
    store.close()


def test_a_kept_simulation_is_the_simulated_one_and_a_damaged_one_runs_anew(trace, tmp_path):
    store = CapacityStore(tmp_path / "capacity.sqlite3")
    capacities = Capacities(demand_of(read_trace(trace)), parse_slos(SLO), "least_loaded", 0, store)
    fleet = [Group(line(), 6, np.ones(len(capacities.demand.names)), "fleet")]
    first, again = (simulate_fleet(capacities, capacities.demand, fleet) for _ in range(2))
    assert (first.simulations, again.simulations) == (1, 0) and first.busy == again.busy
    for name in ("ttft", "tpot", "e2e", "queue", "completed"):
        assert np.array_equal(getattr(first.latencies, name), getattr(again.latencies, name), equal_nan=True)
    other = simulate_fleet(capacities, capacities.demand, fleet, seed=1)
    smaller = simulate_fleet(capacities, capacities.demand, [replace(fleet[0], num_replicas=5)])
    assert (other.simulations, smaller.simulations) == (1, 1)
    for key, body in store._db.execute("SELECT key, body FROM simulated").fetchall():
        store.put_body("simulated", key, body[:-1])
    assert simulate_fleet(capacities, capacities.demand, fleet).simulations == 1
    store.close()


def test_a_remembered_answer_does_without_the_compiled_engine(trace, tmp_path, monkeypatch):
    ask(trace, tmp_path, None, monkeypatch)
    code = (
        "import json, sys; from planner.inputs.problem import problem_from; from planner.recommend import recommend\n"
        "recommend(problem_from(json.loads(sys.argv[1]))); print('numba' in sys.modules)"
    )
    asked = subprocess.run([sys.executable, "-c", code, json.dumps(settings(trace))], capture_output=True, text=True)
    assert asked.stdout == "False\n", asked.stderr
