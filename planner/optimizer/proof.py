"""Searches for what a certificate holds: boxes of columns with multipliers, by best-first branch and bound.

Periods and scenarios of a model are tied by few columns (commitments, promises of Savings Plans, the tail's cost) and
few rows (boots, scaling limits, the tail, the budget). One tree over all of them would multiply: ten boxes in each of
six hours are a million. So the outer boxes part the columns that tie only; within one, every hour is proven by a tree
of its own, at prices for the shared columns and rows that are the shadow prices of the box's linear relaxation
(Lagrangian decomposition; Guignard and Kim 1987, Mathematical Programming 39). Prices only decide how good a bound is:
any are valid, so they are rounded to fractions without harm.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.optimizer.milp import Columns
from planner.optimizer.program import INFEASIBLE, IntArray, Program, optimizer, quiet_stdout

FloatArray = NDArray[np.float64]
Node = dict[str, Any]
DENOMINATOR = 2**40  # multipliers and prices are rounded to this grid
OUTER_SHARE = 0.5  # of the time, for boxes of the shared columns
PART_GAP, PART_NODES, PART_LIMIT_S = 1e-4, 500, 5.0  # of one part's whole-number program, whose value guides the search
WHOLE = 1e-7
FAIR = 4.0  # times its share of the time that one part's tree may take


@dataclass(frozen=True)
class Linear:
    """Rows and columns of a program under some cost: minimise cost @ x, A x <= right (or =), some x whole.

    Attributes:
        rows, columns: which of the program's they are.
    """

    rows: IntArray
    columns: IntArray
    matrix: Any
    right: FloatArray
    equal: NDArray[np.bool_]
    integer: NDArray[np.bool_]
    cost: FloatArray

    def relax(self, low: FloatArray, high: FloatArray) -> tuple[float, FloatArray | None, FloatArray]:
        """Value, point and multipliers of a box's linear relaxation; a Farkas ray where it has no point."""
        found = self._solve(low, high, elastic=False)
        if found is not None:
            return found
        ray = self._solve(low, high, elastic=True)
        assert ray is not None
        return np.inf, None, ray[2]

    def _solve(
        self, low: FloatArray, high: FloatArray, elastic: bool
    ) -> tuple[float, FloatArray | None, FloatArray] | None:
        from scipy.sparse import hstack, identity

        matrix, cost, bounds = self.matrix, self.cost, np.column_stack([low, high])
        num, equal = len(self.rows), self.equal
        if elastic:  # least total breach of the rows; its multipliers prove that it is above 0
            matrix = hstack([matrix, -identity(num), identity(num)], format="csr")
            cost = np.concatenate([np.zeros(len(cost)), np.ones(2 * num)])
            bounds = np.vstack([bounds, np.tile([0.0, np.inf], (2 * num, 1))])
        found = optimizer().linprog(
            cost, matrix[~equal] if (~equal).any() else None, self.right[~equal] if (~equal).any() else None,
            matrix[equal] if equal.any() else None, self.right[equal] if equal.any() else None, bounds, method="highs",
        )  # fmt: skip
        if found.status != 0:
            return None
        y = np.zeros(num)
        if (~equal).any():
            y[~equal] = np.maximum(-np.asarray(found.ineqlin.marginals), 0.0)
        if equal.any():
            y[equal] = -np.asarray(found.eqlin.marginals)
        return float(found.fun), np.asarray(found.x)[: len(self.columns)], y

    def whole(self, low: FloatArray, high: FloatArray) -> tuple[float, FloatArray | None]:
        """A bound of the cheapest whole-number point of a box, and a point; inf where there is none."""
        optimize = optimizer()
        found = optimize.milp(
            self.cost, integrality=self.integer.astype(float), bounds=optimize.Bounds(low, high),
            constraints=optimize.LinearConstraint(self.matrix, np.where(self.equal, self.right, -np.inf), self.right),
            options={"mip_rel_gap": PART_GAP, "node_limit": PART_NODES, "time_limit": PART_LIMIT_S},
        )  # fmt: skip
        if int(found.status) == INFEASIBLE:
            return np.inf, None
        bound = found.get("mip_dual_bound")
        return -np.inf if bound is None or not np.isfinite(bound) else float(bound), found.x

    def leaf(self, y: FloatArray) -> list[list[Any]]:
        """Multipliers by the program's rows, as fractions."""
        return fractions(self.rows, y)

    def tree(self, low: FloatArray, high: FloatArray, goal: float, end: float) -> tuple[Node, int]:
        """Boxes whose least bound reaches ``goal``, or comes near it by ``end``; and how many were looked at."""
        root: Node = {}
        numbers = itertools.count()
        open_boxes: list[tuple[float, int, Node, FloatArray, FloatArray, FloatArray, FloatArray]] = []

        def add(node: Node, low: FloatArray, high: FloatArray) -> None:
            value, x, y = self.relax(low, high)
            number = next(numbers)
            if x is None:
                node.update(leaf=self.leaf(y), empty=True)
            elif value >= goal or self.off(x).max(initial=0.0) < WHOLE:
                node.update(leaf=self.leaf(y))
            else:
                heapq.heappush(open_boxes, (value, number, node, low, high, x, y))

        add(root, low, high)
        while open_boxes and time.monotonic() < end:
            _, _, node, low, high, x, _ = heapq.heappop(open_boxes)
            i = int(np.argmax(self.off(x)))
            at = float(np.floor(x[i]))
            left, right = high.copy(), low.copy()
            left[i], right[i] = at, at + 1
            node.update(split=int(self.columns[i]), at=str(int(at)), below={}, above={})
            add(node["below"], low, left)
            add(node["above"], right, high)
        for _, _, node, *_, y in open_boxes:
            node.update(leaf=self.leaf(y))
        return root, next(numbers)

    def off(self, x: FloatArray) -> FloatArray:
        """How far each count is from a whole number."""
        return np.where(self.integer, np.abs(x - np.round(x)), 0.0)


@dataclass(frozen=True)
class Prices:
    """What ties parts together, paid for.

    Attributes:
        rows: multipliers of the rows that tie parts.
        columns: (parts, columns) price of each shared column in each part; 0 elsewhere.
    """

    rows: FloatArray
    columns: FloatArray


@dataclass(frozen=True)
class Bound:
    """What a box costs at least, at some prices: values (parts,) and points (parts, columns; NaN: not in the part)."""

    usd: float
    prices: Prices
    values: FloatArray
    points: FloatArray


@dataclass(eq=False)
class _Box:
    """A box of the shared columns: its linear relaxation, and the best bound by parts."""

    node: Node
    low: FloatArray
    high: FloatArray
    value: float
    x: FloatArray | None
    y: FloatArray
    parts: Bound | None = None

    @property
    def bound(self) -> float:
        return self.value if self.parts is None else max(self.value, self.parts.usd)


class Prover:
    """Proves a program's bound; its parts are periods and scenarios, where there are several."""

    def __init__(self, program: Program, columns: Columns, goal: float, time_limit_s: float) -> None:
        self.goal, self.start = goal, time.monotonic()
        self.end = self.start + time_limit_s
        self.nodes = 0
        matrix, right = program.matrix().tocsr(), program.row_bounds[1]
        everything = np.arange(program.num_rows), np.arange(program.num_columns)
        self.all = Linear(*everything, matrix, right, program.row_bounds[0] == right, program.integer, program.cost)
        label = labels(program.num_columns, columns)
        row_label = _row_labels(matrix, label)
        self.shared: NDArray[np.bool_] = label < 0
        self.tied: NDArray[np.bool_] = row_label < 0
        self.parts = [self._part(row_label == k, label == k) for k in np.unique(row_label[~self.tied])]
        self.beside = ~np.isin(label, row_label[~self.tied])  # columns whose cost is not in one part only

    def _part(self, rows: NDArray[np.bool_], own: NDArray[np.bool_]) -> Linear:
        found, matrix = np.flatnonzero(rows), self.all.matrix[rows]
        columns = np.union1d(np.flatnonzero(own), np.unique(matrix.indices))
        return Linear(found, columns, matrix[:, columns], self.all.right[rows], self.all.equal[rows],
                      self.all.integer[columns], self.all.cost[columns])  # fmt: skip

    def prove(self, low: FloatArray, high: FloatArray) -> Node:
        """The proof of a box, as a certificate holds it."""
        with quiet_stdout():
            if len(self.parts) < 2:
                node, self.nodes = self.all.tree(low, high, self.goal, self.end)
                return node
            root: Node = {}
            self._write(self._search(self._box(root, low, high, None)))
            return root

    def _search(self, root: _Box) -> list[_Box]:
        """Boxes that tile the root, the lowest bound split first."""
        boxes, closed = [root], list[_Box]()
        end = self.start + OUTER_SHARE * (self.end - self.start)
        while boxes and time.monotonic() < end:
            box = min(boxes, key=lambda b: b.bound)
            if box.bound >= self.goal:
                break
            boxes.remove(box)
            halves = list(self._halves(box))
            boxes += halves
            closed += [] if halves else [box]
        return boxes + closed

    def _box(self, node: Node, low: FloatArray, high: FloatArray, before: Bound | None) -> _Box:
        """A box with its bound at its own prices, or at those of the box that it is a half of, if these are better."""
        self.nodes += 1
        box = _Box(node, low, high, *self.all.relax(low, high))
        if box.x is None or box.value >= self.goal:
            return box
        best = self._at(self._shadow_prices(box.y), box)
        if before is not None and best.usd < min(before.usd, self.goal):
            best = self._at(before.prices, box)
        box.parts = best
        return box

    def _shadow_prices(self, y: FloatArray) -> Prices:
        columns = np.zeros((len(self.parts), len(self.shared)))
        for k, part in enumerate(self.parts):
            paid = -(part.matrix.T @ y[part.rows])
            ties = self.shared[part.columns]
            columns[k, part.columns[ties]] = paid[ties]
        return Prices(_on_grid(y[self.tied]), _on_grid(columns))

    def _priced(self, prices: Prices) -> tuple[list[Linear], FloatArray]:
        """The parts at these prices, and what columns cost beside them."""
        cost = self.all.cost + self.all.matrix[self.tied].T @ prices.rows
        left = np.where(self.beside, cost, 0.0)
        parts = []
        for part, own in zip(self.parts, prices.columns, strict=True):
            ties = self.shared[part.columns]
            parts.append(replace(part, cost=np.where(ties, own[part.columns], cost[part.columns])))
        return parts, left - prices.columns.sum(0)

    def _at(self, prices: Prices, box: _Box) -> Bound:
        parts, left = self._priced(prices)
        rest = np.where(left >= 0, left * box.low, left * box.high)
        usd = float(rest.sum() - prices.rows @ self.all.right[self.tied])
        values, points = np.zeros(len(parts)), np.full(prices.columns.shape, np.nan)
        for k, part in enumerate(parts):
            values[k], x = part.whole(box.low[part.columns], box.high[part.columns])
            ties = self.shared[part.columns]
            if x is not None:
                points[k, part.columns[ties]] = x[ties]
        usd += np.inf if np.isposinf(values).any() else float(values.sum())  # a part without a point: none at all
        return Bound(usd, prices, values, points)

    def _halves(self, box: _Box) -> Iterator[_Box]:
        """The box split where its parts disagree most, by money, on a shared column, or else on any count."""
        if box.parts is None or box.x is None:
            return
        points = box.parts.points
        known = np.asarray(np.isfinite(points).any(axis=0), dtype=bool)
        least, most = np.zeros(len(known)), np.zeros(len(known))
        least[known], most[known] = np.nanmin(points[:, known], axis=0), np.nanmax(points[:, known], axis=0)
        apart = (most - least) * (np.abs(box.parts.prices.columns).sum(0) + np.abs(self.all.cost))
        i = int(np.argmax(apart))
        if apart[i] > WHOLE:
            at = _split_at(float(box.x[i]), float(least[i]), float(most[i]), bool(self.all.integer[i]))
        else:
            off = self.all.off(box.x)
            i = int(np.argmax(off))
            if off[i] < WHOLE:
                return
            at = float(np.floor(box.x[i]))
        left, right = box.high.copy(), box.low.copy()
        left[i], right[i] = at, at + self.all.integer[i]
        box.node.update(split=i, at=str(_grid(at)), below={}, above={})
        yield self._box(box.node["below"], box.low, left, box.parts)
        yield self._box(box.node["above"], right, box.high, box.parts)

    def _write(self, boxes: list[_Box]) -> None:
        """What proves each box, in the time that is left: the weakest first."""
        left = len(boxes) * len(self.parts)
        for box in sorted(boxes, key=lambda b: b.bound):
            if box.parts is None or box.parts.usd <= box.value:
                box.node.update(leaf=self.all.leaf(box.y), **({"empty": True} if box.x is None else {}))
                left -= len(self.parts)
                continue
            parts, written = self._priced(box.parts.prices)[0], []
            spare = max(box.bound - self.goal, 0.0) / len(parts) if np.isfinite(box.bound) else 0.0
            for part, value in zip(parts, box.parts.values, strict=True):
                until = time.monotonic() + max(self.end - time.monotonic(), 0.0) * FAIR / max(left, 1)
                goal = value - max(spare, 1e-6 * abs(value)) if np.isfinite(value) else value
                low, high = box.low[part.columns], box.high[part.columns]
                proof, nodes = part.tree(low, high, goal, min(until, self.end))
                self.nodes, left = self.nodes + nodes, left - 1
                ties = self.shared[part.columns]
                written.append({
                    "rows": part.rows.tolist(), "columns": part.columns.tolist(),
                    "prices": fractions(part.columns[ties], part.cost[ties]), "proof": proof,
                })  # fmt: skip
            multipliers = fractions(np.flatnonzero(self.tied), box.parts.prices.rows)
            box.node.update(multipliers=multipliers, parts=written)


def _split_at(x: float, least: float, most: float, whole: bool) -> float:
    """Where to split a column: near the relaxation's value, and so that neither half holds all that parts want."""
    at = min(max(x, least), most)
    if whole:
        return min(max(math.floor(at), math.ceil(least - WHOLE)), math.floor(most + WHOLE) - 1)
    near_an_end = min(at - least, most - at) < 0.1 * (most - least)
    return float(_grid((least + most) / 2 if near_an_end else at))


def labels(num: int, columns: Columns) -> IntArray:
    """(columns,) the scenario and period that a column belongs to, as a number; -1: shared by several."""
    found = np.full(num, -1, dtype=np.int64)
    scenarios, periods = columns.held.shape[1:]
    number = np.arange(scenarios * periods).reshape(scenarios, periods)
    families = (
        (columns.held, 1), (columns.fallback, 1), (columns.started, 1), (columns.routed, 1), (columns.unserved, 0),
        (columns.covered, 2),
    )  # fmt: skip
    for index, axis in families:
        shape = (1,) * axis + number.shape + (1,) * (index.ndim - axis - 2)
        there = index >= 0
        found[index[there]] = np.broadcast_to(number.reshape(shape), index.shape)[there]
    return found


def _row_labels(matrix: Any, label: IntArray) -> IntArray:
    """(rows,) the part of a row; -1: it ties parts together."""
    found = np.full(matrix.shape[0], -1, dtype=np.int64)
    for row in range(matrix.shape[0]):
        own = label[matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]]
        own = np.unique(own[own >= 0])
        if len(own) == 1:
            found[row] = own[0]
    return found


def _grid(value: float) -> Fraction:
    return Fraction(round(float(value) * DENOMINATOR), DENOMINATOR)


def _on_grid(values: FloatArray) -> FloatArray:
    return np.round(values * DENOMINATOR) / DENOMINATOR


def fractions(index: IntArray, values: FloatArray) -> list[list[Any]]:
    """(index, value as a fraction on the grid) of what is not 0 there."""
    found = []
    for i in np.flatnonzero(np.abs(values) > 1e-13):
        rounded = _grid(values[i])
        if rounded:
            found.append([int(index[i]), str(rounded)])
    return found
