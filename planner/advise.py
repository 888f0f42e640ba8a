"""From the fleet of today, the steps that engineers take in order, each simulated: what it saves and what it costs.

Every step keeps what the steps before it settled and offers one more choice, so it asks about few configurations, and
their capacities serve the next step too. Each is a plan of its own, verified like any other: right-size what runs;
batching; quantization; framework; memory; compression; parallelism; infrastructure; purchase.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from catalogs.errors import GateError, InputError, MissingError, PlanError
from catalogs.load import find_instance, find_model
from planner.answer import Line, line_document, summary
from planner.capacity.confidence import slo_document
from planner.capacity.store import CapacityStore, default_store
from planner.capacity.sustained import Capacities
from planner.capacity.verify import Group, Verdict, simulate_fleet
from planner.explain import explain_line
from planner.explore import against_today
from planner.from_simulation import Found, find_plan, workload_requests
from planner.inputs.candidates import Candidate, enumerate_candidates
from planner.inputs.demand import Demand, demand_of
from planner.inputs.horizon import horizon_of
from planner.inputs.problem import Holding, Problem, problem_from
from planner.optimizer.fleet_model import Option
from simulator.scenario.replicas import build_line

Progress = Callable[[str, float], None]
Settings = dict[str, Any]  # of ``candidates:``
WEIGHTS_8BIT = ("fp8", "int8")
WEIGHTS_4BIT = ("int4-awq", "int4-gptq")
FRAMEWORKS = ("vllm", "sglang", "tensorrt-llm")
SEATS, TOKENS = (64, 256), (2048, 8192)  # of a replica, tried in the batching step


@dataclass(frozen=True)
class Step:
    """One choice that the step adds to what is settled.

    Attributes:
        name, what: for the reader.
        widen: from the settled candidates, those of this step.
    """

    name: str
    what: str
    widen: Callable[[Settings], Settings]


def _also(key: str, values: Sequence[Any]) -> Callable[[Settings], Settings]:
    """What is settled, and these beside it."""

    def widen(now: Settings) -> Settings:
        return {**now, key: [*now.get(key, []), *(v for v in values if v not in now.get(key, []))]}

    return widen


def _memory(now: Settings) -> Settings:
    engine = {**now.get("engine", {}), "enable_prefix_caching": [True, False]}
    return {**_also("kv_cache_dtype", ["auto", "fp8"])(now), "engine": engine}


STEPS = (
    Step("right-size", "as many machines as the promise needs, all else as today", dict),
    Step(
        "batching", "seats and token budget of a step",
        lambda now: {**now, "max_num_seqs": list(SEATS), "max_num_batched_tokens": list(TOKENS)},
    ),
    Step("quantization", "8-bit weights, where the GPU computes in them", _also("precision", WEIGHTS_8BIT)),
    Step("framework", "vllm, sglang or tensorrt-llm", _also("frameworks", FRAMEWORKS)),
    Step("memory", "fp8 KV cache, prefix caching on or off", _memory),
    Step("compression", "4-bit weights", _also("precision", WEIGHTS_4BIT)),
    Step("parallelism", "other tensor parallelism", lambda now: {**now, "tensor_parallel_size": None}),
    Step(
        "infrastructure", "any GPU and instance type", lambda now: {**now, "gpus": "all", "instances": "all"},
    ),
    Step("purchase", "spot and commitments too", _also("purchase", ("spot", "reserved_1yr", "reserved_3yr"))),
)  # fmt: skip


def settings_of(problem: Problem) -> Settings:
    """The candidates that today's fleet stands for: its machines and how they are run, on demand."""
    fleet = problem.today
    found = [find_instance(h.instance_type, "today") for h in fleet]
    return {
        "gpus": sorted({i.gpu for i in found}),
        "instances": sorted({i.name for i in found}),
        "precision": sorted({h.precision or find_model(problem.model).quantization or "bf16" for h in fleet}),
        "frameworks": sorted({h.framework or "vllm" for h in fleet}),
        "tensor_parallel_size": sorted({h.tensor_parallel_size or 1 for h in fleet}),
        "purchase": ["on_demand"],
    }


def advise(problem: Problem, progress: Progress = lambda _what, _share: None) -> dict[str, Any]:
    """The waterfall from today's cost to the cheapest plan.

    Raises:
        InputError: no fleet of today is described. GateError: no step leads to a fleet that keeps the promise.
    """
    if not problem.today:
        raise InputError(
            "no fleet is described to start from",
            where="today",
            remedy="today: [{instance_type: g6e.xlarge, count: 4, precision: bf16, purchase: on_demand}]",
        )
    base = against_today(problem, 0.0)
    assert base is not None
    usd = float(base["usd_per_hour"])
    settled = settings_of(problem)
    store = default_store()
    try:
        progress("today: the fleet as described", 0.0)
        rows = [_today_row(problem, settled, usd, store)]
        best = usd if rows[0]["slo"] and not rows[0]["why_not"] else None  # of the fleets that keep the promise
        for i, step in enumerate(STEPS):
            progress(f"{step.name}: {step.what}", (i + 1) / (len(STEPS) + 1))
            tried = step.widen(settled)
            found = _try(problem, tried, store)
            if isinstance(found, PlanError):
                rows.append({**_row(step, None, 0.0), "why_not": found.what})
                continue
            cost = found.solution.usd_per_hour
            if best is None or cost < best * (1 - 1e-6):
                rows.append(_row(step, cost, (usd if best is None else best) - cost, problem, found))
                best, settled = cost, _settle(tried, found)
                continue
            why = f"saves nothing: its cheapest plan costs ${cost:,.2f} an hour"
            rows.append({**_row(step, best, 0.0), "why_not": why})
            settled = tried if step.name in WIDEST else settled
    finally:
        store.close()
    if best is None:
        raise GateError("no step leads to a fleet that keeps the promise", where="slo", remedy="a looser SLO")
    return {
        "schema_version": 1,
        "model": problem.model,
        "today_usd_per_hour": usd,
        "today_keeps_the_promise": None if not rows[0]["slo"] else not rows[0]["why_not"],
        "best_usd_per_hour": best,
        "saving_usd_per_hour": usd - best,
        "saving_share": (usd - best) / usd if usd > 0 else None,
        "steps": rows,
        "unpriced": base["without_a_price"],
        "seed": problem.seed,
    }


WIDEST = ("infrastructure", "purchase")  # what they offer stays on offer: the last choices belong together


def _settle(tried: Settings, found: Found) -> Settings:
    """Of what a step offered, the values that its plan uses; machines and purchase forms stay open once they are."""
    used = [line.candidate for line in found.lines]
    kept: Settings = dict(tried)
    kept["precision"] = sorted({c.precision for c in used})
    kept["frameworks"] = sorted({c.framework for c in used})
    if tried["gpus"] != "all":
        kept["tensor_parallel_size"] = sorted({c.tensor_parallel_size for c in used})
    replicas = [c.replica for c in used if c.replica is not None]
    kept["kv_cache_dtype"] = sorted({r.kv_cache_dtype for r in replicas})
    for key in ("max_num_seqs", "max_num_batched_tokens"):
        if key in tried:
            kept[key] = sorted({v for r in replicas if (v := getattr(r.engine, key)) is not None}) or None
    if "engine" in tried:
        caching = {r.engine.enable_prefix_caching for r in replicas}
        kept["engine"] = {"enable_prefix_caching": sorted(c for c in caching if c is not None)}
    return kept


def _try(problem: Problem, candidates: Mapping[str, Any], store: CapacityStore) -> Found | PlanError:
    try:
        found = find_plan(_with(problem, candidates), lambda _what, _share: None, store)
    except (InputError, MissingError, GateError) as error:
        return error
    return found if found.verdict.ok else GateError("no fleet of it kept the promise in simulation", where="slo")


def _with(problem: Problem, candidates: Mapping[str, Any]) -> Problem:
    settings = problem.model_dump(mode="json", exclude_unset=True)
    settings["candidates"] = dict(candidates)
    return problem_from(settings)


def _today_row(problem: Problem, settled: Settings, usd: float, store: CapacityStore) -> dict[str, Any]:
    """The fleet as it runs: whether it keeps the promise, how busy it is, and what bounds it."""
    row = {**_row(Step("today", "the fleet as described", dict), usd, 0.0), "slo": {}, "bottleneck": ""}
    try:
        demand = horizon_of(problem, demand_of(workload_requests(problem))).full
        fleet = _fleet(problem, settled)
    except (InputError, MissingError) as error:
        return {**row, "why_not": f"not simulated: {error.what}"}
    capacities = Capacities(demand, problem.slos, problem.router, problem.seed, store)
    verdict, groups = _simulate_today(capacities, demand, fleet)
    score = [c.score for _, c in fleet]
    missed = "" if verdict.ok else "misses the promise: right-sizing may have to add machines"
    return {
        **row,
        "plan": " + ".join(f"{h.count} x {h.instance_type} ({c.gpu}, {c.precision})" for h, c in fleet),
        "slo": _simulated(problem, verdict),
        "quality": min((s for s in score if s is not None), default=None) if None not in score else None,
        "busy_share": max(verdict.busy),
        "bottleneck": _bottleneck(problem, demand, fleet[0], groups[0], verdict.rate_rps[0]),
        "why_not": missed,
    }


def _fleet(problem: Problem, settled: Settings) -> list[tuple[Holding, Candidate]]:
    """Each holding with the candidate that it is."""
    candidates, refused = enumerate_candidates(_with(problem, settled), find_model(problem.model))
    found = []
    for holding in problem.today:
        asked = {
            "instance_type": find_instance(holding.instance_type).name,
            "precision": holding.precision,
            "tensor_parallel_size": holding.tensor_parallel_size or 1,
            "framework": holding.framework or "vllm",
        }
        fits = [c for c in candidates if all(v is None or getattr(c, k) == v for k, v in asked.items())]
        if not fits:
            num_gpus, tp = find_instance(holding.instance_type).num_gpus, holding.tensor_parallel_size or 1
            why = "; ".join(reason for _, reason in refused[:2])
            why = f"tensor_parallel_size {tp} is more than its GPUs ({num_gpus})" if tp > num_gpus else why
            raise InputError(
                f"{holding.instance_type} is not for sale or cannot serve {problem.model} as described"
                + (f": {why}" if why else ""),
                where="today",
            )
        found.append((holding, fits[0]))
    return found


def _simulate_today(
    capacities: Capacities, demand: Demand, fleet: Sequence[tuple[Holding, Candidate]]
) -> tuple[Verdict, list[Group]]:
    """Requests go to today's machines in proportion to what each could serve at most."""
    everything = tuple(range(len(demand.names)))
    lines = [build_line(c.replica) for _, c in fleet if c.replica is not None]
    counts = [h.count * c.replicas_per_instance for h, c in fleet]
    able = np.array([n * max(capacities.bound_rps(x, everything), 1e-9) for n, x in zip(counts, lines, strict=True)])
    shares = np.outer(able / able.sum(), np.ones(len(demand.names)))
    groups = [
        Group(line, n, share, c.config) for line, n, share, (_, c) in zip(lines, counts, shares, fleet, strict=True)
    ]
    return simulate_fleet(capacities, demand, groups), groups


def _bottleneck(
    problem: Problem, demand: Demand, part: tuple[Holding, Candidate], group: Group, rate_rps: float
) -> str:
    """What bounds the first machine of today's fleet at the load that it gets."""
    holding, candidate = part
    rate = demand.rate_rps / demand.rate_rps.sum() * rate_rps
    option = Option("", holding.instance_type, candidate.label, "", "on_demand", 0.0, np.zeros(len(rate)))
    line = Line(option, candidate, np.array([holding.count]), rate[None], 0.0)
    buckets = [{"mean_input_tokens": float(i), "mean_output_tokens": float(o)} for i, o in demand.mean_tokens]
    found = explain_line(line_document(line), {"buckets": buckets}, problem.model)
    return f"{found['bottleneck']}: {found['why']}"


def _simulated(problem: Problem, verdict: Verdict) -> dict[str, Any]:
    documents = slo_document(problem.slos, verdict.demand, verdict.latencies)
    return {name: document["simulated"] for name, document in documents.items()}


def _row(
    step: Step, usd: float | None, saving: float, problem: Problem | None = None, found: Found | None = None
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "step": step.name, "what": step.what, "usd_per_hour": usd, "saving_usd_per_hour": saving,
        "plan": "", "setting": "", "slo": {}, "quality": None, "busy_share": None, "why_not": "",
    }  # fmt: skip
    if found is None or problem is None:
        return row
    scores = [line.candidate.score for line in found.lines]
    return {
        **row,
        "plan": summary(found.lines),
        "setting": "; ".join(sorted({line.candidate.setting for line in found.lines if line.candidate.setting})),
        "slo": _simulated(problem, found.verdict),
        "quality": None if not scores or None in scores else min(s for s in scores if s is not None),
        "busy_share": max(found.verdict.busy, default=None),
    }
