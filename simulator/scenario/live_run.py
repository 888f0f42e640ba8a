"""Plays a scenario whose fleet is live, and says what the fleet did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from catalogs.errors import InputError
from simulator.engine.invariants import CHECKS
from simulator.engine.records import COMPLETED, Records
from simulator.engine.routing import RouterOptions
from simulator.fleet.caches import CacheCount
from simulator.fleet.engine_plane import EnginePlane
from simulator.fleet.fluid_plane import probe
from simulator.fleet.long_horizon import LongRun, Windows, run_long
from simulator.fleet.simulate import Fleet
from simulator.fleet.state import FleetResult
from simulator.scenario.live_fleet import fleet_config
from simulator.scenario.sections import FleetSections
from simulator.workload.requests import Requests

if TYPE_CHECKING:
    from simulator.scenario.replicas import Line
    from simulator.scenario.spec import Scenario

MAX_EVENTS = 200


def sections_of(scenario: Scenario) -> FleetSections:
    """A scenario's fleet sections."""
    return FleetSections(**{name: getattr(scenario, name) for name in FleetSections.model_fields})


def labels_of(scenario: Scenario, lines: Sequence[Line]) -> list[tuple[str, str]]:
    """(instance type, purchase form) of each line."""
    return [
        (line.instance or f"{line.gpu} x{built.replica.num_gpus}", line.purchase)
        for line, built in zip(scenario.fleet, lines, strict=True)
    ]


def run_fleet(
    scenario: Scenario, lines: Sequence[Line], requests: Requests, check: bool = False
) -> tuple[Records, tuple[Line, ...], FleetResult]:
    """Serve all requests on a live fleet: records by slot, the lines by their slots, and what the fleet did.

    Args:
        check: look for broken invariants at instants of the run (docs/invariants.md).

    Raises:
        InputError: sections that do not fit the fleet, the load or each other. BrokenInvariantError: with ``check``.
    """
    sections = sections_of(scenario)
    config = fleet_config(sections, lines, requests, labels_of(scenario, lines), scenario.seed)
    staleness_s = sections.control.router_staleness_s if sections.control else 0.0
    specs = [line.spec for line in lines]
    weights = None
    if len(specs) > 1:  # unequal replicas: the router gives each kind what it can carry
        weights = [probe(requests, spec, scenario.seed).max_rps for spec in specs]
    options = RouterOptions(staleness_s=staleness_s)
    plane = EnginePlane(requests, specs, scenario.router, scenario.seed, options, weights)
    if check:
        plane.check_every_s = max(float(np.ptp(requests.arrival_s)), 1.0) / CHECKS
    caches = sections.caches.build(requests, scenario.seed) if sections.caches else None
    seats = tuple(line.spec.max_num_seqs for line in lines)
    result = Fleet(requests, plane, config, scenario.seed, caches, seats).run()
    found = int((plane.outcome.num_cached_tokens > 0).sum())
    if found:  # the replicas' own caches
        tokens = int(plane.outcome.num_cached_tokens.sum())
        result.caches["prompt (prefix)"] = CacheCount(len(requests), found, input_tokens_saved=tokens)
    records, present = grouped(plane.records(requests, result.end_s), lines, plane.kinds_of_slots)
    return records, present, result


def run_windows(
    scenario: Scenario, lines: Sequence[Line], requests: Requests
) -> tuple[Records, Requests, tuple[Line, ...], LongRun]:
    """A long horizon: records of the windows' requests, each as often as it stands for others, and the long run.

    Raises:
        InputError: a gateway that looks at requests one by one, or several lines.
    """
    sections = sections_of(scenario)
    assert sections.control is not None and sections.control.windows is not None
    if sections.admission is not None or sections.caches is not None or len(lines) > 1:
        raise InputError(
            "windows know neither admission nor caches nor several fleet lines",
            where="control.windows",
            why="between the windows the load is a stream, in which no request can be told from another",
            remedy="leave out control.windows: a full run takes some 10 s of CPU time per million requests",
        )
    config = fleet_config(sections, lines, requests, labels_of(scenario, lines), scenario.seed)
    windows = Windows(**sections.control.windows.model_dump())
    long = run_long(requests, [line.spec for line in lines], config, scenario.seed, windows, scenario.router)
    rows = np.repeat(np.arange(len(long.ttft_s)), np.round(long.weight).astype(int))
    n = len(rows)
    arrival = np.sort(np.resize(requests.arrival_s, n))
    ones, zeros = np.ones(1, np.int64), np.zeros(n, np.int64)
    first = arrival + long.ttft_s[rows]
    records = Records(
        arrival_s=arrival, scheduled_s=arrival + np.minimum(long.queue_s[rows], long.ttft_s[rows]),
        first_token_s=first, finish_s=arrival + long.e2e_s[rows], replica=zeros, status=zeros.astype(np.int8),
        num_cached_tokens=zeros, num_preemptions=zeros, iterations=ones, preemptions=0 * ones,
        busy_s=np.array([sum(u.serving_s for u in long.fleet.ledger.usage())]), prefix_queries=0 * ones,
        prefix_hits=0 * ones, num_gpu_blocks=np.array([lines[0].spec.num_gpu_blocks]), end_s=long.fleet.end_s,
    )  # fmt: skip
    classes = None if requests.request_class is None else long.request_class[rows]
    inputs, outputs = long.input_tokens[rows], long.output_tokens[rows]
    shown = Requests(arrival, inputs, outputs, request_class=classes, class_names=requests.class_names)
    return records, shown, (replace(lines[0], count=1),), long


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


def token_seconds(line: Line, requests: Requests, records: Records, result: FleetResult) -> dict[str, float]:
    """Step seconds that a prompt token and an output token took: the first in a full step, the second what is left."""
    table, size = line.spec.step_table, line.spec.max_num_batched_tokens
    at = min(size, len(table.mixed_tokens_s) - 1)
    prompt_s = float(table.mixed_tokens_s[at]) / at
    served = (records.status == COMPLETED) & (records.replica >= 0)
    prompt = float((requests.input_tokens - records.num_cached_tokens)[served].sum())
    output = float(requests.output_tokens[served].sum())
    busy_s = sum(u.serving_s for u in result.ledger.usage())
    prompt_s = min(prompt_s, busy_s / prompt) if prompt else prompt_s
    return {"input": prompt_s, "output": max(0.0, busy_s - prompt_s * prompt) / output if output else 0.0}


def fleet_document(result: FleetResult, token_s: Mapping[str, float]) -> dict[str, Any]:
    """What the fleet did, as plain data; machine time is priced elsewhere.

    Args:
        token_s: step seconds of a prompt token and an output token.
    """
    usage = [{**asdict(u), "utilisation": u.utilisation, "wasted_gpu_share": u.wasted_gpu_share}
             for u in result.ledger.usage()]  # fmt: skip
    return {
        "end_s": result.end_s,
        "usage": usage,
        "waste_gpu_hours": result.ledger.waste(),
        "reasons": dict(sorted(result.reasons.items())),
        "retries": result.num_retries,
        "caches": {
            name: {**asdict(c), "hit_rate": c.hit_rate, "step_s_saved": c.input_tokens_saved * token_s["input"]
                   + c.output_tokens_saved * token_s["output"]}
            for name, c in result.caches.items()
        },
        "targets": {name: {"changes": len(log) - 1, "lowest": min(n for _, n in log), "highest": max(n for _, n in log)}
                    for name, log in result.targets.items() if log},
        "oscillation": {name: asdict(o) for name, o in result.oscillations.items()},
        "num_events": len(result.events),
        "events": [{"t_s": t, "what": what} for t, what in result.events[:MAX_EVENTS]],
        "forecast": result.forecast_error,
        "series": {name: [None if v != v else v for v in values.tolist()] for name, values in result.series.items()},
    }  # fmt: skip
