"""One visual language: Plotly figures with the colours of `app.charts`, units on every axis, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from app.charts import MEANING_COLOURS, PALETTE, PURCHASE_COLOURS, Limit, Series

LABELS = {
    "on_demand": "on demand", "spot": "spot", "reserved_1yr": "reserved, 1 year", "reserved_3yr": "reserved, 3 years",
    "savings_plan": "Savings Plan", "capacity_block": "Capacity Block",
}  # fmt: skip

NEUTRAL = "#858585"  # reads on white and on black
_ON_BOTH = {"#555555": NEUTRAL, "#999999": NEUTRAL}


def colour_of(name: str, index: int = 0) -> str:
    """The colour of a meaning, or the next of the palette."""
    return PURCHASE_COLOURS.get(name) or MEANING_COLOURS.get(name) or PALETTE[index % len(PALETTE)]


def figure(
    series: Sequence[Series], x_label: str, y_label: str, *, log_x: bool = False, log_y: bool = False,
    limits: Sequence[Limit] = (),
) -> go.Figure:  # fmt: skip
    """A Plotly figure of the same series that `app.charts.svg` draws."""
    found = go.Figure()
    for i, one in enumerate(series):
        colour = one.colour or colour_of(one.name, i)
        colour = _ON_BOTH.get(colour, colour)
        common: dict[str, Any] = {"x": list(one.x), "y": list(one.y), "name": LABELS.get(one.name, one.name)}
        if one.kind == "bar":
            common["x"] = list(one.labels) or common["x"]
            found.add_bar(**common, marker_color=colour)
        elif one.kind == "points":
            found.add_scatter(**common, mode="markers", marker={"color": colour, "opacity": 0.7})
        else:
            shape = "hv" if one.kind == "step" else "linear"
            stack = "one" if one.kind == "area" else None
            found.add_scatter(**common, mode="lines", line={"color": colour, "shape": shape}, stackgroup=stack)
    for limit in limits:
        found.add_hline(
            limit.y, line_dash="dash", line_color=MEANING_COLOURS["limit"], annotation_text=limit.name,
            annotation_position="top left",
        )  # fmt: skip
    lay_out(found, x_label, y_label)
    found.update_xaxes(type="log" if log_x else None)
    found.update_yaxes(type="log" if log_y else None, rangemode="tozero" if not log_y else "normal")
    if log_x:
        found.update_xaxes(dtick=1)
    if log_y:
        found.update_yaxes(dtick=1)
    return found


def lay_out(found: go.Figure, x_label: str, y_label: str, height: int = 320) -> None:
    """Margins, legend and axis titles, the same for every figure."""
    found.update_layout(
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        height=height,
        hovermode="x unified",
        legend={"orientation": "h", "y": -0.3},
        xaxis_title=x_label,
        yaxis_title=y_label,
    )
    found.update_xaxes(automargin=True)
    found.update_yaxes(automargin=True)
