"""From the fleet of today, the steps that engineers take in order, each simulated: what it saves and what it costs.

Every step widens what may be changed and keeps what came before, so each is a plan of its own, verified like any other:
right-size what runs; batching; quantization; framework; memory; compression; infrastructure; purchase.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from catalogs.errors import GateError, InputError, MissingError, PlanError
from catalogs.load import find_instance
from planner.answer import summary
from planner.explore import against_today
from planner.from_simulation import find_plan
from planner.problem import Problem, merged, problem_from
from planner.store import default_store

Progress = Callable[[str, float], None]


def steps_of(problem: Problem) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, what may change, candidates) of each step, widest last."""
    fleet = problem.today
    types = sorted({find_instance(h.instance_type, "today").name for h in fleet})
    gpus = sorted({find_instance(h.instance_type, "today").gpu for h in fleet})
    sizes = sorted({h.tensor_parallel_size or 1 for h in fleet})
    frameworks = sorted({h.framework or "vllm" for h in fleet})
    precisions = sorted({h.precision or "bf16" for h in fleet})
    now: dict[str, Any] = {
        "gpus": gpus, "instances": types, "precision": precisions, "frameworks": frameworks,
        "purchase": ["on_demand"], "tensor_parallel_size": sizes,
    }  # fmt: skip
    steps = [("right-size", "as many machines as the promise needs, all else as today", dict(now))]

    def widen(name: str, what: str, **change: Any) -> None:
        steps.append((name, what, {**steps[-1][2], **change}))

    widen("batching", "token budget and seats", max_num_batched_tokens=[2048, 8192], max_num_seqs=[64, 256])
    widen("quantization", "fp8 weights, or int8 where there is no fp8", precision=sorted({*precisions, "fp8", "int8"}))
    widen(
        "framework", "vllm, sglang or tensorrt-llm", frameworks=sorted({*frameworks, "vllm", "sglang", "tensorrt-llm"})
    )
    widen("memory", "fp8 KV cache", kv_cache_dtype=["auto", "fp8"])
    widen("compression", "4-bit weights", precision=sorted({*precisions, "fp8", "int8", "int4-awq", "int4-gptq"}))
    widen("parallelism", "other tensor parallelism", tensor_parallel_size=None)
    widen("infrastructure", "any GPU and instance type", gpus="all", instances="all")
    widen("purchase", "spot and commitments too", purchase=["on_demand", "spot", "reserved_1yr", "reserved_3yr"])
    return steps


def advise(problem: Problem, progress: Progress = lambda _what, _share: None) -> dict[str, Any]:
    """The waterfall from today's cost to the cheapest plan.

    Raises:
        InputError: no fleet of today is described.
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
    rows = [_row("today", "the fleet as described", usd, 0.0, None)]
    steps = steps_of(problem)
    store = default_store()
    best: float | None = None
    try:
        for i, (name, what, candidates) in enumerate(steps):
            progress(f"{name}: {what}", i / len(steps))
            found = _try(problem, candidates, store)
            if isinstance(found, PlanError):
                rows.append({**_row(name, what, None, 0.0, None), "why_not": found.what})
                continue
            cost = found["usd_per_hour"] if best is None else min(best, found["usd_per_hour"])
            before = usd if best is None else best
            rows.append({**_row(name, what, cost, before - cost, found)})
            best = cost
    finally:
        store.close()
    if best is None:
        raise GateError("no step leads to a fleet that keeps the promise", where="slo", remedy="a looser SLO")
    return {
        "schema_version": 1,
        "model": problem.model,
        "today_usd_per_hour": usd,
        "best_usd_per_hour": best,
        "saving_usd_per_hour": usd - best,
        "saving_share": (usd - best) / usd if usd > 0 else None,
        "steps": rows,
        "unpriced": base["without_a_price"],
        "seed": problem.seed,
    }


def _try(problem: Problem, candidates: Mapping[str, Any], store: Any) -> dict[str, Any] | PlanError:
    settings = merged(problem.model_dump(mode="json", exclude_unset=True), {"candidates": dict(candidates)})
    try:
        found = find_plan(problem_from(settings), lambda _what, _share: None, store)
    except (InputError, MissingError, GateError) as error:
        return error
    slos = {}
    from planner.confidence import slo_document

    for name, verdict in slo_document(problem.slos, found.verdict.demand, found.verdict.latencies).items():
        slos[name] = verdict["simulated"]
    scores = [line.candidate.score for line in found.lines]
    return {
        "usd_per_hour": found.solution.usd_per_hour,
        "plan": summary(found.lines),
        "slo": slos,
        "quality": None if not scores or None in scores else min(s for s in scores if s is not None),
        "busy_share": max(found.verdict.busy, default=None),
    }


def _row(name: str, what: str, usd: float | None, saving: float, found: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "step": name,
        "what": what,
        "usd_per_hour": usd,
        "saving_usd_per_hour": saving,
        "plan": found["plan"] if found else "",
        "slo": found["slo"] if found else {},
        "quality": found["quality"] if found else None,
        "why_not": "",
    }
