"""Charts are well-formed, escape what they are given, and place points where their values are."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from app.charts import Axis, Limit, Series, stacked, svg, ticks

SVG = "{http://www.w3.org/2000/svg}"


def test_a_chart_is_well_formed_and_carries_its_title_as_text() -> None:
    root = ET.fromstring(svg("<b>Load</b> & more", [Series("a", [0, 1], [1, 2])], Axis("t (s)"), Axis("n")))
    assert root.find(f"{SVG}title").text == "<b>Load</b> & more"  # type: ignore[union-attr]


def test_areas_stack_and_bars_show_their_names() -> None:
    areas = [Series("a", [0, 1], [1, 1], "area"), Series("b", [0, 1], [2, 2], "area")]
    root = ET.fromstring(svg("s", areas, Axis("x"), Axis("y", high=3.0)))
    polygons = [p.attrib["points"].split() for p in root.iter(f"{SVG}polygon")]
    top_of_first, foot_of_second = polygons[0][0], polygons[1][-1]
    assert top_of_first == foot_of_second
    bars = svg("s", [Series("a", [1, 2], [3, -1], "bar", labels=("spot", "fp8"))], Axis("x"), Axis("y"))
    assert ">spot<" in bars
    assert ">fp8<" in bars


def test_what_cannot_be_drawn_is_left_out() -> None:
    text = svg("s", [Series("a", [1, 2, 3], [0.0, math.nan, 10.0], "points")], Axis("x"), Axis("y", log=True))
    assert "nan" not in text.lower()
    ET.fromstring(svg("empty", [], Axis("x"), Axis("y"), limits=[Limit("budget", 5.0)]))


@pytest.mark.parametrize(("low", "high", "log"), [(0, 1, False), (-3, 17.2, False), (0.001, 500, True), (2, 2, False)])
def test_ticks_lie_within_their_range(low: float, high: float, log: bool) -> None:
    found = ticks(low, high, log)
    assert found
    assert all(low <= t <= high * (1 + 1e-9) for t in found)


def test_stacked_pictures_stand_one_below_the_other_with_their_steps_between() -> None:
    one = svg("<b>", [Series("a", [0.0, 1.0], [0.0, 1.0])], Axis("x"), Axis("y"), size=(200, 100))
    root = ET.fromstring(stacked((one, one), ("first & foremost", "then"), (200, 100)))
    inner = [e for e in root if e.tag.endswith("svg")]
    tops = [float(e.attrib["y"]) for e in inner]
    steps = [e for e in root if e.tag.endswith("text")]
    assert [e.text for e in steps] == ["first & foremost", "then"]
    assert tops[0] == 0
    assert all(100 < float(e.attrib["y"]) < tops[1] for e in steps)
    assert float(root.attrib["height"]) == tops[1] + 100
