"""Scaling a trace in rate keeps its duration, its burst shape, its lengths and its prefix sharing."""

from __future__ import annotations

import numpy as np
import pytest

from catalogs.errors import InputError
from simulator.workload.requests import Requests
from simulator.workload.scaling import BLOCK_REQUESTS, repeat_requests, scale_requests
from simulator.workload.trace_stats import Arrivals, describe
from simulator.workload.traces import read_trace
from tests.shared_data import shared_data


def load(arrival_s: np.ndarray) -> Requests:
    num = len(arrival_s)
    return Requests(arrival_s, np.arange(1, num + 1), np.full(num, 10))


def bursty(num: int = 40_000) -> Requests:
    """Gamma gaps (CV 3) under a rate that swings by a factor of 4 over the run."""
    rng = np.random.default_rng(1)
    time = np.cumsum(rng.gamma(1 / 9, 9.0, num))
    return load(time + 0.6 * time[-1] / (2 * np.pi) * np.sin(2 * np.pi * time / time[-1]))


def dispersion(arrival_s: np.ndarray, window_s: float) -> float:
    arrivals = Arrivals([window_s])
    arrivals.add(arrival_s)
    return arrivals.windows()[0]["index_of_dispersion"]


@pytest.mark.parametrize("factor", [0.25, 0.7, 2, 3.5, 10])
def test_rate_changes_and_duration_and_interarrival_cv_stay(factor: float) -> None:
    before = bursty()
    after = scale_requests(before, factor)
    assert len(after) == pytest.approx(factor * len(before), abs=1)
    assert (np.diff(after.arrival_s) >= 0).all()
    old, new = describe(before), describe(after)
    assert new["duration_s"] == pytest.approx(old["duration_s"], rel=2e-3)
    tolerance = 0.02 if factor >= 1 else 0.06  # a quarter of the gaps is a sample of them
    assert new["burstiness"]["interarrival_cv"] == pytest.approx(old["burstiness"]["interarrival_cv"], rel=tolerance)


@pytest.mark.parametrize("factor", [2, 4])
def test_dispersion_is_kept_at_windows_of_the_same_number_of_requests(factor: float) -> None:
    rng = np.random.default_rng(2)
    before = load(np.cumsum(rng.gamma(1 / 9, 9.0, 60_000)))
    after = scale_requests(before, factor)
    for window_s in (2.0, 8.0):
        old = dispersion(before.arrival_s, window_s)
        assert dispersion(after.arrival_s, window_s / factor) == pytest.approx(old, rel=0.05)


def test_a_slow_swing_is_multiplied_not_shortened() -> None:
    before = bursty()
    after = scale_requests(before, 3)
    edges = np.linspace(0, before.arrival_s[-1], 9)
    old, _ = np.histogram(before.arrival_s, edges)
    new, _ = np.histogram(after.arrival_s, edges)
    assert np.abs(new / old - 3).max() < 3 * BLOCK_REQUESTS / old.min()


def test_a_whole_factor_uses_each_request_that_often() -> None:
    after = scale_requests(bursty(3000), 3)
    assert (np.bincount(after.input_tokens)[1:] == 3).all()


@pytest.mark.parametrize("factor", [0.3, 1.5, 4])
def test_prefix_sharing_stays_about_the_same(factor: float) -> None:
    before = read_trace(shared_data("traces/mooncake_conversation.csv"))
    old = describe(before)["prefix_sharing"]["infinite_cache_hit_rate"]
    new = describe(scale_requests(before, factor))["prefix_sharing"]["infinite_cache_hit_rate"]
    assert new == pytest.approx(old, abs=0.03)


def test_a_factor_that_changes_with_time_is_followed() -> None:
    before = load(np.arange(0, 4000, 0.1))
    after = scale_requests(before, lambda t: 5.0 if 1000 <= t < 1300 else 1.0)
    counts, _ = np.histogram(after.arrival_s, [0, 960, 1020, 1260, 1320, 4000])
    assert counts[[0, 4]] == pytest.approx([9600, 26800], rel=0.01)
    assert counts[2] == pytest.approx(5 * 2400, rel=0.02)


def test_a_factor_of_one_is_the_same_trace() -> None:
    before = bursty(2000)
    assert scale_requests(before, 1) is before


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf"), 1e-9, 1e12])
def test_an_impossible_factor_is_refused(factor: float) -> None:
    with pytest.raises(InputError):
        scale_requests(bursty(100), factor)


def test_repeating_a_trace_beyond_memory_is_refused() -> None:
    with pytest.raises(InputError, match="200,000,000"):
        repeat_requests(bursty(100), 1e15)


def test_repeating_a_trace_brings_other_users() -> None:
    before = Requests(
        np.array([0.0, 1.0, 2.0, 3.0]),
        np.full(4, 600),
        np.full(4, 5),
        np.array([0, 1, 2, 3, 4]),
        np.array([5, 6, 6, 5]),
    )
    after = repeat_requests(before, 12)
    assert after.arrival_s.tolist() == list(range(12))
    assert describe(after)["prefix_sharing"]["infinite_cache_hit_rate"] == pytest.approx(0.5)
