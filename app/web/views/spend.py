"""Spend and commitments: how much demand is always there, what committing to it saves, and the bill against it."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from app.charts import MEANING_COLOURS, PURCHASE_COLOURS, Series
from app.report.schema import Spend
from app.web.fields import choice, keep, whole
from app.web.parts import chart, command, drawing, heading, table, tabs, words
from app.web.reports import ask, downloads
from app.web.style import LABELS, NEUTRAL, THEME, ink, lay_out, look
from app.web.workload_state import current, trace_name, with_trace
from catalogs.load import instances, prices
from simulator.workload.trace_stats import arrivals_per_window

heading("Spend and commitments", "How much of the demand is always there, and what committing to it would save.")


def committed_prices(region: str) -> dict[str, dict[str, float]]:
    """Instance types with both an on-demand and a committed price in a region: purchase form -> USD an hour."""
    found: dict[str, dict[str, float]] = {}
    for price in prices():
        if price.region == region:
            found.setdefault(price.instance, {})[price.purchase] = price.usd_per_hour
    return {
        name: forms for name, forms in sorted(found.items())
        if "on_demand" in forms and any(f.startswith("reserved") for f in forms)
    }  # fmt: skip


def chosen_offer() -> tuple[str, str, str, int]:
    """Region, instance type, commitment and machines at the peak; kept in the URL."""
    a, b, c, d = st.columns(4)
    region = choice(a, "Region", sorted({p.region for p in prices() if p.purchase.startswith("reserved")}), "region",
                    "us-east-1")  # fmt: skip
    known = committed_prices(region)
    name = choice(b, "Instance type", list(known), "instance", "g6e.xlarge")
    forms = [f for f in known[name] if f.startswith("reserved")]
    form = choice(c, "Commitment", forms, "form", forms[-1], format_func=lambda f: LABELS.get(f, f))
    peak = whole(d, "Machines at the peak", "peak", 12, (1, 10_000))
    return region, name, form, peak


def commitments() -> None:
    """The load-duration curve with the committed band, what a commitment costs, and when it pays."""
    from planner.money.commitment import WINDOWS, commitment, machines_of

    before = dict(st.query_params)
    region, name, form, peak = chosen_offer()
    forms = committed_prices(region)[name]
    on_demand, committed = forms["on_demand"], forms[form]
    _, rate = arrivals_per_window(current(), num_windows=WINDOWS)
    machines = machines_of(rate, peak)
    found = commitment(machines, committed, on_demand, None)
    best, costs = found["cheapest"], found["usd_per_year_by_machines"]
    same = all(before.get(k) == v for k, v in (("instance", name), ("form", form), ("peak", str(peak))))
    asked = before.get("commit", "") if same else ""
    start = min(peak, int(asked)) if asked.isascii() and asked.isdecimal() and len(asked) < 8 else best
    held = st.slider("Machines to commit", 0, peak, start, key=f"commit-{name}-{form}-{peak}",
                     help="It starts at the cheapest.")  # fmt: skip
    keep({"region": region, "instance": name, "form": form, "peak": peak, "commit": held})
    a, b, c, d = st.columns(4)
    a.metric("A year with these (USD)", f"{costs[held]:,.0f}")
    b.metric("A year all on demand (USD)", f"{costs[0]:,.0f}")
    c.metric("A year at the cheapest (USD)", f"{costs[best]:,.0f}")
    d.metric("A machine pays if needed", f"{found['break_even_utilisation']:.0%} of the time")
    ordered = np.sort(machines)[::-1]
    bands = duration(ordered, held, form)
    drawing(
        "duration", f"Demand in machines, the busiest time first, in the shape of {trace_name()}: the lower band is "
        "committed, what stands above it runs on demand, and what the band holds beyond the demand is paid and idle.",
        duration_figure(ordered, held, best, form), bands,
    )  # fmt: skip
    cheapest = "cheapest" if held != best else "cheapest, and chosen"
    marks = [Series(cheapest, [best], [costs[best]], "points", MEANING_COLOURS["good"])]
    if held != best:
        marks.append(Series("chosen", [held], [costs[held]], "points", MEANING_COLOURS["predicted"]))
    chart("cost", "What a year costs by the number of committed machines, the cheapest and the chosen one marked.",
          [Series("a year", range(peak + 1), costs), *marks], "machines committed", "USD a year")  # fmt: skip
    chart("break-even", f"One {name}: on demand it costs by the time it is needed, committed it costs all the time; "
          "where the lines meet, the commitment begins to pay.", break_even(forms), "share of the time it is needed",
          "USD per hour")  # fmt: skip
    source = next(p for p in prices() if (p.instance, p.region, p.purchase) == (name, region, form))
    st.caption(words(f"{name} ({instances()[name].gpu}): ${on_demand:,.4f} an hour on demand, ${committed:,.4f} "
                     f"{LABELS.get(form, form)}; {source.source}, {source.as_of}."))  # fmt: skip
    command(with_trace(f"plan prices commitment --trace {{trace}} --instance {name} --region {region} "
                       f"--purchase {form} --peak {peak} --commit {held}"))  # fmt: skip


def duration(ordered: Any, held: int, form: str) -> list[dict[str, Any]]:
    """The bands of the load-duration curve at each share of the time."""
    share = np.linspace(0.0, 1.0, len(ordered))
    return [
        {"share of the time": s, form: min(n, held), "on_demand": max(n - held, 0.0), "idle": max(held - n, 0.0)}
        for s, n in zip(share, ordered, strict=True)
    ]


def duration_figure(ordered: Any, held: int, best: int, form: str) -> go.Figure:
    """Committed and used, on demand, and committed and idle, stacked over the share of the time."""
    rows = duration(ordered, held, form)
    found = go.Figure()
    for key in (form, "idle", "on_demand"):
        colour = PURCHASE_COLOURS.get(key, NEUTRAL)
        found.add_scatter(
            x=[r["share of the time"] for r in rows], y=[r[key] for r in rows], stackgroup="one", mode="lines",
            name="committed and idle" if key == "idle" else LABELS.get(key, key),
            line={"color": colour, "shape": "hv", "width": 0}, fillcolor=colour,
            fillpattern={"shape": "/" if key == "idle" else ""},
        )  # fmt: skip
    found.add_hline(best, line_dash="dash", line_color=THEME[look()]["text"],
                    annotation_text=f"cheapest commitment: {best}", annotation_position="top right")  # fmt: skip
    lay_out(found, "share of the time", "machines")
    found.update_xaxes(tickformat=".0%", range=[0, 1])
    found.update_yaxes(rangemode="tozero")
    return found


def break_even(forms: dict[str, float]) -> list[Series]:
    """One machine's cost an hour on demand and under each commitment, and the points where they are equal."""
    from planner.money.cost import break_even_utilisation

    found = [Series("on_demand", [0.0, 1.0], [0.0, forms["on_demand"]])]
    for form in (f for f in forms if f.startswith("reserved")):
        found.append(Series(form, [0.0, 1.0], [forms[form]] * 2))
        found.append(Series(f"break-even, {LABELS.get(form, form)}",
                            [break_even_utilisation(forms[form], forms["on_demand"])], [forms[form]], "points",
                            PURCHASE_COLOURS[form]))  # fmt: skip
    return found


def bill() -> None:
    """An uploaded bill against a plan."""
    from app.cli.output import plain
    from app.report.render import cards

    built = ask()
    if built is None:
        return
    found = built.report
    for column, (value, what, _) in zip(st.columns(3) * 3, cards(found), strict=False):
        column.metric(what, value)
    st.info(words(found.recommendation))
    drawing("against-plan", "Spend against the plan and the budget; the bar at the forecast is its range.",
            against_plan_figure(found.spend), against_plan(found.spend))  # fmt: skip
    days = sorted({d.day for d in found.daily})
    at: dict[tuple[str, str], Any] = {(d.day, d.purchase): d.usd for d in found.daily}
    forms = sorted({d.purchase for d in found.daily})
    x = [float(day[8:]) for day in days]
    chart("bill", "Amortised spend a day by purchase form.",
          [Series(f, x, [max(0.0, at.get((d, f), 0.0)) for d in days], "area") for f in forms],
          "day of the month", "USD")  # fmt: skip
    table([dict(plain(t.model_dump())) for t in found.by_type], "by-type")
    if found.findings:
        table([dict(plain(f.model_dump())) for f in found.findings], "findings")
    downloads(built)
    command(built.command)


def against_plan(spend: Spend) -> list[dict[str, Any]]:
    """What was spent, planned, is foretold and may be spent, with the forecast's range; the unknown is left out."""
    rows: list[dict[str, Any]] = [
        {"what": "spent so far", "usd": spend.effective_usd, "colour": "measured"},
        {"what": "planned so far", "usd": spend.planned_usd, "colour": "good"},
        {"what": "forecast, whole month", "usd": spend.forecast.usd, "colour": "predicted",
         "low_usd": spend.forecast.low_usd, "high_usd": spend.forecast.high_usd},
        {"what": "budget, whole month", "usd": spend.budget_usd, "colour": "ideal"},
    ]  # fmt: skip
    return [r for r in rows if r["usd"] is not None]


def against_plan_figure(spend: Spend) -> go.Figure:
    """A bar each, first on top."""
    found = go.Figure()
    for row in against_plan(spend):
        low, high = row.get("low_usd"), row.get("high_usd")
        spread = {} if low is None or high is None else {"error_x": {
            "type": "data", "symmetric": False, "array": [max(0.0, high - row["usd"])],
            "arrayminus": [max(0.0, row["usd"] - low)], "thickness": 2, "width": 8}}  # fmt: skip
        found.add_bar(y=[row["what"]], x=[row["usd"]], orientation="h", showlegend=False, name=row["what"],
                      marker_color=MEANING_COLOURS[row["colour"]], text=f"{row['usd']:,.0f}", textposition="inside",
                      insidetextanchor="start", textfont={"color": ink(MEANING_COLOURS[row["colour"]])},
                      **spread)  # fmt: skip
    lay_out(found, "USD", "", height=230)
    found.update_layout(hovermode="closest")
    found.update_yaxes(autorange="reversed")
    return found


tabs({"What to commit": commitments, "The bill": bill}, "tabs-spend")
