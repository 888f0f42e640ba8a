"""Around the plan: what a tighter promise or a higher quality costs, and what moves the price most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from calibrate.profile_error import served_error
from catalogs.units import HOURS_PER_MONTH, HOURS_PER_YEAR
from planner.answer import purchase_lines, summary
from planner.capacity.confidence import step_error
from planner.capacity.sustained import Capacities
from planner.inputs.candidates import Candidate
from planner.inputs.market import TERM_YEARS, Offer, offers_of
from planner.inputs.problem import Problem
from planner.money import cost
from planner.optimizer.fleet_model import FleetModel, SavingsPlan
from planner.optimizer.milp import Solution
from planner.optimizer.solve import solve
from planner.search import ROUGH_GAP, Key, Search
from planner.what_if import handed_on

SLO_FACTORS = (0.75, 1.5)  # of every limit; each asks for new capacities, so they are few
SWING = 0.2  # of load and price in the tornado
LIMIT_S = 20.0  # of one solution; its nodes end it first
RIVALS = 1  # GPU types that a changed promise is answered with, besides the chosen


def explore(problem: Problem, search: Search, model: FleetModel, best: Solution) -> dict[str, Any]:
    """Pareto fronts, tornado, the cheap and dear end that the profiles' own errors leave open, and the model itself.

    Over many periods each of these plans is solved to ``ROUGH_GAP`` only.
    """
    rivals = _rivals(search, model, best)
    settled = {f: _at_slo(search, rivals, f) for f in SLO_FACTORS}
    by_factor = {f: (usd, plan) for f, (usd, plan, _) in settled.items()}
    front = [{"slo_factor": 1.0, "usd_per_hour": best.usd_per_hour, "plan": summary(_lines(model, best, search))}]
    front += [{"slo_factor": f, "usd_per_hour": u, "plan": p} for f, (u, p) in by_factor.items()]
    error = _error(search, model, best)
    ends = {"step_time_error": error, "cheap": _at_load(model, 1 / (1 + error)), "dear": _at_load(model, 1 + error)}
    quality = _quality_front(search)
    return {
        "what_if": handed_on(search, {f: rps for f, (_, _, rps) in settled.items()}, best.usd_per_hour),
        "pareto": {
            "cost_against_latency": sorted(front, key=lambda p: p["slo_factor"]),
            "cost_against_quality": quality,
        },
        "tornado": _tornado(model, best, ends, by_factor),
        "cost_range": ends,
    }


def _lines(model: FleetModel, plan: Solution, search: Search) -> list[Any]:
    return purchase_lines(model, plan, search.candidates)


def _rivals(search: Search, model: FleetModel, best: Solution) -> dict[str, Candidate]:
    """Candidates on the GPUs of the plan, and on those that are cheapest at their bounds."""
    chosen = {line.candidate.gpu for line in _lines(model, best, search)}
    price: dict[str, float] = {}
    everything = tuple(range(len(search.demand.names)))
    for c in search.candidates.values():
        rate = search.capacity((c.config, everything)) * c.served_at_once
        for offer in c.offers.values():
            if rate > 0:
                price[c.gpu] = min(price.get(c.gpu, np.inf), offer.usd_per_hour / rate)
    near = sorted(price, key=lambda g: (price[g], g))[:RIVALS]
    return {k: c for k, c in search.candidates.items() if c.gpu in chosen or c.gpu in near}


def _at_slo(
    search: Search, candidates: dict[str, Candidate], factor: float
) -> tuple[float | None, str, dict[Key, float]]:
    """The cheapest plan when every limit is multiplied: its cost, its words, and the capacities simulated for it."""
    before = search.capacities
    slos = tuple(replace(s, limit_s=s.limit_s * factor) for s in before.slos)
    capacities = Capacities(before.demand, slos, before.router, before.seed, before.store, before.workers)
    other = replace(
        search.restricted(candidates), capacities=capacities, rps={}, locked=set(), patterns={}, weights={}, _loads={},
        _offered={},
    )  # fmt: skip
    settled = other.settle(lambda _what, _share: None)
    if settled is None:
        return None, "no plan keeps it", other.rps
    return settled[1].usd_per_hour, summary(_lines(*settled, other)), other.rps


def _quality_front(search: Search) -> list[dict[str, Any]]:
    """Cost of keeping at least each of the known scores."""
    known = sorted({c.score for c in search.candidates.values() if c.score is not None}, reverse=True)
    levels = sorted({min(1.0, s) for s in known}, reverse=True)
    found = []
    for level in levels[:5]:
        keep = {k: c for k, c in search.candidates.items() if c.score is not None and c.score >= level - 1e-9}
        settled = search.restricted(keep).settle(lambda _what, _share: None)
        if settled is not None:
            found.append({"min_score": level, "usd_per_hour": settled[1].usd_per_hour,
                          "plan": summary(_lines(*settled, search))})  # fmt: skip
    return found


def _at_load(model: FleetModel, factor: float) -> float | None:
    """Cost at the same capacities under another load; slower steps by a factor are as good as more load by it."""
    return _cost(replace(model, demand=model.demand * factor))


def _error(search: Search, model: FleetModel, best: Solution) -> float:
    """By how much steps may be longer than told, or shorter (a ratio): of the profiles, and of served models."""
    served = [search.served[line.candidate.config] for line in _lines(model, best, search)]
    return max(max(step_error(x.profile.error), served_error(x.replica.model) or 0.0) for x in served)


def _tornado(
    model: FleetModel, best: Solution, ends: Mapping[str, Any], by_factor: Mapping[float, tuple[float | None, str]]
) -> list[dict[str, Any]]:
    """Cost when one thing changes and the plan is made anew, widest swing first."""
    error = ends["step_time_error"]
    used = {o.instance for o, n in zip(model.options, best.committed + best.held.sum((1, 2)), strict=True) if n > 0.5}
    dearer = [replace(o, usd_per_hour=o.usd_per_hour * (1 + SWING)) if o.instance in used else o for o in model.options]
    cheaper = [
        replace(o, usd_per_hour=o.usd_per_hour * (1 - SWING)) if o.instance in used else o for o in model.options
    ]
    bars = [
        ("load", f"{-SWING:+.0%} to {SWING:+.0%}", _at_load(model, 1 - SWING), _at_load(model, 1 + SWING)),
        ("step time (calibration error)", f"{1 / (1 + error) - 1:+.0%} to {error:+.0%}", ends["cheap"], ends["dear"]),
        ("price of the chosen machines", f"{-SWING:+.0%} to {SWING:+.0%}", _cost(model.with_options(cheaper)),
         _cost(model.with_options(dearer))),
        ("latency limits", "x 1.5 to x 0.75", by_factor[1.5][0], by_factor[0.75][0]),
    ]  # fmt: skip
    rows = [{"what": w, "change": c, "low_usd_per_hour": lo, "high_usd_per_hour": hi} for w, c, lo, hi in bars]
    return sorted(rows, key=lambda r: -abs(_swing(r)))


def _swing(row: Mapping[str, Any]) -> float:
    low, high = row["low_usd_per_hour"], row["high_usd_per_hour"]
    return float(high - low) if low is not None and high is not None else float("inf")


def _cost(model: FleetModel) -> float | None:
    gap = 1e-3 if model.demand.shape[1] == 1 else ROUGH_GAP
    plan = solve(model, gap, LIMIT_S)
    return None if plan is None else plan.usd_per_hour


def _under_plan(plan: SavingsPlan, rate: float) -> Offer:
    """A machine's whole hours under a Savings Plan; its running part is what is not paid upfront."""
    years = float(plan.terms["term_years"])
    running = rate - rate * plan.upfront_usd / (years * HOURS_PER_YEAR)
    return Offer(rate * plan.usd_per_hour, "", "", "", rate * plan.upfront_usd, running)


def against_today(problem: Problem, usd_per_hour: float) -> dict[str, Any] | None:
    """Today's fleet at the catalogue's prices, and what the plan saves; None where no fleet is described."""
    if not problem.today:
        return None
    total, unpriced = 0.0, []
    for holding in problem.today:
        usd = holding.usd_per_hour
        if usd is None:
            offer = offers_of(problem, holding.instance_type, all_forms=True).get(holding.purchase)
            usd = None if offer is None else offer.usd_per_hour
        if usd is None:
            unpriced.append(f"{holding.instance_type} {holding.purchase}")
        else:
            total += holding.count * usd
    saving = total - usd_per_hour
    return {
        "usd_per_hour": total,
        "usd_per_month": total * HOURS_PER_MONTH,
        "saving_usd_per_hour": saving,
        "saving_usd_per_month": saving * HOURS_PER_MONTH,
        "saving_share": saving / total if total > 0 else None,
        "without_a_price": unpriced,
    }


def break_even(problem: Problem, instances: set[str], plans: Sequence[SavingsPlan] = ()) -> list[dict[str, Any]]:
    """For each machine of the plan: from which utilisation, and after how many months, a commitment pays.

    Args:
        plans: Savings Plans that its machines may run under.
    """
    found = []
    for name in sorted(instances):
        offers = offers_of(problem, name, all_forms=True)
        on_demand = offers.get("on_demand")
        committed = {form: offers[form] for form in TERM_YEARS if form in offers}
        for_sale = [p for p in plans if p.held_usd_per_hour is None and name in p.rates]
        committed |= {p.name: _under_plan(p, p.rates[name]) for p in for_sale}
        for form, offer in committed.items():
            if on_demand is None:
                continue
            found.append(
                {
                    "instance_type": name,
                    "purchase": form,
                    "usd_per_hour": offer.usd_per_hour,
                    "on_demand_usd_per_hour": on_demand.usd_per_hour,
                    "upfront_usd": offer.upfront_usd,
                    "utilisation": cost.break_even_utilisation(offer.usd_per_hour, on_demand.usd_per_hour),
                    "months": cost.break_even_months(
                        offer.upfront_usd, offer.running_usd_per_hour, on_demand.usd_per_hour
                    ),
                }
            )
    return found
