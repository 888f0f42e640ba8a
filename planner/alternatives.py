"""The roads not taken: what the next best plans cost, and why each is not the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from planner.answer import purchase_lines, summary
from planner.candidates import Candidate
from planner.fleet_model import FleetModel, Option
from planner.milp import Solution, solve

GAP = 1e-3


def runner_up(
    model: FleetModel, best: Solution, candidates: Mapping[str, Candidate], time_limit_s: float = 5.0
) -> dict[str, Any] | None:
    """The cheapest plan that does without at least one of the chosen (machine, configuration) pairs."""
    used = {(line.candidate.label) for line in purchase_lines(model, best, candidates)}
    found: list[tuple[float, str, str]] = []
    for label in sorted(used):
        rest = [o for o in model.options if candidates[o.config].label != label]
        other = solve(model.with_options(rest), GAP, time_limit_s) if rest else None
        if other is not None:
            lines = purchase_lines(model.with_options(rest), other, candidates)
            found.append((other.usd_per_hour, label, summary(lines)))
    if not found:
        return None
    usd, without, text = min(found)
    return _entry(f"runner-up: {text}", usd, f"without {without} it costs {_more(usd, best.usd_per_hour)} more")


def cheapest_single_types(
    model: FleetModel,
    best: Solution,
    candidates: Mapping[str, Candidate],
    key: Callable[[Candidate], str] = lambda c: c.gpu,
    time_limit_s: float = 5.0,
) -> list[dict[str, Any]]:
    """For each GPU type alone, the cheapest plan; the cheapest of these is labelled so."""
    groups: dict[str, list[Option]] = {}
    for option in model.options:
        groups.setdefault(key(candidates[option.config]), []).append(option)
    entries = []
    for name, options in groups.items():
        alone = model.with_options(options)
        plan = solve(alone, GAP, time_limit_s)
        if plan is None:
            entries.append(_entry(f"{name} only", None, _cannot(alone, name)))
        else:
            text = summary(purchase_lines(alone, plan, candidates))
            more = _more(plan.usd_per_hour, best.usd_per_hour)
            same = plan.usd_per_hour <= best.usd_per_hour * (1 + 1e-9)
            why = "this is the plan" if same else f"costs {more} more"
            entries.append(_entry(f"{name} only: {text}", plan.usd_per_hour, why))
    entries.sort(key=lambda e: (e["usd_per_hour"] is None, e["usd_per_hour"] or 0.0, e["label"]))
    if entries and entries[0]["usd_per_hour"] is not None:
        entries[0] = {**entries[0], "label": "cheapest single type: " + entries[0]["label"]}
    return entries


def _cannot(model: FleetModel, name: str) -> str:
    serves = np.isfinite(model.load).any(0)
    wanted = model.demand.sum((0, 1)) > 0
    missing = int((wanted & ~serves).sum())
    if missing:
        return f"{name} alone cannot serve {missing} of the {int(wanted.sum())} request sizes at this SLO"
    return f"{name} alone cannot keep the limits that are set"


def _more(usd: float, base: float) -> str:
    share = f" ({usd / base - 1:.1%})" if base > 0 else ""
    return f"${usd - base:,.2f} an hour{share}"


def _entry(label: str, usd: float | None, why_not: str) -> dict[str, Any]:
    return {"label": label, "usd_per_hour": usd if usd is None else round(usd, 6), "why_not": why_not}


def refused(names: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Candidates that never came into question, with the reason."""
    return [_entry(label, None, why) for label, why in names]
