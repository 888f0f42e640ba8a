"""Demand, periods, spot states and limits of a problem, as the optimizer's model without options."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from catalogs.errors import InputError
from catalogs.names import nearest
from catalogs.units import HOURS_PER_MONTH
from planner.candidates import Candidate
from planner.demand import Demand
from planner.fleet_model import FleetModel, Limits, Quota
from planner.problem import Problem


def base_model(problem: Problem, demand: Demand, candidates: Sequence[Candidate]) -> FleetModel:
    """The model without options.

    Raises:
        InputError: a quota for something that is not among the candidates.
    """
    scenarios = problem.time.scenarios
    scale = np.array([s.scale for s in scenarios]) * (1 + problem.time.headroom) * (1 + problem.time.growth)
    rates = demand.rate_rps[None, None, :] * scale[:, None, None]
    probability = np.array([s.probability for s in scenarios])
    return FleetModel((), rates, probability=probability, limits=limits_of(problem, candidates))


def limits_of(problem: Problem, candidates: Sequence[Candidate]) -> Limits:
    """Budget, quotas and scaling limits, in the model's units."""
    budget = problem.budget_usd_per_month
    wants_spot = "spot" in problem.candidates.purchase
    return Limits(
        budget_usd_per_hour=None if budget is None else budget / HOURS_PER_MONTH,
        spot_max_share=problem.spot.max_share if wants_spot and problem.spot.max_share < 1 else None,
        availability=problem.spot.availability if wants_spot else None,
        max_added_per_period=problem.time.max_added_per_hour,
        max_removed_per_period=problem.time.max_removed_per_hour,
        min_run_periods=problem.time.min_run_hours,
        quotas=tuple(_quota(name, most, candidates) for name, most in problem.quotas.items()),
        cvar_weight=problem.time.cvar_weight,
        cvar_alpha=problem.time.cvar_alpha,
    )


def _quota(name: str, most: int, candidates: Sequence[Candidate]) -> Quota:
    known = {c.instance_type for c in candidates} | {c.gpu for c in candidates}
    if name not in known:
        close = nearest(name, known)
        raise InputError(
            f"quota for {name!r}, which is not among the candidates",
            where="quotas",
            remedy=f"did you mean {' or '.join(close)}?" if close else "",
        )
    members = {c.label for c in candidates if name in (c.instance_type, c.gpu)}
    return Quota(name, dict.fromkeys(sorted(members), 1.0), float(most))
