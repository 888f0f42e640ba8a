"""One visual language: the theme's colours, and Plotly figures with those of `app.charts`, for light and for dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from app.charts import MEANING_COLOURS, PALETTE, PURCHASE_COLOURS, Limit, Series

if TYPE_CHECKING:
    import plotly.graph_objects as go

LABELS = {
    "on_demand": "on demand", "spot": "spot", "reserved_1yr": "reserved, 1 year", "reserved_3yr": "reserved, 3 years",
    "savings_plan": "Savings Plan", "capacity_block": "Capacity Block",
}  # fmt: skip
TOP = 40  # pixels over a chart, in which its tool bar has its place
NEUTRAL = MEANING_COLOURS["ideal"]
# `muted` is for captions and axes; the tests hold every text to 4.5:1 on its ground, every mark to 3:1
THEME: Mapping[str, Mapping[str, str]] = {
    "light": {"primary": "#0067a3", "background": "#ffffff", "panel": "#f4f5f6", "text": "#1f2328", "muted": "#59616a",
              "border": "#d5d9de", "on_primary": "#ffffff", "wrong": "#a3162a"},
    "dark": {"primary": "#5cb3e6", "background": "#15171a", "panel": "#1f2327", "text": "#e8eaed", "muted": "#a6adb5",
             "border": "#3a4047", "on_primary": "#10141a", "wrong": "#ff8f8f"},
}  # fmt: skip
CSS = """<style>
.stMainBlockContainer { padding: 2.6rem 2.5rem 4rem; max-width: 1240px; }
h1 { font-size: 1.9rem !important; padding: 0 0 0.2rem !important; }
h2 { font-size: 1.2rem !important; }
@media (max-width: 640px) {
  .stMainBlockContainer { padding: 3.6rem 1rem 3rem; }
  [data-testid="stColumn"]:has(> * > * > [data-testid="stMetric"]):not(:has([data-testid="stSelectbox"])) {
    min-width: calc(50% - 1rem); flex: 1 1 40%; }
}
[data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] p { opacity: 1; color: MUTED; }
[data-testid="stCode"] code, [data-testid="stCode"] code span { color: TEXT !important; }
.command { font: 0.9rem ui-monospace, monospace; user-select: all; white-space: pre-wrap; margin: 0; }
[data-testid="stMetricLabel"] p { color: MUTED; overflow: visible; white-space: normal; }
[data-testid="stMetricValue"] { font-size: 1.7rem; font-variant-numeric: tabular-nums; }
[data-testid="stMetricValue"] > div { white-space: normal; overflow: visible; }
button[kind^="primary"], button[kind^="primary"] p, [data-tag], [data-tag] * { color: ON_GROUND !important; }
[data-testid="stNumberInputContainer"]:has([role="alert"]) {
  position: relative; overflow: visible; margin-bottom: 3.6rem; }
[data-testid="stNumberInputContainer"] [role="alert"] {
  position: absolute !important; inset: calc(100% + 0.2rem) 0 auto 0; width: auto !important; height: auto !important;
  clip: auto !important; clip-path: none !important; overflow: visible; white-space: normal !important;
  font-size: 0.8rem; line-height: 1.2; color: WRONG; }
[data-testid="InputInstructions"] { display: none; }
:focus-visible { outline: 2px solid PRIMARY !important; outline-offset: 2px; }
</style>"""


def look() -> str:
    """The visitor's theme: ``light`` or ``dark``."""
    import streamlit as st

    return "dark" if st.context.theme.type == "dark" else "light"


def style_sheet() -> str:
    """What the theme's settings cannot say, in the visitor's theme."""
    theme = THEME[look()]
    colours = {"WRONG": "wrong", "TEXT": "text", "MUTED": "muted", "PRIMARY": "primary", "ON_GROUND": "on_primary"}
    return reduce(lambda css, name: css.replace(name, theme[colours[name]]), colours, CSS)


def theme_settings() -> dict[str, str]:
    """The theme as Streamlit's settings."""
    names = {"primary": "primaryColor", "background": "backgroundColor", "panel": "secondaryBackgroundColor",
             "text": "textColor", "border": "borderColor"}  # fmt: skip
    found = {f"theme.{look}.{names[k]}": v for look, t in THEME.items() for k, v in t.items() if k in names}
    return {**found, "theme.font": "sans-serif", "theme.showWidgetBorder": "true"}


def colour_of(name: str, index: int = 0) -> str:
    """The colour of a meaning, or the next of the palette."""
    return PURCHASE_COLOURS.get(name) or MEANING_COLOURS.get(name) or PALETTE[index % len(PALETTE)]


def figure(
    series: Sequence[Series], x_label: str, y_label: str, *, log_x: bool = False, log_y: bool = False,
    limits: Sequence[Limit] = (),
) -> go.Figure:  # fmt: skip
    """A Plotly figure of the same series that `app.charts.svg` draws."""
    import plotly.graph_objects as go

    found = go.Figure()
    for i, one in enumerate(series):
        colour = one.colour or colour_of(one.name, i)
        common: dict[str, Any] = {"x": list(one.x), "y": list(one.y), "name": LABELS.get(one.name, one.name)}
        if one.kind == "bar":
            common["x"] = list(one.labels) or common["x"]
            found.add_bar(**common, marker_color=colour)
        elif one.kind == "points":
            found.add_scatter(**common, mode="markers", marker={"color": colour, "size": 9})
        else:
            shape = "hv" if one.kind == "step" else "linear"
            stack = "one" if one.kind == "area" else None
            found.add_scatter(**common, mode="lines", line={"color": colour, "shape": shape}, stackgroup=stack)
    for limit in limits:
        found.add_hline(
            limit.y, line_dash="dash", line_color=MEANING_COLOURS["limit"], annotation_text=limit.name,
            annotation_position="top right",
        )  # fmt: skip
    lay_out(found, x_label, y_label)
    found.update_xaxes(type="log" if log_x else None)
    found.update_yaxes(type="log" if log_y else None, rangemode="tozero" if not log_y else "normal")
    if log_x:
        found.update_xaxes(dtick=1)
    if log_y:
        found.update_yaxes(dtick=1)
    return found


def ink(colour: str) -> str:
    """Black or white, whichever reads better on a colour (4.5:1 and more; WCAG 2.1, relative luminance)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    luminance = sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"


def add_band(found: go.Figure, name: str, x: Sequence[float], low: Sequence[float], high: Sequence[float],
             colour: str) -> None:  # fmt: skip
    """A translucent band between two curves: what is not known, drawn."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    edge = {"width": 1, "color": colour}
    found.add_scatter(x=list(x), y=list(high), mode="lines", line=edge, showlegend=False, hoverinfo="skip")
    found.add_scatter(
        x=list(x), y=list(low), mode="lines", line=edge, fill="tonexty", name=name, hoverinfo="skip",
        fillcolor=f"rgba({red},{green},{blue},0.25)",
    )  # fmt: skip


def lay_out(found: go.Figure, x_label: str, y_label: str, height: int = 320) -> None:
    """Margins, legend and axis titles, the same for every figure."""
    muted = {"color": THEME[look()]["muted"]}
    found.update_layout(
        margin={"l": 10, "r": 10, "t": TOP, "b": 10},
        height=height,
        hovermode="x unified",
        font={"size": 13},
        legend={"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom", "font": muted},
    )
    found.update_xaxes(automargin=True, title={"text": x_label, "font": muted}, tickfont=muted)
    found.update_yaxes(automargin=True, title={"text": y_label, "font": muted}, tickfont=muted)
    found.update_annotations(font=muted)
    for kind in ("bar", "waterfall"):
        found.update_traces(outsidetextfont=muted, selector={"type": kind})
    found.update_traces(textfont=muted, selector={"mode": "markers+text"})
