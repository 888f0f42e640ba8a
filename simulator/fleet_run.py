"""Plays a scenario whose fleet is live, and says what the fleet did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.fleet import Fleet
from simulator.fleet_plane import EnginePlane
from simulator.fleet_scenario import FleetSections, fleet_config
from simulator.fleet_state import FleetResult
from simulator.fluid_plane import probe
from simulator.records import Records
from simulator.routing import RouterOptions
from simulator.workload import Requests

if TYPE_CHECKING:
    from simulator.replicas import Line
    from simulator.scenario import Scenario

MAX_EVENTS = 200


def sections_of(scenario: Scenario) -> FleetSections:
    """A scenario's fleet sections."""
    return FleetSections(**{name: getattr(scenario, name) for name in FleetSections.model_fields})


def run_fleet(
    scenario: Scenario, lines: Sequence[Line], requests: Requests
) -> tuple[Records, tuple[Line, ...], FleetResult]:
    """Serve all requests on a live fleet: records by slot, the lines by their slots, and what the fleet did.

    Raises:
        InputError: sections that do not fit the fleet, the load or each other.
    """
    sections = sections_of(scenario)
    labels = [(line.instance or f"{line.gpu} x{built.replica.num_gpus}", line.purchase)
              for line, built in zip(scenario.fleet, lines, strict=True)]  # fmt: skip
    config = fleet_config(sections, lines, requests, labels, scenario.seed)
    staleness_s = sections.control.router_staleness_s if sections.control else 0.0
    specs = [line.spec for line in lines]
    weights = None
    if len(specs) > 1:  # unequal replicas: the router gives each kind what it can carry
        weights = [probe(requests, spec, scenario.seed).max_rps for spec in specs]
    options = RouterOptions(staleness_s=staleness_s)
    plane = EnginePlane(requests, specs, scenario.router, scenario.seed, options, weights)
    caches = sections.caches.build(requests, scenario.seed) if sections.caches else None
    seats = tuple(line.spec.max_num_seqs for line in lines)
    result = Fleet(requests, plane, config, scenario.seed, caches, seats).run()
    records, present = grouped(plane.records(requests, result.end_s), lines, plane.kinds_of_slots)
    return records, present, result


def grouped(records: Records, lines: Sequence[Line], kinds: Sequence[int]) -> tuple[Records, tuple[Line, ...]]:
    """Slots in the order of their lines, and the lines with as many replicas as they had slots.

    Args:
        kinds: the line of each slot.
    """
    order = np.argsort(kinds, kind="stable")
    place = np.empty(len(order) + 1, np.int64)
    place[order], place[-1] = np.arange(len(order)), -1
    rows = ("iterations", "preemptions", "busy_s", "prefix_queries", "prefix_hits", "num_gpu_blocks")
    moved = {name: getattr(records, name)[order] for name in rows}
    counts = np.bincount(kinds, minlength=len(lines))
    present = tuple(replace(line, count=int(n)) for line, n in zip(lines, counts, strict=True) if n)
    return replace(records, replica=place[records.replica], **moved), present


def fleet_document(result: FleetResult) -> dict[str, Any]:
    """What the fleet did, as plain data; machine time is priced elsewhere."""
    usage = [{**asdict(u), "utilisation": u.utilisation, "wasted_gpu_share": u.wasted_gpu_share}
             for u in result.ledger.usage()]  # fmt: skip
    return {
        "end_s": result.end_s,
        "usage": usage,
        "waste_gpu_hours": result.ledger.waste(),
        "reasons": dict(sorted(result.reasons.items())),
        "retries": result.num_retries,
        "caches": {name: {**asdict(c), "hit_rate": c.hit_rate} for name, c in result.caches.items()},
        "targets": {name: {"changes": len(log) - 1, "lowest": min(n for _, n in log), "highest": max(n for _, n in log)}
                    for name, log in result.targets.items() if log},
        "oscillation": {name: asdict(o) for name, o in result.oscillations.items()},
        "num_events": len(result.events),
        "events": [{"t_s": t, "what": what} for t, what in result.events[:MAX_EVENTS]],
        "forecast": result.forecast_error,
        "series": {name: [None if v != v else v for v in values.tolist()] for name, values in result.series.items()},
    }  # fmt: skip
