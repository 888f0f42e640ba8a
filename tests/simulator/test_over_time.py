"""The course of a run, counted from its requests' instants, against the replicas sampled while they ran."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.run import Result, simulate
from simulator.scenario.spec import read_scenario

EXAMPLES = Path(__file__).parents[2] / "examples"


def both(example: str, names: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each name what was counted and what was sampled, at the counted instants."""
    result: Result = simulate(read_scenario(EXAMPLES / example), series_interval_s=0.5)
    counted, sampled = result.document["over_time"], result.records.series
    at_s = np.array(counted["t_s"])
    return [(np.array(counted[name]), np.interp(at_s, sampled["t_s"], sampled[name])) for name in names]


@pytest.mark.parametrize(
    ("example", "pool"), [("chat.yaml", ""), ("closed_loop.yaml", ""), ("disaggregated.yaml", "decode_")]
)
def test_what_is_counted_is_what_the_replicas_held(example: str, pool: str) -> None:
    running, waiting, kv = both(example, [pool + name for name in ("num_running", "num_waiting", "kv_share")])
    assert np.abs(running[0] - running[1]).mean() < 0.07 * max(1.0, running[1].mean())
    assert np.abs(waiting[0] - waiting[1]).mean() < 0.1 * max(1.0, running[1].mean())
    assert np.abs(kv[0] - kv[1]).mean() < 0.1 * kv[1].mean()
    assert kv[1].max() > 0.01


def test_nothing_is_left_at_the_end_and_requests_that_were_refused_never_came(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "model: llama-3.1-8b\n"
        "workload:\n"
        "  arrivals: {process: poisson, rate_rps: 5, num_requests: 50}\n"
        "  input_tokens: {distribution: uniform, low: 100, high: 900}\n"
        "  output_tokens: {distribution: fixed, value: 20}\n"
        "fleet: [{gpu: H100-SXM, engine: {max_model_len: 500}}]\n"
    )
    document = simulate(read_scenario(path)).document
    course = document["over_time"]
    assert document["requests"]["rejected"] > 0
    assert course["num_running"][-1] <= 1 and course["num_waiting"][-1] == 0
    assert min(course["num_waiting"]) >= 0 and 0 <= min(course["kv_share"]) <= max(course["kv_share"]) < 0.1
