"""When the limits contradict each other: the smallest set of them to relax, and by how much."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from catalogs.errors import GateError
from catalogs.units import HOURS_PER_MONTH
from planner.optimizer.fleet_model import FleetModel, Limits, Quota
from planner.optimizer.solve import solve

TIME_LIMIT_S = 10.0
GAP = 5e-3


@dataclass(frozen=True)
class Relaxation:
    """One limit that can be lifted: its name, the limits without it, and how to say what would be enough."""

    name: str
    lifted: Callable[[Limits], Limits]
    enough: Callable[[FleetModel], str]


def explain_infeasible(model: FleetModel) -> GateError:
    """Why no plan exists, as an error that names the smallest set of limits to relax and a value that would do."""
    unserved = _sizes_that_nothing_serves(model)
    if unserved:
        return GateError(
            f"no candidate can serve {unserved} of the request sizes within the SLO",
            why="every option's capacity for them is 0",
            remedy="a looser SLO, more candidates, or a lower precision",
        )
    relaxations = _relaxations(model)
    for size in range(1, len(relaxations) + 1):
        for chosen in itertools.combinations(relaxations, size):
            limits = model.limits
            for relaxation in chosen:
                limits = relaxation.lifted(limits)
            if solve(replace(model, limits=limits), GAP, TIME_LIMIT_S) is not None:
                return _error(model, chosen, relaxations)
    return GateError(
        "no plan serves the demand with what is offered",
        why="even without budget, quotas and spot limits the candidates do not suffice",
        remedy="more candidates; existing commitments and Capacity Blocks are limited in number",
    )


def _error(model: FleetModel, chosen: tuple[Relaxation, ...], all_limits: list[Relaxation]) -> GateError:
    names = " and ".join(r.name for r in chosen)
    others = [r.name for r in all_limits if r not in chosen]
    why = "the demand cannot be served within it" if len(chosen) == 1 else "only together do they leave room"
    if others:
        why += f"; the other limits ({', '.join(others)}) can stay"
    return GateError(
        f"no plan keeps all limits: {names} {'is' if len(chosen) == 1 else 'are'} too tight",
        why=why,
        remedy="; ".join(r.enough(_without(model, chosen, r)) for r in chosen),
    )


def _without(model: FleetModel, chosen: tuple[Relaxation, ...], kept: Relaxation) -> FleetModel:
    limits = model.limits
    for relaxation in chosen:
        limits = relaxation.lifted(limits)
    return replace(model, limits=limits)


def _relaxations(model: FleetModel) -> list[Relaxation]:
    limits, found = model.limits, []
    if limits.budget_usd_per_hour is not None:
        found.append(Relaxation("the budget", lambda x: replace(x, budget_usd_per_hour=None), _budget_needed))
    found += [
        Relaxation(f"the quota of {quota.limit:g} {quota.name}", _lift_quota(quota.name), _quota_needed(quota))
        for quota in limits.quotas
    ]
    if limits.spot_max_share is not None:
        found.append(
            Relaxation("spot.max_share", lambda x: replace(x, spot_max_share=None), lambda _m: "spot.max_share: 1")
        )
    if limits.availability is not None and model.is_kind("spot").any():
        found.append(
            Relaxation(
                "spot.availability", lambda x: replace(x, availability=0.5), lambda _m: "a lower spot.availability"
            )
        )
    if limits.max_added_per_period is not None or limits.max_removed_per_period is not None:
        found.append(
            Relaxation(
                "the scaling limits",
                lambda x: replace(x, max_added_per_period=None, max_removed_per_period=None),
                lambda _m: "larger time.max_added_per_hour and time.max_removed_per_hour",
            )
        )
    return found


def _lift_quota(name: str) -> Callable[[Limits], Limits]:
    return lambda limits: replace(limits, quotas=tuple(q for q in limits.quotas if q.name != name))


def _budget_needed(model: FleetModel) -> str:
    plan = solve(model, GAP, TIME_LIMIT_S)
    assert plan is not None
    usd = plan.usd_per_hour * HOURS_PER_MONTH
    return f"budget_usd_per_month: {np.ceil(usd):.0f} (the cheapest plan costs ${plan.usd_per_hour:,.2f} an hour)"


def _quota_needed(quota: Quota) -> Callable[[FleetModel], str]:
    def enough(model: FleetModel) -> str:
        def feasible(limit: float) -> bool:
            wider = replace(model.limits, quotas=(*model.limits.quotas, replace(quota, limit=limit)))
            return solve(replace(model, limits=wider), 0.5, TIME_LIMIT_S) is not None

        low, high = quota.limit, max(1.0, quota.limit * 2)
        while not feasible(high) and high < 1e6:
            low, high = high, high * 2
        while high - low > 1:
            middle = float(np.floor((low + high) / 2))
            low, high = (low, middle) if feasible(middle) else (middle, high)
        return f"quotas: {{{quota.name}: {high:.0f}}}"

    return enough


def _sizes_that_nothing_serves(model: FleetModel) -> int:
    served = np.isfinite(model.load).any(0)
    return int(((model.demand.sum((0, 1)) > 0) & ~served).sum())
