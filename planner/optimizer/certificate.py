"""A proof of the optimum that anyone can check in exact fractions, without the solver.

The model is written down whole: minimise c x subject to rows A x <= b or = b, bounds low <= x <= high, some x integer.
The proof is a tree that splits the space (x_i <= v, or x_i >= v + 1; x_i >= v where x_i need not be whole); every leaf
carries multipliers y (y >= 0 on <= rows, free on = rows) for which no point of its box can cost less than the claim:
for every x that keeps the rows,

    c x >= c x + y (A x - b) = (c + y A) x - y b >= sum_i min over [low_i, high_i] of (c + y A)_i x_i - y b.

A leaf without any point has multipliers for which the same expression with c = 0 is positive (Farkas). Where rows fall
into parts that share few columns (the hours of a week share its commitments), a node may prove each part by a tree of
its own: with multipliers y on the rows that tie parts, and any price p_ki of a shared column i in part k,

    c x >= (c + y A) x - y b = sum_k p_k x + (c + y A - sum_k p_k) x - y b,

and the first sum is no less than the sum of the parts' least. Floats of the model are taken as the exact fractions that
they are; multipliers and prices are rounded to fractions first, which can only weaken a bound, never falsify it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import GateError, InputError, MissingError
from catalogs.files import parse_json
from planner.optimizer.fleet_model import FleetModel
from planner.optimizer.milp import COUNT_LIMIT, Columns, Solution, build
from planner.optimizer.program import Program
from planner.optimizer.proof import Prover

MAX_DIGITS = 4000  # of a fraction
VERSION = 2  # the first had no parts, and is read too
SLACK = Fraction(1, 10**6)  # rows of the plan may be broken by this much: the solver's own tolerance
FloatArray = NDArray[np.float64]


def make_certificate(
    model: FleetModel, usd_per_hour: float, gap: float = 1e-3, time_limit_s: float = 20.0
) -> dict[str, Any]:
    """Prove that no plan of the model costs less than ``usd_per_hour`` (1 - gap), or as near to it as time allows.

    Returns:
        The certificate: model, plan, tree of leaves, and the bound that they prove.
    """
    program, columns = build(model)
    found = program.solve(gap * 0.1, time_limit_s)
    assert found.values is not None
    x = np.where(program.integer, np.round(found.values), found.values)
    low, _ = program.bounds
    bounded = _count_bound(program, columns, x)
    prover = Prover(program, columns, float(program.cost @ x) * (1 - gap * 0.5), time_limit_s)
    proof = prover.prove(low, bounded)
    body: dict[str, Any] = {
        "kind": "gpu-capacity-plan certificate",
        "version": VERSION,
        "usd_per_hour": usd_per_hour,
        "options": [{"name": o.name, "usd_per_hour": o.usd_per_hour} for o in model.options],
        "program": _program_document(program, low, bounded),
        "plan": [[int(i), _exact(x[i])] for i in np.flatnonzero(x)],
        "proof": proof,
        "nodes": prover.nodes,
    }
    body["proven_usd_per_hour"] = float(_bound(body))
    body["sha256"] = _digest(body)
    return body


MAX_COLUMNS = 4000  # beyond this a proof by branch and bound would not be finished


def certificate_of(model: FleetModel, solution: Solution, gap: float) -> dict[str, Any]:
    """The certificate of a solved model.

    Raises:
        MissingError: the model is too large to be proven.
    """
    program, _ = build(model)
    if program.num_columns > MAX_COLUMNS:
        raise MissingError(
            f"a certificate for a plan over {model.demand.shape[1]} periods is too large to be proven",
            where="--certificate",
            remedy="the answer's lower bound and gap stand without it; a plan of one period can have one",
        )
    return make_certificate(model, solution.objective, gap)


def _count_bound(program: Program, columns: Columns, x: FloatArray) -> FloatArray:
    """(columns,) upper bounds: a plan with more of one column costs more than the plan at hand.

    Savings Plans give money back, but never more than the machines under them cost: what is committed or promised still
    costs no more than all. Of other columns nothing is known then but that a million is enough.
    """
    cost, total = program.cost, float(program.cost @ x)
    alone = (cost > 0) & bool((cost >= 0).all())
    for index in (columns.committed, columns.promised):
        there = index[index >= 0]
        alone[there] = cost[there] > 0
    most = np.where(alone, np.ceil(total / np.where(alone, cost, 1.0)) + 1, COUNT_LIMIT)
    return np.asarray(np.maximum(np.minimum(most, program.bounds[1]), x))


def _program_document(program: Program, low: FloatArray, high: FloatArray) -> dict[str, Any]:
    matrix = program.matrix().tocoo()
    row_low, row_high = program.row_bounds
    return {
        "columns": program.num_columns,
        "cost": [_exact(v) for v in program.cost],
        "low": [_exact(v) for v in low],
        "high": [_exact(v) for v in high],
        "integer": [int(i) for i in np.flatnonzero(program.integer)],
        "equal": [int(i) for i in np.flatnonzero(row_low == row_high)],
        "right": [_exact(v) for v in row_high],
        "entries": [[int(i), int(j), _exact(v)] for i, j, v in zip(matrix.row, matrix.col, matrix.data, strict=True)],
    }


def write_certificate(certificate: Mapping[str, Any], path: Path) -> None:
    """Write it whole or not at all."""
    from catalogs.files import write_text

    write_text(path, json.dumps(certificate, indent=None, separators=(",", ":")) + "\n")


def verify_certificate(path: Path) -> dict[str, Any]:
    """Check a certificate in exact arithmetic.

    Returns:
        ``usd_per_hour`` claimed and ``proven_usd_per_hour``, ``gap``, ``leaves``.

    Raises:
        InputError: not readable as a certificate. GateError: it was changed, or it does not prove what it claims.
    """
    try:
        body = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as a certificate: {error}", where=str(path)) from error
    if not isinstance(body, dict) or body.get("kind") != "gpu-capacity-plan certificate":
        raise InputError("is not a certificate", where=str(path), remedy="plan recommend --certificate FILE writes one")
    if body.get("version") not in (1, VERSION):
        raise InputError(f"has version {body.get('version')!r}, this program reads 1 and {VERSION}", where=str(path))
    if _digest({k: v for k, v in body.items() if k != "sha256"}) != body.get("sha256"):
        raise _refused(path, "its content does not match its own hash: it was changed after it was made")
    try:
        cost = _check_plan(body)
        bound = _bound(body)
        leaves = _count_leaves(body["proof"])
        claimed, stated = float(body["usd_per_hour"]), float(body["proven_usd_per_hour"])
        cost_usd, bound_usd = float(cost), float(bound)
        gap = float((cost - bound) / cost) if cost > 0 else 0.0
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError, RecursionError) as error:
        raise _refused(path, f"it does not hold together: {error}") from error
    if abs(cost_usd - claimed) > 1e-6 * max(1.0, claimed):
        raise _refused(path, f"its plan costs ${cost_usd:.6f} an hour, not ${claimed:.6f}")
    if bound_usd < stated - 1e-9 * max(1.0, abs(stated)):
        raise _refused(path, f"its leaves prove ${bound_usd:.6f} an hour, not ${stated:.6f}")
    return {"usd_per_hour": cost_usd, "proven_usd_per_hour": bound_usd, "gap": max(gap, 0.0), "leaves": leaves}


def _refused(path: Path, why: str) -> GateError:
    return GateError("the certificate is refused", where=str(path), why=why, remedy="ask for a fresh one")


def _stated(value: str | float) -> Fraction:
    """A number of the certificate as it stands there; no text that would stand for more digits than it has.

    Raises:
        ValueError: an exponent, or thousands of digits.
    """
    if isinstance(value, str) and ("e" in value.lower() or len(value) > MAX_DIGITS):
        raise ValueError(f"{value[:20]!r} is not a fraction of whole numbers")
    return Fraction(value)


def _check_plan(body: Mapping[str, Any]) -> Fraction:
    """The plan keeps every bound and row (to the solver's tolerance) and is whole where it must be; its cost."""
    program = body["program"]
    if program["columns"] != len(program["cost"]):
        raise ValueError("its columns are not as many as it says")
    x = [Fraction(0)] * len(program["cost"])
    for i, value in body["plan"]:
        x[i] = _stated(value)
    integer = set(program["integer"])
    for i, value in enumerate(x):
        if i in integer and value.denominator != 1:
            raise ValueError("a count is not whole")
        if not _stated(program["low"][i]) - SLACK <= value <= _stated(program["high"][i]) + SLACK:
            raise ValueError("a count is out of its bounds")
    left = [Fraction(0)] * len(program["right"])
    for row, column, value in program["entries"]:
        left[row] += _stated(value) * x[column]
    equal = set(program["equal"])
    for row, value in enumerate(left):
        over = value - _stated(program["right"][row])
        if over > SLACK or (row in equal and over < -SLACK):
            raise ValueError("the plan breaks one of its own limits")
    return sum((_stated(c) * v for c, v in zip(program["cost"], x, strict=True)), Fraction(0))


Numbers = dict[int, Fraction]  # by column


@dataclass(frozen=True)
class _Exact:
    """The rows of a certificate's program as the fractions that they are."""

    rows: list[list[tuple[int, Fraction]]]
    right: list[Fraction]
    equal: frozenset[int]
    integer: frozenset[int]

    @classmethod
    def of(cls, program: Mapping[str, Any]) -> _Exact:
        rows: list[list[tuple[int, Fraction]]] = [[] for _ in program["right"]]
        for row, column, value in program["entries"]:
            rows[row].append((column, _stated(value)))
        right = [_stated(v) for v in program["right"]]
        return cls(rows, right, frozenset(program["equal"]), frozenset(program["integer"]))

    def least(
        self, node: Mapping[str, Any], cost: Numbers, low: Numbers, high: Numbers, rows: frozenset[int]
    ) -> Fraction | None:
        """What no point of a box with these rows can cost less than; None: it is proven to have no point.

        Raises:
            ValueError: the node does not prove anything.
        """
        if "leaf" in node:
            start = dict.fromkeys(cost, Fraction(0)) if node.get("empty") else cost
            reduced, total = self._weighed(node["leaf"], start, rows)
            total += _corner(reduced, low, high)
            if node.get("empty") and total <= 0:
                raise ValueError("a box that is said to be empty may hold a plan")
            return None if node.get("empty") else total
        if "parts" in node:
            return self._sum_of_parts(node, cost, low, high, rows)
        i, at = int(node["split"]), _stated(node["at"])
        if i in self.integer and at.denominator != 1:
            raise ValueError("a split of counts between whole numbers")
        above = at + 1 if i in self.integer else at
        below = self.least(node["below"], cost, low, {**high, i: min(high[i], at)}, rows)
        beyond = self.least(node["above"], cost, {**low, i: max(low[i], above)}, high, rows)
        return min((f for f in (below, beyond) if f is not None), default=None)

    def _sum_of_parts(
        self, node: Mapping[str, Any], cost: Numbers, low: Numbers, high: Numbers, rows: frozenset[int]
    ) -> Fraction | None:
        left, total = self._weighed(node["multipliers"], cost, rows)
        times: dict[int, int] = {}
        for part in node["parts"]:
            for i in set(part["columns"]):
                times[i] = times.get(i, 0) + 1
        weighed, taken = dict(left), set[int]()
        for part in node["parts"]:
            own, columns, stated = frozenset(part["rows"]), set(part["columns"]), dict(part["prices"])
            if not own <= rows or own & taken:
                raise ValueError("a part has rows that it may not use")
            taken |= own
            if any(column not in columns for row in own for column, _ in self.rows[row]):
                raise ValueError("a part leaves out columns of its rows")
            prices = {i: _stated(stated[i]) if i in stated else weighed[i] if times[i] == 1 else Fraction(0)
                      for i in columns}  # fmt: skip
            for i, price in prices.items():
                left[i] -= price
            found = self.least(part["proof"], prices, {i: low[i] for i in columns}, {i: high[i] for i in columns}, own)
            if found is None:
                return None
            total += found
        return total + _corner(left, low, high)

    def _weighed(self, multipliers: Any, cost: Numbers, rows: frozenset[int]) -> tuple[Numbers, Fraction]:
        """``cost`` + y A, and -y b."""
        reduced, total = dict(cost), Fraction(0)
        for row, text in multipliers:
            y = _stated(text)
            if row not in rows:
                raise ValueError("a multiplier on a row that is not there")
            if row not in self.equal and y < 0:
                raise ValueError("a multiplier has the wrong sign")
            total -= y * self.right[row]
            for column, value in self.rows[row]:
                reduced[column] += y * value
        return reduced, total


def _corner(cost: Numbers, low: Numbers, high: Numbers) -> Fraction:
    """The least that columns cost within their bounds."""
    return sum((c * (low[i] if c >= 0 else high[i]) for i, c in cost.items() if c), Fraction(0))


def _bound(body: Mapping[str, Any]) -> Fraction:
    """What the proof proves, in exact arithmetic."""
    program = body["program"]
    cost, low, high = ({i: _stated(v) for i, v in enumerate(program[name])} for name in ("cost", "low", "high"))
    exact = _Exact.of(program)
    best = exact.least(body["proof"], cost, low, high, frozenset(range(len(exact.rows))))
    if best is None:
        raise ValueError("it proves that there is no plan at all")
    return best


def _count_leaves(node: Mapping[str, Any]) -> int:
    if "parts" in node:
        return sum(_count_leaves(part["proof"]) for part in node["parts"])
    return 1 if "leaf" in node else _count_leaves(node["below"]) + _count_leaves(node["above"])


def _exact(value: float) -> str:
    return str(Fraction(float(value)))


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
