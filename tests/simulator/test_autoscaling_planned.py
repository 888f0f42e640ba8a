"""Timetables, forecasts, the oracle, and the detector of controllers that chase their tail."""

from __future__ import annotations

import numpy as np

from simulator.fleet.autoscaling import (
    FleetSnapshot,
    Oracle,
    Predictive,
    Scheduled,
    ScheduleEntry,
    find_oscillation,
    seasonal_naive,
)

EMPTY = FleetSnapshot(1, 1)


def test_a_timetable_holds_the_latest_entry_over_midnight_and_weekends() -> None:
    week = Scheduled([ScheduleEntry(8 * 3600.0, 10, (0, 1, 2, 3, 4)), ScheduleEntry(20 * 3600.0, 3)])
    monday, saturday = 0.0, 5 * 86400.0
    assert week.target_replicas(monday + 3600.0, EMPTY) == 3  # Sunday's 20:00
    assert week.target_replicas(monday + 8 * 3600.0, EMPTY) == 10
    assert week.target_replicas(monday + 20 * 3600.0, EMPTY) == 3
    assert week.target_replicas(saturday + 12 * 3600.0, EMPTY) == 3  # no morning shift


def test_a_forecast_orders_replicas_before_the_load_comes() -> None:
    period = 20
    load = 10 + 10 * np.sin(2 * np.pi * np.arange(60) / period)
    planner = Predictive(seasonal_naive(period), requests_per_s_per_replica=2.0, lead_s=300.0, headroom=0.0)
    targets = [
        planner.target_replicas(60.0 * i, FleetSnapshot(1, 1, requests_per_s=float(r))) for i, r in enumerate(load)
    ]
    needed = np.ceil(load / 2.0 - 1e-9)
    assert all(targets[i] >= needed[i + 5] for i in range(period, 50))
    assert targets[0] == 5  # no history: what is seen now


def test_the_oracle_holds_the_peak_of_the_lead_time() -> None:
    arrivals = np.concatenate([np.arange(0, 600, 1.0), np.arange(600, 660, 0.1), np.arange(660, 1200, 1.0)])
    oracle = Oracle(arrivals, requests_per_s_per_replica=2.0, lead_s=120.0)
    assert oracle.target_replicas(300.0, EMPTY) == 1
    assert oracle.target_replicas(480.0, EMPTY) == 5
    assert oracle.target_replicas(720.0, EMPTY) == 1


def test_oscillation_is_found_where_it_is_and_not_in_a_daily_cycle() -> None:
    times = [60.0 * i for i in range(40)]
    assert find_oscillation(times, [2, 8] * 20) is not None
    worst = find_oscillation(times, [5] * 20 + [2, 8] * 10)
    assert worst is not None and (worst.lowest, worst.highest) == (2, 8) and worst.start_s >= 20 * 60.0
    hours = [3600.0 * i for i in range(48)]
    assert find_oscillation(hours, [round(10 + 8 * np.sin(i / 24 * 2 * np.pi)) for i in range(48)]) is None
    assert find_oscillation(times, [100, 101] * 20) is None  # turns, but harmlessly
