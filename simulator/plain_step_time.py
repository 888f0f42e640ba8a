"""The time of one step in plain Python, for the reference (see ``calibrate.step.StepTable``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from calibrate.step import StepTable

if TYPE_CHECKING:
    from simulator.plain_engine import Step


def interpolate(axis: np.ndarray, x: float) -> tuple[int, float]:
    """Cell of an axis and place in it; the outermost cells extend to infinity."""
    cell = int(np.clip(np.searchsorted(axis, x, side="right") - 1, 0, len(axis) - 2))
    return cell, float((x - axis[cell]) / (axis[cell + 1] - axis[cell]))


def attention_time_s(table: StepTable, point: Sequence[float]) -> float:
    """Multilinear interpolation of ``attention_s``."""
    axes = (table.prefill_tokens_axis, table.prefill_context_axis, table.num_decode_axis, table.decode_context_axis)
    values = table.attention_s
    for axis, x in zip(axes, point, strict=True):
        cell, share = interpolate(axis, x)
        values = values[cell] * (1.0 - share) + values[cell + 1] * share
    return float(values)


def row(values: np.ndarray, i: int) -> float:
    """``values[i]``, extended linearly beyond the end."""
    last = len(values) - 1
    return float(values[i] if i <= last else values[last] + (values[last] - values[last - 1]) * (i - last))


def step_time_s(table: StepTable, step: Step) -> float:
    """Seconds of a step (see ``StepTable``)."""
    prefill = sum(tokens for _, tokens, _ in step.chunks)
    work = sum(tokens * (before + 0.5 * tokens) for _, tokens, before in step.chunks)
    contexts = [s.num_computed_tokens for s in step.decodes]  # the token of this step is among them
    decode = len(contexts)
    point = [prefill, work / prefill if prefill else 0.0, decode, float(np.mean(contexts)) if decode else 0.0]
    time = row(table.mixed_tokens_s if prefill else table.decode_tokens_s, prefill + decode)
    time += row(table.sampled_s, len(step.sampling))
    at_mean = attention_time_s(table, point)
    time += at_mean + skew_time_s(table, point, contexts, at_mean)
    sequences = len(step.decodes) + len(step.chunks)
    return time + table.overhead_s + table.overhead_per_sequence_s * sequences


def skew_time_s(table: StepTable, point: Sequence[float], contexts: Sequence[int], at_mean: float) -> float:
    """What unequal contexts add (see ``SkewTable``)."""
    skew = table.skew
    if skew is None or len(contexts) < 2 or max(contexts) == min(contexts):
        return 0.0
    low, high = min(contexts), max(contexts)
    values = (point[0], len(contexts), (point[3] - low) / (high - low), high)
    place = tuple(
        min(int(np.searchsorted(edges, x)), len(edges) - 1) for edges, x in zip(skew[:4], values, strict=True)
    )
    return float(skew.alpha[place]) * (attention_time_s(table, [*point[:3], high]) - at_mean)
