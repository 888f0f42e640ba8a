"""The shortcut for long horizons: close to a full run, in latency and in machine hours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from catalogs.errors import InputError
from simulator.fleet.autoscaling import Hpa, HpaConfig, HpaMetric
from simulator.fleet.cold_start import ColdStart, LogNormal
from simulator.fleet.config import FleetConfig, Group
from simulator.fleet.engine_plane import EnginePlane
from simulator.fleet.fluid_plane import Curve, FluidPlane, probe
from simulator.fleet.long_horizon import Windows, run_long
from simulator.fleet.simulate import Fleet
from simulator.workload.requests import Requests
from tests.simulator.test_fleet_plane import SPEC

HOURS = 8


def wave(hours: float, rate_rps: float) -> Requests:
    rng = np.random.default_rng(0)
    arrival = np.cumsum(rng.exponential(1 / (2 * rate_rps), int(hours * 3600 * rate_rps * 2.2)))
    arrival = arrival[arrival < hours * 3600]
    keep = rng.uniform(size=len(arrival)) < 0.5 * (1 + 0.7 * np.sin(2 * np.pi * arrival / (hours * 3600)))
    n = int(keep.sum())
    return Requests(arrival[keep], rng.integers(100, 800, n), rng.integers(20, 200, n))


def config() -> FleetConfig:
    def scaler() -> Hpa:
        return Hpa(HpaConfig((HpaMetric("running_requests", 8.0),), min_replicas=1, max_replicas=20))

    return FleetConfig((Group("g", 0, "g6e.xlarge", 2, scaler=scaler, cold_start=ColdStart(total=LogNormal(90.0))),))


def test_a_curve_grows_with_the_load_up_to_saturation() -> None:
    curve = probe(wave(1, 5), SPEC)
    assert curve.max_rps > 0 and (np.diff(curve.running) >= -1e-9).all() and curve.busy[-1] > 0.9
    assert curve.at("ttft_p95_s", 0.2) < curve.at("ttft_p95_s", 0.96)


def test_a_load_that_no_replica_takes_is_refused() -> None:
    with pytest.raises(InputError, match="no request fits"):
        probe(replace(wave(1, 1), input_tokens=np.full(len(wave(1, 1)), 10**6)), SPEC)


def test_what_came_while_no_replica_was_there_is_worked_off_once() -> None:
    requests = Requests(np.arange(660.0), np.full(660, 300), np.full(660, 50))
    ends = np.array([0.0, 1.0])
    plane = FluidPlane(requests, [Curve(2.0, ends, ends, ends, ends, ends, ends)])
    for minute in range(1, 11):
        plane.open_until(60 * minute)
        plane.advance(60.0 * minute)
    slot = plane.add(0)
    assert plane.load().waiting[slot] == 600
    plane.open_until(660)
    plane.advance(660.0)
    assert plane.load().waiting[slot] == 660 - 2 * 60
    assert (plane.outcome.finish_s <= 660 + 300 + 2).all()


def test_windows_and_stream_agree_with_the_full_run() -> None:
    requests = wave(HOURS, 5.0)
    full = Fleet(requests, EnginePlane(requests, [SPEC]), config(), seats=(32,)).run()
    long = run_long(requests, [SPEC], config(), windows=Windows(10, 600.0, 60.0))
    ttft = full.outcome.first_token_s - requests.arrival_s
    e2e = full.outcome.finish_s - requests.arrival_s
    for percent in (50, 90):
        assert long.percentile("ttft", percent) == pytest.approx(np.percentile(ttft, percent), rel=0.1)
        assert long.percentile("e2e", percent) == pytest.approx(np.percentile(e2e, percent), rel=0.1)
    hours = [sum(u.billed_s for u in r.ledger.usage()) for r in (full, long.fleet)]
    assert hours[1] == pytest.approx(hours[0], rel=0.1)
    assert long.weight.sum() == pytest.approx(len(requests), rel=0.02)
