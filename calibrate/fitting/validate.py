"""Predicted against measured: errors by metric and group, and the gate over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from catalogs.errors import GateError


@dataclass(frozen=True)
class Comparison:
    """One figure, as predicted and as measured.

    Attributes:
        metric: what it is, with its unit (``ttft_s``, ``gemm_s``).
        group: what it is reported with (an engine and model, a kernel family and type).
        name: of the point.
        predicted, measured: in the metric's unit, > 0.
        fitted: whether the prediction rests on a fit that saw the point.
    """

    metric: str
    group: str
    name: str
    predicted: float
    measured: float
    fitted: bool = False

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True)
class ErrorSummary:
    """Errors of many comparisons; ratios.

    Attributes:
        metric, group: as in the comparisons.
        num_points: how many.
        median, p90, worst: of the absolute relative error.
        bias: median of the signed one.
        worst_name: the point with the largest.
    """

    metric: str
    group: str
    num_points: int
    median: float
    p90: float
    worst: float
    bias: float
    worst_name: str


def summarise(comparisons: Iterable[Comparison], by_group: bool = True) -> list[ErrorSummary]:
    """Errors by metric and group (or by metric alone), in the order in which they first appear."""
    sorted_in: dict[tuple[str, str], list[Comparison]] = {}
    for one in comparisons:
        sorted_in.setdefault((one.metric, one.group if by_group else "all"), []).append(one)
    return [_summary(metric, group, members) for (metric, group), members in sorted_in.items()]


def _summary(metric: str, group: str, members: Sequence[Comparison]) -> ErrorSummary:
    signed = np.array([m.error for m in members])
    size = np.abs(signed)
    worst = int(np.argmax(size))
    return ErrorSummary(
        metric,
        group,
        len(members),
        float(np.median(size)),
        float(np.quantile(size, 0.9)),
        float(size[worst]),
        float(np.median(signed)),
        members[worst].name,
    )


def gate(summaries: Sequence[ErrorSummary], limits: Mapping[str, float]) -> None:
    """Hold median errors against limits.

    Args:
        summaries: by metric.
        limits: metric -> largest median error, a ratio; ``default`` for the others. Metrics without one are not held.

    Raises:
        GateError: a median is above its limit.
    """
    over = []
    for one in summaries:
        limit = limits.get(one.metric, limits.get("default"))
        if limit is not None and one.median > limit:
            over.append(f"{one.metric} {one.group}: median {one.median:.1%} over {limit:.1%}")
    if over:
        raise GateError(
            f"{len(over)} of {len(summaries)} medians exceed their limit: {'; '.join(over[:4])}",
            why="plans that rest on this profile would be off by as much",
            remedy="calibrate on the target (plan calibrate run), or raise the limit if this is enough for you",
        )
