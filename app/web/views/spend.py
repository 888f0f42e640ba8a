"""Spend and commitments: how much demand is always there, what committing to it saves, and the bill against it."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from app.charts import Limit, Series
from app.web.parts import chart, command, error, heading, table, words
from app.web.reports import ask, downloads
from app.web.workload_state import current, trace_name
from catalogs.errors import PlanError
from catalogs.load import instances, prices

HOURS_A_YEAR = 8760.0

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


def commitments() -> None:
    """The load-duration curve with the committed band, and the break-even."""
    from planner.cost import break_even_utilisation, newsvendor_commitment
    from simulator.trace_stats import arrivals_per_window

    regions = sorted({p.region for p in prices() if p.purchase.startswith("reserved")})
    a, b, c = st.columns(3)
    region = str(a.selectbox("Region", regions))
    known = committed_prices(region)
    names = list(known)
    wanted = st.query_params.get("instance", "g6e.xlarge")
    name = str(b.selectbox("Instance type", names, index=names.index(wanted) if wanted in names else 0))
    st.query_params["instance"] = name
    peak = int(c.number_input("Machines at the peak", 1, 10_000, 12))
    _, rate = arrivals_per_window(current(), num_windows=96)
    machines = np.ceil(peak * rate / max(rate.max(), 1e-9))
    forms = known[name]
    form = next(f for f in forms if f.startswith("reserved"))
    on_demand, committed = forms["on_demand"], forms[form]
    even = break_even_utilisation(committed, on_demand)
    best = newsvendor_commitment(machines, committed, on_demand)
    held = st.slider("Machines to commit", 0, peak, best, help="It starts at the cheapest.")

    def yearly(number: int) -> float:
        extra = np.maximum(machines - number, 0.0).mean()
        return float((number * committed + extra * on_demand) * HOURS_A_YEAR)

    d, e, f = st.columns(3)
    d.metric("A year with this commitment (USD)", f"{yearly(held):,.0f}")
    e.metric("A year all on demand (USD)", f"{yearly(0):,.0f}", f"{yearly(held) / yearly(0) - 1:+.1%}", "inverse")
    f.metric("Pays when needed", f"{even:.0%} of the time")
    share = np.linspace(0.0, 1.0, len(machines))
    ordered = np.sort(machines)[::-1]
    chart("duration", f"Demand in machines, the busiest time first, in the shape of {trace_name()}; machines below the "
          "line are committed, those above it run on demand.",
          [Series("reserved_3yr", share, np.minimum(ordered, held), "area"),
           Series("on_demand", share, np.maximum(ordered - held, 0.0), "area")],
          "share of the time", "machines", limits=[Limit("cheapest commitment", float(best))])  # fmt: skip
    counts = np.arange(0, peak + 1)
    chart("cost", "What a year costs by the number of committed machines.",
          [Series("cost", counts, [yearly(int(n)) for n in counts])], "machines committed", "USD a year")  # fmt: skip
    source = next(p for p in prices() if (p.instance, p.region, p.purchase) == (name, region, form))
    words = f"${on_demand:,.4f} an hour on demand, ${committed:,.4f} as {form.replace('_', ' ')}"
    st.caption(f"{name} ({instances()[name].gpu}): {words}; {source.source}, {source.as_of}.".replace("$", "\\$"))
    command(f"plan prices show --region {region} --instance {name}")


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
    days = sorted({d.day for d in found.daily})
    at: dict[tuple[str, str], Any] = {(d.day, d.purchase): d.usd for d in found.daily}
    forms = sorted({d.purchase for d in found.daily})
    x = [float(day[8:]) for day in days]
    chart("bill", "Amortised spend a day by purchase form.",
          [Series(f, x, [max(0.0, at.get((d, f), 0.0)) for d in days], "area") for f in forms],
          "day of the month", "USD")  # fmt: skip
    if found.findings:
        table([dict(plain(f.model_dump())) for f in found.findings], "findings")
    downloads(built)
    command(built.command)


first, second = st.tabs(["What to commit", "The bill"])
with first:
    try:
        commitments()
    except PlanError as problem:
        error(problem)
with second:
    try:
        bill()
    except PlanError as problem:
        error(problem)
