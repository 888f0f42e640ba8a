"""Large models by Dantzig-Wolfe decomposition: commitments in a master, each (scenario, period) by itself.

Once the commitments y are fixed, periods have nothing in common. So:

1. The linear relaxation (``relaxation``) gives the first lower bound and commitments that are not whole.
2. These are rounded, and every period is solved for whole machines beside them. Neighbouring hours want the same few
   options, so a sample of periods is solved with all that could pay, and the others with what the sample used.
3. Where that leaves a gap, column generation (Dantzig and Wolfe 1960) goes on: a master combines the plans of periods
   found so far, and its prices for holding a commitment in a period (over all periods no more than the commitment
   costs) ask each period for a better plan. The sum of their bounds is a Lagrangian bound, which counts whole machines.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.optimizer import few_machines
from planner.optimizer.cells import FEW_OPTIONS, Cell, Plan, cells_of
from planner.optimizer.fleet_model import FleetModel
from planner.optimizer.milp import Solution
from planner.optimizer.program import optimizer, quiet_stdout, relative_gap
from planner.optimizer.relaxation import Relaxed, cheapest_by_bucket, relax
from simulator.pool import cpu_count

log = logging.getLogger(__name__)
FloatArray = NDArray[np.float64]
FEW_SHARE = 0.5  # of the time that listing what a small fleet can be may take
SMOOTHING = 0.7  # share of the best prices so far in the next (Wentges 1997)
SAMPLE = 8  # periods that are solved with every option that could pay
SHORT_LIST = 12  # options of the sample's plans that the other periods are solved with first
LONG_LIST_GAP = 2  # times the gap asked for: beyond it, the bound must rise, and longer lists do not help
ROUNDS = 12  # of prices and whole commitments, at most: the end of the search on a machine that is fast enough
MASTER_ROUNDS = 2  # of prices, between two looks at whole commitments


def separable(model: FleetModel) -> bool:
    """Whether nothing but commitments (and a budget on the objective itself) ties periods together."""
    limits = model.limits
    scenarios, periods = model.demand.shape[:2]
    tied = limits.max_added_per_period is not None or limits.max_removed_per_period is not None
    tied |= limits.min_run_periods > 1 or limits.cvar_weight > 0
    tied |= any(o.start_hours > 0 for o in model.options) and periods > 1
    return scenarios * periods > 1 and not tied


def solve_decomposed(model: FleetModel, gap: float = 1e-3, time_limit_s: float = 60.0) -> Solution | None:
    """The cheapest plan of a separable model; None where some period cannot be served."""
    end = time.monotonic() + time_limit_s
    with quiet_stdout(), ThreadPoolExecutor(max_workers=cpu_count()) as pool:
        relaxed = relax(model)
        if relaxed is None:
            return None
        state = _State(model, cells_of(model), relaxed, gap, end, pool)
        state.list_few(time.monotonic() + FEW_SHARE * time_limit_s)
        if state.chosen is None or state.open():
            state.round_commitments()
        for _ in range(ROUNDS):
            if not state.open():
                break
            log.debug("%.4f to %.4f, %.1f s left", state.lower, state.upper, end - time.monotonic())
            before = state.lower, state.upper, state.num_plans
            state.price()
            if state.open():
                state.integer_master()
            if before == (state.lower, state.upper, state.num_plans):
                break
    return state.solution()


@dataclass
class _State:
    """What is known so far: plans of each period, the best commitments, a lower bound."""

    model: FleetModel
    cells: list[Cell]
    relaxed: Relaxed
    gap: float
    end: float
    pool: ThreadPoolExecutor
    upper: float = np.inf
    chosen: FloatArray | None = None  # (J,) commitments of the best plan
    best: list[Plan] = field(default_factory=list)  # of each cell, under ``chosen``
    tried: set[bytes] = field(default_factory=set)
    best_price: FloatArray | None = None  # (cells, J) that gave ``best_bound``
    best_bound: float = -np.inf
    used: Counter[int] = field(default_factory=Counter)  # plans of the sample that use an option
    lower: float = 0.0

    def __post_init__(self) -> None:
        self.lower = self.relaxed.usd_per_hour

    @property
    def weights(self) -> FloatArray:
        """(cells,)"""
        return np.array([c.weight for c in self.cells])

    @property
    def total(self) -> FloatArray:
        """(J,) what a commitment costs, USD an hour on average over the horizon."""
        price = np.where(self.model.is_kind("committed"), self.model.usd_per_hour, 0.0)
        return np.asarray(price * (self.model.active * self.model.weight).sum(1))

    @property
    def tolerance_usd(self) -> float:
        """How far from the cheapest a period's plan may be."""
        return max(0.5 * self.gap * self.lower, 1e-9)

    @property
    def num_plans(self) -> int:
        """Of all periods together."""
        return sum(len(c.plans) for c in self.cells)

    def open(self) -> bool:
        """Whether there is a gap to close, and time."""
        return relative_gap(self.upper, self.lower) > self.gap and time.monotonic() < self.end

    def list_few(self, end: float) -> None:
        """Fleets of a few machines by listing what they can be."""
        found = few_machines.search(self.model, self.cells, self.relaxed, self.gap, end, self.pool)
        if found is None:
            return
        self.lower = max(self.lower, found.bound)
        if found.committed is not None:
            self.upper, self.chosen, self.best = found.usd_per_hour, found.committed, found.plans

    def round_commitments(self) -> None:
        """Plans for the relaxation's commitments in whole machines."""
        y = self.relaxed.committed
        shorter = [SHORT_LIST, 2 * SHORT_LIST] if len(self.model.options) > FEW_OPTIONS else []
        if shorter:
            self._sample(np.round(y))
        for rounded in (np.round(y), np.ceil(y - 1e-6), np.floor(y + 1e-6)):
            for most in [*shorter, None]:
                self.evaluate(rounded, most)
                if self._near():
                    break
            if self.chosen is not None:
                return

    def _near(self) -> bool:
        """Whether more options could hardly close the gap: it is closed, or wider than they account for."""
        left = relative_gap(self.upper, self.lower)
        return not self.open() or self.gap * LONG_LIST_GAP < left < np.inf

    def _sample(self, commitments: FloatArray) -> None:
        """Solve some periods, from the calmest to the busiest, with every option that could pay."""
        order = np.argsort([c.model.demand.sum() for c in self.cells], kind="stable")
        ids = sorted({int(order[i]) for i in np.linspace(0, len(order) - 1, SAMPLE).round().astype(int)})
        for plan in self.pool.map(lambda i: self._under(i, commitments, self._paying(i)), ids):
            if plan is not None:
                self.used.update(int(j) for j in plan.ids[plan.held > 0])

    def _paying(self, i: int) -> list[int]:
        """Options of which one machine adds less to a period's bound than the smallest machine costs."""
        if len(self.model.options) <= FEW_OPTIONS:
            return list(range(len(self.model.options)))
        o, t = self.cells[i].where
        free = ~self.model.is_kind("committed")
        cheapest = float(self.model.usd_per_hour[free].min(initial=np.inf))
        slack = max(self.tolerance_usd, min(cheapest, self.lower))
        return [int(j) for j in np.flatnonzero(free & (self.relaxed.reduced[:, o, t] <= slack))]

    def _under(self, i: int, commitments: FloatArray, ids: Iterable[int]) -> Plan | None:
        cell = self.cells[i]
        o, t = cell.where
        value = self.relaxed.value[:, o, t]
        expected = float(self.relaxed.cell_usd[o, t] - value @ commitments)
        basis = [*self.relaxed.basis, *cheapest_by_bucket(self.model)]
        return cell.under(commitments, {*ids, *basis}, self.tolerance_usd, expected)

    def evaluate(self, commitments: FloatArray, most: int | None = None) -> None:
        """Every period beside these commitments, each with the options that the sample used most, or all that pay."""
        key = commitments.tobytes() + bytes(str(most), "ascii")
        if key in self.tried or _over_quota(self.model, commitments):
            return
        self.tried.add(key)
        short = [j for j, _ in self.used.most_common(most)]

        def solve(i: int) -> Plan | None:
            return self._under(i, commitments, short if most is not None else {*short, *self._paying(i)})

        plans = list(self.pool.map(solve, range(len(self.cells))))
        found = [p for p in plans if p is not None]
        if len(found) < len(plans):
            return
        if self.chosen is not None and np.array_equal(commitments, self.chosen):
            found = [min(pair, key=lambda p: p.usd_per_hour) for pair in zip(found, self.best, strict=True)]
        usd = float(self.total @ commitments + self.weights @ [p.usd_per_hour for p in found])
        if usd < self.upper:
            self.upper, self.chosen, self.best = usd, commitments, found

    def price(self) -> None:
        """Rounds of prices for commitments and plans of every period at them, which raise the lower bound."""
        for _ in range(MASTER_ROUNDS):
            if self.best_price is None:
                price = self._first_price()
            else:
                price = SMOOTHING * self.best_price + (1 - SMOOTHING) * self._master()
            self._ask(price)
            if not self.open():
                return

    def _first_price(self) -> FloatArray:
        """(cells, J) worth of a commitment in each period by the relaxation, raised to what it costs in all."""
        value = np.array([self.relaxed.value[:, o, t] for o, t in (c.where for c in self.cells)])
        value = np.where(self.model.is_kind("committed"), value, 0.0)
        active = np.array([self.model.active[:, c.where[1]] for c in self.cells], dtype=float)
        worth = self.weights @ value
        spread = active * (self.total / np.maximum(self.weights @ active, 1e-12))
        return np.asarray(np.where(worth > 1e-9, value * (self.total / np.maximum(worth, 1e-9)), spread))

    def _ask(self, price: FloatArray) -> None:
        """Every period at these prices."""
        slack = max(3 * self.gap * self.lower, self.upper - self.lower if np.isfinite(self.upper) else 0.0)

        def bound(i: int) -> float | None:
            hurry, usd = time.monotonic() > self.end, float(self.relaxed.cell_usd[self.cells[i].where])
            return self.cells[i].priced(price[i], self.tolerance_usd, usd, slack, hurry)

        found = list(self.pool.map(bound, range(len(self.cells))))
        if any(f is None for f in found):
            return
        total = float(self.weights @ np.array([f for f in found if f is not None]))
        self.lower = max(self.lower, total)
        if self.best_price is None or total > self.best_bound:
            self.best_bound, self.best_price = total, price

    def _plans(self) -> tuple[list[int], FloatArray, Any, Any]:
        """Commitments that some plan uses, each plan's weighted cost, and the master's rows: holds, one plan a period.

        Columns are the plans of all cells, then the commitments in use; sum over a cell's plans of (holds) <= y.
        """
        from scipy.sparse import csr_matrix, hstack, identity, kron

        use = [j for j in range(len(self.total)) if any(p.holds[j] > 0 for c in self.cells for p in c.plans)]
        holds = np.array([p.holds[use] for c in self.cells for p in c.plans]).reshape(self.num_plans, len(use))
        cost = np.array([c.weight * p.usd_per_hour for c in self.cells for p in c.plans])
        owner = np.array([i for i, c in enumerate(self.cells) for _ in c.plans], dtype=np.int64)
        num, plans, width = len(self.cells), len(cost), len(use)
        rows = (owner[:, None] * width + np.arange(width)).ravel()
        cols = np.repeat(np.arange(plans), width)
        used = csr_matrix((holds.ravel(), (rows, cols)), shape=(num * width, plans))
        limit = hstack([used, kron(np.ones((num, 1)), -identity(width))], format="csr")
        pick = csr_matrix((np.ones(plans), (owner, np.arange(plans))), shape=(num, plans + width))
        return use, np.concatenate([cost, self.total[use]]), limit, pick

    def _master(self) -> FloatArray:
        """(cells, J) USD an hour that a commitment is worth in each period, by the plans found."""
        use, cost, limit, pick = self._plans()
        price = self._first_price()
        if not use:
            return price
        num = len(self.cells)
        found = optimizer().linprog(cost, limit, np.zeros(num * len(use)), pick, np.ones(num), method="highs")
        if found.status != 0:
            return price
        worth = -np.asarray(found.ineqlin.marginals).reshape(num, len(use))
        price[:, use] = worth / self.weights[:, None]
        return price

    def integer_master(self) -> None:
        """Whole commitments over the plans found, then every period solved under them."""
        use, cost, limit, pick = self._plans()
        chosen = np.zeros(len(self.total))
        if use:
            optimize = optimizer()
            plans = len(cost) - len(use)
            found = optimize.milp(
                cost,
                integrality=np.concatenate([np.zeros(plans), np.ones(len(use))]),
                bounds=optimize.Bounds(0, np.concatenate([np.ones(plans), np.full(len(use), np.inf)])),
                constraints=[optimize.LinearConstraint(limit, -np.inf, 0), optimize.LinearConstraint(pick, 1, 1)],
                options={"mip_rel_gap": self.gap * 0.3, "time_limit": 3.0},
            )
            if found.x is None:
                return
            chosen[use] = np.round(found.x[plans:])
        self.evaluate(chosen, 2 * SHORT_LIST if len(self.model.options) > FEW_OPTIONS else None)

    def solution(self) -> Solution | None:
        """The best plan, put together from its periods."""
        if self.chosen is None:
            return None
        num, (scenarios, periods, buckets) = len(self.model.options), self.model.demand.shape
        states = len(self.model.states)
        held = np.zeros((num, scenarios, periods))
        fallback = np.zeros((num, scenarios, periods, states))
        routed = np.zeros((num, scenarios, periods, states, buckets))
        unserved = np.zeros((scenarios, periods, states, buckets))
        for cell, plan in zip(self.cells, self.best, strict=True):
            o, t = cell.where
            held[plan.ids, o, t], fallback[plan.ids, o, t] = plan.held, plan.fallback
            routed[plan.ids, o, t], unserved[o, t] = plan.routed, plan.unserved
        lower = min(self.lower, self.upper)
        achieved = relative_gap(self.upper, lower)
        optimal = achieved <= self.gap + 1e-9
        hurried = not optimal and time.monotonic() >= self.end
        return Solution(
            self.chosen, held, fallback, routed, unserved, self.upper, self.upper, lower, achieved, optimal, hurried
        )


def _over_quota(model: FleetModel, commitments: FloatArray) -> bool:
    """Whether commitments alone take more than a quota allows."""
    for quota in model.limits.quotas:
        weight = np.array([quota.weights.get(o.config, quota.weights.get(o.name, 0.0)) for o in model.options])
        if ((weight * commitments) @ model.active > quota.limit + 1e-9).any():
            return True
    return False
