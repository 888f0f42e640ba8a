"""Cold starts follow their sources, failures their rates."""

from __future__ import annotations

import numpy as np
import pytest

from catalogs.errors import InputError
from catalogs.units import GB
from simulator.fleet.cold_start import MACHINE_PARTS, PARTS, ColdStart, LogNormal, check_fits_run, measured
from simulator.fleet.failures import FailureRates


def test_a_part_has_the_median_and_spread_of_its_measurements() -> None:
    captured = measured("graph_capture")
    logs = np.log([15.0, 17.0, 37.0, 60.0])
    assert captured.median == pytest.approx(np.exp(logs.mean()))
    assert captured.sigma == pytest.approx(logs.std(ddof=1))
    rng = np.random.default_rng(0)
    draws = [captured.sample(rng) for _ in range(4000)]
    assert np.median(draws) == pytest.approx(captured.median, rel=0.05)
    assert np.mean(draws) == pytest.approx(captured.mean, rel=0.05)


def test_weights_and_image_take_their_size_over_the_rate() -> None:
    small, large = ColdStart(weight_bytes=16 * GB), ColdStart(weight_bytes=140 * GB)
    ratio = large.distribution("weight_load").median / small.distribution("weight_load").median
    assert ratio == pytest.approx(140 / 16)
    assert ColdStart(image_bytes=0.0).distribution("image_pull") == LogNormal(0.0)


def test_a_warm_machine_skips_boot_and_image_and_eager_mode_the_graphs() -> None:
    cold = ColdStart(weight_bytes=16 * GB).sample(np.random.default_rng(1))
    warm = ColdStart(weight_bytes=16 * GB).sample(np.random.default_rng(1), warm=True)
    assert tuple(cold) == PARTS and not set(warm) & set(MACHINE_PARTS)
    assert warm["weight_load"] == cold["weight_load"]
    eager = ColdStart(enforce_eager=True)
    assert eager.distribution("graph_capture").median == eager.distribution("engine_warm_up").median == 0
    cached = ColdStart(compile_cached=True).distribution("engine_warm_up").median
    assert cached < ColdStart().distribution("engine_warm_up").median


def test_the_user_sets_a_part_or_the_whole() -> None:
    assert ColdStart(parts={"instance_boot": LogNormal(5.0)}).distribution("instance_boot").median == 5.0
    whole = ColdStart(total=LogNormal(195.0))
    assert whole.median_s == whole.mean_s == 195.0
    assert sum(whole.sample(np.random.default_rng(0)).values()) == 195.0
    with pytest.raises(InputError, match="no cold start part"):
        ColdStart(parts={"coffee": LogNormal(5.0)})


def test_a_cold_start_longer_than_the_run_is_refused() -> None:
    with pytest.raises(InputError, match="a cold start takes 900 s, the run lasts 600 s"):
        check_fits_run(ColdStart(total=LogNormal(900.0)), 600.0)
    check_fits_run(ColdStart(total=LogNormal(900.0)), 3600.0)


def test_failures_come_at_their_rate_and_are_seen_after_the_probes() -> None:
    rates, rng = FailureRates(hang_mtbf_h=10.0), np.random.default_rng(0)
    draws = [rates.time_to_failure_s("hang", rng) for _ in range(4000)]
    assert np.mean(draws) == pytest.approx(36000.0, rel=0.05)
    assert rates.time_to_failure_s("crash", rng) == float("inf")
    seen = [rates.detect_s(rng) for _ in range(1000)]
    assert min(seen) >= 20.0 and max(seen) <= 30.0


def test_failure_rates_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="hang_mtbf_h is 0"):
        FailureRates(hang_mtbf_h=0.0)
    with pytest.raises(InputError, match=r"degrade_factor is 0\.5"):
        FailureRates(degrade_factor=0.5)
