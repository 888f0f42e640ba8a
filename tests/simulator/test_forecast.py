"""Forecasts recover a known rhythm, say their backtest error, and refuse what a trace cannot show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from app.cli.main import cli
from catalogs.errors import InputError
from simulator.workload.forecast import demand_series, forecast, forecast_holt_winters, forecast_seasonal_naive

DAY = 24


def daily(num_days: int, growth_per_day: float = 0.0) -> np.ndarray:
    hours = np.arange(num_days * DAY)
    return (100 + 60 * np.sin(2 * np.pi * hours / DAY)) * (1 + growth_per_day * hours / DAY)


def arrivals_of(rates: np.ndarray, bin_s: float = 10.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rates * bin_s)
    times = np.repeat(np.arange(len(rates)) * bin_s, counts) + rng.uniform(0, bin_s, counts.sum())
    return np.concatenate([[0.0], np.sort(times), [len(rates) * bin_s + 1.0]])


def test_a_pure_season_is_repeated_exactly() -> None:
    for method in (forecast_seasonal_naive, forecast_holt_winters):
        found = method(daily(7), 2 * DAY, DAY)
        assert found == pytest.approx(daily(9)[-2 * DAY :], rel=0.02)


def test_a_season_that_ends_in_the_middle_goes_on_from_there() -> None:
    whole = daily(9)
    found = forecast_holt_winters(whole[: 6 * DAY + 7], DAY, DAY)
    assert found == pytest.approx(whole[6 * DAY + 7 : 7 * DAY + 7], rel=0.03)


def test_holt_winters_follows_growth_better_than_the_naive_season() -> None:
    series, truth = daily(8, 0.05)[: 7 * DAY], daily(8, 0.05)[7 * DAY :]
    naive = np.abs(forecast_seasonal_naive(series, DAY, DAY) - truth).sum()
    smooth = np.abs(forecast_holt_winters(series, DAY, DAY) - truth).sum()
    assert smooth < 0.8 * naive


def test_the_method_with_the_smallest_backtest_error_is_chosen() -> None:
    found = forecast(arrivals_of(daily(7)), 10.0, 10.0 * DAY, 10.0 * DAY)
    assert found.season_bins == DAY
    assert found.method == min(found.backtest, key=lambda n: found.backtest[n]) != "mean"
    assert found.backtest[found.method] < 0.05 < found.backtest["mean"]
    assert found.rate_rps == pytest.approx(daily(1), rel=0.12)
    assert (found.low_rps <= found.rate_rps).all() and (found.rate_rps <= found.high_rps).all()


def test_intervals_cover_about_what_they_say() -> None:
    rates = np.maximum(daily(12) * np.random.default_rng(5).normal(1, 0.2, 12 * DAY), 1)
    found = forecast(arrivals_of(rates[: 10 * DAY]), 10.0, 10.0 * DAY, 20.0 * DAY, "seasonal_naive")
    truth = rates[10 * DAY :]
    covered = ((found.low_rps <= truth) & (truth <= found.high_rps)).mean()
    assert 0.6 < covered < 0.95


def test_a_short_trace_allows_only_its_mean() -> None:
    arrival = arrivals_of(np.full(30, 5.0))
    found = forecast(arrival, 10.0, 10_000.0, 50.0)
    assert (found.method, found.season_bins, len(found.rate_rps)) == ("mean", None, 5)
    with pytest.raises(InputError, match="two seasons"):
        forecast(arrival, 10.0, 10_000.0, 50.0, "holt_winters")


def test_bins_are_counted_from_the_first_arrival() -> None:
    assert demand_series(np.array([5.0, 5.5, 6.2, 9.0]), 1.0).tolist() == [2, 1, 0, 0]
    with pytest.raises(InputError, match="less than one bin"):
        demand_series(np.array([0.0, 1.0]), 10.0)
    with pytest.raises(InputError, match="wider"):
        demand_series(np.array([0.0, 1e9]), 1.0)


def test_the_command_prints_one_json_document(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = "".join(f"{t:.3f},10,5\n" for t in arrivals_of(daily(4) / 10))
    path.write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    arguments = ["trace", "forecast", str(path), "--bin", "10", "--season", "240", "--horizon", "240"]
    shown = CliRunner().invoke(cli, [*arguments, "--format", "json"])
    answer = json.loads(shown.stdout)
    assert len(answer["bins"]) == DAY and answer["bins"][0]["start_s"] == 4 * DAY * 10
    assert "Backtest" in CliRunner().invoke(cli, arguments).stdout
