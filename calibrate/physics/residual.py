"""What physics leaves over: a smooth correction of log time, multilinear between knots, with a roughness penalty.

Minimises sum_i w_i (r_i - A_i c)^2 + sum_axes lambda_a |D_a c|^2 + ridge |c|^2, D_a the slope between knots along axis
a, with weights renewed to approach least absolute deviations (iteratively reweighted least squares).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def evaluate(residual: Mapping[str, Any] | None, values: Mapping[str, FloatArray]) -> FloatArray:
    """Log correction at ``values`` (by axis name, broadcast together); 0 without a residual.

    Beyond the outermost knots the correction of the outermost knot holds.
    """
    if not residual:
        return np.zeros(np.broadcast_shapes(*(np.shape(v) for v in values.values())))
    axes = residual["axes"]
    table = _table(residual)
    cells = [_cell(np.asarray(knots, dtype=np.float64), np.asarray(values[name])) for name, knots in axes.items()]
    shape = np.broadcast_shapes(*(index.shape for index, _ in cells))
    total = np.zeros(shape)
    for corner in itertools.product((0, 1), repeat=len(cells)):
        weight: FloatArray = np.ones(())
        for (_, share), side in zip(cells, corner, strict=True):
            weight = weight * (share if side else 1.0 - share)
        total = total + weight * table[tuple(i + side for (i, _), side in zip(cells, corner, strict=True))]
    return total


def _table(residual: Mapping[str, Any]) -> FloatArray:
    """The corrections as an array; they are stored as whole thousandths."""
    shape = [len(knots) for knots in residual["axes"].values()]
    return np.asarray(residual["log_correction_milli"], dtype=np.float64).reshape(shape) / 1000.0


def evaluate_all(
    residuals: Sequence[Mapping[str, Any]] | None, values: Sequence[Mapping[str, FloatArray]]
) -> FloatArray | float:
    """Sum of several corrections, each at its own coordinates."""
    return sum((evaluate(r, v) for r, v in zip(residuals or (), values, strict=False)), start=np.zeros(()))


def _cell(knots: FloatArray, values: FloatArray) -> tuple[NDArray[np.int64], FloatArray]:
    """Left knot and share of the way to the next, on a log axis, clipped to the knots."""
    logs = np.log2(np.maximum(knots, 1e-12))
    at = np.clip(np.log2(np.maximum(values, 1e-12)), logs[0], logs[-1])
    index = np.clip(np.searchsorted(logs, at, side="right") - 1, 0, len(knots) - 2)
    return index, (at - logs[index]) / (logs[index + 1] - logs[index])


def fit_residual(
    axes: Mapping[str, Sequence[float]],
    values: Mapping[str, FloatArray],
    log_error: FloatArray,
    smoothness: float | Mapping[str, float],
    ridge: float = 0.05,
) -> dict[str, Any]:
    """The correction that best explains ``log_error`` (log measured - log physics) at ``values``.

    Args:
        axes: knots by axis name, ascending. values: by axis name, (n,) each. log_error: (n,).
        smoothness: penalty of slopes, for each axis or by axis name. ridge: pull to no correction without data.
    """
    import scipy.linalg
    import scipy.sparse as sparse

    design = _design(axes, values)
    penalty = (_penalty(axes, smoothness) + ridge * sparse.identity(design.shape[1])).toarray()
    weight, solution = np.ones(len(log_error)), np.zeros(design.shape[1])
    for _ in range(5):
        normal = (design.T @ sparse.diags_array(weight) @ design).toarray() + penalty
        factor = scipy.linalg.cho_factor(normal, overwrite_a=True, check_finite=False)
        solution = scipy.linalg.cho_solve(factor, design.T @ (weight * log_error))
        weight = _LAD_WIDTH / np.maximum(np.abs(log_error - design @ solution), _LAD_WIDTH)
    return {
        "axes": {name: [float(x) for x in knots] for name, knots in axes.items()},
        "log_correction_milli": [round(float(x) * 1000.0) for x in solution],
    }


_LAD_WIDTH = 0.02


def _design(axes: Mapping[str, Sequence[float]], values: Mapping[str, FloatArray]) -> Any:
    import scipy.sparse as sparse

    cells = [_cell(np.asarray(knots, dtype=np.float64), values[name]) for name, knots in axes.items()]
    sizes = [len(knots) for knots in axes.values()]
    num = len(next(iter(values.values())))
    rows, columns, weights = [], [], []
    for corner in itertools.product((0, 1), repeat=len(cells)):
        column, weight = np.zeros(num, dtype=np.int64), np.ones(num)
        for (index, share), side, size in zip(cells, corner, sizes, strict=True):
            column = column * size + index + side
            weight = weight * (share if side else 1.0 - share)
        rows.append(np.arange(num))
        columns.append(column)
        weights.append(weight)
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_array(entries, shape=(num, int(np.prod(sizes))))


def _penalty(axes: Mapping[str, Sequence[float]], smoothness: float | Mapping[str, float]) -> Any:
    import scipy.sparse as sparse

    sizes = [len(knots) for knots in axes.values()]
    total: Any = sparse.csr_array((int(np.prod(sizes)), int(np.prod(sizes))))
    for which, (name, knots) in enumerate(axes.items()):
        gaps = np.maximum(np.diff(np.log2(np.maximum(np.asarray(knots, dtype=np.float64), 1e-12))), 0.02)
        size = sizes[which]
        slope = sparse.diags_array(np.stack([-(gaps**-0.5), gaps**-0.5]), offsets=[0, 1], shape=(size - 1, size))
        parts = [slope if i == which else sparse.identity(n) for i, n in enumerate(sizes)]
        whole: Any = sparse.identity(1)
        for part in parts:
            whole = sparse.kron(whole, part)
        strength = smoothness if isinstance(smoothness, float) else smoothness[name]
        total = total + strength * (whole.T @ whole)
    return total
