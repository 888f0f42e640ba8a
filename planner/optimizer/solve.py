"""One way to solve a model: whole when it is small or its periods are tied together, decomposed when it is large."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from planner.optimizer import decompose, milp
from planner.optimizer.cells import without_ties
from planner.optimizer.fleet_model import FleetModel, Option
from planner.optimizer.milp import NODES, Solution
from planner.optimizer.program import relative_gap
from planner.optimizer.relaxation import cheapest_by_bucket, relax

LARGE = 600  # whole-number variables; beyond this a model is decomposed
ONE_SIZE_LARGE = 4000  # the same where requests are of one size: first tried whole, for a few nodes
FIRST_NODES, FIRST_SHARE = 200, 0.5  # of nodes, and of the time, that this try may take
UNTIED_SHARE, PART_SHARE = 0.4, 0.7  # of the time: for the bound; of the rest, for the plan over few options


def solve(model: FleetModel, gap: float = 1e-3, time_limit_s: float = 60.0) -> Solution | None:
    """The cheapest plan with its bound and gap; None where the limits contradict each other."""
    scenarios, periods = model.demand.shape[:2]
    small = len(model.options) * scenarios * periods <= LARGE
    without = model.with_options([replace(o, start_hours=0.0) for o in model.options])
    in_parts = decompose.separable(without) and not model.savings_plans
    if small and not in_parts:
        return milp.solve(model, gap, time_limit_s)
    if model.savings_plans:
        return solve_with_savings_plans(model, gap, time_limit_s)
    if not in_parts:
        return solve_tied(model, gap, time_limit_s)
    end = time.monotonic() + time_limit_s
    plain = len(model.states) == 1 or model.demand.shape[2] == 1  # else even HiGHS's first node takes long
    whole = milp.solve(model, gap, time_limit_s * FIRST_SHARE, FIRST_NODES) if small and plain else None
    if whole is not None and whole.optimal:
        return whole
    may_be_whole = small or _one_size(model)
    parts_s = (end - time.monotonic()) * (FIRST_SHARE if may_be_whole else 1.0)
    parts = decompose.solve_decomposed(without, gap, parts_s)
    if parts is None:
        return whole
    found = _with_boots(model, parts, gap)
    found = found if whole is None else _better(found, whole, gap)
    left_s = end - time.monotonic()
    if not found.optimal and may_be_whole and left_s > 0:  # with boots in the bound, and HiGHS's cuts
        whole = milp.solve(model, gap, left_s, NODES if small else FIRST_NODES)
        found = found if whole is None else _better(found, whole, gap)
    if model.limits.budget_usd_per_hour is not None and found.usd_per_hour > model.limits.budget_usd_per_hour + 1e-9:
        return None
    return found


def solve_with_savings_plans(model: FleetModel, gap: float = 1e-3, time_limit_s: float = 60.0) -> Solution | None:
    """A large model with Savings Plans, whose promises tie all periods together.

    The bound is the linear relaxation's. The plan comes from the whole program over the options of a looser question
    that decomposes: there every machine on demand may also be committed to at its rate under each plan.
    """
    end = time.monotonic() + time_limit_s
    whole = _tried_whole(model, gap, time_limit_s)
    if whole is not None and whole.optimal:
        return whole
    loose = replace(
        model, options=tuple(replace(o, start_hours=0.0) for o in model.options), limits=without_ties(model.limits)
    )
    relaxed = relax(loose)
    if relaxed is None:
        return None
    standing = _standing_for_plans(loose)
    alone = replace(loose, options=tuple(o for _, o in standing), savings_plans=())
    guess = decompose.solve_decomposed(alone, gap, max(end - time.monotonic(), 1.0) * UNTIED_SHARE)
    if guess is None:
        return None
    used = guess.machines > 1e-6
    wanted = {j for (j, _), yes in zip(standing, used, strict=True) if yes}
    return _over_some(model, wanted | {*relaxed.basis}, relaxed.usd_per_hour, gap, end - time.monotonic())


def _standing_for_plans(model: FleetModel) -> list[tuple[int, Option]]:
    """The index of an option, and it or, if it is on demand, a commitment at its rate under each Savings Plan."""
    found = list(enumerate(model.options))
    for plan, rates in zip(model.savings_plans, model.plan_rates, strict=True):
        for j in np.flatnonzero(np.isfinite(rates)):
            option, rate = model.options[j], float(rates[j])
            most = option.max_count if plan.held_usd_per_hour is None else math.ceil(plan.held_usd_per_hour / rate)
            found.append((int(j), replace(option, name=f"{option.name} under {plan.name}", kind="committed",
                                          usd_per_hour=rate * plan.usd_per_hour, max_count=most)))  # fmt: skip
    return found


def _one_size(model: FleetModel) -> bool:
    """Whether all requests are of one size, and the model not too large to be tried whole."""
    scenarios, periods, buckets = model.demand.shape
    return bool(buckets == 1 and len(model.options) * scenarios * periods <= ONE_SIZE_LARGE)


def _tried_whole(model: FleetModel, gap: float, time_limit_s: float) -> Solution | None:
    """Where all requests are of one size, the plan of the whole program after a few nodes, if one was found."""
    return milp.solve(model, gap, time_limit_s * FIRST_SHARE, FIRST_NODES) if _one_size(model) else None


def _with_boots(model: FleetModel, plan: Solution, gap: float) -> Solution:
    usd = plan.usd_per_hour + boot_usd_per_hour(model, plan, np.array([o.start_hours for o in model.options]))
    return _bounded(replace(plan, usd_per_hour=usd, objective=usd), plan.bound, gap)


def _better(one: Solution, other: Solution, gap: float) -> Solution:
    """The cheaper of two plans of one model, under the higher of their bounds."""
    best = min((one, other), key=lambda s: s.objective)
    found = _bounded(best, max(one.bound, other.bound), gap)
    return replace(found, hurried=not found.optimal and (one.hurried or other.hurried))


def solve_tied(model: FleetModel, gap: float = 1e-3, time_limit_s: float = 60.0) -> Solution | None:
    """A large model whose periods are tied together, by scaling limits, minimum runs or the dear tail's weight.

    Without the ties it decomposes, and no plan that keeps them is cheaper than its bound. The plan then comes from the
    whole program over the options that the looser plan uses; where that leaves a gap, over all, while time lasts.
    """
    end = time.monotonic() + time_limit_s
    options = [replace(o, start_hours=0.0) for o in model.options]
    loose = replace(model, options=tuple(options), limits=without_ties(model.limits))
    untied = decompose.solve_decomposed(loose, gap, time_limit_s * UNTIED_SHARE)
    if untied is None:
        return None
    used = {int(j) for j in np.flatnonzero(untied.machines > 1e-6)}
    found = _over_some(model, used, untied.bound, gap, (end - time.monotonic()) * PART_SHARE)
    if found is None or (not found.optimal and time.monotonic() < end):
        whole = milp.solve(model, gap, max(end - time.monotonic(), 1.0))
        if whole is not None:
            bound = max(whole.bound, untied.bound)
            best = whole if found is None or whole.objective < found.objective else found
            return _bounded(best, bound, gap)
    return found


def _over_some(
    model: FleetModel, wanted: Collection[int], bound: float, gap: float, time_limit_s: float
) -> Solution | None:
    """The whole program over some options, and the cheapest for each bucket, under a bound that holds for all."""
    ids = np.array(sorted({*wanted, *cheapest_by_bucket(model)}), dtype=np.int64)
    part = milp.solve(model.with_options([model.options[j] for j in ids]), gap, max(time_limit_s, 1.0))
    if part is None:
        return None
    if len(ids) == len(model.options):
        bound = max(bound, part.bound)
    return _spread(part, ids, len(model.options), bound, gap)


def _spread(part: Solution, ids: np.ndarray, num: int, bound: float, gap: float) -> Solution:
    """A plan of some options as a plan of all."""

    def all_of(values: np.ndarray) -> np.ndarray:
        full = np.zeros((num, *values.shape[1:]))
        full[ids] = values
        return full

    whole = replace(
        part, committed=all_of(part.committed), held=all_of(part.held), fallback=all_of(part.fallback),
        routed=all_of(part.routed), covered=np.array([all_of(c) for c in part.covered]),
    )  # fmt: skip
    return _bounded(whole, bound, gap)


def _bounded(plan: Solution, bound: float, gap: float) -> Solution:
    lower = min(bound, plan.objective)
    achieved = relative_gap(plan.objective, lower)
    return replace(plan, bound=lower, gap=achieved, optimal=achieved <= gap + 1e-9)


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
