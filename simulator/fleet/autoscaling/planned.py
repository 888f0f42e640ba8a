"""Controllers that look ahead: a timetable, a forecast, and an oracle for reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simulator.fleet.autoscaling.signals import FleetSnapshot

SECONDS_PER_DAY = 86400.0
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

Forecaster = Callable[[NDArray[np.float64], int], NDArray[np.float64]]  # (history, steps) -> the next steps


@dataclass(frozen=True)
class ScheduleEntry:
    """From ``at_s`` seconds after midnight on ``days`` (0: Monday) the fleet has ``replicas``."""

    at_s: float
    replicas: int
    days: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)


@dataclass
class Scheduled:
    """A timetable; time 0 of the run is midnight of ``first_day`` plus ``start_s``."""

    entries: Sequence[ScheduleEntry]
    first_day: int = 0
    start_s: float = 0.0
    interval_s: float = 60.0

    def target_replicas(self, now_s: float, fleet: FleetSnapshot) -> int:
        """The count of the latest entry at or before now (looking back a week)."""
        clock = now_s + self.start_s + self.first_day * SECONDS_PER_DAY
        day, in_day = divmod(clock, SECONDS_PER_DAY)
        best, found = fleet.num_replicas, math.inf
        for entry in self.entries:
            for weekday in entry.days:
                age = ((day - weekday) % 7) * SECONDS_PER_DAY + in_day - entry.at_s
                age = age if age >= 0 else age + 7 * SECONDS_PER_DAY
                if age < found:
                    best, found = entry.replicas, age
        return best


@dataclass
class Predictive:
    """Scales to the load forecast for when a replica started now would be ready.

    The arrival rate is binned by ``interval_s``; ``forecaster`` sees the bins so far (history first) and says the
    next ones; the target holds the largest forecast within ``lead_s``, and the rate seen now, with ``headroom``.
    """

    forecaster: Forecaster
    requests_per_s_per_replica: float
    min_replicas: int = 1
    max_replicas: int = 100
    lead_s: float = 300.0
    headroom: float = 0.1
    interval_s: float = 60.0
    history: list[float] = field(default_factory=list)
    forecasts: list[tuple[float, float]] = field(default_factory=list)  # (instant, rate forecast for it)

    def target_replicas(self, now_s: float, fleet: FleetSnapshot) -> int:
        """Append the rate just seen, forecast, and cover the largest rate until a new replica could help."""
        self.history.append(fleet.requests_per_s)
        steps = max(1, math.ceil(self.lead_s / self.interval_s))
        ahead = np.maximum(self.forecaster(np.asarray(self.history), steps), 0.0)
        self.forecasts.append((now_s + steps * self.interval_s, float(ahead[-1])))
        rate = max(float(ahead.max()), fleet.requests_per_s)
        wanted = math.ceil(rate * (1 + self.headroom) / self.requests_per_s_per_replica - 1e-9)
        return max(self.min_replicas, min(self.max_replicas, wanted))


def forecast_error(scaler: Predictive, arrival_s: NDArray[np.float64]) -> float | None:
    """Sum of absolute errors over the sum of demand, of the forecasts whose instant lies within the arrivals."""
    known = [(t, rate) for t, rate in scaler.forecasts if t <= arrival_s[-1]]
    ends = np.array([t for t, _ in known])
    seen = np.searchsorted(arrival_s, ends) - np.searchsorted(arrival_s, ends - scaler.interval_s)
    actual = seen / scaler.interval_s
    return float(np.abs(actual - [rate for _, rate in known]).sum() / actual.sum()) if actual.sum() > 0 else None


@dataclass
class Oracle:
    """Knows the arrivals: holds the largest rate of the coming ``lead_s``. For reference only."""

    arrival_s: NDArray[np.float64]
    requests_per_s_per_replica: float
    min_replicas: int = 1
    max_replicas: int = 100
    lead_s: float = 300.0
    window_s: float = 60.0
    interval_s: float = 60.0

    def target_replicas(self, now_s: float, fleet: FleetSnapshot) -> int:
        """The largest rate over any window from now until a replica started now would serve, and one window more."""
        starts = now_s + np.arange(0.0, self.lead_s + self.window_s, self.window_s)
        counts = np.searchsorted(self.arrival_s, starts + self.window_s) - np.searchsorted(self.arrival_s, starts)
        wanted = math.ceil(float(counts.max()) / self.window_s / self.requests_per_s_per_replica - 1e-9)
        return max(self.min_replicas, min(self.max_replicas, wanted))


def seasonal_naive(season: int) -> Forecaster:
    """A forecaster that repeats what was seen one season ago (the last value until a season is known)."""

    def forecast(history: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
        n = len(history)
        if n < season:
            return np.full(steps, history[-1])
        index = n - season + np.arange(steps) % season
        return history[index]

    return forecast
