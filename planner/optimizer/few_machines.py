"""Fleets of a few machines exactly: all commitments and counts that the money allows, and routing by Benders cuts.

What one machine more or less costs is a large share of such a fleet, so convex bounds stay far below it; but there are
few counts to choose from. Both commitments and what a period holds beside them are listed by their cost.

1. With all its counts given, a period is a linear program: routing, replacements in outages, requests lost. Its shadow
   prices bound it from below at any other counts and, since demand stands on the right side only (as requests routed,
   not as shares), in any other period (Benders 1962). Some dozens of these cuts say what every period needs.
2. Under given commitments a period costs at least its cheapest counts by the cuts. Its linear program confirms them or
   adds a cut.
3. Commitments wait in a queue by the bound of what they cost with all periods. Those that are confirmed everywhere are
   a plan; once no bound in the queue is lower, it is the optimum.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.optimizer.cells import FEW_OPTIONS, Cell, Plan, plan_of
from planner.optimizer.fleet_model import FleetModel, Quota
from planner.optimizer.milp import build, paid_share
from planner.optimizer.relaxation import STOPGAP_FACTOR, Relaxed, stopgap

log = logging.getLogger(__name__)
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
MOST_COUNTS = 250_000  # of all periods together that are weighed at a time
MOST_COMMITMENTS = 20_000
MOST_PROGRAMS = 20_000  # linear programs that are solved: the end of the search on a machine that is fast enough
KNOWN = 32  # commitments whose periods' bounds are kept
FIRST, LARGER = 0.25, 1.5  # of the relaxation's cost, that counts may take at first; each time their list is extended
INSTEAD = {"spot": "on_demand"}  # what can stand for machines of a kind, beside its own
BATCH = 8  # periods that are confirmed between two looks at the bounds
SERVED = 1e-7  # of the stopgap, at most, where a period's counts serve all


@dataclass(frozen=True)
class Found:
    """The best commitments (J,) if any, each period's plan beside them, the cost in USD an hour, and a lower bound."""

    committed: FloatArray | None
    plans: list[Plan]
    usd_per_hour: float
    bound: float


@dataclass(frozen=True)
class Cut:
    """Beside its counts n, a period with demand d costs at least ``per_rps @ d + fixed - per_machine @ n``."""

    per_rps: FloatArray  # (S,)
    fixed: float
    per_machine: FloatArray  # (J,)


def search(
    model: FleetModel, cells: Sequence[Cell], relaxed: Relaxed, gap: float, end: float, pool: ThreadPoolExecutor
) -> Found | None:
    """The cheapest plan of a separable model, within ``gap`` if time and lists suffice; None: nothing can be listed.

    Args:
        end: on the clock of ``time.monotonic``.
    """
    if len(model.options) > FEW_OPTIONS or not _can_be_listed(model):
        return None
    queue = _Queue(model, cells, relaxed, gap, end, pool)
    if not queue.list_counts(relaxed.usd_per_hour * FIRST):
        return None
    limit = relaxed.usd_per_hour * LARGER
    while queue.look_up_to(limit) and limit < min(queue.stuck, queue.best.usd_per_hour * (1 - gap)):
        limit *= LARGER
    return queue.best


def _can_be_listed(model: FleetModel) -> bool:
    """Whether counts end: nothing is free without a limit; machines beside commitments have no other limit."""
    counted = np.array([o.max_count is not None for o in model.options])
    price = model.usd_per_hour > 0
    free = price & ~counted & model.active.all(1)
    return bool(np.where(model.is_kind("committed"), price | counted, free).all()) and not model.savings_plans


def most_needed(model: FleetModel) -> FloatArray:
    """(J,) machines of each option that an optimum needs at most.

    So many that one of another option, of the same kind or on demand in place of spot, would do the work of one more
    than that for no more money.
    """
    most = np.array([np.inf if o.max_count is None else o.max_count for o in model.options])
    if model.limits.quotas:
        return most
    load, price = model.load, model.usd_per_hour * paid_share(model)
    for a, option in enumerate(model.options):
        for b, other in enumerate(model.options):
            if a == b or other.max_count is not None or other.kind not in (option.kind, INSTEAD.get(option.kind)):
                continue
            serves = np.isfinite(load[a])
            stronger = float((load[a][serves] / load[b][serves]).min(initial=np.inf))
            same_time = np.array_equal(model.active[a], model.active[b])
            num = np.ceil(price[b] / price[a] - 1e-9) if price[a] > 0 else np.inf
            if same_time and 2 <= num <= stronger + 1e-9:
                most[a] = min(most[a], num - 1)
    return most


def whole_counts(price: FloatArray, most: FloatArray, limit: float, num: int) -> FloatArray | None:
    """(M, J) all whole counts up to ``most`` of which ``price @ counts <= limit``; None: more than ``num``."""
    found = np.zeros((1, 0))
    for usd, highest in zip(price, most, strict=True):
        left = limit * (1 + 1e-9) - found @ price[: found.shape[1]]
        paid_for = np.floor(left / usd) if usd > 0 else np.full(len(left), np.inf)
        more = np.minimum(paid_for, highest).astype(np.int64) + 1
        if more.sum() > num:
            return None
        first = np.repeat(np.cumsum(more) - more, more)
        last = np.arange(len(first)) - first
        found = np.column_stack([np.repeat(found, more, axis=0), last])
    return found


class _Queue:
    """What is known so far: cuts, the list of counts, the best plan and the bound."""

    def __init__(
        self,
        model: FleetModel,
        cells: Sequence[Cell],
        relaxed: Relaxed,
        gap: float,
        end: float,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.model, self.relaxed, self.gap, self.end, self.pool = model, relaxed, gap, end, pool
        committed = model.is_kind("committed")
        self.committed, self.free = np.flatnonzero(committed), np.flatnonzero(~committed)
        self.total = (model.usd_per_hour * (model.active * model.weight).sum(1))[self.committed]
        self.price = (model.usd_per_hour * paid_share(model))[self.free]
        self.most = most_needed(model)
        self.active = np.array([model.active[self.committed, c.where[1]] for c in cells], dtype=float)
        self.weights = np.array([c.weight for c in cells])
        self.demand = np.array([c.model.demand[0, 0] for c in cells])
        self.cells = cells
        self.cuts = [_quota_cut(model, q) for q in model.limits.quotas]
        self.best = Found(None, [], np.inf, relaxed.usd_per_hour)
        self.confirmed: dict[tuple[int, bytes], Plan | None] = {}  # by period and counts; None: they do not serve
        self.floors: list[Cut] = []  # of all that a period costs beside commitments, whatever it holds
        self.relaxed_at: set[tuple[int, bytes]] = set()  # periods and commitments that the floors come from
        self.stuck = np.inf  # bound of the commitments that the list of counts is too short for

    @cached_property
    def periods(self) -> list[_Period]:
        """Each scenario and period as a linear program."""
        return [_Period(self.model, c) for c in self.cells]

    def list_counts(self, limit: float) -> bool:
        """What a period can hold beside commitments for at most ``limit``, cheapest first; False: too much."""
        found = whole_counts(self.price, self.most[self.free], limit, MOST_COUNTS // len(self.cells))
        if found is None:
            return False
        self.counts = found[np.argsort(found @ self.price, kind="stable")]
        self.usd, self.limit = self.counts @ self.price, limit
        self.known: dict[bytes, tuple[int, FloatArray]] = {}  # cuts seen, and (periods, M) bounds by them
        return True

    def look_up_to(self, limit: float) -> bool:
        """Search the commitments that cost at most ``limit``; False: too many, or the clock or the work ended it."""
        listed = whole_counts(self.total, self.most[self.committed], limit, MOST_COMMITMENTS)
        if listed is None:
            return False
        for quota in self.model.limits.quotas:
            taken = (listed * _weights(self.model, quota)[self.committed]) @ self.active.T
            listed = listed[(taken <= quota.limit + 1e-9).all(1)]
        bounds = self.relaxed.usd_per_hour + listed @ self.relaxed.committed_reduced[self.committed]
        log.debug("%d commitments up to $%.2f, %d counts", len(listed), limit, len(self.counts))
        queue = [(float(b), i) for i, b in enumerate(np.maximum(bounds, listed @ self.total))]
        heapq.heapify(queue)
        self.stuck = np.inf
        while queue and queue[0][0] < min(self._enough, limit) and not self._ended():
            bound, i = queue[0]
            rival = min((queue[k][0] for k in (1, 2) if k < len(queue)), default=np.inf)
            after = self._look_at(listed[i], rival)
            if after is None:
                heapq.heappop(queue)
            else:
                heapq.heapreplace(queue, (max(after, bound), i))
        left = [limit, self.stuck, self.best.usd_per_hour, *(b for b, _ in queue[:1])]
        self.best = replace(self.best, bound=max(self.best.bound, min(left)))
        return not self._ended()

    @property
    def _enough(self) -> float:
        """A bound from which on commitments cannot be better than the best by more than the gap."""
        return self.best.usd_per_hour * (1 - self.gap)

    def _ended(self) -> bool:
        return len(self.confirmed) > MOST_PROGRAMS or time.monotonic() > self.end

    def _look_at(self, committed: FloatArray, rival: float) -> float | None:
        """A higher bound of some commitments, or a cut that will raise it; None: nothing is left to learn of them."""
        usd, chosen = self._cheapest(committed)
        bound = float(self.total @ committed + self.weights @ usd)
        if bound > min(rival, self._enough):
            return bound
        if (chosen < 0).any():
            return self._more_than_listed(committed, np.flatnonzero(chosen < 0), bound)
        counts = np.zeros((len(chosen), len(self.model.options)))
        counts[:, self.committed], counts[:, self.free] = committed * self.active, self.counts[chosen]
        keys = [(i, row.tobytes()) for i, row in enumerate(counts)]
        unknown = [i for i, key in enumerate(keys) if key not in self.confirmed]
        if unknown:
            some = unknown[:: max(1, len(unknown) // BATCH)]
            solved = self.pool.map(lambda i: self.periods[i].solve(counts[i]), some)
            for i, (plan, cut) in zip(some, solved, strict=True):
                self.confirmed[keys[i]] = plan
                self.cuts += [] if cut is None else [cut]
            return bound
        plans = [p for p in (self.confirmed[key] for key in keys) if p is not None]
        if len(plans) < len(keys):
            self.stuck = min(self.stuck, bound)
            return None
        cost = float(self.total @ committed + self.weights @ [p.usd_per_hour for p in plans])
        if cost < self.best.usd_per_hour:
            whole = np.zeros(len(self.model.options))
            whole[self.committed] = committed
            self.best = Found(whole, plans, cost, self.best.bound)
        return None

    def _more_than_listed(self, committed: FloatArray, beyond: IntArray, bound: float) -> float | None:
        """As ``_look_at``, where some periods cost more than is listed: by their relaxation, else by a longer list."""
        unknown = [i for i in beyond if (i, committed.tobytes()) not in self.relaxed_at]
        if unknown:
            some = unknown[:: max(1, len(unknown) // BATCH)]
            self.relaxed_at.update((i, committed.tobytes()) for i in some)
            found = self.pool.map(lambda i: self.periods[i].relaxed(committed * self.active[i]), some)
            self.floors += [cut for cut in found if cut is not None]
            return bound
        if self.list_counts(self.limit * LARGER):
            return bound
        self.stuck = min(self.stuck, bound)
        return None

    def _cheapest(self, committed: FloatArray) -> tuple[FloatArray, IntArray]:
        """(periods,) a bound of what each costs beside commitments, and which counts that is; -1: none listed."""
        key = committed.tobytes()
        if key not in self.known and len(self.known) >= KNOWN:
            self.known.clear()
        seen, beside = self.known.get(key, (0, np.zeros((len(self.cells), len(self.counts)))))
        for cut in self.cuts[seen:]:
            needs = self._needs(cut, committed)
            np.maximum(beside, needs[:, None] - self.counts @ cut.per_machine[self.free], out=beside)
        self.known[key] = len(self.cuts), beside
        whole = beside + self.usd
        chosen = whole.argmin(1)
        usd = whole[np.arange(len(chosen)), chosen]
        least = np.minimum(usd, self.limit)
        for floor in self.floors:
            np.maximum(least, self._needs(floor, committed), out=least)
        return least, np.where(usd <= self.limit, chosen, -1)

    def _needs(self, cut: Cut, committed: FloatArray) -> FloatArray:
        """(periods,) a cut's value before what machines beside commitments take off it."""
        there = (self.active * committed) @ cut.per_machine[self.committed]
        return np.asarray(self.demand @ cut.per_rps + cut.fixed - there)


class _Period:
    """A scenario and period as a linear program once its counts are given."""

    def __init__(self, model: FleetModel, cell: Cell) -> None:
        self.demand = cell.model.demand[0, 0]
        program, columns = build(cell.model.with_options([*cell.model.options, stopgap(model)]))
        program.unlimit(columns.routed)  # as "serve every request" implies; else part of the price were theirs
        program.unlimit(columns.unserved)
        self.program, self.matrix = program, program.matrix()
        self.stopgap = np.concatenate([columns.held[-1].ravel(), columns.fallback[-1].ravel()])
        self.columns = replace(
            columns, committed=columns.committed[:-1], held=columns.held[:-1], fallback=columns.fallback[:-1],
            routed=columns.routed[:-1],
        )  # fmt: skip
        self.committed = np.flatnonzero(model.is_kind("committed"))
        self.index = np.where(self.columns.committed >= 0, self.columns.committed, self.columns.held[:, 0, 0])

    def solve(self, counts: FloatArray) -> tuple[Plan | None, Cut | None]:
        """The cheapest plan with these counts (J,), None where they do not serve all; and the cut of its prices."""
        ids = np.arange(len(counts))
        if not self.demand.any():
            return plan_of(ids, len(counts), self.program, self.columns, np.zeros(0)), None
        low, high = self.program.bounds
        there = self.index >= 0
        low[self.index[there]] = high[self.index[there]] = counts[there]
        found = self.program.relaxed_with(low, high)
        if found is None:
            return None, None
        values, _, price = found
        served = float(np.append(values, 0.0)[self.stopgap].sum()) <= SERVED
        plan = plan_of(ids, len(counts), self.program, self.columns, values) if served else None
        return plan, self._cut(price)

    def relaxed(self, committed: FloatArray) -> Cut | None:
        """The cut by the prices beside these commitments (in the order of the model's) where no count need be whole."""
        if not self.demand.any():
            return None
        low, high = self.program.bounds
        index = self.columns.committed[self.committed]
        low[index[index >= 0]] = high[index[index >= 0]] = committed[index >= 0]
        found = self.program.relaxed_with(low, high)
        return None if found is None else self._cut(found[2])

    def _cut(self, price: FloatArray) -> Cut:
        """Shadow prices, of shares of this period's demand, as prices of requests."""
        right = -price * self.program.row_bounds[1]
        per_rps, fixed = np.zeros(len(self.demand)), 0.0
        for name, _, _ in self.program.families:
            part = self.program.family(name, right)
            if name == "serve every request":
                each = part.reshape(-1, len(self.demand)).sum(0)
                per_rps += np.divide(each, self.demand, out=np.zeros_like(each), where=self.demand > 0)
            elif name in ("spot share", "availability"):
                per_rps += part.sum() / self.demand.sum()
            else:
                fixed += float(part.sum())
        taken = np.append(self.matrix.T @ price, 0.0)
        return Cut(per_rps, fixed, -taken[self.index])


def _quota_cut(model: FleetModel, quota: Quota) -> Cut:
    """More machines than a quota allows cost more than anything."""
    weight = _weights(model, quota)
    usd = STOPGAP_FACTOR * float(model.usd_per_hour.max())
    return Cut(np.zeros(model.demand.shape[2]), -usd * quota.limit, -usd * weight)


def _weights(model: FleetModel, quota: Quota) -> FloatArray:
    """(J,) of a quota that one machine of each option takes."""
    return np.array([quota.weights.get(o.config, quota.weights.get(o.name, 0.0)) for o in model.options])
