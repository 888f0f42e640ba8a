"""One way to solve a model: whole when it is small or its periods are tied together, decomposed when it is large."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner import decompose, milp
from planner.fleet_model import FleetModel
from planner.milp import Solution
from planner.program import relative_gap

LARGE = 600  # whole-number variables; beyond this a separable model is decomposed


def solve(model: FleetModel, gap: float = 1e-3, time_limit_s: float = 60.0) -> Solution | None:
    """The cheapest plan with its bound and gap; None where the limits contradict each other."""
    scenarios, periods = model.demand.shape[:2]
    if len(model.options) * scenarios * periods <= LARGE:
        return milp.solve(model, gap, time_limit_s)
    starts = [o.start_hours for o in model.options]
    without = model.with_options([replace(o, start_hours=0.0) for o in model.options])
    if not decompose.separable(without):
        return milp.solve(model, gap, time_limit_s)
    found = decompose.solve_decomposed(without, gap, time_limit_s)
    if found is None:
        return None
    found = replace(found, usd_per_hour=found.usd_per_hour + boot_usd_per_hour(model, found, np.array(starts)))
    achieved = relative_gap(found.usd_per_hour, found.bound)
    if model.limits.budget_usd_per_hour is not None and found.usd_per_hour > model.limits.budget_usd_per_hour + 1e-9:
        return None
    return replace(found, objective=found.usd_per_hour, gap=achieved, optimal=achieved <= gap + 1e-9)


def boot_usd_per_hour(model: FleetModel, solution: Solution, start_hours: np.ndarray) -> float:
    """What machines cost between their start and their first request, on average over the horizon.

    A large model is solved without it and it is added to the plan's cost, not to its bound; so it is part of the gap.
    """
    before = np.roll(solution.held, 1, axis=2)
    if not model.cyclic:
        before[:, :, 0] = solution.held[:, :, 0]
    started = np.maximum(solution.held - before, 0.0)
    per_start = model.usd_per_hour * start_hours
    weight = model.probability[:, None] * model.weight / model.hours
    return float((started * per_start[:, None, None] * weight).sum())
