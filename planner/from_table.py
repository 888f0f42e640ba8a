"""Plans from a capacity table: your measurements say what a replica sustains; nothing is simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from catalogs.errors import GateError, InputError, MissingError
from planner import alternatives
from planner.answer import SCHEMA_VERSION, ended_by, plan_document, purchase_lines
from planner.inputs.candidates import Candidate
from planner.inputs.capacity_table import Buckets, TableEntry, buckets_of, loads, read_capacity_table, read_demand
from planner.inputs.horizon import limits_of, spot_states
from planner.inputs.market import Offer
from planner.inputs.problem import Problem
from planner.optimizer.fleet_model import FleetModel, Limits, Option, Quota, State
from planner.optimizer.solve import solve

ASSUMED_LINEAR = (
    "capacities add up linearly over request sizes: a replica that sustains a requests a second of one size or b of "
    "another sustains any mix x, y with x/a + y/b <= 1"
)


def recommend_from_table(
    problem: Problem, progress: Callable[[str, float], None], prove: bool = False
) -> dict[str, Any]:
    """The cheapest mix for the demand, by the table's capacities; see ``planner.recommend``."""
    assert problem.capacity_table is not None
    _one_load_only(problem)
    progress("reading the capacity table", 0.0)
    entries = read_capacity_table(problem.capacity_table)
    demand = _demand(problem, entries)
    measured = _candidates(problem, entries)
    candidates = {c.label: c for c, _ in measured}
    options = _options({c.label: (c, e) for c, e in measured}, demand)
    notes = _gaps(entries, demand)
    limits = _limits(problem, options, candidates)
    states = spot_states(problem) if any(o.kind == "spot" for o in options) else (State(1.0),)
    model = FleetModel(tuple(options), demand.rate_rps[None, None, :], states=states, limits=limits)
    _check_every_size(model, demand, problem)
    progress("solving", 0.3)
    best = solve(model, problem.solver.gap, problem.solver.time_limit_s)
    if best is None:
        from planner.optimizer.relax import explain_infeasible

        raise explain_infeasible(model)
    lines = purchase_lines(model, best, candidates)
    progress("the roads not taken", 0.7)
    others = alternatives.cheapest_single_types(model, best, candidates)
    second = alternatives.runner_up(model, best, candidates)
    rates = (float(demand.rate_rps.sum()), demand.output_tokens_per_s)
    proof = {}
    if prove:
        from planner.optimizer.certificate import certificate_of

        proof = {"_certificate": certificate_of(model, best, problem.solver.gap)}
    return proof | {
        "schema_version": SCHEMA_VERSION,
        "model": problem.model,
        "plan": plan_document(lines, best.usd_per_hour, rates),
        "slo": {s.name: {"limit": s.limit_s, "simulated": None, "ok": None} for s in problem.slos},
        "verified": False,
        "verified_why": _why_not_verified(problem, entries),
        "lower_bound_usd_per_hour": round(best.bound, 6),
        "mip_gap": best.gap,
        "ended_by": ended_by(best, False),
        "alternatives": [*([second] if second else []), *others],
        "assumptions": [ASSUMED_LINEAR, *notes],
        "profiles": [{"name": str(problem.capacity_table.name), "source": "your capacity table", "error": None}],
        "prices_as_of": min((o.as_of for c in candidates.values() for o in c.offers.values() if o.as_of), default=None),
        "buckets": [
            {"input_tokens": i, "output_tokens": o, "rate_rps": float(r)}
            for (i, o), r in zip(demand.sizes, demand.rate_rps, strict=True)
        ],
        "seed": problem.seed,
    }


def _demand(problem: Problem, entries: list[TableEntry]) -> Buckets:
    workload = problem.workload
    if workload.buckets is not None:
        return read_demand(workload.buckets, workload.scale)
    from simulator.workload.load import load_workload

    requests = load_workload(workload, problem.seed)
    return buckets_of(requests, entries, float(requests.arrival_s[-1] - requests.arrival_s[0]) or 1.0)


def _candidates(problem: Problem, entries: list[TableEntry]) -> list[tuple[Candidate, TableEntry]]:
    """What can be bought, each with the rows that say what it sustains."""
    wanted = problem.candidates
    found = []
    for entry in entries:
        if wanted.precision is not None and entry.precision not in wanted.precision:
            continue
        if wanted.gpus != "all" and entry.gpu not in wanted.gpus:
            continue
        prices = {e.usd_per_hour for e in entries if e.gpu == entry.gpu and e.usd_per_hour is not None}
        usd = next(iter(prices), None)
        if usd is not None:
            offer = {"on_demand": Offer(usd, "your capacity table", "")}
            bought = Candidate(entry.gpu, entry.gpu, 1, 1, 1, entry.precision, wanted.frameworks[0], None, offer)
            found.append((bought, entry))
        else:
            found += [(c, entry) for c in _from_catalogue(problem, entry)]
    if not found:
        raise InputError(
            "the capacity table has no row for the candidates",
            where=str(problem.capacity_table),
            remedy="widen candidates.gpus and candidates.precision, or leave them out",
        )
    return found


def _from_catalogue(problem: Problem, entry: TableEntry) -> list[Candidate]:
    from catalogs.load import find_gpu
    from planner.inputs.market import instances_with, offers_of

    try:
        gpu = find_gpu(entry.gpu)
    except InputError as error:
        raise MissingError(
            f"no price for {entry.gpu}",
            where=entry.where,
            why="the catalogue does not know this GPU, so the table must price it",
            remedy=f"add a usd_per_hour column; {error.remedy}",
        ) from error
    found = []
    for instance in instances_with(gpu.name):
        offers = offers_of(problem, instance.name)
        if offers:
            found.append(
                Candidate(
                    instance.name,
                    gpu.name,
                    instance.num_gpus,
                    1,
                    1,
                    entry.precision,
                    problem.candidates.frameworks[0],
                    None,
                    offers,
                )
            )
    if not found:
        raise MissingError(
            f"no price for {gpu.name} in {problem.region}",
            where=entry.where,
            remedy="add a usd_per_hour column to the table, or `prices:` with your own",
        )
    return found


def _options(measured: Mapping[str, tuple[Candidate, TableEntry]], demand: Buckets) -> list[Option]:
    options = []
    for label, (candidate, entry) in measured.items():
        load = loads(entry, demand.sizes) / candidate.replicas_per_instance
        for purchase, offer in candidate.offers.items():
            kind = "on_demand" if purchase == "on_demand" else "spot" if purchase == "spot" else "committed"
            options.append(
                Option(f"{label} {purchase}", candidate.instance_type, label, purchase, kind, offer.usd_per_hour, load)  # type: ignore[arg-type]
            )
    return options


def _limits(problem: Problem, options: list[Option], candidates: Mapping[str, Candidate]) -> Limits:
    quotas = []
    for name, most in problem.quotas.items():
        members = {o.config: 1.0 for o in options if name in (o.instance, candidates[o.config].gpu)}
        if not members:
            raise InputError(f"quota for {name!r}, which is not among the candidates", where="quotas")
        quotas.append(Quota(name, members, most))
    others = limits_of(problem.model_copy(update={"quotas": {}}), ())
    return replace(others, quotas=tuple(quotas))


def _one_load_only(problem: Problem) -> None:
    """Refuse what a plan from a capacity table would leave out without a word.

    Raises:
        InputError: demand over time, commitments that are already paid for, or roles to simulate.
    """
    over_time = problem.time.periods != "static" or problem.time.demand is not None
    for given, where in (
        (over_time, "time"), (bool(problem.commitments.existing), "commitments.existing"),
        (bool(problem.commitments.existing_savings_plans), "commitments.existing_savings_plans"),
        (True in problem.candidates.disaggregated, "candidates.disaggregated"),
        ("savings_plan" in problem.candidates.purchase, "savings_plan in candidates.purchase"),
    ):  # fmt: skip
        if given:
            raise InputError(
                "a capacity table plans for one load, with nothing bought before, no roles and no Savings Plans",
                where=where,
                why="its rows say what a replica sustains by size, not when",
                remedy=f"leave out {where}, or leave out capacity_table and let the capacities be simulated",
            )


def _gaps(entries: list[TableEntry], demand: Buckets) -> list[str]:
    notes = []
    for entry in entries:
        gaps = [s for s in demand.sizes if s not in entry.max_rps]
        zeros = [s for s in demand.sizes if entry.max_rps.get(s) == 0]
        for sizes, what in ((gaps, "has no row for"), (zeros, "has a rate of 0 for")):
            if sizes:
                shown = ", ".join(f"{i:g}/{o:g}" for i, o in sizes[:4]) + (" ..." if len(sizes) > 4 else "")
                notes.append(f"{entry.gpu} {entry.precision} {what} {shown} (in/out): it is taken to serve none of it")
    return notes


def _check_every_size(model: FleetModel, demand: Buckets, problem: Problem) -> None:
    served = np.isfinite(model.load).any(0) | (demand.rate_rps == 0)
    if not served.all():
        i, o = demand.sizes[int(np.argmin(served))]
        raise GateError(
            f"no candidate serves requests of {i:g} input and {o:g} output tokens",
            where=str(problem.capacity_table),
            why="every rate for that size is missing or 0",
            remedy="measure that size on one of the GPUs, or take it out of the demand",
        )


def _why_not_verified(problem: Problem, entries: list[TableEntry]) -> str:
    if problem.workload.buckets is not None:
        return "the demand is rates by size, without arrivals, and capacities come from your table: nothing to simulate"
    return "capacities come from your table, which the simulator does not know: the plan is not simulated"
