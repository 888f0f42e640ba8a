"""A study: a week of the Azure chat trace with growth and spot outages, against perfect foresight and simpler rules.

The hour of the trace gives sizes and bursts; its rate is stretched over a week with its rhythms, and grows.
Perfect foresight knows in which hours each spot zone will be up (from ``simulator.fleet.spot``) and buys each zone's
machines in those hours only; the bound of that model is what no rule can beat on the same capacities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.capacity.store import default_store
from planner.from_simulation import find_plan
from planner.inputs.horizon import zone_availability
from planner.inputs.problem import Problem, problem_from
from planner.optimizer.decompose import solve_decomposed
from planner.optimizer.fleet_model import FleetModel, Option, State
from planner.optimizer.milp import Solution
from planner.optimizer.solve import solve
from simulator.fleet.spot import Availability, SpotPolicy, Zone, synthesise
from tests.planner.outage_week import operate_plan, operate_spothedge
from tests.shared_data import shared_data

HOURS = 168
DRAWS = 2
MOST_EXTRA = 12  # spot machines that SpotHedge may hold beyond its target


def rates_of_a_week(mean_rps: float) -> np.ndarray:
    """(168,) Monday to Sunday: twice as much at 15:00 as at 3:00, weekends at 0.6."""
    hour = np.arange(HOURS)
    wave = 1 + 0.33 * np.sin((hour % 24 - 9) * np.pi / 12)
    return mean_rps * wave * np.where(hour // 24 >= 5, 0.6, 1.0)


def week_problem(folder: Path) -> Problem:
    rates = folder / "week.csv"
    rows = "".join(f"{h},{r:.4f}\n" for h, r in enumerate(rates_of_a_week(50.0)))
    rates.write_text("hour,rate_rps\n" + rows, encoding="utf-8")
    return problem_from(
        {"model": "llama-3.1-8b", "workload": {"trace": str(shared_data("traces/azure_llm_2023_conv.csv"))},
         "slo": {"ttft_p95_s": 1.0, "tpot_p95_s": 0.05}, "explore": False, "solver": {"gap": 0.005, "time_limit_s": 10},
         "candidates": {"gpus": ["L4", "L40S"], "precision": ["fp8"],
                        "purchase": ["on_demand", "spot", "reserved_3yr"]},
         "spot": {"availability": 0.99}, "time": {"demand": str(rates), "growth": 0.2, "boot_s": 240}}
    )  # fmt: skip


def with_foresight(problem: Problem, model: FleetModel, seed: int) -> FleetModel:
    """Spot zones as machines that can be had in the hours in which their zone is up; no state is uncertain."""
    path = outages(problem, seed)
    zones = path.zones
    middle = (np.arange(HOURS) + 0.5) * 3600.0
    up = np.array([[path.is_up(z, t) for t in middle] for z in range(len(zones))])
    options = []
    for option in model.options:
        bare = replace(option, start_hours=0.0)
        if option.kind != "spot":
            options.append(bare)
            continue
        options += [
            replace(bare, name=f"{option.name} {zone.name}", kind="on_demand", active=up[z])
            for z, zone in enumerate(zones)
            if up[z].any()
        ]
    limits = replace(model.limits, availability=None, spot_max_share=None)
    return replace(model, options=tuple(options), states=(State(1.0),), limits=limits)


def outages(problem: Problem, seed: int) -> Availability:
    """A week in which the problem's zones come and go."""
    share, _ = zone_availability(problem)
    zones = [Zone(f"z{i}", problem.region, share) for i in range(problem.spot.zones)]
    return synthesise(zones, HOURS * 3600.0, seed)


def at_equal_availability(problem: Problem, model: FleetModel, ours: Solution, seed: int) -> tuple[float, ...]:
    """Our plan operated over a week of outages, and SpotHedge with as much overprovisioning as serves as many requests.

    Returns:
        Our USD an hour and share of requests served, then SpotHedge's.
    """
    path, boot_s = outages(problem, seed), problem.time.boot_s
    machine = [o for o in model.options if o.instance == "g6e.xlarge"]
    on_demand, spot = (next(o for o in machine if o.kind == kind) for kind in ("on_demand", "spot"))
    usd, served = operate_plan(path, model, ours, on_demand, boot_s)
    hedged = (np.inf, 0.0)
    for more in range(MOST_EXTRA + 1):
        policy = SpotPolicy(num_overprovision=more, dynamic_ondemand_fallback=True)
        hedged = operate_spothedge(path, model.demand[0, :, 0], spot, on_demand, policy, boot_s)
        if hedged[1] >= served:
            break
    return (usd, served, *hedged)


@pytest.mark.slow
def test_a_week_against_perfect_foresight_and_simpler_rules(tmp_path: Path) -> None:
    problem = week_problem(tmp_path)
    store = default_store()
    try:
        found = find_plan(problem, lambda _what, _share: None, store)
    finally:
        store.close()
    model, ours = found.model, found.solution.usd_per_hour
    bounds = []
    for seed in range(1, DRAWS + 1):
        known = solve_decomposed(with_foresight(problem, model, seed), 5e-3, 15)
        assert known is not None
        bounds.append(known.bound)

    def alone(keep: Callable[[Option], bool]) -> float | None:
        plan = solve(model.with_options([o for o in model.options if keep(o)]), 5e-3, 10)
        return None if plan is None else plan.usd_per_hour

    on_demand = alone(lambda o: o.kind == "on_demand")
    singles = {g: alone(lambda o, g=g: found.search.candidates[o.config].gpu == g) for g in ("L4", "L40S")}
    gap, kept = found.solution.gap, found.verdict.ok
    print(f"\nplan ${ours:.2f} an hour (gap {gap:.2%}, verified: {kept}); all on demand ${on_demand:.2f}")
    print(f"perfect foresight at least ${np.min(bounds):.2f} to ${np.max(bounds):.2f}; one GPU type alone {singles}")
    free = model.with_options([o for o in model.options if o.kind != "committed"])
    uncommitted = solve(free, 5e-3, 40)
    assert uncommitted is not None
    for seed in range(1, DRAWS + 1):
        usd, served, hedged_usd, hedged_served = at_equal_availability(problem, model, found.solution, seed)
        print(f"outages {seed}: plan ${usd:.2f} serves {served:.4f}; SpotHedge ${hedged_usd:.2f} {hedged_served:.4f}")
        assert served >= problem.spot.availability and usd < hedged_usd
        usd, served, hedged_usd, hedged_served = at_equal_availability(problem, free, uncommitted, seed)
        print(f"  without commitments ${usd:.2f} serves {served:.4f}; SpotHedge ${hedged_usd:.2f} {hedged_served:.4f}")
        assert usd < 1.15 * hedged_usd
    assert found.verdict.ok
    assert np.mean(bounds) <= ours + 1e-6
    assert ours <= on_demand and all(ours <= usd * (1 + 5e-3) for usd in singles.values() if usd is not None)
