"""A proof of the optimum that anyone can check in exact fractions, without the solver.

The model is written down whole: minimise c x subject to rows A x <= b or = b, bounds low <= x <= high, some x integer.
The proof is a tree that splits the space of counts (x_i <= v, or x_i >= v + 1); every leaf carries multipliers y
(y >= 0 on <= rows, free on = rows) for which no point of its box can cost less than the claim: for every x that keeps
the rows,

    c x >= c x + y (A x - b) = (c + y A) x - y b >= sum_i min over [low_i, high_i] of (c + y A)_i x_i - y b.

A leaf without any point has multipliers for which the same expression with c = 0 is positive (Farkas). Floats of the
model are taken as the exact fractions that they are; multipliers are rounded to fractions first, which can only weaken
a bound, never falsify it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import GateError, InputError, MissingError
from catalogs.files import parse_json
from planner.optimizer.fleet_model import FleetModel
from planner.optimizer.milp import Solution, build
from planner.optimizer.program import Program, optimizer

MAX_DIGITS = 4000  # of a fraction
VERSION = 1
DENOMINATOR = 2**40  # multipliers are rounded to this grid
SLACK = Fraction(1, 10**6)  # rows of the plan may be broken by this much: the solver's own tolerance
FloatArray = NDArray[np.float64]


@dataclass
class _Tree:
    """Branch and bound with the leaves' multipliers."""

    program: Program
    goal: float  # a leaf is closed when its bound reaches this
    end: float
    nodes: int = 0
    lowest: float = np.inf
    names: dict[str, Any] = field(default_factory=dict)

    def prove(self, low: FloatArray, high: FloatArray) -> dict[str, Any]:
        """The subtree of one box."""
        self.nodes += 1
        value, x, y = self._relax(low, high)
        if x is None:
            return {"leaf": _fractions(y), "empty": True}
        integer = self.program.integer
        off = np.where(integer, np.abs(x - np.round(x)), 0.0)
        if value >= self.goal or off.max(initial=0.0) < 1e-7 or time.monotonic() > self.end:
            self.lowest = min(self.lowest, value)
            return {"leaf": _fractions(y)}
        i = int(np.argmax(off))
        at = float(np.floor(x[i]))
        left, right = high.copy(), low.copy()
        left[i], right[i] = at, at + 1
        return {"split": i, "at": int(at), "below": self.prove(low, left), "above": self.prove(right, high)}

    def _relax(self, low: FloatArray, high: FloatArray) -> tuple[float, FloatArray | None, FloatArray]:
        """Value, point and multipliers of the box's linear relaxation; a Farkas ray where it has no point."""
        found = self._linear(self.program.cost, low, high, elastic=False)
        if found is not None:
            return found
        ray = self._linear(self.program.cost, low, high, elastic=True)
        assert ray is not None
        return np.inf, None, ray[2]

    def _linear(
        self, cost: FloatArray, low: FloatArray, high: FloatArray, elastic: bool
    ) -> tuple[float, FloatArray, FloatArray] | None:
        from scipy.sparse import hstack, identity

        matrix, row_high = self.program.matrix(), self.program.row_bounds[1]
        equal = self.program.row_bounds[0] == row_high
        num = self.program.num_rows
        bounds = np.column_stack([low, high])
        if elastic:  # least total breach of the rows; its multipliers prove that it is above 0
            matrix = hstack([matrix, -identity(num), identity(num)], format="csr")
            cost = np.concatenate([np.zeros(len(cost)), np.ones(2 * num)])
            bounds = np.vstack([bounds, np.tile([0.0, np.inf], (2 * num, 1))])
        found = optimizer().linprog(
            cost, matrix[~equal] if (~equal).any() else None, row_high[~equal] if (~equal).any() else None,
            matrix[equal] if equal.any() else None, row_high[equal] if equal.any() else None, bounds, method="highs",
        )  # fmt: skip
        if found.status != 0:
            return None
        y = np.zeros(num)
        if (~equal).any():
            y[~equal] = np.maximum(-np.asarray(found.ineqlin.marginals), 0.0)
        if equal.any():
            y[equal] = -np.asarray(found.eqlin.marginals)
        return float(found.fun), np.asarray(found.x)[: self.program.num_columns], y


def make_certificate(
    model: FleetModel, usd_per_hour: float, gap: float = 1e-3, time_limit_s: float = 20.0
) -> dict[str, Any]:
    """Prove that no plan of the model costs less than ``usd_per_hour`` (1 - gap), or as near to it as time allows.

    Returns:
        The certificate: model, plan, tree of leaves, and the bound that they prove.
    """
    program, _ = build(model)
    found = program.solve(gap * 0.1, time_limit_s)
    assert found.values is not None
    x = np.where(program.integer, np.round(found.values), found.values)
    low, high = program.bounds
    bounded = np.where(np.isfinite(high), high, _count_bound(program, x))
    tree = _Tree(program, float(program.cost @ x) * (1 - gap * 0.5), time.monotonic() + time_limit_s)
    proof = tree.prove(low, bounded)
    body: dict[str, Any] = {
        "kind": "gpu-capacity-plan certificate",
        "version": VERSION,
        "usd_per_hour": usd_per_hour,
        "options": [{"name": o.name, "usd_per_hour": o.usd_per_hour} for o in model.options],
        "program": _program_document(program, low, bounded),
        "plan": [[int(i), _exact(x[i])] for i in np.flatnonzero(x)],
        "proof": proof,
        "nodes": tree.nodes,
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


def _count_bound(program: Program, x: FloatArray) -> FloatArray:
    """Upper bounds for counts without one: a plan with more of one column costs more than the plan at hand.

    Where Savings Plans give money back, that does not follow, and nothing is known but that a million is enough.
    """
    cost, total = program.cost, float(program.cost @ x)
    alone = (cost > 0) & bool((cost >= 0).all())
    most = np.where(alone, np.ceil(total / np.where(alone, cost, 1.0)) + 1, 1e6)
    return np.asarray(np.maximum(most, x))


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
    if body.get("version") != VERSION:
        raise InputError(f"has version {body.get('version')!r}, this program reads {VERSION}", where=str(path))
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


def _bound(body: Mapping[str, Any]) -> Fraction:
    """The least bound over all leaves, in exact arithmetic."""
    program = body["program"]
    by_row: list[list[tuple[int, Fraction]]] = [[] for _ in program["right"]]
    for row, column, value in program["entries"]:
        by_row[row].append((column, _stated(value)))
    low = [_stated(v) for v in program["low"]]
    high = [_stated(v) for v in program["high"]]
    cost = [_stated(v) for v in program["cost"]]
    right = [_stated(v) for v in program["right"]]
    equal, integer = set(program["equal"]), set(program["integer"])

    def leaf(multipliers: Any, start: list[Fraction], low: list[Fraction], high: list[Fraction]) -> Fraction:
        reduced, total = list(start), Fraction(0)
        for row, text in multipliers:
            y = _stated(text)
            if row not in equal and y < 0:
                raise ValueError("a multiplier has the wrong sign")
            total -= y * right[row]
            for column, value in by_row[row]:
                reduced[column] += y * value
        for c, a, b in zip(reduced, low, high, strict=True):
            total += c * (a if c >= 0 else b)
        return total

    def walk(node: Mapping[str, Any], low: list[Fraction], high: list[Fraction]) -> Fraction | None:
        if "leaf" in node:
            if node.get("empty"):
                if leaf(node["leaf"], [Fraction(0)] * len(cost), low, high) <= 0:
                    raise ValueError("a box that is said to be empty may hold a plan")
                return None
            return leaf(node["leaf"], cost, low, high)
        i, at = int(node["split"]), _stated(int(node["at"]))
        if i not in integer:
            raise ValueError("a split on something that need not be whole")
        left, right_low = list(high), list(low)
        left[i], right_low[i] = min(high[i], at), max(low[i], at + 1)
        found = [walk(node["below"], low, left), walk(node["above"], right_low, high)]
        known = [f for f in found if f is not None]
        return min(known) if known else None

    best = walk(body["proof"], low, high)
    if best is None:
        raise ValueError("it proves that there is no plan at all")
    return best


def _count_leaves(node: Mapping[str, Any]) -> int:
    return 1 if "leaf" in node else _count_leaves(node["below"]) + _count_leaves(node["above"])


def _fractions(y: FloatArray) -> list[list[Any]]:
    found = []
    for i in np.flatnonzero(np.abs(y) > 1e-13):
        rounded = Fraction(round(float(y[i]) * DENOMINATOR), DENOMINATOR)
        if rounded:
            found.append([int(i), str(rounded)])
    return found


def _exact(value: float) -> str:
    return str(Fraction(float(value)))


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
