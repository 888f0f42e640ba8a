"""Asks the simulator whether a fleet keeps its promise: on the whole workload, and on fresh draws of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.capacity.sustained import Capacities, keeps
from planner.inputs.demand import Demand
from simulator.engine.metrics import Latencies
from simulator.scenario.replicas import Line as Served
from simulator.workload.requests import Requests
from simulator.workload.traces import take

GOLDEN = 0.6180339887498949
SHUFFLE_BLOCK = 512  # requests whose sizes change places in a fresh draw


@dataclass(frozen=True)
class Group:
    """Replicas of one kind that share a part of the traffic.

    Attributes:
        served: what each replica is.
        num_replicas: how many.
        share: (S,) of each bucket's requests.
        name: for messages.
    """

    served: Served
    num_replicas: int
    share: NDArray[np.float64]
    name: str


@dataclass(frozen=True)
class Verdict:
    """What the simulation of a fleet showed.

    Attributes:
        demand: what was simulated.
        latencies: of all its requests, in order.
        ok: every promise is kept over all groups.
        groups_ok: the same for each group by itself.
        rate_rps: that each group served.
        busy: share of time that each group's replicas were in a step.
        simulations: runs of the simulator: one for each group that got requests, unless it was remembered.
    """

    demand: Demand
    latencies: Latencies
    ok: bool
    groups_ok: tuple[bool, ...]
    rate_rps: tuple[float, ...]
    busy: tuple[float, ...]
    simulations: int


def assign(bucket: NDArray[np.int64], shares: NDArray[np.float64], seed: int = 0) -> NDArray[np.int64]:
    """The group of each request: within a bucket, groups take turns in proportion to their shares.

    The k-th request of a bucket goes where the k-th point of a golden-ratio sequence falls: deterministic, and as even
    as a weighted round robin at every scale of time.

    Args:
        bucket: (n,) bucket of each request.
        shares: (G, S); columns sum to 1 where the bucket has requests.
    """
    group = np.zeros(len(bucket), dtype=np.int64)
    start = np.random.default_rng(seed).random() if seed else 0.5
    for s in range(shares.shape[1]):
        rows = np.flatnonzero(bucket == s)
        total = shares[:, s].sum()
        if len(rows) == 0 or total <= 0:
            continue
        edges = np.cumsum(shares[:, s] / total)
        points = (start + GOLDEN * np.arange(len(rows))) % 1.0
        group[rows] = np.minimum(np.searchsorted(edges, points, side="right"), len(edges) - 1)
    return group


def simulate_fleet(capacities: Capacities, demand: Demand, groups: Sequence[Group], seed: int = 0) -> Verdict:
    """Send the whole demand to the groups and see what every request got."""
    requests = demand.requests
    member = assign(demand.bucket, np.array([g.share for g in groups]), seed)
    columns = {name: np.full(len(requests), np.nan) for name in ("ttft", "tpot", "e2e", "queue")}
    completed = np.zeros(len(requests), dtype=np.bool_)
    oks, rates, busy, ran = [], [], [], 0
    for i, group in enumerate(groups):
        rows = np.flatnonzero(member == i)
        if len(rows) == 0:
            oks.append(True)
            rates.append(0.0)
            busy.append(0.0)
            continue
        part = requests if len(rows) == len(requests) else take(requests, rows)
        seen = capacities.seen(group.served, part, group.num_replicas, seed)
        found, ran = seen.latencies, ran + seen.ran
        for name, values in columns.items():
            values[rows] = found.of_metric(name)
        completed[rows] = found.completed
        oks.append(keeps(part, found, capacities.slos))
        rates.append(len(part) / demand.duration_s)
        busy.append(seen.busy)
    latencies = Latencies(columns["ttft"], columns["tpot"], columns["e2e"], columns["queue"], completed)
    ok = keeps(requests, latencies, capacities.slos)
    return Verdict(demand, latencies, ok, tuple(oks), tuple(rates), tuple(busy), ran)


def group_requests(demand: Demand, groups: Sequence[Group], index: int, seed: int = 0) -> Requests:
    """The requests that one group gets."""
    member = assign(demand.bucket, np.array([g.share for g in groups]), seed)
    return take(demand.requests, np.flatnonzero(member == index))


def fresh_draw(demand: Demand, seed: int) -> Demand:
    """Another workload like this one: arrivals stay, sizes change places among neighbours in time.

    Blocks of ``SHUFFLE_BLOCK`` requests are shuffled, so bursts and the slow change of sizes stay as they are.
    """
    rng = np.random.default_rng([seed, 77])
    num = len(demand.requests)
    order = np.arange(num)
    for start in range(0, num, SHUFFLE_BLOCK):
        rng.shuffle(order[start : start + SHUFFLE_BLOCK])
    drawn = take(demand.requests, order)
    requests = replace(drawn, arrival_s=demand.requests.arrival_s)
    return replace(demand, requests=requests, bucket=demand.bucket[order])
