"""Pipelines and lock-step ranks, from a replica's description to what the engine does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica
from simulator.engine import Plane, ReplicaSpec, RouterOptions, simulate_replicas
from simulator.plain_group import Group
from simulator.records import Records
from simulator.reference import Run
from simulator.replicas import Line, build_line
from simulator.run import simulate
from simulator.scenario import Scenario
from simulator.workload import Requests

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
    assert halves.num_engines == 2
    assert halves.spec.max_num_seqs == 128
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


class Staged(Group):
    """A micro-batch of a pipeline whose stages serve one micro-batch at a time, in the order in which they come."""

    def decide(self, run: Run, now: float) -> None:
        assert isinstance(run, Pipeline)
        (engine,) = self.engines
        engine.take_in(now)
        step = engine.schedule(now)
        self.idle = False
        if step.chunks or step.decodes:
            duration, at_s = self.duration_s(run, [step]), now
            for stage, free_s in enumerate(run.free_s):
                at_s = run.free_s[stage] = max(at_s, free_s) + duration / len(run.free_s)
            engine.put_in_flight(step, duration, at_s)
            run.wake(self, at_s)
        else:
            self.idle, self.idle_since_s = True, now
            run.wake(self, engine.next_start_s(now))


class Pipeline(Run):
    """The plain engine with a queue before each stage."""

    def __init__(self, requests: Requests, spec: ReplicaSpec, stages: int) -> None:
        self.free_s = [0.0] * stages
        super().__init__(requests, [spec] * stages, "round_robin", 0, RouterOptions())
        self.groups = {i: Staged([engine]) for i, engine in enumerate(self.engines)}


@pytest.mark.parametrize(("stages", "tensor", "rate", "most"), [(2, 2, 1.0, 0.02), (4, 1, 2.0, 0.02)])
def test_a_pipeline_in_rounds_is_as_one_with_a_queue_before_each_stage(
    stages: int, tensor: int, rate: float, most: float
) -> None:
    made = line("llama-3.1-70b", tensor_parallel_size=tensor, pipeline_parallel_size=stages)
    spec = replace(made.spec, async_scheduling=False)
    assert spec.lockstep_ranks == stages
    rng = np.random.default_rng(1)
    arrival_s = np.cumsum(rng.exponential(1 / rate, 100))
    requests = Requests(arrival_s, rng.integers(200, 3000, 100), rng.integers(20, 300, 100))
    exact_run = Pipeline(requests, replace(spec, lockstep_ranks=1), stages)
    exact_run.play()
    exact, rounds = exact_run.records(), simulate_replicas(requests, [spec] * stages)

    def tpot_s(records: Records) -> float:
        return float(((records.finish_s - records.first_token_s) / (requests.output_tokens - 1)).mean())

    assert tpot_s(rounds) == pytest.approx(tpot_s(exact), rel=most)
    assert (rounds.finish_s - arrival_s).mean() == pytest.approx((exact.finish_s - arrival_s).mean(), rel=most)
    assert (rounds.first_token_s - arrival_s).mean() == pytest.approx((exact.first_token_s - arrival_s).mean(), rel=0.1)


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
