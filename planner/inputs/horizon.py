"""Demand over time, spot states and limits of a problem, as the optimizer's model without options."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError
from catalogs.names import nearest
from catalogs.units import HOURS_PER_MONTH, SECONDS_PER_HOUR
from planner.inputs.candidates import Candidate
from planner.inputs.demand import Demand
from planner.inputs.problem import Problem, Spot
from planner.inputs.savings_plans import plans_of
from planner.optimizer.fleet_model import FleetModel, Limits, Quota, State
from simulator.workload.scaling import scale_requests
from simulator.workload.traces import take

CYCLE = {"hour_of_day": 24, "hour_of_week": 168}
MIN_HOUR_SHARE = 0.25  # of an hour that a trace must cover for its rate to count
MAX_REQUESTS = 20_000  # simulated for one period whose requests are the workload's at another rate
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Horizon:
    """When the demand is what.

    Attributes:
        shape: the workload on which capacities are found: the whole of it, or its busiest hour.
        rates: (T, S) requests a second in each period.
        names: of the periods.
        rows: request rows of each period, to verify on; None: the shape, scaled to the period's rate.
        full: the whole workload.
        cyclic: the last period is followed by the first.
    """

    shape: Demand
    rates: FloatArray
    names: tuple[str, ...]
    rows: tuple[NDArray[np.int64] | None, ...]
    full: Demand
    cyclic: bool = False

    @property
    def num_periods(self) -> int:
        """Planning periods."""
        return len(self.names)

    def demand_in(self, period: int) -> Demand:
        """The workload of one period, to simulate."""
        if self.num_periods == 1 and self.rows[0] is None:
            return self.full
        rows = self.rows[period]
        if rows is not None:
            return _part(self.full, rows, SECONDS_PER_HOUR)
        factor = float(self.rates[period].sum() / self.shape.rate_rps.sum())
        whole = scaled(self.shape, factor)
        return whole if len(whole.requests) <= MAX_REQUESTS else _busiest(whole, MAX_REQUESTS)


def horizon_of(problem: Problem, demand: Demand) -> Horizon:
    """The periods of a problem.

    Raises:
        InputError: a demand file that cannot be used; periods that the trace is too short for.
    """
    grown = scaled(demand, 1 + problem.time.growth)
    if problem.time.demand is not None:
        return _from_file(problem, grown)
    if problem.time.periods == "static":
        return Horizon(grown, grown.rate_rps[None], ("all",), (None,), grown)
    return _by_hour(problem, grown)


def scaled(demand: Demand, factor: float) -> Demand:
    """The workload at another rate with the same burst shape."""
    if abs(factor - 1) < 1e-12:
        return demand
    tagged = replace(demand.requests, session=np.arange(len(demand.requests)))
    requests = scale_requests(tagged, factor)
    assert requests.session is not None
    bucket = _bucket_like(demand, requests.input_tokens, requests.request_class)
    original = None if demand.requests.session is None else requests.session
    return replace(demand, requests=replace(requests, session=original), bucket=bucket)


def _bucket_like(
    demand: Demand, input_tokens: NDArray[np.int64], request_class: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Buckets of other requests by the same cuts."""
    bands = len(demand.length_cuts) + 1
    length = np.searchsorted(np.asarray(demand.length_cuts), input_tokens, side="left")
    kind = request_class if request_class is not None else np.zeros(len(input_tokens), np.int64)
    old = demand.requests
    old_kind = old.request_class if old.request_class is not None else np.zeros(len(old), np.int64)
    old_code = old_kind * bands + np.searchsorted(np.asarray(demand.length_cuts), old.input_tokens, side="left")
    known = np.unique(old_code)
    return np.asarray(np.searchsorted(known, kind * bands + length), dtype=np.int64)


def _busiest(demand: Demand, num: int) -> Demand:
    """The stretch of ``num`` requests that arrives in the shortest time."""
    arrival = demand.requests.arrival_s
    first = int(np.argmin(arrival[num - 1 :] - arrival[: len(arrival) - num + 1]))
    rows = np.arange(first, first + num)
    return _part(demand, rows, float(arrival[first + num - 1] - arrival[first]) * num / (num - 1))


def _part(demand: Demand, rows: NDArray[np.int64], duration_s: float) -> Demand:
    requests = take(demand.requests, rows)
    requests = replace(requests, arrival_s=requests.arrival_s - (requests.arrival_s[0] if len(rows) else 0.0))
    return replace(demand, requests=requests, bucket=demand.bucket[rows], duration_s=duration_s)


def _by_hour(problem: Problem, demand: Demand) -> Horizon:
    """Each clock hour of the trace; of equal hours of the day or week, the busiest that was seen."""
    hours = np.floor(demand.requests.arrival_s / SECONDS_PER_HOUR).astype(np.int64)
    last_share = demand.requests.arrival_s[-1] / SECONDS_PER_HOUR - hours[-1]
    num = int(hours[-1]) + (1 if last_share >= MIN_HOUR_SHARE or hours[-1] == 0 else 0)
    cycle = CYCLE.get(problem.time.periods, num)
    if num < cycle:
        raise InputError(
            f"the workload lasts {num} hours, too short for periods: {problem.time.periods} ({cycle} hours)",
            where="time.periods",
            remedy="periods: hour; or workload.repeat_s with workload.week to stretch it; or time.demand",
        )
    counts = np.bincount(hours, minlength=num)
    busiest = [max(range(slot, num, cycle), key=lambda h: (counts[h], -h)) for slot in range(cycle)]
    rows = [np.flatnonzero(hours == h) for h in busiest]
    buckets = len(demand.names)
    spans = [SECONDS_PER_HOUR if h < hours[-1] else max(last_share, 1e-9) * SECONDS_PER_HOUR for h in busiest]
    rates = np.array([np.bincount(demand.bucket[r], minlength=buckets) / s for r, s in zip(rows, spans, strict=True)])
    peak = int(np.argmax(rates.sum(1)))
    shape = _part(demand, rows[peak], spans[peak])
    names = tuple(f"hour {h}" for h in range(cycle))
    return Horizon(shape, rates, names, tuple(rows), demand, cyclic=problem.time.periods in CYCLE)


def _from_file(problem: Problem, demand: Demand) -> Horizon:
    """Rates by hour from a file; sizes and burst shape from the workload."""
    path = problem.time.demand
    assert path is not None
    class_names = demand.requests.class_names
    found: dict[str, FloatArray] = {}
    seen: set[tuple[str, str]] = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as source:
            reader = csv.DictReader(source)
            missing = {"hour", "rate_rps"} - set(reader.fieldnames or ())
            if missing:
                raise InputError(f"has no column {sorted(missing)[0]!r}", where=f"{path}:1", remedy="hour,rate_rps")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                rate = _rate(row["rate_rps"], where)
                name = (row.get("request_class") or "").strip()
                if name and name not in class_names:
                    raise InputError(f"unknown request class {name!r}", where=where, remedy=", ".join(class_names))
                hour = (row["hour"] or "").strip()
                if (hour, name) in seen:
                    raise InputError(
                        f"hour {hour!r} is given twice" + (f" for {name}" if name else ""),
                        where=where,
                        why="whether the rates add up or one replaces the other is not known",
                        remedy="one row an hour, or one an hour and request class",
                    )
                seen.add((hour, name))
                rates = found.setdefault(hour, np.zeros(len(demand.names)))
                rates += rate * _mix(demand, name)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from error
    rates = np.array(list(found.values()))
    if not len(rates) or rates.sum() <= 0:
        raise InputError("asks for nothing: every rate is 0", where=str(path))
    rates = rates * (1 + problem.time.growth)
    names = tuple(f"hour {h}" for h in found)
    return Horizon(demand, rates, names, (None,) * len(names), demand, cyclic=len(names) in CYCLE.values())


def _rate(text: str | None, where: str) -> float:
    try:
        rate = float(text or "")
    except ValueError:
        rate = math.nan
    if not 0 <= rate < 1e9:
        raise InputError(f"rate_rps is {text!r}: needs a number of 0 or more", where=where)
    return rate


def _mix(demand: Demand, class_name: str) -> FloatArray:
    """(S,) shares of the buckets, of all requests or of one class."""
    chosen = np.ones(len(demand.requests), bool)
    if class_name and demand.requests.request_class is not None:
        chosen = demand.requests.request_class == demand.requests.class_names.index(class_name)
    counts = np.bincount(demand.bucket[chosen], minlength=len(demand.names)).astype(float)
    return np.asarray(counts / max(counts.sum(), 1.0))


def base_model(problem: Problem, horizon: Horizon, candidates: Sequence[Candidate]) -> FleetModel:
    """The model without options.

    Raises:
        InputError: a quota for something that is not among the candidates. MissingError: Savings Plans without a rate.
    """
    scenarios = problem.time.scenarios
    scale = np.array([s.scale for s in scenarios]) * (1 + problem.time.headroom)
    rates = horizon.rates[None] * scale[:, None, None]
    probability = np.array([s.probability for s in scenarios])
    states = spot_states(problem) if "spot" in problem.candidates.purchase else (State(1.0),)
    return FleetModel(
        (), rates, np.ones(horizon.num_periods), probability, states, limits_of(problem, candidates), horizon.cyclic,
        plans_of(problem, {c.instance_type for c in candidates}),
    )  # fmt: skip


def zone_availability(problem: Problem) -> tuple[float, str]:
    """Share of time in which a zone of the region has spot capacity, and what that rests on."""
    if problem.spot.zone_availability is not None:
        return problem.spot.zone_availability, "as given"
    from simulator.fleet.spot import catalogue_zones

    zones = catalogue_zones()
    here = [z for z in zones if z.region == problem.region] or list(zones)
    where = problem.region if here[0].region == problem.region else "all regions observed"
    share = float(np.mean([z.available_share for z in here]))
    return share, f"mean of {len(here)} zones observed in {where} (catalogs/spot_zones.csv)"


def spot_states(problem: Problem) -> tuple[State, ...]:
    """How many of the zones are up, with probability; while replacements boot, a state of its own.

    Over many periods the short states in which replacements boot are one, at their mean. The others stay apart: what
    replaces lost machines is convex in how many are lost, so their mean would promise too cheap a fleet.

    Zones are up with equal probability a and correlation r: the number of zones up is beta-binomial with parameters
    a (1 - r) / r and (1 - a)(1 - r) / r, whose pairwise correlation is r.
    """
    spot = problem.spot
    share, _ = zone_availability(problem)
    booting = min(1.0, problem.time.boot_s / spot.mean_outage_s) if spot.fallback else 1.0
    states = []
    for up, chance in enumerate(zones_up(share, spot)):
        if chance <= 1e-9:
            continue
        if up == spot.zones:
            states.append(State(chance, 1.0))
            continue
        part = up / spot.zones
        if booting > 0:
            states.append(State(chance * booting, part, fallback=False))
        if booting < 1:
            states.append(State(chance * (1 - booting), part))
    if spot.fallback and (problem.time.periods != "static" or problem.time.demand is not None):
        states = _merged(states)
    total = sum(s.probability for s in states)
    return tuple(replace(s, probability=s.probability / total) for s in states)


def _merged(states: Sequence[State]) -> list[State]:
    """The states in which replacements boot as one, at their mean."""
    found, booting = [s for s in states if s.fallback], [s for s in states if not s.fallback]
    chance = sum(s.probability for s in booting)
    if chance > 0:
        found.append(State(chance, sum(s.probability * s.spot_up for s in booting) / chance, fallback=False))
    return found


def zones_up(share: float, spot: Spot) -> FloatArray:
    """(zones + 1,) probability of each number of zones up: C(n, k) B(k + a, n - k + b) / B(a, b)."""
    n, r = spot.zones, spot.zone_correlation
    if share >= 1:
        return np.asarray((np.arange(n + 1) == n).astype(float))
    if r <= 0:
        return np.array([math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)])
    a, b = share * (1 - r) / r, (1 - share) * (1 - r) / r
    return np.array([math.comb(n, k) * math.exp(_log_beta(k + a, n - k + b) - _log_beta(a, b)) for k in range(n + 1)])


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def limits_of(problem: Problem, candidates: Sequence[Candidate]) -> Limits:
    """Budget, quotas and scaling limits, in the model's units."""
    budget = problem.budget_usd_per_month
    wants_spot = "spot" in problem.candidates.purchase
    return Limits(
        budget_usd_per_hour=None if budget is None else budget / HOURS_PER_MONTH,
        spot_max_share=problem.spot.max_share if wants_spot and problem.spot.max_share < 1 else None,
        availability=problem.spot.availability if wants_spot else None,
        max_added_per_period=problem.time.max_added_per_hour,
        max_removed_per_period=problem.time.max_removed_per_hour,
        min_run_periods=problem.time.min_run_hours,
        quotas=tuple(_quota(name, most, candidates) for name, most in problem.quotas.items()),
        cvar_weight=problem.time.cvar_weight,
        cvar_alpha=problem.time.cvar_alpha,
    )


def _quota(name: str, most: int, candidates: Sequence[Candidate]) -> Quota:
    known = {c.instance_type for c in candidates} | {c.gpu for c in candidates}
    if name not in known:
        close = nearest(name, known)
        raise InputError(
            f"quota for {name!r}, which is not among the candidates",
            where="quotas",
            remedy=f"did you mean {' or '.join(close)}?" if close else "",
        )
    machines = {c.label: float(c.machines) for c in candidates if name in (c.instance_type, c.gpu)}
    return Quota(name, dict(sorted(machines.items())), float(most))
