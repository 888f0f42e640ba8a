"""The plan played as a fleet: boots come ahead of the hour, outages are lived through, and a late fleet is noticed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner import live as live_play
from planner.answer import purchase_lines
from planner.capacity.confidence import wilson
from planner.capacity.store import default_store
from planner.from_simulation import find_plan, lived
from planner.inputs.problem import problem_from
from planner.live import play, timetable


def found(trace, folder, candidates=None, rates=(3, 3, 14, 3), **more):
    rows = "".join(f"{hour},{rate}\n" for hour, rate in enumerate(rates))
    rates = folder / "rates.csv"
    rates.write_text("hour,rate_rps\n" + rows, encoding="utf-8")
    problem = problem_from(
        {"model": "llama-3.1-8b", "workload": {"trace": str(trace)}, "slo": {"ttft_p95_s": 1.0, "tpot_p95_s": 0.05},
         "candidates": {"gpus": ["L4"], "precision": ["fp8"], "tensor_parallel_size": [1], **(candidates or {})},
         "explore": False, **{"time": {"demand": str(rates)}, **more}}
    )  # fmt: skip
    store = default_store()
    try:
        return find_plan(problem, lambda _what, _share: None, store)
    finally:
        store.close()


def test_a_rise_starts_a_boot_ahead_and_a_fall_waits_for_its_hour():
    entries = timetable([2, 5, 3], 1800.0, 400.0)
    assert [(e.at_s, e.replicas) for e in entries] == [(0.0, 2), (1400.0, 5), (5400.0, 3)]
    late = timetable([1] * 30 + [2], 0.0, 100.0)
    assert [(e.days, e.at_s) for e in late][-1] == ((1,), 30 * 3600.0 - 86400.0 - 100.0)


@pytest.mark.parametrize(("kept", "draws", "low", "high"), [(10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634)])
def test_interval_of_a_share(kept, draws, low, high):
    assert wilson(kept, draws) == pytest.approx((low, high), abs=1e-4)  # Brown, Cai, DasGupta 2001


def test_the_hour_of_the_steepest_rise_is_played_and_a_late_fleet_is_noticed(trace, tmp_path):
    plan = found(trace, tmp_path)
    lines = purchase_lines(plan.model, plan.solution, plan.search.candidates)
    live = play(plan.problem, plan.search, lines, 3)
    assert live is not None and live["window"].startswith("hour 1") and live["kept"] == live["draws"] >= 3
    late = [replace(line, counts=np.roll(line.counts, 1)) for line in lines]
    missed = play(plan.problem, plan.search, late, 3)
    assert missed is not None and missed["kept"] == 0


def test_spot_outages_are_lived_through_in_each_draw(trace, tmp_path):
    plan = found(trace, tmp_path, candidates={"purchase": ["on_demand", "spot"]},
                 spot={"availability": 0.95, "zone_availability": 0.5, "zones": 2, "fallback": False})  # fmt: skip
    assert any(line.option.kind == "spot" for line in plan.lines)
    live = play(plan.problem, plan.search, plan.lines, 4)
    assert live is not None and live["spot_zones"] == 2
    spot = [replace(x, counts=x.counts + 6) for x in plan.lines if x.option.kind == "spot"][:1]
    alone = play(plan.problem, plan.search, spot, 6)
    assert alone is not None and alone["kept"] < 6, "zones are down half of the time, and nothing stands in"
    assert alone["spread"]["ttft_p95_s"][1] > live["spread"]["ttft_p95_s"][1]


def test_a_plan_that_fails_when_played_is_cut_and_solved_again(trace, tmp_path, monkeypatch):
    """An availability of 0.9 lets a tenth of the requests be lost; a promise to 95 % of them does not."""
    monkeypatch.setattr(live_play, "ALL_REQUESTS", 120_000)
    plan = found(trace, tmp_path, candidates={"purchase": ["on_demand", "spot"]}, rates=(1, 1, 5, 1),
                 spot={"availability": 0.9, "zone_availability": 0.7, "fallback": False})  # fmt: skip
    before = plan.solution.usd_per_hour
    first = play(plan.problem, plan.search, plan.lines)
    assert first is not None and not first["ok"]
    again, live = lived(plan, lambda _what, _share: None)
    assert live is not None and live["ok"] and again.verdict.ok
    assert live["cuts"][0] == {"usd_per_hour": before, "kept": first["kept"], "draws": first["draws"]}
    assert again.solution.usd_per_hour > before
    on_demand = [sum(x.counts.sum() for x in p.lines if x.option.kind == "on_demand") for p in (plan, again)]
    assert on_demand[1] > on_demand[0]


def test_a_fleet_that_never_changes_is_not_played(trace, tmp_path):
    plan = found(trace, tmp_path, time={})
    assert plan.search.horizon.num_periods == 1
    assert play(plan.problem, plan.search, plan.lines) is None
