"""Plans by simulation: capacities, the optimum, the fleet's verification, and all that the answer says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibrate.profile_error import replica_error
from catalogs.engines import version_of
from catalogs.errors import GateError, InputError, MissingError
from catalogs.load import find_model
from catalogs.schema import Model
from planner import alternatives
from planner.answer import SCHEMA_VERSION, Line, ended_by, plan_document, promised_documents, purchase_lines
from planner.assumptions import assumptions_of
from planner.capacity import confidence
from planner.capacity.disaggregated import pool_line
from planner.capacity.floors import below_the_floor, beyond_the_context
from planner.capacity.pressed import pressed
from planner.capacity.step_tables import StepTables
from planner.capacity.store import CapacityStore, default_store
from planner.capacity.sustained import Capacities
from planner.capacity.verify import Verdict
from planner.explore import against_today, break_even, explore
from planner.inputs.candidates import Candidate, enumerate_candidates
from planner.inputs.demand import demand_of
from planner.inputs.horizon import base_model, horizon_of
from planner.inputs.market import region_of
from planner.inputs.problem import Problem
from planner.inputs.purchase import check_holdings, extra_of
from planner.inputs.quality import evaluation_of
from planner.live import in_words, play
from planner.optimizer.fleet_model import FleetModel
from planner.optimizer.milp import Solution
from planner.optimizer.relax import explain_infeasible
from planner.search import Search
from planner.what_if import handed_on
from simulator.scenario.replicas import Line as Served
from simulator.scenario.replicas import build_line
from simulator.scenario.sections import DisaggregationSpec
from simulator.workload.requests import Requests

Progress = Callable[[str, float], None]
FRESH_DRAWS = 5
# each time a plan fails live: share of capacity, and of lost requests, that it is solved again with; and how often
LIVE_CUT, LIVE_LOSS, LIVE_CUTS = 0.95, 0.25, 3


@dataclass(frozen=True)
class Found:
    """A solved problem, before it is told."""

    problem: Problem
    search: Search
    model: FleetModel
    solution: Solution
    verdict: Verdict
    refused: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @property
    def lines(self) -> list[Line]:
        """The purchase list."""
        return purchase_lines(self.model, self.solution, self.search.candidates)


def recommend_by_simulation(
    problem: Problem, progress: Progress, prove: bool = False, workers: int | None = None
) -> dict[str, Any]:
    """See ``planner.recommend``."""
    store = default_store()
    try:
        found, live = lived(find_plan(problem, progress, store, workers), progress)
        progress("fresh draws of the workload", 0.85)
        answer = describe(found, live, progress)
        if prove:
            from planner.optimizer.certificate import certificate_of

            answer["_certificate"] = certificate_of(found.model, found.solution, problem.solver.gap)
    finally:
        store.close()
    progress("done", 1.0)
    return answer


def find_plan(problem: Problem, progress: Progress, store: CapacityStore, workers: int | None = None) -> Found:
    """Search for the cheapest verified fleet, with so many simulations at a time (None: one a core).

    Raises:
        InputError, MissingError, GateError: see ``planner.recommend``.
    """
    progress("reading the workload", 0.0)
    model = find_model(problem.model, "model")
    if model.kind != "decoder" and any(slo.metric == "tpot" for slo in problem.slos):
        raise InputError(f"{model.name} answers at once: it has no time per output token", where="slo",
                         remedy="promise e2e, as in slo: {e2e_p99_s: 0.1}")  # fmt: skip
    region_of(problem)
    over_time = problem.time.periods != "static" or problem.time.demand is not None
    horizon = horizon_of(problem, demand_of(workload_requests(problem), split_lengths=not over_time))
    progress("candidates", 0.05)
    candidates, refused = enumerate_candidates(problem, model)
    served, unknown = _served(candidates, problem.disaggregation, StepTables(store))
    refused += unknown
    kept = {c.label: c for c in candidates if c.config in served}
    if not kept:
        raise _nothing_fits(model, refused)
    unusable = check_holdings(problem, kept.values())
    capacities = Capacities(horizon.shape, problem.slos, problem.router, problem.seed, store, workers)
    model_without = base_model(problem, horizon, list(kept.values()))
    search = Search(
        kept, served, capacities, horizon, model_without, extra_of(problem), problem.solver.gap,
        problem.solver.time_limit_s,
    )  # fmt: skip
    rejected = beyond_the_context(capacities, served)
    _check_feasible(search)
    result = search.verified(progress, problem.solver.max_rounds)
    if result is None:
        raise explain_infeasible(search.model.with_options(search.options()))
    notes = [*assumptions_of(problem, horizon), *unusable, *([rejected] if rejected else [])]
    return Found(problem, search, *result, tuple(refused), tuple(notes))


def lived(found: Found, progress: Progress) -> tuple[Found, dict[str, Any] | None]:
    """Play the plan with its boots, scaling and outages; where it fails, cut the capacities that it rests on, and what
    outages may cost it, and solve, verify and play again.

    Returns:
        The plan, and what ``planner.live.play`` showed of it, with ``cuts``: the plans that failed before. Where
        ``LIVE_CUTS`` cuts do not help, or leave no plan, the last plan that there was.
    """
    search = found.search
    failed: list[dict[str, Any]] = []
    while True:
        progress("the fleet as it lives: boots, scaling, spot outages", 0.8)
        live = play(found.problem, search, found.lines)
        if live is None or "not_played" in live:
            return found, live
        live["cuts"] = list(failed)
        if live["ok"] or len(failed) == LIVE_CUTS:
            return found, live
        before = dict(search.rps), set(search.locked), search.model
        search.ask_more(found.model, found.solution, LIVE_CUT, LIVE_LOSS)
        again = search.verified(progress, found.problem.solver.max_rounds)
        if again is None or not again[2].ok:
            search.rps, search.locked, search.model = before
            return found, live
        usd = found.solution.usd_per_hour
        failed.append({"usd_per_hour": usd, "kept": live["kept"], "draws": live["draws"]})
        found = replace(found, model=again[0], solution=again[1], verdict=again[2])


def workload_requests(problem: Problem) -> Requests:
    """The workload's requests.

    Raises:
        InputError: it cannot be read, or the slo names a class that it does not have.
    """
    from simulator.workload.load import load_workload

    requests = load_workload(problem.workload, problem.seed)
    names = {s.request_class for s in problem.slos if s.request_class is not None}
    missing = sorted(names - set(requests.class_names))
    if missing:
        raise InputError(
            f"the slo names class {missing[0]!r}, which the workload does not have",
            where="slo",
            remedy=f"classes: {', '.join(requests.class_names)}",
        )
    return requests if find_model(problem.model, "model").kind == "decoder" else requests.answered_once()


def _served(
    candidates: list[Candidate], between: DisaggregationSpec, tables: StepTables
) -> tuple[dict[str, Served], list[tuple[str, str]]]:
    """What the simulator needs of each configuration, and those whose step times, or links, are not known."""
    alone: dict[str, Served] = {}  # by configuration without roles
    served: dict[str, Served] = {}
    refused: dict[str, str] = {}
    for candidate in candidates:
        if candidate.config in served or candidate.config in refused or candidate.replica is None:
            continue
        try:
            name = replace(candidate, num_prefill=0, num_decode=0).config
            if name not in alone:
                alone[name] = build_line(candidate.replica, table_of=tables)
            served[candidate.config] = alone[name]
            if candidate.roles:
                served[candidate.config] = pool_line(
                    alone[name], candidate.instance_type, candidate.num_prefill, candidate.num_decode, between
                )
        except (InputError, MissingError) as error:
            refused[candidate.config] = error.what
            served.pop(candidate.config, None)
    return served, sorted(refused.items())


def _nothing_fits(model: Model, refused: list[tuple[str, str]]) -> GateError:
    why = "; ".join(f"{config}: {reason}" for config, reason in refused[:3])
    more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
    return GateError(
        f"{model.name} runs on none of the candidates",
        where="candidates",
        why=why + more,
        remedy="larger or more GPUs, a lower precision (candidates.precision), or a lower quality.min_score",
    )


def _check_feasible(search: Search) -> None:
    """Fail early, with the floor, where no candidate can keep the promise at any rate."""
    everything = tuple(range(len(search.demand.names)))
    if any(search.capacities.bound_rps(line, everything) > 0 for line in search.served.values()):
        return
    floor = below_the_floor(search.capacities, search.served)
    if floor is not None:
        raise floor
    options = search.options()
    covered = np.isfinite(np.array([o.load for o in options])).any(0) if options else np.zeros(1, bool)
    if not covered.all():
        raise GateError(
            "no candidate keeps all promises at once, at any rate",
            where="slo",
            why="each promise can be kept by something, but by no single configuration for every request",
            remedy="loosen one of: " + ", ".join(confidence.name_of(s) for s in search.capacities.slos),
        )


def describe(found: Found, live: dict[str, Any] | None, progress: Progress) -> dict[str, Any]:
    """The answer in the contract's form, with what the figures rest on; ``live`` is from ``lived``."""
    problem, search, lines = found.problem, found.search, found.lines
    demand = search.demand
    checked = found.verdict.demand
    first = pressed(found.model, found.solution)[0]
    groups, _ = search.groups(found.model, found.solution, *first)
    draws = confidence.fresh_seeds(search.capacities, checked, groups, FRESH_DRAWS)
    slo = confidence.slo_document(problem.slos, checked, found.verdict.latencies)
    rates = _mean_rates(found)
    promised = promised_documents(found.model, found.solution)
    plan = plan_document(lines, found.solution.usd_per_hour, rates, promised)
    for document, line in zip(plan["lines"], lines, strict=True):
        document["serves"] = demand.pattern_name(search.patterns[line.option.name])
        document["engine"] = _engine(search.served[line.candidate.config])
    progress("the roads not taken", 0.92)
    others = alternatives.of_search(search, found.model, found.solution, found.refused)
    around: dict[str, Any] = {"what_if": handed_on(search, {}, found.solution.usd_per_hour)}
    if problem.explore:
        progress("what would change the answer", 0.96)
        around = explore(problem, search, found.model, found.solution)
    today = against_today(problem, found.solution.usd_per_hour)
    return {
        **around,
        **({"today": today} if today else {}),
        "break_even": break_even(problem, {line.candidate.instance_type for line in lines}, found.model.savings_plans),
        "schema_version": SCHEMA_VERSION,
        "model": problem.model,
        "region": problem.region,
        "budget": _budget(problem, plan),
        "plan": plan,
        "slo": slo,
        "verified": found.verdict.ok and (live is None or bool(live.get("ok", True))),
        "verified_why": _verified_why(found, draws) + in_words(live),
        "periods": list(search.horizon.names) if search.horizon.num_periods > 1 else [],
        "requests_per_s_by_period": [float(x) for x in found.model.demand[0].sum(1)],
        "confidence": draws,
        "live": live,
        "lower_bound_usd_per_hour": round(found.solution.bound, 6),
        "mip_gap": found.solution.gap,
        "ended_by": ended_by(found.solution, search.hurried),
        "rounds": search.rounds,
        "simulations": search.capacities.simulations,
        "alternatives": others,
        "assumptions": list(found.notes) + _quality(problem, lines) + _coverage(found),
        "profiles": _profiles(search, lines),
        "prices_as_of": min((_as_of(line) for line in lines), default=None),
        "buckets": [
            {"name": n, "rate_rps": float(r), "mean_input_tokens": float(i), "mean_output_tokens": float(o)}
            for n, r, (i, o) in zip(demand.names, demand.rate_rps, demand.mean_tokens, strict=True)
        ],
        "candidates": _candidate_documents(search),
        "seed": problem.seed,
    }


def _budget(problem: Problem, plan: Mapping[str, Any]) -> dict[str, float] | None:
    most = problem.budget_usd_per_month
    return None if most is None else {"usd_per_month": most, "share": plan["usd_per_month"] / most}


def _mean_rates(found: Found) -> tuple[float, float]:
    """Mean requests and output tokens a second over the horizon, in expectation over the scenarios."""
    model = found.model
    by_bucket = np.einsum("o,t,ots->s", model.probability, model.weight, model.demand)
    generates = find_model(found.problem.model).kind == "decoder"
    return float(by_bucket.sum()), float(by_bucket @ found.search.demand.mean_tokens[:, 1]) if generates else 0.0


def _verified_why(found: Found, draws: Mapping[str, Any]) -> str:
    num = len(found.verdict.demand.requests)
    if not found.verdict.ok:
        rounds = found.search.rounds
        return f"no fleet kept the promise in {rounds} rounds of simulating and tightening; this is the last of them"
    low, high = draws["probability_interval"]
    kept = f"kept its promise on {draws['kept']} of {draws['draws']} fresh draws of it"
    kept += f", a probability of {low:.0%} to {high:.0%}"
    if found.search.horizon.num_periods == 1:
        return f"the fleet was simulated on all {num:,} requests of the workload, and {kept}"
    return (
        f"every different fleet was simulated in the period that presses it hardest ({found.search.checked} runs); "
        f"in the busiest ({num:,} requests) it {kept}"
    )


def _as_of(line: Line) -> str:
    offer = line.candidate.offers.get(line.option.purchase)
    return offer.as_of if offer else ""


def _engine(served: Served) -> dict[str, Any]:
    engine = served.replica.engine
    return {
        "framework": engine.framework,
        "version": version_of(engine),
        "max_num_seqs": served.spec.max_num_seqs,
        "max_num_batched_tokens": served.spec.max_num_batched_tokens,
        "max_model_len": served.spec.max_model_len,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "kv_cache_dtype": served.replica.kv_cache_dtype,
        "num_gpu_blocks": served.spec.num_gpu_blocks,
        "block_size": served.spec.block_size,
        "enable_prefix_caching": served.spec.enable_prefix_caching,
        **({"max_queue_delay_s": served.spec.max_queue_delay_s} if served.spec.policy == "dynamic" else {}),
    }


def _quality(problem: Problem, lines: list[Line]) -> list[str]:
    """What the quality that each precision of the plan keeps rests on."""
    model, notes = find_model(problem.model), []
    for precision, score in sorted({(line.candidate.precision, line.candidate.score) for line in lines}, key=str):
        found = evaluation_of(problem, model, precision)
        if score is None:
            notes.append(
                f"how much of {model.name}'s quality {precision} keeps is not known: no evaluation of it is at hand, "
                "so none is assumed; quality.results brings yours, quality.min_score leaves out what nobody measured"
            )
        elif found is not None:
            notes.append(f"{precision} keeps {score:.4g} of {model.name}'s score, as on {found.task}: {found.source}")
    return notes


def _coverage(found: Found) -> list[str]:
    simulated, total = len(found.search.rps), len(found.search.served) * len(found.search.demand.patterns)
    return [
        f"{simulated} of {total} (configuration, sizes) pairs were simulated; the others cannot be in a cheaper plan "
        "even at the rate of a perfectly packed replica"
    ]


def _profiles(search: Search, lines: list[Line]) -> list[dict[str, Any]]:
    found = {}
    for line in lines:
        served = search.served[line.candidate.config]
        profile = served.profile
        found[profile.name] = {
            "name": profile.name,
            "source": profile.source,
            "as_of": profile.as_of,
            "error": replica_error(served.replica, profile) or None,
        }
    return list(found.values())


def _candidate_documents(search: Search) -> list[dict[str, Any]]:
    """What was simulated: the capacity of a replica by configuration and sizes."""
    return [
        {
            "config": config,
            "serves": search.demand.pattern_name(pattern),
            "max_rps": rps,
            "bound_rps": search.capacities.bound_rps(search.served[config], pattern),
        }
        for (config, pattern), rps in sorted(search.rps.items())
    ]
