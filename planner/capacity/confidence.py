"""How sure the promise is: fresh draws of the workload, and what the profiles' own errors could do to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibrate.step import StepTable
from planner.capacity.sustained import Capacities
from planner.capacity.verify import Group, Verdict, fresh_draw, simulate_fleet
from planner.inputs.demand import Demand
from simulator.engine.metrics import Latencies, class_mask, promised_percentile
from simulator.pool import results_of
from simulator.workload.requests import Slo

BATCHES = 20
UNKNOWN_STEP_ERROR = 0.15  # how far one PCIe card differs between labs, where a profile does not state its error


def fresh_seeds(capacities: Capacities, demand: Demand, groups: Sequence[Group], num: int) -> dict[str, Any]:
    """Simulate the fleet on ``num`` fresh draws; how often it kept its promise, and the spread of each percentile."""

    def draw(seed: int) -> Verdict:
        return simulate_fleet(capacities, fresh_draw(demand, capacities.seed * 1000 + seed), groups, seed)

    verdicts = results_of(draw, range(1, num + 1), capacities.workers, threads=True)
    capacities.simulations += sum(v.simulations for v in verdicts)
    kept = sum(v.ok for v in verdicts)
    values = {name_of(slo): [percentile_of(slo, v.demand, v.latencies) for v in verdicts] for slo in capacities.slos}
    return {
        "draws": num,
        "kept": kept,
        "probability": (kept + 1) / (num + 2),  # rule of succession: never certain from a few draws
        "probability_interval": list(wilson(kept, num)),
        "spread": {name: [float(np.min(v)), float(np.max(v))] for name, v in values.items() if v},
    }


def wilson(kept: int, draws: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    share = kept / draws
    middle = share + z * z / (2 * draws)
    half = z * math.sqrt(share * (1 - share) / draws + z * z / (4 * draws * draws))
    scale = 1 + z * z / draws
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def percentile_of(slo: Slo, demand: Demand, latencies: Latencies) -> float:
    """The promised percentile; NaN where no request has it."""
    chosen = class_mask(demand.requests, slo.request_class)
    return promised_percentile(latencies.of_metric(slo.metric)[chosen], latencies.completed[chosen], slo.percentile)


def confidence_interval(slo: Slo, demand: Demand, latencies: Latencies) -> tuple[float, float] | None:
    """95 % interval of the percentile from batch means over time: requests near in time are late together."""
    chosen = np.flatnonzero(class_mask(demand.requests, slo.request_class))
    if len(chosen) < 10 * BATCHES:
        return None
    found = []
    for rows in np.array_split(chosen, BATCHES):
        late = latencies.of_metric(slo.metric)[rows]
        found.append(np.mean(~(late <= slo.limit_s) & (~np.isnan(late) | ~latencies.completed[rows])))
    share = np.asarray(found)
    values = latencies.of_metric(slo.metric)[chosen]
    values = values[~np.isnan(values)]
    if not values.size:
        return None
    half = 2.093 * float(share.std(ddof=1)) / np.sqrt(BATCHES)  # Student's t, 19 degrees of freedom
    ranks = np.clip([slo.percentile / 100 - half, slo.percentile / 100 + half], 0, 1)
    low, high = np.quantile(values, ranks)
    return float(low), float(high)


def slower(table: StepTable, factor: float) -> StepTable:
    """A replica all of whose steps take ``factor`` times as long."""
    scaled = ("decode_tokens_s", "mixed_tokens_s", "sampled_s", "attention_s", "overhead_s", "overhead_per_sequence_s")
    return table._replace(**{name: getattr(table, name) * factor for name in scaled})


def name_of(slo: Slo) -> str:
    """``ttft_p95_s``, or ``chat.ttft_p95_s``."""
    return slo.name if slo.request_class is None else f"{slo.request_class}.{slo.name}"


def slo_document(slos: Sequence[Slo], demand: Demand, latencies: Latencies) -> dict[str, Any]:
    """The answer's ``slo`` section: limit, simulated value, verdict and confidence of each promise."""
    out: dict[str, Any] = {}
    for slo in slos:
        found = percentile_of(slo, demand, latencies)
        interval = confidence_interval(slo, demand, latencies)
        out[name_of(slo)] = {
            "limit": slo.limit_s,
            "simulated": found if np.isfinite(found) else None,
            "ok": not found > slo.limit_s,  # as ``keeps``: a time that no request has is late for none
            "interval_95": interval,
        }
    return out


def step_error(profile_error: Mapping[str, Any]) -> float:
    """The share by which a profile's step times may be off: the median, over kernel families, of its median errors."""
    medians = [float(v["median"]) for v in _leaves(profile_error) if isinstance(v.get("median"), (int, float))]
    return float(np.median(medians)) if medians else UNKNOWN_STEP_ERROR


def _leaves(node: Any) -> list[Mapping[str, Any]]:
    if not isinstance(node, Mapping):
        return []
    inner = [leaf for value in node.values() for leaf in _leaves(value)]
    return inner if inner else [node]
