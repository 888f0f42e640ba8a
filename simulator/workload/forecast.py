"""Forecasts demand by hour (or any bin) from what a trace shows, with the error that a backtest gives.

Methods, all on the series of requests per bin:

- ``mean``: every bin is the mean; all that a trace of less than two seasons allows.
- ``seasonal_naive``: a bin is what it was one season earlier, averaged over the last ``NAIVE_SEASONS`` seasons.
- ``holt_winters``: level, damped trend and additive season, smoothed exponentially (Hyndman and Athanasopoulos,
  Forecasting: Principles and Practice, 3rd ed., section 8.3; parameters by least squares of one-step errors).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError

Float = NDArray[np.float64]
NAIVE_SEASONS = 4
MAX_BACKTEST_FOLDS = 4
MAX_BINS = 1_000_000
INTERVAL = (10.0, 90.0)


@dataclass(frozen=True)
class Forecast:
    """Expected demand after the trace.

    Attributes:
        bin_s: width of a bin.
        season_bins: bins in a season; None where no season fits twice.
        method: what made it.
        start_s: when the first bin begins, on the trace's clock.
        rate_rps, low_rps, high_rps: expectation, and the 10th and 90th percentile by the backtest's errors.
        backtest: method -> weighted absolute percentage error over held-out ends of the trace (sum of absolute errors
            over the sum of demand); empty where nothing could be held out.
        history_rps: the bins of the trace.
    """

    bin_s: float
    season_bins: int | None
    method: str
    start_s: float
    rate_rps: Float
    low_rps: Float
    high_rps: Float
    backtest: dict[str, float]
    history_rps: Float


def demand_series(arrival_s: Float, bin_s: float) -> Float:
    """Requests per second in each whole bin from the first arrival on; the last, partial bin is left out.

    Raises:
        InputError: less than one bin, or more than a million.
    """
    span = float(arrival_s[-1] - arrival_s[0])
    whole = int(span // bin_s)
    if whole < 1:
        raise InputError(f"the trace lasts {span:.4g} s, less than one bin of {bin_s:g} s", where="--bin",
                         remedy=f"--bin {max(span / 24, 1e-3):.3g}")  # fmt: skip
    if whole > MAX_BINS:
        raise InputError(f"the trace has {whole:,} bins of {bin_s:g} s", where="--bin", remedy="a wider --bin")
    counts = np.bincount(((arrival_s - arrival_s[0]) // bin_s).astype(np.int64), minlength=whole)[:whole]
    return counts / bin_s


def forecast_mean(history: Float, horizon: int, season: int | None) -> Float:
    """The mean of the last season, or of everything."""
    del season
    return np.full(horizon, history.mean())


def forecast_seasonal_naive(history: Float, horizon: int, season: int | None) -> Float:
    """What each bin of the season was in the last few seasons, on average."""
    assert season is not None
    seasons = min(NAIVE_SEASONS, len(history) // season)
    profile = history[len(history) - seasons * season :].reshape(seasons, season).mean(axis=0)
    return np.resize(profile, horizon)


def forecast_holt_winters(history: Float, horizon: int, season: int | None) -> Float:
    """Level, damped trend and additive season; never below 0."""
    from scipy.optimize import minimize

    assert season is not None
    scale = max(float(history.mean()), 1e-12)
    series = history / scale
    best = minimize(  # type: ignore[call-overload, unused-ignore]
        lambda p: _smooth(series, season, p)[0],
        x0=np.array([0.3, 0.05, 0.1, 0.95]),
        bounds=[(0.01, 0.99), (0.0, 0.5), (0.0, 0.99), (0.8, 0.98)],
        method="Nelder-Mead",
        options={"maxfev": 120, "xatol": 1e-2, "fatol": 1e-6},
    )
    _, level, trend, seasonal = _smooth(series, season, best.x)
    damping = np.cumsum(best.x[3] ** np.arange(1, horizon + 1))
    future = level + trend * damping + np.resize(np.roll(seasonal, -(len(series) % season)), horizon)
    return scale * np.maximum(future, 0.0)


def _smooth(series: Float, season: int, parameters: Float) -> tuple[float, float, float, Float]:
    """One pass of damped additive Holt-Winters: mean squared one-step error, and the state at the end."""
    alpha, beta, gamma, phi = (float(p) for p in parameters)
    seasons = len(series) // season
    table = series[: seasons * season].reshape(seasons, season)
    level = float(table[0].mean())
    trend = float(table[1].mean() - table[0].mean()) / season if seasons > 1 else 0.0
    seasonal = (table - table.mean(axis=1, keepdims=True)).mean(axis=0).tolist()
    error = 0.0
    for i, value in enumerate(series.tolist()):
        expected = level + phi * trend + seasonal[i % season]
        miss = value - expected
        error += miss * miss
        before = level
        level = alpha * (value - seasonal[i % season]) + (1 - alpha) * (level + phi * trend)
        trend = beta * (level - before) + (1 - beta) * phi * trend
        seasonal[i % season] = gamma * (value - level) + (1 - gamma) * seasonal[i % season]
    return error / len(series), level, trend, np.array(seasonal)


METHODS: dict[str, Callable[[Float, int, int | None], Float]] = {
    "mean": forecast_mean,
    "seasonal_naive": forecast_seasonal_naive,
    "holt_winters": forecast_holt_winters,
}


def forecast(arrival_s: Float, bin_s: float, season_s: float, horizon_s: float, method: str = "auto") -> Forecast:
    """Forecast the demand after a trace.

    Args:
        arrival_s: the trace's arrivals, ascending.
        bin_s: width of a bin (an hour for hour-of-week demand).
        season_s: how long until demand repeats (a week, a day).
        horizon_s: how far to look.
        method: one of ``METHODS``; ``auto``: the one with the smallest backtest error.

    Raises:
        InputError: a trace too short for the bin, or for the method that was asked for.
    """
    history = demand_series(arrival_s, bin_s)
    season = round(season_s / bin_s)
    has_season = season >= 2 and len(history) >= 2 * season
    if method in ("seasonal_naive", "holt_winters") and not has_season:
        raise InputError(
            f"{method} needs two seasons of {season_s:g} s, the trace has {len(history) * bin_s:g} s",
            where="--method",
            remedy="--method mean, or a shorter --season",
        )
    names = list(METHODS) if has_season else ["mean"]
    horizon = max(1, round(horizon_s / bin_s))
    errors, backtest = {}, {}
    for name in names:
        errors[name], wape = _backtest(history, name, season if has_season else None)
        if wape is not None:
            backtest[name] = wape
    chosen = method if method != "auto" else min(backtest, key=lambda n: backtest[n], default=names[0])
    expected = METHODS[chosen](history, horizon, season if has_season else None)
    low, high = _interval(expected, errors[chosen], history)
    return Forecast(
        bin_s, season if has_season else None, chosen, float(arrival_s[0]) + len(history) * bin_s,
        expected, low, high, backtest, history,
    )  # fmt: skip


def _backtest(history: Float, method: str, season: int | None) -> tuple[Float, float | None]:
    """Relative errors (actual over forecast) on held-out ends, and their weighted absolute percentage error."""
    fold = season if season is not None else max(1, len(history) // 4)
    needed = 2 * season if season is not None else max(2, len(history) // 2)
    ratios, missed, demanded = [], 0.0, 0.0
    for back in range(1, MAX_BACKTEST_FOLDS + 1):
        cut = len(history) - back * fold
        if cut < needed and not (season is not None and method != "holt_winters" and cut >= season):
            break
        actual = history[cut : cut + fold]
        expected = METHODS[method](history[:cut], fold, season)
        missed += float(np.abs(actual - expected).sum())
        demanded += float(actual.sum())
        ratios.append(actual[expected > 0] / expected[expected > 0])
    return (np.concatenate(ratios) if ratios else np.zeros(0)), (missed / demanded if demanded else None)


def _interval(expected: Float, ratios: Float, history: Float) -> tuple[Float, Float]:
    """10th and 90th percentile: the backtest's relative errors where there are enough, else the bins' own spread."""
    if len(ratios) < 10:
        ratios = history / max(float(history.mean()), 1e-12)
    low, high = np.percentile(ratios, INTERVAL)
    return expected * min(low, 1.0), expected * max(high, 1.0)


def forecast_document(found: Forecast) -> dict[str, Any]:
    """The forecast as plain data."""
    return {
        "method": found.method,
        "bin_s": found.bin_s,
        "season_s": None if found.season_bins is None else found.season_bins * found.bin_s,
        "history_bins": len(found.history_rps),
        "history_mean_rps": float(found.history_rps.mean()),
        "backtest_wape": found.backtest,
        "peak_rps": float(found.rate_rps.max()),
        "mean_rps": float(found.rate_rps.mean()),
        "bins": [
            {
                "start_s": found.start_s + i * found.bin_s,
                "rate_rps": float(r),
                "p10_rps": float(lo),
                "p90_rps": float(hi),
            }
            for i, (r, lo, hi) in enumerate(zip(found.rate_rps, found.low_rps, found.high_rps, strict=True))
        ],
    }
