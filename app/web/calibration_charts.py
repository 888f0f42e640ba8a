"""What step times rest on, as figures: the roofline, where a step's time goes, errors, predicted against measured."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from app.charts import MEANING_COLOURS, PALETTE
from app.web.style import NEUTRAL, THEME, TOP, lay_out, look
from catalogs.units import TERA

if TYPE_CHECKING:
    from calibrate.bottleneck import StepCost
    from calibrate.fitting.validate import Comparison

RESOURCE_COLOURS = {"compute": PALETTE[0], "memory bandwidth": PALETTE[1], "interconnect": PALETTE[3],
                    "launch overhead": NEUTRAL}  # fmt: skip
ERROR_COLOURS = {"unseen": MEANING_COLOURS["measured"], "fitted": MEANING_COLOURS["ideal"]}
NAME_PX = 13  # of a name over its line of errors
HEADING_LETTERS = 50  # in a line of a heading, which fits a phone


def kernels(cost: StepCost) -> list[dict[str, Any]]:
    """The parts of a step with the point of each on the roofline (None for a part without arithmetic or traffic)."""
    return [
        {"part": p.name, "ms": 1e3 * p.seconds, "bound by": p.resource,
         "FLOP per byte": p.flops / p.num_bytes if p.flops and p.num_bytes else None,
         "TFLOP/s": p.flops / p.seconds / TERA if p.flops and p.num_bytes else None}
        for p in cost.parts
    ]  # fmt: skip


def roofline_figure(cost: StepCost) -> go.Figure:
    """The data sheet's roofline and each kernel of the step on it, named; the colour says what bounds it."""
    x = np.geomspace(min(0.5, cost.intensity / 4), 4 * max(cost.ridge, cost.intensity), 60)
    found = go.Figure()
    found.add_scatter(x=x, y=np.minimum(cost.peak_flops, x * cost.bandwidth_bytes_per_s) / TERA, mode="lines",
                      name="roofline (data sheet)", line={"color": MEANING_COLOURS["ideal"]})  # fmt: skip
    rows = [r for r in kernels(cost) if r["TFLOP/s"]]
    for resource in dict.fromkeys(r["bound by"] for r in rows):
        chosen = [r for r in rows if r["bound by"] == resource]
        found.add_scatter(
            x=[r["FLOP per byte"] for r in chosen], y=[r["TFLOP/s"] for r in chosen], mode="markers+text",
            text=[r["part"] for r in chosen], name=f"bound by {resource}", textposition=_beside(chosen, rows),
            marker={"size": 11, "color": RESOURCE_COLOURS[resource]}, cliponaxis=False,
            hovertemplate="%{text}: %{y:.3g} TFLOP/s at %{x:.3g} FLOP/byte<extra></extra>",
        )  # fmt: skip
    lay_out(found, "FLOP per byte of DRAM traffic", "TFLOP/s", height=380)
    found.update_layout(hovermode="closest")
    found.update_xaxes(type="log", dtick=1)
    found.update_yaxes(type="log", dtick=1)
    return found


def _beside(chosen: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names below the roof, to the right and to the left in turn, so that kernels at one place can be read."""
    order = sorted(rows, key=lambda r: r["FLOP per byte"])
    places = {id(r): ("bottom left" if i % 2 else "bottom right") for i, r in enumerate(order)}
    return [places[id(r)] for r in chosen]


def step_figure(cost: StepCost) -> go.Figure:
    """Where a step's time goes, a bar a part."""
    rows = kernels(cost)[::-1]
    found = go.Figure()
    found.add_bar(
        y=[r["part"] for r in rows], x=[r["ms"] for r in rows], orientation="h", text=[f"{r['ms']:.3g}" for r in rows],
        textposition="outside", cliponaxis=False, marker_color=[RESOURCE_COLOURS[r["bound by"]] for r in rows],
    )  # fmt: skip
    lay_out(found, "ms of a step", "", height=90 + 30 * len(rows))
    found.update_layout(hovermode="closest", margin={"l": 10, "r": 40, "t": TOP, "b": 10})
    return found


def errors_figure(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Errors from median to 90th percentile, a line a row, its name over it: beside it, long names leave no room.

    Args:
        rows: name, median, p90 and fit of each; ``group``, where there is one, is the heading of those that share it.
    """
    headings, lines, bottom = _error_places(rows)
    found = go.Figure()
    for fit in dict.fromkeys(r["fit"] for r in rows):
        chosen = [(y, r) for y, r in zip(lines, rows, strict=True) if r["fit"] == fit]
        colour = ERROR_COLOURS.get(fit, NEUTRAL)
        for i, (y, row) in enumerate(chosen):
            found.add_scatter(x=[row["median"], row["p90"]], y=[y, y], mode="lines",
                              line={"color": colour, "width": 3}, name=f"median to 90 %, {fit}", legendgroup=fit,
                              showlegend=i == 0, hoverinfo="skip")  # fmt: skip
        found.add_scatter(
            x=[r["median"] for _, r in chosen], y=[y for y, _ in chosen], mode="markers", name=f"median, {fit}",
            text=[f"{r['name']}<br>median {r['median']:.3g}, 90 % {r['p90']:.3g}" for _, r in chosen],
            hovertemplate="%{text}<extra></extra>", marker={"color": colour, "size": 9}, legendgroup=fit,
        )  # fmt: skip
    lay_out(found, "relative error", "", height=150 - bottom)
    ends = [r[end] for r in rows for end in ("median", "p90")]
    span = [math.log10(0.8 * min(ends)), math.log10(1.25 * max(ends))] if rows else None
    found.update_xaxes(type="log", tickformat=".2~%", dtick="D2", range=span)
    found.update_yaxes(range=[bottom, 0], showticklabels=False, showgrid=False, zeroline=False)
    muted, text = THEME[look()]["muted"], THEME[look()]["text"]
    names = [(y + NAME_PX, str(r["name"]), muted) for y, r in zip(lines, rows, strict=True)]
    for y, name, colour in [*((y, heading, text) for y, heading in headings), *names]:
        found.add_annotation(x=0, xref="paper", y=y, text=name, showarrow=False, xanchor="left", xshift=-8,
                             align="left", font={"size": 12, "color": colour})  # fmt: skip
    found.update_layout(hovermode="closest", legend={"yref": "paper", "y": 1.0, "yanchor": "bottom"})
    return found


def _error_places(rows: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[int, str]], list[int], int]:
    """Where headings and lines stand below the top, and the bottom, all in pixels and negative."""
    headings: list[tuple[int, str]] = []
    lines: list[int] = []
    y, group = 0, None
    for row in rows:
        if row.get("group") != group:
            group, y = row.get("group"), y - 8
            for part in textwrap.wrap(str(group), HEADING_LETTERS):
                y -= 16
                headings.append((y, part))
        y -= 34
        lines.append(y)
    return headings, lines, y - 20


def compared_figure(compared: Sequence[Comparison], metric: str) -> go.Figure:
    """Predicted against measured of one metric, a colour a group, with the line of equality and the 20 % about it."""
    mine = [c for c in compared if c.metric == metric]
    ends = [min(min(c.measured, c.predicted) for c in mine), max(max(c.measured, c.predicted) for c in mine)]
    found = go.Figure()
    for factor, dash, name in ((1.0, "solid", "equal"), (1.2, "dot", "20 % off"), (1 / 1.2, "dot", "")):
        found.add_scatter(x=ends, y=[factor * v for v in ends], mode="lines", name=name, showlegend=bool(name),
                          line={"color": NEUTRAL, "dash": dash, "width": 1}, hoverinfo="skip")  # fmt: skip
    for i, group in enumerate(dict.fromkeys(c.group for c in mine)):
        chosen = [c for c in mine if c.group == group]
        found.add_scatter(
            x=[c.measured for c in chosen], y=[c.predicted for c in chosen], mode="markers", name=group,
            text=[c.name for c in chosen], marker={"color": PALETTE[i % len(PALETTE)], "size": 9},
            hovertemplate="%{text}<br>measured %{x:.4g}, predicted %{y:.4g}<extra></extra>",
        )  # fmt: skip
    lay_out(found, f"measured {metric}", f"predicted {metric}", height=420)
    found.update_layout(hovermode="closest")
    found.update_xaxes(type="log")
    found.update_yaxes(type="log")
    return found
