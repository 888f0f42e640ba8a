"""Encoder and vision batches: limits, and published MLPerf rows on GPUs that the fit did not see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibrate.fitting.mlperf import BatchPoint, fit_constants, left_out_errors, predicted_s, read_points
from calibrate.physics.roofline import peak_flops
from calibrate.physics.work import flops_per_token
from calibrate.static_batches import batch_time_s, fitted_constants
from catalogs.load import find_gpu, find_model, gpus
from catalogs.schema import Engine, Replica
from simulator.engine.simulate import simulate_replicas
from simulator.scenario.replicas import build_line
from simulator.workload.requests import Requests
from tests.shared_data import shared_data


@pytest.fixture(scope="module")
def points() -> list[BatchPoint]:
    return read_points(shared_data(f"serving/mlperf_inference_v{v}.csv") for v in ("2.1", "3.0"))


def test_a_gpu_left_out_is_met_within_15_percent_in_the_median(points: list[BatchPoint]) -> None:
    errors = left_out_errors(points)
    assert np.median([abs(e) for _, e in errors]) <= 0.10
    by_gpu: dict[str, list[float]] = {}
    for point, error in errors:
        by_gpu.setdefault(point.gpu, []).append(abs(error))
    assert np.median([np.median(e) for e in by_gpu.values()]) <= 0.15


def test_latency_of_small_batches_is_met(points: list[BatchPoint]) -> None:
    small = [p for p in points if p.scenario != "Offline"]
    assert np.median([abs(predicted_s(p) / p.seconds - 1) for p in small]) <= 0.15


def test_shipped_constants_are_those_of_the_fit(points: list[BatchPoint]) -> None:
    for name, value in fit_constants(points).items():
        assert fitted_constants()[name] == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize("model", ["bert-large", "resnet50"])
def test_no_gpu_outruns_its_peak(model: str) -> None:
    for gpu in gpus().values():
        replica = Replica(find_model(model), gpu, precision="fp16")
        tokens = 1.0 if model == "resnet50" else 384.0
        flops = 512 * tokens * flops_per_token(replica.model)
        assert flops / batch_time_s(replica, 512, tokens) <= peak_flops(gpu, "fp16")


def test_time_grows_with_the_batch_and_falls_an_item() -> None:
    replica = Replica(find_model("resnet50"), find_gpu("T4"), precision="int8")
    times = [batch_time_s(replica, b) for b in (1, 2, 8, 64, 512)]
    assert times == sorted(times)
    each = [t / b for t, b in zip(times, (1, 2, 8, 64, 512), strict=True)]
    assert each == sorted(each, reverse=True)


def test_half_the_power_makes_a_card_slower() -> None:
    gpu = find_gpu("T4")
    whole, half = (Replica(find_model("bert-large"), replace(gpu, tdp_w=w), precision="int8") for w in (70.0, 35.0))
    assert batch_time_s(half, 256, 177) > 1.3 * batch_time_s(whole, 256, 177)


def test_the_engine_serves_a_batch_of_sequences_in_the_time_of_that_batch() -> None:
    """Every token of an encoder attends to all of its sequence: the step's keys are not those of a causal prompt."""
    replica = Replica(
        find_model("bert-large"), find_gpu("A100-80GB"), precision="fp16",
        engine=Engine(framework="onnxruntime", max_num_seqs=8),
    )  # fmt: skip
    line = build_line(replica)
    requests = Requests(np.zeros(8), np.full(8, 384, np.int64), np.ones(8, np.int64))
    busy_s = float(simulate_replicas(requests, [line.spec]).busy_s[0])
    table = line.spec.step_table
    expected_s = batch_time_s(line.replica, 8, 384.0) + table.overhead_s + 8 * table.overhead_per_sequence_s
    assert busy_s == pytest.approx(expected_s, rel=1e-3)
