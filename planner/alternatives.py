"""The roads not taken: what the next best plans cost, and why each is not the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from planner.answer import purchase_lines, summary
from planner.inputs.candidates import Candidate
from planner.optimizer.fleet_model import FleetModel, Option
from planner.optimizer.milp import Solution
from planner.optimizer.solve import solve
from planner.search import ROUGH_GAP, Search

GAP, LIMIT_S = 1e-3, 20.0
CENT = 0.01  # USD an hour; smaller differences are not told apart in words
SETTLED = 3  # single types whose capacities are simulated; the others stand at their bounds


def runner_up(
    model: FleetModel, best: Solution, candidates: Mapping[str, Candidate], time_limit_s: float = LIMIT_S
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
    return _entry(f"runner-up: {text}", usd, f"does without {without}; {_dearer(usd, best.usd_per_hour)}")


def cheapest_single_types(
    model: FleetModel,
    best: Solution,
    candidates: Mapping[str, Candidate],
    key: Callable[[Candidate], str] = lambda c: c.gpu,
    time_limit_s: float = LIMIT_S,
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
            same = plan.usd_per_hour <= best.usd_per_hour * (1 + 1e-9)
            why = "this is the plan" if same else _dearer(plan.usd_per_hour, best.usd_per_hour)
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


def _dearer(usd: float, base: float, bound: str = "") -> str:
    if abs(usd - base) < CENT / 2:
        return "costs the same"
    share = f" ({usd / base - 1:.1%})" if base > 0 else ""
    return f"costs {bound}${usd - base:,.2f} an hour{share} more"


def _entry(label: str, usd: float | None, why_not: str) -> dict[str, Any]:
    return {"label": label, "usd_per_hour": usd if usd is None else round(usd, 6), "why_not": why_not}


def of_search(
    search: Search, model: FleetModel, best: Solution, refused_before: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Runner-up, each GPU type alone, and the GPUs that never came into question.

    The runner-up and the cheapest types are settled by simulation; the others stand at the bounds of their capacities,
    which is why their cost is "at least".
    """
    chosen = {line.candidate.label for line in purchase_lines(model, best, search.candidates)}
    rivals = [e for e in (_without(search, best, label) for label in sorted(chosen)) if e is not None]
    second = min(rivals, key=lambda e: (e["usd_per_hour"], e["label"]), default=None)
    singles = _single_types(search, best)
    return [*([second] if second else []), *singles, *_never(search, refused_before)]


def _without(search: Search, best: Solution, label: str) -> dict[str, Any] | None:
    """The cheapest plan without one (machine, configuration) pair; None where there is none."""
    rest = {k: c for k, c in search.candidates.items() if k != label}
    settled = search.restricted(rest).settle(_silent) if rest else None
    if settled is None:
        return None
    text = summary(purchase_lines(*settled, rest))
    usd = settled[1].usd_per_hour
    return _entry(f"runner-up: {text}", usd, f"does without {label}; {_dearer(usd, best.usd_per_hour)}")


def _single_types(search: Search, best: Solution) -> list[dict[str, Any]]:
    """Each GPU type alone; the cheapest ``SETTLED`` by simulation, the rest by their bounds."""
    found: list[tuple[float, str, dict[str, Any]]] = []
    impossible = []
    for gpu in sorted({c.gpu for c in search.candidates.values()}):
        alone = search.restricted({k: c for k, c in search.candidates.items() if c.gpu == gpu})
        options = alone.options()
        model = alone.model.with_options(options)
        plan = solve(model, GAP if model.demand.shape[1] == 1 else ROUGH_GAP, LIMIT_S) if options else None
        if plan is None:
            why = _cannot(model, gpu) if options else f"even a lone request misses the SLO on {gpu}"
            impossible.append(_entry(f"{gpu} only", None, why))
            continue
        text = summary(purchase_lines(model, plan, alone.candidates))
        why = f"{_dearer(plan.usd_per_hour, best.usd_per_hour, 'at least ')}, at the bound of its capacity"
        found.append((plan.usd_per_hour, gpu, {**_entry(f"{gpu} only: {text}", plan.usd_per_hour, why), "bound": True}))
    found.sort(key=lambda f: f[:2])
    entries = [_settled_single(search, best, gpu) for _, gpu, _ in found[:SETTLED]]
    entries += [e for _, _, e in found[SETTLED:]]
    entries.sort(key=lambda e: (e["usd_per_hour"] is None, e["usd_per_hour"] or 0.0, e["label"]))
    if entries and entries[0]["usd_per_hour"] is not None:
        entries[0] = {**entries[0], "label": "cheapest single type: " + entries[0]["label"]}
    return entries + impossible


def _settled_single(search: Search, best: Solution, gpu: str) -> dict[str, Any]:
    alone = search.restricted({k: c for k, c in search.candidates.items() if c.gpu == gpu})
    settled = alone.settle(_silent)
    if settled is None:
        return _entry(f"{gpu} only", None, f"{gpu} alone cannot keep the SLO for every size, by simulation")
    usd = settled[1].usd_per_hour
    text = summary(purchase_lines(*settled, alone.candidates))
    same = usd <= best.usd_per_hour * (1 + 1e-6)
    why = "this is the plan" if same else _dearer(usd, best.usd_per_hour)
    return _entry(f"{gpu} only: {text}", usd, why)


def _never(search: Search, refused_before: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """GPUs of which no configuration came into question, with the reason of the most capable one."""
    present = {c.gpu for c in search.candidates.values()}
    reasons = {}
    for config, why in refused_before:
        gpu = config.split(" ")[0]
        if gpu not in present:
            reasons[gpu] = why
    return [_entry(f"{gpu} only", None, why) for gpu, why in sorted(reasons.items())]


def _silent(_what: str, _share: float) -> None:
    return None
