"""Fits a kernel family to timed kernels: physics first, corrections where they lower the error on held-out shapes.

Physics parameters minimise a soft-L1 loss of log time with a weak pull towards their start values, within bounds. The
correction is kept only if it lowers the median error of the shapes that neither saw; the split is by a fixed hash.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibrate.fitting.families import FAMILIES, Family, column, variant_form
from calibrate.physics import residual, trees
from calibrate.physics.precisions import PRECISIONS, Precision
from calibrate.physics.roofline import clock_hz, peak_flops
from catalogs.schema import Gpu

FloatArray = NDArray[np.float64]
Frames = Mapping[tuple[str, str], pd.DataFrame]  # (family, variant) -> rows
HELD_OUT_SHARE = 5  # one group of shapes in five
LOSS_WIDTH = 0.08
MAX_ROWS = 6000
MIN_ROWS_FOR_CORRECTION = 30
HOST_BOUND_S = 2e-5  # no linear layer of a few values takes as long on a GPU: the table shows its benchmark's host
MANY_ROWS, MANY_TREES = 20_000, 400  # whole tables of linear layers
MIN_ROWS_FOR_TREES = 1500  # fewer: a smooth correction


def held_out(frame: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.bool_]:
    """Rows that no fit sees: CRC-32 of the group's values, one in five; whole groups at a time."""
    groups = frame[list(columns)].astype(float).round(6)
    return np.asarray([zlib.crc32(key.encode()) % HELD_OUT_SHARE == 0 for key in _keys(groups)], dtype=bool)


def _keys(groups: pd.DataFrame) -> list[str]:
    codes = groups.drop_duplicates().reset_index(drop=True)
    texts = {tuple(row): ",".join(f"{v:g}" for v in row) for row in codes.itertuples(index=False)}
    return [texts[tuple(row)] for row in groups.itertuples(index=False)]


def form_of(family: str, variant: str) -> Precision:
    """The number format that a family's variant computes in."""
    return variant_form(variant) if family in ("gemm", "moe") else PRECISIONS["bf16"]


Part = tuple[Gpu, pd.DataFrame]  # a device and its rows


def fit_physics(
    family: Family, form: Precision, parts: Sequence[Part], near: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Physics parameters of a family on rows of one variant, the same for all devices.

    Args:
        parts: devices and their rows. near: where to start and what to be pulled to; None: the family's start values.
    """
    from scipy.optimize import least_squares

    rows = [(gpu, frame.sample(min(MAX_ROWS // len(parts), len(frame)), random_state=0)) for gpu, frame in parts]
    measured = np.concatenate([np.log(column(frame, "time_s")) for _, frame in rows])
    starts, least_s = dict(family.start), float(np.exp(measured.min()))
    if family.host_bound and least_s > HOST_BOUND_S and all(clock_hz(gpu) for gpu, _ in parts):
        starts["host_s"] = (1.2 * least_s, least_s, 3.0 * least_s)
    names = list(starts)
    start, low, high = (np.log([starts[name][i] for name in names]) for i in range(3))
    for name in ("sm_bytes_per_flop", "l2_bytes_per_flop"):  # of a CPU, whose peak is low for its bandwidth
        if name in names:
            index, devices = names.index(name), [gpu for gpu, _ in parts]
            ratios = [gpu.memory_bandwidth_bytes_per_s / peak_flops(gpu, "bf16") for gpu in devices]
            start[index] = max(start[index], np.log(4.0 * np.median(ratios)))
    if near is not None:
        start = np.clip(np.log([near.get(name, starts[name][0]) for name in names]), low, high)
    pull = (0.05 if near is None else 0.3) * np.sqrt(len(measured) / 4000.0)

    def misfit(x: FloatArray) -> FloatArray:
        fit = {**family.fixed, **dict(zip(names, np.exp(x), strict=True))}
        modelled = np.concatenate([np.log(family.physics(fit, gpu, form, frame)) for gpu, frame in rows])
        return np.concatenate([modelled - measured, pull * (x - start)])

    found = least_squares(
        misfit,
        start,
        bounds=(low - 1e-9, high + 1e-9),
        loss="soft_l1",
        f_scale=LOSS_WIDTH,
        diff_step=[1e-3],
        max_nfev=40,
    )
    fitted = {name: float(f"{value:.4g}") for name, value in zip(names, np.exp(found.x), strict=True)}
    return {**family.fixed, **fitted}


def _trimmed(knots: Mapping[str, Sequence[float]], values: Mapping[str, FloatArray]) -> dict[str, list[float]]:
    """Knots near the data, at least two an axis."""
    kept: dict[str, list[float]] = {}
    for name, points in knots.items():
        low, high = float(np.min(values[name])), float(np.max(values[name]))
        inside = [float(p) for i, p in enumerate(points)
                  if (i + 1 >= len(points) or points[i + 1] > low) and (i == 0 or points[i - 1] < high)]  # fmt: skip
        kept[name] = inside if len(inside) > 1 else [float(points[0]), float(points[1])]
    for name in kept:  # no more knots than distinct values
        while len(kept[name]) > max(2, len(np.unique(values[name]))):
            kept[name] = [*kept[name][:-1:2], kept[name][-1]]
    num_rows = len(next(iter(values.values())))
    while np.prod([len(points) for points in kept.values()]) > num_rows:  # no more knots than rows
        longest = max(kept, key=lambda name: len(kept[name]))
        if len(kept[longest]) < 3:
            break
        kept[longest] = [*kept[longest][:-1:2], kept[longest][-1]]
    return kept


def fit_corrections(
    family: Family, form: Precision, parts: Sequence[Part], fit: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Corrections of log time, one for each set of axes, fitted in turn on what the others leave."""
    left = np.concatenate([np.log(column(d, "time_s") / family.physics(fit, gpu, form, d)) for gpu, d in parts])
    by_part = [family.axes(gpu, frame) for gpu, frame in parts]
    axes = [
        {name: np.concatenate([part[i][name] for part in by_part]) for name in by_part[0][i]}
        for i in range(len(by_part[0]))
    ]
    knots = [_trimmed(k, a) for k, a in zip(family.knots, axes, strict=True)]
    found: list[dict[str, Any]] = [{} for _ in axes]
    known = [np.zeros(len(left)) for _ in axes]
    for _ in range(1 if len(axes) == 1 else 2):
        for i in range(len(axes)):
            target = left - sum(known[:i], np.zeros(len(left))) - sum(known[i + 1 :], np.zeros(len(left)))
            found[i] = residual.fit_residual(knots[i], axes[i], target, family.smoothness[i], family.ridge)
            known[i] = residual.evaluate(found[i], axes[i])
    return found


def with_corrections(family: Family, form: Precision, parts: Sequence[Part], fit: Mapping[str, Any]) -> dict[str, Any]:
    """The fit with what physics leaves over: trees where there are many rows, else a smooth correction."""
    num_rows = sum(len(frame) for _, frame in parts)
    if family.features is None or num_rows < MIN_ROWS_FOR_TREES:
        return {**fit, "residual": fit_corrections(family, form, parts, fit)}
    asked = [family.features(fit, gpu, form, frame) for gpu, frame in parts]
    together = {name: np.concatenate([each[name] for each in asked]) for name in asked[0]}
    left = np.concatenate([np.log(column(d, "time_s") / family.physics(fit, gpu, form, d)) for gpu, d in parts])
    groups = np.concatenate([np.asarray(_keys(d[list(family.split)].astype(float).round(6))) for _, d in parts])
    num_trees = MANY_TREES if num_rows > MANY_ROWS else trees.NUM_TREES
    return {**fit, "trees": trees.fit_trees(together, left, groups, num_trees)}


def predict(family: Family, gpu: Gpu, form: Precision, frame: pd.DataFrame, fit: Mapping[str, Any]) -> FloatArray:
    """Seconds of each row, as the benchmark ran it."""
    correction = residual.evaluate_all(fit.get("residual"), family.axes(gpu, frame))
    if "trees" in fit and family.features is not None:
        correction = correction + trees.evaluate(fit["trees"], family.features(fit, gpu, form, frame))
    return np.asarray(family.physics(fit, gpu, form, frame) * np.exp(correction))


def accuracy(predicted: FloatArray, measured: FloatArray) -> dict[str, Any]:
    """Absolute relative error: median, 90th percentile, worst; ratios."""
    error = np.abs(predicted / measured - 1.0)
    median, p90 = np.quantile(error, [0.5, 0.9])
    return {
        "num_points": len(error),
        "median": round(float(median), 4),
        "p90": round(float(p90), 4),
        "worst": round(float(error.max()), 4),
    }


def valid_range(family: Family, frame: pd.DataFrame) -> dict[str, list[float]]:
    """Lowest and highest of each shape column that the fit saw."""
    return {name: [float(frame[name].min()), float(frame[name].max())] for name in family.columns}


def fit_family(name: str, variant: str, gpu: Gpu, frame: pd.DataFrame) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of one variant, and their error on the shapes that the fit did not see.

    Args:
        name: key of ``FAMILIES``. variant: dtype, cache type or link. gpu: data sheet of the measured device.
        frame: one timed kernel a row: the family's columns and ``time_s``.
    """
    family, form = FAMILIES[name], form_of(name, variant)
    frame = pd.DataFrame(frame.groupby(list(family.columns), as_index=False)["time_s"].median())
    unseen = held_out(frame, family.split)
    if not unseen.any() or unseen.all():
        unseen = np.zeros(len(frame), dtype=bool)
    seen, test = frame[~unseen], frame[unseen]
    fit: dict[str, Any] = {**fit_physics(family, form, [(gpu, seen)]), "valid_range": valid_range(family, seen)}
    if len(test) == 0:
        error = accuracy(predict(family, gpu, form, seen, fit), column(seen, "time_s"))
        return fit, {**error, "basis": "points of the fit itself: too few groups of shapes to hold one out"}
    best = accuracy(predict(family, gpu, form, test, fit), column(test, "time_s"))
    if len(seen) >= MIN_ROWS_FOR_CORRECTION:
        corrected = with_corrections(family, form, [(gpu, seen)], fit)
        error = accuracy(predict(family, gpu, form, test, corrected), column(test, "time_s"))
        if error["median"] < best["median"]:
            fit, best = corrected, error
    return fit, {**best, "basis": "held-out shapes"}


def fit_frames(gpu: Gpu, frames: Frames) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """(families, errors) of a profile, by family and variant."""
    families: dict[str, dict[str, Any]] = {}
    errors: dict[str, dict[str, Any]] = {}
    for (name, variant), frame in frames.items():
        fit, error = fit_family(name, variant, gpu, frame)
        families.setdefault(name, {})[variant] = fit
        errors.setdefault(name, {})[variant] = error
    return families, errors
