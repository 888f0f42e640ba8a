"""A mixed-integer linear program as arrays, solved by HiGHS; status, bound and gap stay apart."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

OPTIMAL, TIME_LIMIT, INFEASIBLE, UNBOUNDED = 0, 1, 2, 3  # scipy.optimize.milp's own codes; the second for nodes too


@dataclass(frozen=True)
class Result:
    """What the solver said: ``values`` is None where it found none; ``bound`` is a lower bound of the optimum."""

    status: int
    values: FloatArray | None
    objective: float | None
    bound: float
    gap: float | None
    hurried: bool = False  # the clock ended the search: on another machine it may end elsewhere


@dataclass
class Program:
    """Minimise cost @ x with row_low <= A x <= row_high, low <= x <= high, some x integer.

    Columns are handed out as index arrays of any shape; -1 in an index array means "no such variable".
    """

    num_columns: int = 0
    num_rows: int = 0
    _cost: list[FloatArray] = field(default_factory=list)
    _low: list[FloatArray] = field(default_factory=list)
    _high: list[FloatArray] = field(default_factory=list)
    _integer: list[NDArray[np.bool_]] = field(default_factory=list)
    _entries: list[tuple[IntArray, IntArray, FloatArray]] = field(default_factory=list)
    _row_low: list[FloatArray] = field(default_factory=list)
    _row_high: list[FloatArray] = field(default_factory=list)
    families: list[tuple[str, int, NDArray[np.bool_]]] = field(
        default_factory=list
    )  # (name, first row, which are kept)
    _frozen: Any = None

    def columns(
        self, exists: NDArray[np.bool_], cost: ArrayLike = 0.0, high: ArrayLike = np.inf, integer: bool = False
    ) -> IntArray:
        """New variables >= 0 where ``exists``; returns their indices in its shape, -1 elsewhere."""
        index = np.full(exists.shape, -1, dtype=np.int64)
        count = int(exists.sum())
        index[exists] = self.num_columns + np.arange(count)
        self._cost.append(np.broadcast_to(np.asarray(cost, float), exists.shape)[exists])
        self._low.append(np.zeros(count))
        self._high.append(np.broadcast_to(np.asarray(high, float), exists.shape)[exists])
        self._integer.append(np.full(count, integer))
        self.num_columns += count
        return index

    def rows(
        self,
        name: str,
        terms: Sequence[tuple[IntArray, ArrayLike]],
        low: ArrayLike,
        high: ArrayLike,
        shape: tuple[int, ...],
    ) -> None:
        """New rows of ``shape``; each term is (column indices, coefficients), both broadcast to shape + summed axes.

        Rows without any variable are dropped, unless 0 breaks their limits: such a row stays, and cannot be met.
        """
        num = int(np.prod(shape, dtype=np.int64))
        row_ids, cols, values = [], [], []
        for index, coefficient in terms:
            coef = np.asarray(coefficient, float)
            if index.ndim == len(shape):
                index = index[..., None]
                coef = coef[..., None] if coef.ndim else coef
            full_shape = shape + index.shape[len(shape) :]
            full = np.broadcast_to(index, full_shape).reshape(num, -1)
            coef = np.broadcast_to(coef, full_shape).reshape(num, -1)
            keep = (full >= 0) & (coef != 0)
            row_ids.append(np.nonzero(keep)[0])
            cols.append(full[keep])
            values.append(coef[keep])
        ids = np.concatenate(row_ids)
        lows = np.broadcast_to(np.asarray(low, float), shape).reshape(num)
        highs = np.broadcast_to(np.asarray(high, float), shape).reshape(num)
        needed = np.zeros(num, dtype=bool)
        needed[ids] = True
        needed |= (lows > 0) | (highs < 0)
        renumbered = np.cumsum(needed) - 1 + self.num_rows
        self._entries.append((renumbered[ids], np.concatenate(cols), np.concatenate(values)))
        self._row_low.append(lows[needed])
        self._row_high.append(highs[needed])
        self.families.append((name, self.num_rows, needed.reshape(shape)))
        self.num_rows += int(needed.sum())

    def add_cost(self, index: IntArray, cost: ArrayLike) -> None:
        """Add to the cost of columns."""
        total = np.concatenate(self._cost)
        keep = index >= 0
        np.add.at(total, index[keep], np.broadcast_to(np.asarray(cost, float), index.shape)[keep])
        self._cost = [total]

    def limit(self, index: IntArray, high: ArrayLike) -> None:
        """Lower the upper bounds of columns."""
        highs = np.concatenate(self._high)
        keep = index >= 0
        highs[index[keep]] = np.minimum(highs[index[keep]], np.broadcast_to(np.asarray(high, float), index.shape)[keep])
        self._high = [highs]

    def unlimit(self, index: IntArray) -> None:
        """Drop the upper bounds of columns, where rows imply them."""
        highs = np.concatenate(self._high)
        highs[index[index >= 0]] = np.inf
        self._high = [highs]

    @property
    def cost(self) -> FloatArray:
        """(columns,) cost vector."""
        return np.concatenate(self._cost) if self._cost else np.zeros(0)

    @property
    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """(columns,) lower and upper bounds."""
        return np.concatenate(self._low), np.concatenate(self._high)

    @property
    def integer(self) -> NDArray[np.bool_]:
        """(columns,) which are integer."""
        return np.concatenate(self._integer) if self._integer else np.zeros(0, bool)

    @property
    def row_bounds(self) -> tuple[FloatArray, FloatArray]:
        """(rows,) lower and upper limits."""
        return np.concatenate(self._row_low), np.concatenate(self._row_high)

    def matrix(self) -> Any:
        """The rows as a scipy CSR matrix."""
        from scipy.sparse import csr_matrix

        rows = np.concatenate([e[0] for e in self._entries])
        cols = np.concatenate([e[1] for e in self._entries])
        values = np.concatenate([e[2] for e in self._entries])
        return csr_matrix((values, (rows, cols)), shape=(self.num_rows, self.num_columns))

    def solve(
        self, gap: float = 1e-3, time_limit_s: float = 60.0, relax: bool = False, node_limit: int | None = None
    ) -> Result:
        """Solve with HiGHS; ``relax`` drops integrality; nodes are a limit that does not depend on the machine.

        Returns:
            status, the best solution found (None if none), a proven lower bound, and the relative gap between them.
        """
        with quiet_stdout():
            return self.solve_with(self.cost, self.bounds[1], gap, time_limit_s, relax, None, node_limit)

    def relaxed(self) -> tuple[FloatArray, float, FloatArray] | None:
        """The linear relaxation: values, objective, and each row's shadow price (>= 0 if <=); None: infeasible."""
        with quiet_stdout():
            return self.relaxed_with(*self.bounds)

    def relaxed_with(self, low: FloatArray, high: FloatArray) -> tuple[FloatArray, float, FloatArray] | None:
        """As ``relaxed``, with other bounds; safe to call from several threads."""
        row_low, row_high = self.row_bounds
        matrix = self.matrix()
        equal = row_low == row_high
        assert np.isinf(row_low[~equal]).all()
        found = optimizer().linprog(
            self.cost, matrix[~equal], row_high[~equal], matrix[equal] if equal.any() else None,
            row_high[equal] if equal.any() else None, np.column_stack([low, high]), method="highs",
        )  # fmt: skip
        if found.status != 0:
            return None
        price = np.zeros(self.num_rows)
        price[~equal] = -np.asarray(found.ineqlin.marginals)
        if equal.any():
            price[equal] = -np.asarray(found.eqlin.marginals)
        return np.asarray(found.x), float(found.fun), price

    def family(self, name: str, values: FloatArray) -> FloatArray:
        """Row values of a family in its own shape; 0 where a row was left out."""
        for known, first, kept in self.families:
            if known == name:
                full = np.zeros(kept.shape)
                full[kept] = values[first : first + int(kept.sum())]
                return full
        raise KeyError(name)

    def solve_with(
        self,
        cost: FloatArray,
        high: FloatArray,
        gap: float,
        time_limit_s: float = 60.0,
        relax: bool = False,
        low: FloatArray | None = None,
        node_limit: int | None = None,
    ) -> Result:
        """As ``solve``, with other costs and bounds; safe to call from several threads."""
        optimize = optimizer()
        if self._frozen is None:
            self._frozen = (self.matrix(), *self.row_bounds, self.bounds[0], self.integer.astype(float))
        matrix, row_low, row_high, zeros, integer = self._frozen
        options: dict[str, Any] = {"mip_rel_gap": gap, "time_limit": time_limit_s, "presolve": True}
        if node_limit is not None:
            options["node_limit"] = node_limit
        if self.num_columns == 0:
            met = not ((row_low > 0) | (row_high < 0)).any()
            return Result(OPTIMAL, np.zeros(0), 0.0, 0.0, 0.0) if met else Result(INFEASIBLE, None, None, 0.0, None)
        start = time.monotonic()
        found = optimize.milp(
            cost,
            integrality=np.zeros(self.num_columns) if relax else integer,
            bounds=optimize.Bounds(zeros if low is None else low, high),
            constraints=optimize.LinearConstraint(matrix, row_low, row_high),
            options=options,
        )
        status = int(found.status)
        hurried = status == TIME_LIMIT and time.monotonic() - start >= time_limit_s
        if found.x is None:
            bound = _finite(found.get("mip_dual_bound"))
            return Result(status, None, None, 0.0 if bound is None else bound, None, hurried)
        objective = float(found.fun or 0.0)
        bound = _finite(found.get("mip_dual_bound"))
        lower = objective if bound is None or relax else min(bound, objective)
        return Result(status, np.asarray(found.x), objective, lower, relative_gap(objective, lower), hurried)

    def rounded_up(self, cost: FloatArray, high: FloatArray, low: FloatArray | None = None) -> Result | None:
        """The relaxation's counts rounded up, where that keeps every row and bound: for when a search found none."""
        relaxed = self.solve_with(cost, high, 1e-6, relax=True, low=low)
        if relaxed.values is None or relaxed.objective is None:
            return None
        values = np.where(self.integer, np.ceil(relaxed.values - 1e-7), relaxed.values)
        row_low, row_high = self.row_bounds
        rows = self.matrix() @ values
        if (rows > row_high + 1e-6).any() or (rows < row_low - 1e-6).any() or (values > high + 1e-9).any():
            return None
        objective, bound = float(cost @ values), relaxed.objective
        return Result(TIME_LIMIT, values, objective, bound, relative_gap(objective, bound))


def optimizer() -> Any:
    """``scipy.optimize``, loaded when first needed."""
    return importlib.import_module("scipy.optimize")


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """HiGHS prints some debugging lines straight to file descriptor 1; there they would spoil a JSON answer."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # no standard output at all
        yield
        return
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.close(sink)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def relative_gap(objective: float, bound: float) -> float:
    """(objective - bound) / objective; 0 where both are 0."""
    return 0.0 if objective - bound <= 1e-12 else (objective - bound) / max(abs(objective), 1e-12)
