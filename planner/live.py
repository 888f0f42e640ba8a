"""The plan as a fleet that lives: machines boot and leave by its timetable, spot zones come and go, and who notices.

``capacity.verify`` simulates each period's fleet as if it had always been there. Here the stretch of time in which the
fleet changes most is played with its changes: new machines start a boot ahead of the hour that needs them, boots take a
random time, machines drain, spot machines are lost with their zones (correlated, as in ``fleet.spot``) and replaced
on demand. One router sends every size to the least loaded replica. Each draw has its own sizes, boots and outages; how
many draws keep the promise gives its probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalogs.units import SECONDS_PER_HOUR
from planner.answer import Line
from planner.capacity.confidence import name_of, percentile_of, wilson
from planner.capacity.verify import fresh_draw
from planner.inputs.demand import Demand
from planner.inputs.horizon import Horizon, scaled, zone_availability
from planner.inputs.problem import Problem
from planner.search import Search
from simulator.engine.metrics import Latencies
from simulator.fleet.autoscaling.planned import Scheduled, ScheduleEntry
from simulator.fleet.cold_start import ColdStart, LogNormal
from simulator.fleet.config import FleetConfig, Group
from simulator.fleet.spot import SpotPolicy, Zone, synthesise
from simulator.workload.requests import Requests
from simulator.workload.traces import take

DRAWS, FEWEST_DRAWS = 20, 6
LIVE_SHARE = 0.9  # of the draws that a plan must keep its promise in
MAX_REQUESTS, ALL_REQUESTS = 30_000, 300_000  # of one draw; of all
SETTLE_BOOTS = 2.0  # boots at the start that are not judged: the fleet finds its feet in the zones that are up
STATIC_WINDOW_S = 2 * SECONDS_PER_HOUR
BOOT_SIGMA = 0.25  # of the logarithm of a boot's time: of the published cold starts in catalogs/boot_times.csv
SPOT_PRICE_SHARE = 0.35  # ranks zones against on-demand; equal here, so of no effect
DAY_HOURS = 24
MIN_REQUESTS = 50
SCALER_INTERVAL_S = 30.0


@dataclass(frozen=True)
class Window:
    """A stretch of the horizon to play.

    Attributes:
        periods: in order; start_s: into the first of them.
        demand: its requests from 0 on.
        judged_from_s: requests before it only warm the fleet up.
    """

    periods: tuple[int, ...]
    start_s: float
    demand: Demand
    judged_from_s: float


def play(problem: Problem, search: Search, lines: Sequence[Line], draws: int = DRAWS) -> dict[str, Any] | None:
    """Play the plan in its hardest stretch; None where nothing about it changes with time.

    Returns:
        ``draws``, ``kept``, ``probability`` of keeping the promise with a 95 % interval, ``ok`` where that is at least
        ``LIVE_SHARE``, the window, and the spread of each promised percentile; or ``not_played`` with the reason.
    """
    horizon = search.horizon
    counts = np.array([line.counts for line in lines])
    has_spot = any(line.option.kind == "spot" for line in lines)
    if not has_spot and bool((counts == counts[:, :1]).all()):
        return None
    everything = tuple(range(len(search.demand.names)))
    if any(search.capacity((line.candidate.config, everything)) <= 0 for line in lines):
        return {"not_played": "a line cannot serve every size, and a fleet's one router does not tell sizes apart"}
    if any(line.candidate.roles for line in lines):
        return {"not_played": "prefill and decode pools are simulated with a fixed number of replicas"}
    if any(search.served[line.candidate.config].num_engines > 1 for line in lines):
        return {"not_played": "a live fleet starts engines one by one, and a replica of the plan has several"}
    window = hardest_window(problem, search, counts)
    if len(window.demand.requests) < MIN_REQUESTS:
        return {"not_played": f"only {len(window.demand.requests)} requests arrive in the stretch that changes most"}
    kept = 0
    values: dict[str, list[float]] = {name_of(s): [] for s in problem.slos}
    draws = int(np.clip(ALL_REQUESTS // len(window.demand.requests), FEWEST_DRAWS, draws))
    for seed in range(1, draws + 1):
        drawn = fresh_draw(window.demand, problem.seed * 1000 + seed)
        judged, latencies = _run(problem, search, lines, window, drawn, seed)
        found = {name_of(s): percentile_of(s, judged, latencies) for s in problem.slos}
        kept += all(not found[name_of(s)] > s.limit_s for s in problem.slos)
        for name, value in found.items():
            values[name].append(value)
    names = [horizon.names[p] for p in window.periods]
    return {
        "window": names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}",
        "requests": len(window.demand.requests),
        "duration_s": window.demand.duration_s,
        "draws": draws,
        "kept": int(kept),
        "probability": kept / draws,
        "ok": kept >= LIVE_SHARE * draws,
        "probability_interval": list(wilson(kept, draws)),
        "spread": {n: [float(np.min(v)), float(np.max(v))] for n, v in values.items()},
        "boot_s": problem.time.boot_s,
        "spot_zones": problem.spot.zones if has_spot else 0,
    }


def in_words(live: Mapping[str, Any] | None) -> str:
    """What ``play`` showed, as the end of a sentence; empty where there was nothing to play."""
    if live is None:
        return ""
    if "not_played" in live:
        return f"; scaling and spot outages were not played: {live['not_played']}"
    low, high = live["probability_interval"]
    dearer = (
        f"; {len(live['cuts'])} cheaper plan(s), from ${live['cuts'][0]['usd_per_hour']:,.2f} an hour, failed so"
        if live["cuts"]
        else ""
    )
    return (
        f"; played live ({live['window']}, with boots of about {live['boot_s']:g} s"
        + (f" and outages of {live['spot_zones']} spot zones" if live["spot_zones"] else "")
        + f") it kept its promise in {live['kept']} of {live['draws']} draws: a probability of {low:.0%} to {high:.0%}"
        + ("" if live["ok"] else f", and {LIVE_SHARE:.0%} of them were to be kept")
        + dearer
    )


def hardest_window(problem: Problem, search: Search, counts: NDArray[np.int64]) -> Window:
    """The stretch around the hour in which most machines start (of equals, the busiest), within a request budget."""
    horizon, settle = search.horizon, SETTLE_BOOTS * problem.time.boot_s
    if horizon.num_periods == 1:
        return _static_window(scaled(horizon.full, search.scale), settle)
    before = np.roll(counts, 1, axis=1)
    if not horizon.cyclic:
        before[:, 0] = counts[:, 0]
    started = np.maximum(counts - before, 0).sum(0)
    rate = horizon.rates.sum(1)
    at = max(range(horizon.num_periods), key=lambda t: (started[t], rate[t], -t))
    ahead_s = min(settle + 600.0, SECONDS_PER_HOUR)
    first = (at - 1) % horizon.num_periods if horizon.cyclic or at > 0 else at
    start_s = SECONDS_PER_HOUR - ahead_s if first != at else 0.0
    periods, requests = _collect(horizon, first, start_s)
    demand = _within(horizon, requests, MAX_REQUESTS)
    return Window(periods, start_s, demand, min(settle, demand.duration_s / 2))


def _collect(horizon: Horizon, first: int, start_s: float) -> tuple[tuple[int, ...], Requests]:
    """Requests of hours from ``first`` on, without its first ``start_s``, until there are enough or a day is over."""
    periods: list[int] = []
    parts: list[Requests] = []
    num, offset = 0, -start_s
    while num < MAX_REQUESTS and len(periods) < min(DAY_HOURS, horizon.num_periods):
        period = first + len(periods)
        if period >= horizon.num_periods and not horizon.cyclic:
            break
        period %= horizon.num_periods
        part = _hour(horizon, period)
        rows = np.flatnonzero((part.arrival_s + offset >= 0) & (part.arrival_s < SECONDS_PER_HOUR))
        moved = take(part, rows)
        parts.append(replace(moved, arrival_s=moved.arrival_s + offset))
        num += len(rows)
        periods.append(period)
        offset += SECONDS_PER_HOUR
    return tuple(periods), _joined(parts)


def _hour(horizon: Horizon, period: int) -> Requests:
    """A whole hour of a period's requests: those of the trace, or a shorter workload at its rate, over and over."""
    if horizon.rates[period].sum() <= 0:
        return take(horizon.shape.requests, np.zeros(0, dtype=np.int64))
    part = horizon.demand_in(period).requests
    if horizon.rows[period] is not None or not len(part):
        return part
    span_s = len(part) / float(horizon.rates[period].sum())
    return _repeated(part, span_s, math.ceil(SECONDS_PER_HOUR / span_s))


def _repeated(requests: Requests, span_s: float, times: int) -> Requests:
    return _joined([replace(requests, arrival_s=requests.arrival_s + i * span_s) for i in range(times)])


def _joined(parts: Sequence[Requests]) -> Requests:
    """One after another; shared prefixes are left out, so that every prompt is computed whole."""
    columns: dict[str, Any] = {}
    for field in fields(Requests):
        values = [getattr(p, field.name) for p in parts]
        if isinstance(values[0], np.ndarray) and not field.name.startswith("hash"):
            columns[field.name] = np.concatenate(values)
    return replace(parts[0], **columns, hash_offsets=None, hash_ids=None)


def _within(horizon: Horizon, requests: Requests, most: int) -> Demand:
    requests = take(requests, np.arange(min(most, len(requests))))
    last = float(requests.arrival_s[-1]) if len(requests) else 0.0
    bucket = np.zeros(len(requests), dtype=np.int64)
    return replace(horizon.full, requests=requests, bucket=bucket, duration_s=max(last, 1e-9))


def _static_window(whole: Demand, settle_s: float) -> Window:
    """The workload over and over, so long that zones change."""
    times = max(1, math.ceil(min(STATIC_WINDOW_S / whole.duration_s, MAX_REQUESTS / max(len(whole.requests), 1))))
    parts = [replace(whole.requests, arrival_s=whole.requests.arrival_s + i * whole.duration_s) for i in range(times)]
    requests = _joined(parts)
    rows = np.arange(min(len(requests), MAX_REQUESTS))
    kept = take(requests, rows)
    duration = float(kept.arrival_s[-1])
    demand = replace(whole, requests=kept, bucket=np.resize(whole.bucket, len(kept)), duration_s=duration)
    return Window((0,), 0.0, demand, min(settle_s, duration / 2))


def _run(
    problem: Problem, search: Search, lines: Sequence[Line], window: Window, drawn: Demand, seed: int
) -> tuple[Demand, Latencies]:
    """One draw: the requests that are judged, and what they got."""
    from simulator.fleet.engine_plane import EnginePlane  # loads the compiled engine
    from simulator.fleet.simulate import Fleet

    served = [search.served[line.candidate.config] for line in lines]
    everything = tuple(range(len(search.demand.names)))
    weights = [search.capacity((line.candidate.config, everything)) for line in lines]
    plane = EnginePlane(drawn.requests, [s.spec for s in served], problem.router, seed, None, weights)
    seats = tuple(s.spec.max_num_seqs for s in served)
    result = Fleet(drawn.requests, plane, _config(problem, lines, window, seed), seed, None, seats).run()
    latencies = Latencies.of(drawn.requests, plane.records(drawn.requests, result.end_s))
    rows = np.flatnonzero(drawn.requests.arrival_s >= window.judged_from_s)
    judged = replace(drawn, requests=take(drawn.requests, rows), bucket=drawn.bucket[rows])
    columns = [getattr(latencies, f)[rows] for f in latencies.__dataclass_fields__]
    return judged, Latencies(*columns)


def _config(problem: Problem, lines: Sequence[Line], window: Window, seed: int) -> FleetConfig:
    cold = ColdStart(total=LogNormal(max(problem.time.boot_s, 1.0), BOOT_SIGMA))
    groups = tuple(_group(problem, i, line, window, cold) for i, line in enumerate(lines))
    availability = None
    if any(g.spot for g in groups):
        share, _ = zone_availability(problem)
        zones = [
            Zone(f"{problem.region}-{z + 1}", problem.region, share, None, SPOT_PRICE_SHARE)
            for z in range(problem.spot.zones)
        ]
        span_s = window.demand.duration_s + 2 * SECONDS_PER_HOUR
        availability = synthesise(zones, span_s, problem.seed * 1000 + seed)
    return FleetConfig(groups, availability=availability)


def _group(problem: Problem, kind: int, line: Line, window: Window, cold: ColdStart) -> Group:
    replicas = [int(line.counts[p]) * line.candidate.replicas_per_instance for p in window.periods]
    spot = None
    if line.option.kind == "spot":
        spot = SpotPolicy(dynamic_ondemand_fallback=problem.spot.fallback, placer="even_spread")
    entries = timetable(replicas, window.start_s, problem.time.boot_s * math.exp(BOOT_SIGMA))
    moves = spot is not None or len(set(replicas)) > 1
    scaler = partial(Scheduled, entries, interval_s=SCALER_INTERVAL_S) if moves else None
    return Group(
        line.option.name, kind, line.candidate.instance_type, replicas[0],
        line.candidate.gpus_per_replica, line.option.purchase if spot is None else "on_demand", scaler, spot, cold,
    )  # fmt: skip


def timetable(replicas: Sequence[int], start_s: float, ahead_s: float) -> tuple[ScheduleEntry, ...]:
    """When a fleet has how many replicas: a rise starts a boot ahead of its hour, a fall waits for it."""
    changes = {0.0: replicas[0]}
    for i in range(1, len(replicas)):
        at = i * SECONDS_PER_HOUR - start_s
        if replicas[i] > replicas[i - 1]:
            at = max(at - ahead_s, 1.0)
        changes[at] = replicas[i]
    day_s = DAY_HOURS * SECONDS_PER_HOUR
    return tuple(ScheduleEntry(at % day_s, count, (int(at // day_s),)) for at, count in sorted(changes.items()))
