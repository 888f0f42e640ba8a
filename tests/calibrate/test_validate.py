"""Errors by metric and group, and the gate over them."""

from __future__ import annotations

import pytest

from calibrate.fitting.validate import Comparison, gate, summarise
from catalogs.errors import GateError

POINTS = [
    Comparison("ttft_s", "a", "one", 1.1, 1.0),
    Comparison("ttft_s", "a", "two", 0.7, 1.0),
    Comparison("ttft_s", "b", "three", 1.0, 1.0),
    Comparison("tpot_s", "a", "one", 2.0, 1.0),
]


def test_summary_names_median_worst_and_bias() -> None:
    first = summarise(POINTS)[0]
    assert (first.metric, first.group, first.num_points) == ("ttft_s", "a", 2)
    assert first.median == pytest.approx(0.2)
    assert (first.worst, first.worst_name) == (pytest.approx(0.3), "two")
    assert first.bias == pytest.approx(-0.1)


def test_all_groups_count_together_without_groups() -> None:
    assert [s.num_points for s in summarise(POINTS, by_group=False)] == [3, 1]


def test_gate_holds_medians_against_their_own_limit() -> None:
    overall = summarise(POINTS, by_group=False)
    gate(overall, {"ttft_s": 0.2})
    with pytest.raises(GateError, match="tpot_s"):
        gate(overall, {"default": 0.2})
