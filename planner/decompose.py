"""Large models by Dantzig-Wolfe decomposition: commitments in a master, each (scenario, period) by itself.

Once the commitments y are fixed, periods have nothing in common: V_ot(y) is what period t of scenario o costs on top.
Upper bounds come from the periods solved exactly under rounded commitments. The linear relaxation of the whole gives
the first lower bound; where that leaves a gap, column generation (Dantzig and Wolfe 1960) goes on: a master combines
the plans of periods found so far, and its prices mu_otj for holding commitment j in a period (sum over periods <= c_j)
ask each period for a better plan, a small integer program. The sum of their bounds is a Lagrangian bound, which counts
whole machines in every period.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from planner.fleet_model import FleetModel, Limits, Option
from planner.milp import Columns, Solution, build
from planner.program import Program, optimizer, quiet_stdout, relative_gap

log = logging.getLogger(__name__)
FloatArray = NDArray[np.float64]
CELL_LIMIT_S = 2.0  # of one period's program; its best plan and bound so far are used then
SMOOTHING = 0.7  # share of the best prices so far in the next (Wentges 1997)


def separable(model: FleetModel) -> bool:
    """Whether nothing but commitments (and a budget on the objective itself) ties periods together."""
    limits = model.limits
    scenarios, periods = model.demand.shape[:2]
    tied = limits.max_added_per_period is not None or limits.max_removed_per_period is not None
    tied |= limits.min_run_periods > 1 or limits.cvar_weight > 0
    tied |= any(o.start_hours > 0 for o in model.options) and periods > 1
    return scenarios * periods > 1 and not tied


@dataclass
class Cell:
    """One scenario and period: its program, and the plans found for it.

    Attributes:
        where: (scenario, period).
        weight: probability times share of time.
        program, columns: of the period alone, commitments as variables of their own.
        holds: (P, G) commitments used by each plan; cost: (P,) USD an hour beside them.
        plans: their solver values.
    """

    where: tuple[int, int]
    weight: float
    program: Program
    columns: Columns
    base_cost: FloatArray
    free: FloatArray  # upper bounds of all variables
    holds: list[FloatArray] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    plans: list[FloatArray] = field(default_factory=list)

    def solve(self, price: FloatArray, most: FloatArray, gap: float) -> tuple[float, float] | None:
        """Best plan at ``price`` per commitment and at most ``most`` of them; (bound, cost without commitments)."""
        cost, high = self.base_cost.copy(), self.free.copy()
        index = self.columns.committed
        there = index >= 0
        cost[index[there]] = price[there]
        high[index[there]] = np.minimum(high[index[there]], most[there])
        found = self.program.solve_with(cost, high, gap, CELL_LIMIT_S)
        if found.values is None:
            return None
        held = np.zeros(len(index))
        held[there] = np.round(found.values[index[there]])
        beside = float(self.base_cost @ found.values)
        if not any(
            np.array_equal(held, h) and abs(beside - c) < 1e-9 for h, c in zip(self.holds, self.cost, strict=True)
        ):
            self.holds.append(held)
            self.cost.append(beside)
            self.plans.append(found.values)
        return found.bound, beside


def solve_decomposed(model: FleetModel, gap: float = 1e-3, time_limit_s: float = 60.0) -> Solution | None:
    """The cheapest plan of a separable model; None where some period cannot be served."""
    start = time.monotonic()
    cells = _cells(model)
    price = np.where(model.is_kind("committed"), model.usd_per_hour, 0.0)
    active_share = (model.active * model.weight).sum(1)
    total = price * active_share  # USD an hour on average of one commitment
    state = _State(model, cells, total, gap)
    workers = 1
    with quiet_stdout(), ThreadPoolExecutor(max_workers=workers) as pool:
        if not state.start(pool, start + time_limit_s):
            return None
        while True:
            log.debug("%.1f s: %.4f to %.4f", time.monotonic() - start, state.lower, state.upper)
            left = time_limit_s - (time.monotonic() - start)
            if relative_gap(state.upper, state.lower) <= gap or left <= 0:
                break
            state.integer_master(pool)
            left = time_limit_s - (time.monotonic() - start)
            if relative_gap(state.upper, state.lower) <= gap or left <= 0 or not state.improve(pool, left):
                break
    return state.solution(gap)


@dataclass
class _State:
    model: FleetModel
    cells: list[Cell]
    total: FloatArray  # (J,) cost of a commitment
    gap: float
    lower: float = 0.0
    upper: float = np.inf
    best_price: FloatArray | None = None  # (cells, J)
    best_bound: float = -np.inf
    chosen: FloatArray | None = None  # (J,) commitments of the best plan
    tried: set[bytes] = field(default_factory=set)
    best_plans: list[FloatArray] = field(default_factory=list)

    @property
    def weights(self) -> FloatArray:
        return np.array([c.weight for c in self.cells])

    def start(self, pool: ThreadPoolExecutor, end: float) -> bool:
        """The relaxation's bound, prices and rounded commitments; plans without any commitment."""
        program, columns = build(replace(self.model, limits=_inside(self.model.limits)))
        found = program.relaxed()
        if found is None:
            return False
        values, self.lower, prices = found
        capacity = program.family("capacity", prices).sum(3)  # (J, O, T)
        spread = self._spread()
        committed = self.model.is_kind("committed")
        dual = np.array([capacity[:, c.where[0], c.where[1]] for c in self.cells]) * committed
        active = np.array([self.model.active[:, c.where[1]] for c in self.cells])
        dual = np.where(active, dual, 0.0)
        unpriced = dual.sum(0) < 1e-9
        dual[:, unpriced] = spread[:, unpriced]
        relaxed = np.append(values, 0.0)[columns.committed]
        nothing = np.zeros(len(self.total))
        for start in (np.round(relaxed), np.floor(relaxed + 1e-6), nothing):
            self._evaluate(pool, start)
            if relative_gap(self.upper, self.lower) <= self.gap or (self.chosen is not None and time.monotonic() > end):
                return True
        self._price(pool, dual)
        return self.chosen is not None

    def _spread(self) -> FloatArray:
        """(cells, J) prices: each commitment's cost over the periods in which it holds, by weight."""
        active = np.array([self.model.active[:, c.where[1]] for c in self.cells], dtype=float)
        share = active * self.weights[:, None]
        return np.asarray(share / np.maximum(share.sum(0), 1e-12) * self.total)

    def _price(self, pool: ThreadPoolExecutor, price: FloatArray) -> float | None:
        """Ask every period at these prices; returns the Lagrangian bound."""
        most = np.full(len(self.total), np.inf)
        tight = max(self.gap * 0.1, 1e-5)
        futures = [pool.submit(c.solve, price[i] / c.weight, most, tight) for i, c in enumerate(self.cells)]
        found = [f.result() for f in futures]
        if any(f is None for f in found):
            return None
        bound = float(sum(c.weight * f[0] for c, f in zip(self.cells, found, strict=True) if f is not None))
        if bound > self.lower:
            self.lower = bound
        if self.best_price is None or bound > self.best_bound:
            self.best_bound, self.best_price = bound, price
        return bound

    def improve(self, pool: ThreadPoolExecutor, seconds: float) -> bool:
        """Rounds of master and pricing until the bound stops rising; False when nothing new was found."""
        end = time.monotonic() + seconds
        before = (self.lower, sum(len(c.cost) for c in self.cells))
        for _ in range(4):
            dual = self._master()
            mixed = dual if self.best_price is None else SMOOTHING * self.best_price + (1 - SMOOTHING) * dual
            self._price(pool, mixed)
            if time.monotonic() > end or relative_gap(self.upper, self.lower) <= self.gap:
                break
        return (self.lower, sum(len(c.cost) for c in self.cells)) != before

    def _rows(self) -> tuple[list[int], FloatArray, FloatArray, NDArray[np.int64]]:
        """Commitments that matter, and all plans: (holds, cost times weight, cell) of each."""
        use = [j for j in range(len(self.total)) if any(h[j] > 0 for c in self.cells for h in c.holds)]
        holds = np.array([h[use] for c in self.cells for h in c.holds]).reshape(-1, len(use))
        cost = np.array([c.weight * v for c in self.cells for v in c.cost])
        owner = np.array([i for i, c in enumerate(self.cells) for _ in c.cost], dtype=np.int64)
        return use, holds, cost, owner

    def _matrices(self) -> tuple[list[int], FloatArray, FloatArray, object, object, NDArray[np.int64]]:
        from scipy.sparse import csr_matrix, hstack, identity, kron, vstack

        use, holds, cost, owner = self._rows()
        num, plans, width = len(self.cells), len(cost), len(use)
        rows = (owner[:, None] * width + np.arange(width)).ravel()
        cols = np.repeat(np.arange(plans), width)
        used = csr_matrix((holds.ravel(), (rows, cols)), shape=(num * width, plans))
        have = kron(np.ones((num, 1)), -identity(width))
        limit = hstack([used, have], format="csr")
        pick = csr_matrix((np.ones(plans), (owner, np.arange(plans))), shape=(num, plans + width))
        return use, cost, holds, limit, vstack([pick]), owner

    def _master(self) -> FloatArray:
        """(cells, J) dual prices of the linear master."""
        use, cost, _, limit, pick, _ = self._matrices()
        width = len(use)
        price = np.zeros((len(self.cells), len(self.total)))
        if not width:
            return price
        objective = np.concatenate([cost, self.total[use]])
        found = optimizer().linprog(
            objective, limit, np.zeros(len(self.cells) * width), pick, np.ones(len(self.cells)), method="highs"
        )
        duals = -np.asarray(found.ineqlin.marginals).reshape(len(self.cells), width)
        price[:, use] = duals
        unused = [j for j in range(len(self.total)) if j not in set(use)]
        price[:, unused] = self._spread()[:, unused]
        return price

    def integer_master(self, pool: ThreadPoolExecutor) -> None:
        """Whole commitments over the plans found, then every period solved exactly under them."""
        use, cost, holds, limit, pick, owner = self._matrices()
        candidates = []
        if use:
            chosen = self._pick(use, cost, limit, pick)
            if chosen is not None:
                candidates.append(chosen)
        else:
            candidates.append(np.zeros(len(self.total)))
        assert len(holds) == len(owner)
        for commitments in candidates:
            key = commitments.tobytes()
            if key in self.tried:
                continue
            self.tried.add(key)
            self._evaluate(pool, commitments)

    def _pick(self, use: list[int], cost: FloatArray, limit: object, pick: object) -> FloatArray | None:
        optimize = optimizer()
        width, plans = len(use), len(cost)
        with quiet_stdout():
            found = optimize.milp(
                np.concatenate([cost, self.total[use]]),
                integrality=np.concatenate([np.zeros(plans), np.ones(width)]),
                bounds=optimize.Bounds(0, np.concatenate([np.ones(plans), np.full(width, np.inf)])),
                constraints=[
                    optimize.LinearConstraint(limit, -np.inf, 0),
                    optimize.LinearConstraint(pick, 1, 1),
                ],
                options={"mip_rel_gap": self.gap * 0.3, "time_limit": 3.0},
            )
        if found.x is None:
            return None
        chosen = np.zeros(len(self.total))
        chosen[use] = np.round(found.x[plans:])
        return chosen

    def _evaluate(self, pool: ThreadPoolExecutor, commitments: FloatArray) -> None:
        zero = np.zeros(len(self.total))
        futures = [pool.submit(c.solve, zero, commitments, self.gap * 0.3) for c in self.cells]
        found = [f.result() for f in futures]
        if any(f is None for f in found):
            return
        usd = float(self.total @ commitments) + sum(
            c.weight * f[1] for c, f in zip(self.cells, found, strict=True) if f is not None
        )
        if usd < self.upper:
            self.upper, self.chosen = usd, commitments
            self.best_plans = [
                self._plan_under(c, commitments, f[1]) for c, f in zip(self.cells, found, strict=True) if f
            ]

    @staticmethod
    def _plan_under(cell: Cell, commitments: FloatArray, usd: float) -> FloatArray:
        fits = [
            p
            for p, h, c in zip(cell.plans, cell.holds, cell.cost, strict=True)
            if (h <= commitments + 1e-6).all() and c <= usd + 1e-9
        ]
        return fits[-1]

    def solution(self, gap: float) -> Solution | None:
        """The best plan, put together from its periods."""
        if self.chosen is None:
            return None
        model = self.model
        options, (scenarios, periods, buckets) = len(model.options), model.demand.shape
        states = len(model.states)
        held = np.zeros((options, scenarios, periods))
        fallback = np.zeros((options, scenarios, periods, states))
        routed = np.zeros((options, scenarios, periods, states, buckets))
        unserved = np.zeros((scenarios, periods, states, buckets))
        for cell, values in zip(self.cells, self.best_plans, strict=True):
            o, t = cell.where
            padded = np.append(values, 0.0)
            held[:, o, t] = np.round(padded[cell.columns.held[:, 0, 0]])
            fallback[:, o, t] = np.maximum(padded[cell.columns.fallback[:, 0, 0]], 0.0)
            routed[:, o, t] = np.clip(padded[cell.columns.routed[:, 0, 0]], 0, 1)
            unserved[o, t] = np.clip(padded[cell.columns.unserved[0, 0]], 0, 1)
        lower = min(self.lower, self.upper)
        achieved = relative_gap(self.upper, lower)
        return Solution(
            self.chosen,
            held,
            fallback,
            routed,
            unserved,
            self.upper,
            self.upper,
            lower,
            achieved,
            achieved <= gap + 1e-9,
        )


def _cells(model: FleetModel) -> list[Cell]:
    """Each scenario and period as a program of its own."""
    scenarios, periods, _ = model.demand.shape
    cells = []
    for o in range(scenarios):
        for t in range(periods):
            options = [_single(option, t) for option in model.options]
            single = FleetModel(
                tuple(options), model.demand[o : o + 1, t : t + 1], states=model.states, limits=_inside(model.limits)
            )
            program, columns = build(single)
            cost = program.cost.copy()
            there = columns.committed >= 0
            cost[columns.committed[there]] = 0.0
            weight = float(model.probability[o] * model.weight[t])
            cells.append(Cell((o, t), weight, program, columns, cost, program.bounds[1]))
    return cells


def _single(option: Option, t: int) -> Option:
    active = None if option.active is None else option.active[t : t + 1]
    return replace(option, active=active)


def _inside(limits: Limits) -> Limits:
    return replace(limits, budget_usd_per_hour=None, max_added_per_period=None, max_removed_per_period=None)
