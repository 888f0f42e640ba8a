"""A plan's answer as figures: what every road costs, how far each promise is from its limit, machines by period."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from app.charts import MEANING_COLOURS, PURCHASE_COLOURS
from app.web.answer_rows import kept_quality, latency_front, machines, near_roads, promises, quality_front, swings
from app.web.style import NEUTRAL, TOP, lay_out

HATCHES = ("", "/", ".", "x")
PLAN, OTHER = MEANING_COLOURS["good"], NEUTRAL


def roads_figure(answer: Mapping[str, Any]) -> go.Figure:
    """Bars of cost, cheapest on top; a hatched bar is a lower bound. What costs many times the plan is left out."""
    rows = near_roads(answer)[::-1]
    found = go.Figure()
    for name, at_least in (("simulated", False), ("at least", True)):
        chosen = [r for r in rows if r["at_least"] == at_least]
        if not chosen:
            continue
        colours = [PLAN if r["plan"] == "this plan" else OTHER for r in chosen]
        found.add_bar(
            y=[r["plan"] for r in chosen], x=[r["usd_per_hour"] for r in chosen], orientation="h", name=name,
            marker={"color": colours, "pattern": {"shape": "/" if at_least else ""}},
            text=[f"{'≥ ' if at_least else ''}{r['usd_per_hour']:,.2f}" for r in chosen], cliponaxis=False,
            textposition="outside", showlegend=at_least,
        )  # fmt: skip
    bound = answer["lower_bound_usd_per_hour"]
    found.add_vline(
        bound,
        line_dash="dash",
        line_color=MEANING_COLOURS["limit"],
        annotation_text="proven lower bound",
        annotation_yshift=18,
    )
    lay_out(found, "USD per hour", "", height=110 + 28 * len(rows))
    found.update_layout(hovermode="closest", barmode="overlay", margin={"l": 10, "r": 60, "t": TOP, "b": 10})
    found.update_yaxes(categoryorder="array", categoryarray=[r["plan"] for r in rows])
    return found


def promises_figure(answer: Mapping[str, Any]) -> go.Figure:
    """A point for each promise against its limit (1), with its interval, and a band for the fresh draws."""
    rows = promises(answer)
    found = go.Figure()
    for i, one in enumerate(r for r in rows if r["draws_low"] is not None):
        found.add_scatter(
            x=[one["draws_low"], one["draws_high"]], y=[one["promise"]] * 2, mode="lines",
            line={"width": 5, "color": MEANING_COLOURS["predicted"]}, name="range over fresh draws", showlegend=i == 0,
        )  # fmt: skip
    values = [r["simulated"] for r in rows]
    highs = [r["interval_high"] if r["interval_high"] is not None else r["simulated"] for r in rows]
    lows = [r["interval_low"] if r["interval_low"] is not None else r["simulated"] for r in rows]
    above = [max(0.0, high - value) for high, value in zip(highs, values, strict=True)]
    below = [max(0.0, value - low) for low, value in zip(lows, values, strict=True)]
    found.add_scatter(
        x=values, y=[r["promise"] for r in rows], mode="markers", name="simulated, with its 95 % interval",
        marker={"size": 10, "color": MEANING_COLOURS["measured"]},
        error_x={"type": "data", "symmetric": False, "array": above, "arrayminus": below},
    )  # fmt: skip
    found.add_vline(
        1.0, line_dash="dash", line_color=MEANING_COLOURS["limit"], annotation_text="limit", annotation_yshift=18
    )
    lay_out(found, "share of the limit", "", height=150 + 40 * len(rows))
    found.update_xaxes(range=[0.0, 1.1 * max([1.0, *highs, *[r["draws_high"] or 0.0 for r in rows]])])
    found.update_layout(hovermode="closest", margin={"l": 10, "r": 40, "t": TOP, "b": 10})
    return found


def machines_figure(answer: Mapping[str, Any]) -> go.Figure:
    """Stacked machines by period, coloured by purchase form; lines of one form are told apart by their hatching."""
    rows = machines(answer)
    found = go.Figure()
    seen: Counter[str] = Counter()
    for name in dict.fromkeys(r["line"] for r in rows):
        chosen = [r for r in rows if r["line"] == name]
        form = str(chosen[0]["purchase"])
        found.add_bar(
            x=[r["period"] for r in chosen], y=[r["instances"] for r in chosen], name=name,
            marker={"color": PURCHASE_COLOURS.get(form, OTHER), "line": {"width": 0.5},
                    "pattern": {"shape": HATCHES[seen[form] % len(HATCHES)]}},
        )  # fmt: skip
        seen[form] += 1
    lay_out(found, "planning period", "machines")
    found.update_layout(barmode="stack", bargap=0.05)
    found.update_xaxes(type="category")
    return found


def latency_front_figure(answer: Mapping[str, Any]) -> go.Figure:
    """The front with the chosen point, and the range that the profiles' own errors leave open at that point."""
    rows = latency_front(answer)
    found = go.Figure()
    found.add_scatter(
        x=[r["slo_factor"] for r in rows], y=[r["usd_per_hour"] for r in rows], mode="lines+markers",
        name="cheapest plan", line={"color": OTHER, "shape": "linear"}, text=[r["plan"] for r in rows],
        hovertemplate="limits x %{x}: %{y:,.2f} USD per hour<br>%{text}<extra></extra>",
    )  # fmt: skip
    _add_chosen(found, 1.0, answer)
    lay_out(found, "latency limits, times those asked for", "USD per hour")
    found.update_layout(hovermode="closest")
    found.update_yaxes(rangemode="tozero")
    return found


def quality_front_figure(answer: Mapping[str, Any]) -> go.Figure:
    """Cost by the least score kept, with the chosen point and the range that the profiles' own errors leave open."""
    rows = quality_front(answer)
    found = go.Figure()
    found.add_scatter(
        x=[100 * r["min_score"] for r in rows], y=[r["usd_per_hour"] for r in rows], mode="lines+markers",
        name="cheapest plan", line={"color": OTHER, "shape": "vh"}, text=[r["plan"] for r in rows],
        hovertemplate="at least %{x:.1f} %: %{y:,.2f} USD per hour<br>%{text}<extra></extra>",
    )  # fmt: skip
    score = kept_quality(answer)
    if score is not None:
        _add_chosen(found, 100 * score, answer)
    lay_out(found, "share of the score kept (%)", "USD per hour")
    found.update_layout(hovermode="closest")
    found.update_yaxes(rangemode="tozero")
    return found


def _add_chosen(found: go.Figure, x: float, answer: Mapping[str, Any]) -> None:
    """This plan's point, with its cost if step times are off as the profiles may be."""
    usd = answer["plan"]["usd_per_hour"]
    ends = answer.get("cost_range") or {}
    cheap, dear = (usd if ends.get(key) is None else ends[key] for key in ("cheap", "dear"))
    found.add_scatter(
        x=[x], y=[usd], mode="markers", name="this plan, and its range if step times are off",
        marker={"size": 13, "color": PLAN, "symbol": "diamond"},
        error_y={"type": "data", "symmetric": False, "array": [max(0.0, dear - usd)],
                 "arrayminus": [max(0.0, usd - cheap)], "thickness": 2, "width": 8},
    )  # fmt: skip


def swings_figure(answer: Mapping[str, Any]) -> go.Figure:
    """A bar from the low to the high cost of each cause, about the plan's cost; a missing end means no plan.

    A cause's name stands over its bar: beside it, a long one would leave a phone no room for the chart.
    """
    rows = swings(answer)[::-1]
    usd = answer["plan"]["usd_per_hour"]
    lows = [usd if r["low_usd_per_hour"] is None else r["low_usd_per_hour"] for r in rows]
    highs = [usd if r["high_usd_per_hour"] is None else r["high_usd_per_hour"] for r in rows]
    found = go.Figure()
    found.add_bar(
        y=list(range(len(rows))), base=lows, orientation="h", width=0.4, name="cost",
        x=[high - low for low, high in zip(lows, highs, strict=True)], marker_color=MEANING_COLOURS["predicted"],
        text=[f"{low:,.2f} – {high:,.2f}" for low, high in zip(lows, highs, strict=True)], textposition="outside",
        cliponaxis=False,
    )  # fmt: skip
    for i, r in enumerate(rows):
        none = ", no plan at an end" if None in (r["low_usd_per_hour"], r["high_usd_per_hour"]) else ""
        found.add_annotation(x=0, xref="paper", y=i, text=f"{r['what']}, {r['change']}{none}", showarrow=False,
                             xanchor="left", xshift=-8, yshift=21)  # fmt: skip
    found.add_vline(usd, line_dash="dash", line_color=PLAN, annotation_text="this plan", annotation_yshift=18)
    lay_out(found, "USD per hour", "", height=120 + 54 * len(rows))
    found.update_layout(hovermode="closest", margin={"l": 10, "r": 90, "t": TOP, "b": 10})
    found.update_yaxes(showticklabels=False, showgrid=False, range=[-0.5, len(rows) - 0.3])
    return found


def steps_figure(answer: Mapping[str, Any]) -> go.Figure:
    """The waterfall of `plan advise`: from today's cost down, a bar a step; a step without a plan is left out."""
    rows = [s for s in answer["steps"] if s["usd_per_hour"] is not None]
    changes = [rows[0]["usd_per_hour"], *[-s["saving_usd_per_hour"] for s in rows[1:]], answer["best_usd_per_hour"]]
    found = go.Figure(go.Waterfall(
        x=[*[s["step"] for s in rows], "at best"], y=changes,
        measure=["absolute", *["relative"] * (len(rows) - 1), "total"],
        text=[f"{abs(v):,.2f}" if i in (0, len(rows)) else f"{v:+,.2f}" for i, v in enumerate(changes)],
        textposition="outside", cliponaxis=False, connector={"line": {"color": OTHER, "width": 1}},
        decreasing={"marker": {"color": PLAN}}, increasing={"marker": {"color": MEANING_COLOURS["bad"]}},
        totals={"marker": {"color": OTHER}},
    ))  # fmt: skip
    lay_out(found, "step; each keeps what came before", "USD per hour", height=360)
    found.update_layout(hovermode="closest", margin={"l": 10, "r": 10, "t": TOP, "b": 10})
    return found
