"""Pipelines and lock-step ranks, from a replica's description to what the engine does."""

from __future__ import annotations

import numpy as np
import pytest

from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica
from simulator.engine import Plane, simulate_replicas
from simulator.replicas import Line, build_line
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
