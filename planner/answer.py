"""The answer's form: the contract's JSON, built from a solved model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalogs.units import SECONDS_PER_HOUR
from planner.inputs.candidates import Candidate
from planner.inputs.purchase import HOURS_PER_DAY
from planner.money import cost
from planner.optimizer.fleet_model import FleetModel, Option
from planner.optimizer.milp import Solution

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Line:
    """One line of the purchase list.

    Attributes:
        option: what is bought.
        candidate: what it runs.
        counts: (T,) machines in each period, in the expected scenario (the first).
        rate_rps: (T, S) what it serves, on average over the states of the spot zones.
        usd_per_hour: on average; what a Savings Plan pays for is not in it.
        covered_share: of its machine-hours, under Savings Plans.
    """

    option: Option
    candidate: Candidate
    counts: NDArray[np.int64]
    rate_rps: NDArray[np.float64]
    usd_per_hour: float
    covered_share: float = 0.0


def purchase_lines(model: FleetModel, solution: Solution, candidates: Mapping[str, Candidate]) -> list[Line]:
    """The lines with at least one machine, dearest first; counts and routing are those of the first scenario."""
    lines = []
    weight, active = model.weight, model.active
    chance = np.array([s.probability for s in model.states])
    for j, option in enumerate(model.options):
        committed = solution.committed[j] * active[j]
        counts = np.round(committed + solution.held[j, 0]).astype(np.int64)
        if not counts.any():
            continue
        served = np.einsum("k,tks->ts", chance, solution.routed[j, 0]) * model.demand[0]
        usd = float((counts * weight).sum() * option.usd_per_hour)
        covered = 0.0
        if option.kind == "on_demand" and model.savings_plans:
            under = np.minimum(solution.covered[:, j, 0].sum(0), counts[:, None])  # (T, K)
            covered = float(weight @ under @ chance)
            usd -= covered * option.usd_per_hour
        share = covered / max(float(counts @ weight), 1e-12)
        counts *= option.machines
        if option.kind == "spot":
            usd *= sum(s.probability * s.spot_up for s in model.states)
        lines.append(Line(option, candidates[option.config], counts, served, usd, share))
    return sorted(lines, key=lambda line: (-line.usd_per_hour, line.option.name))


def line_document(line: Line, periods: Sequence[str] = ()) -> dict[str, Any]:
    """A line as the contract has it."""
    c = line.candidate
    return {
        "instance_type": c.instance_type,
        "gpu": c.gpu,
        "gpus_per_replica": c.gpus_per_replica,
        "tensor_parallel_size": c.tensor_parallel_size,
        **_other_sizes(c),
        **_roles(line),
        "precision": c.precision,
        "framework": c.framework,
        "purchase": line.option.purchase,
        "instances": [int(n) for n in line.counts],
        "usd_per_hour": round(line.usd_per_hour, 6),
        "usd_per_month": round(cost.usd_per_month(line.usd_per_hour), 2),
        "replicas_per_instance": c.replicas_per_instance,
        "usd_per_instance_hour": line.option.usd_per_hour / line.option.machines,
        "requests_per_s": [round(float(r), 6) for r in line.rate_rps.sum(1)],
        "share_by_size": _shares(line),
        "setting": c.setting,
        "quality_score": c.score,
        "price_source": _price_source(line),
        "upfront_usd": _upfront_usd(line),
        "held": _held(line.option),
        **({"covered_share": round(line.covered_share, 6)} if line.covered_share > 0 else {}),
    }


def promised_documents(model: FleetModel, solution: Solution) -> list[dict[str, Any]]:
    """The Savings Plans held and to buy: what is promised an hour, what it costs, and the share that machines use."""
    found = []
    chance = np.array([s.probability for s in model.states])
    for plan, rates, usd, covered in zip(
        model.savings_plans, model.plan_rates, solution.promised, solution.covered, strict=True
    ):
        held = plan.held_usd_per_hour
        usd = usd if held is None else held
        if usd < 5e-4:  # AWS sells them in steps of a tenth of a cent
            continue
        used = np.einsum("j,jotk,o,t,k->", np.where(np.isfinite(rates), rates, 0.0), covered, model.probability,
                         model.weight, chance)  # fmt: skip
        machines = sorted({o.instance for o, c in zip(model.options, covered, strict=True) if c.sum() > 1e-6})
        found.append({
            "name": plan.name, **plan.terms, "promised_usd_per_hour": round(float(usd), 6),
            "usd_per_hour": round(float(usd) * plan.usd_per_hour, 6),
            "upfront_usd": round(float(usd) * plan.upfront_usd, 2), "used_share": round(float(used / usd), 6),
            "instance_types": machines, "held": held is not None,
        })  # fmt: skip
    return found


def _other_sizes(candidate: Candidate) -> dict[str, int]:
    """Pipeline, data and expert parallel sizes of what is simulated; a capacity table's rows state none."""
    names = ("pipeline_parallel_size", "data_parallel_size", "expert_parallel_size")
    return {} if candidate.replica is None else {name: getattr(candidate.replica, name) for name in names}


def _roles(line: Line) -> dict[str, Any]:
    """Replicas of each role in each period, of a line whose prompts and answers have replicas of their own."""
    c = line.candidate
    pools = line.counts // c.machines
    return {"roles": {"prefill": [int(n) for n in pools * c.num_prefill],
                      "decode": [int(n) for n in pools * c.num_decode]}} if c.roles else {}  # fmt: skip


def _upfront_usd(line: Line) -> float:
    """Money that the line's commitments cost before they begin."""
    offer = line.candidate.offers.get(line.option.purchase)
    return 0.0 if offer is None else round(offer.upfront_usd * int(line.counts.max()) / line.option.machines, 2)


def _held(option: Option) -> str:
    """The days of a Capacity Block, counted from the horizon's start; empty: what it is holds for the whole horizon."""
    if option.active is None:
        return ""
    days = np.flatnonzero(option.active) // HOURS_PER_DAY + 1
    return f"day {days[0]}" if days[0] == days[-1] else f"days {days[0]}-{days[-1]}"


def _shares(line: Line) -> list[float]:
    total = line.rate_rps.sum()
    return [round(float(x), 6) for x in line.rate_rps.sum(0) / total] if total > 0 else []


def _price_source(line: Line) -> str:
    offer = line.candidate.offers.get(line.option.purchase)
    return f"{offer.source} ({offer.as_of})" if offer else ""


def plan_document(
    lines: Sequence[Line], usd_per_hour: float, rates: tuple[float, float], promised: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The ``plan`` section.

    Args:
        lines: the purchase list.
        usd_per_hour: expected cost.
        rates: mean requests and output tokens a second.
        promised: Savings Plans, as ``promised_documents`` has them.
    """
    requests_per_s, tokens_per_s = rates
    listed = sum(line.usd_per_hour for line in lines) + sum(p["usd_per_hour"] for p in promised)
    return {
        "lines": [line_document(line) for line in lines],
        **({"savings_plans": list(promised)} if promised else {}),
        "usd_per_hour": round(usd_per_hour, 6),
        "beside_lines_usd_per_hour": round(max(usd_per_hour - listed, 0.0), 6),
        "usd_per_month": round(cost.usd_per_month(usd_per_hour), 2),
        "usd_per_million_output_tokens": cost.usd_per_million_tokens(usd_per_hour, tokens_per_s),
        "usd_per_thousand_requests": cost.usd_per_thousand_requests(usd_per_hour, requests_per_s),
        "requests_per_s": requests_per_s,
        "output_tokens_per_s": tokens_per_s,
        "requests_per_hour": requests_per_s * SECONDS_PER_HOUR,
    }


def ended_by(solution: Solution, hurried: bool) -> str:
    """What ended the search for the plan: ``gap`` (proven), ``work`` (its limits of nodes and rounds) or ``time``."""
    return "time" if hurried or solution.hurried else "gap" if solution.optimal else "work"


def summary(lines: Sequence[Line]) -> str:
    """The purchase list in a phrase: ``3-4 x g6e.xlarge (L40S, fp8, spot) + 1 x p5.4xlarge (H100-SXM, bf16)``."""
    parts = []
    for line in lines:
        low, high = int(line.counts.min()), int(line.counts.max())
        count = f"{low}" if low == high else f"{low}-{high}"
        form = "" if line.option.purchase == "on_demand" else f", {line.option.purchase}"
        c = line.candidate
        what = ", ".join([c.gpu, *c.parallelism, c.precision, *([c.roles] if c.roles else [])])
        parts.append(f"{count} x {c.instance_type} ({what}{form})")
    return " + ".join(parts) or "nothing"
