"""Start: what the tool does in one picture, and two ways in."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from app.charts import MEANING_COLOURS, Axis, Series, bars, svg
from app.web.answer_rows import roads
from app.web.parts import command, error, heading, picture, points_of
from app.web.workload_state import current, demo_answer, is_demo, trace_name, upload_field, with_trace
from catalogs.errors import PlanError
from simulator.trace_stats import arrivals_per_window

MAX_ROADS = 7

heading("GPU capacity planner", "The cheapest fleet of GPUs that keeps your latency promise, verified by simulation.")


def load() -> None:
    """The load over time: the picture that every plan starts from."""
    requests = current()
    t_s, rate = arrivals_per_window(requests, num_windows=90)
    series = [Series("load", t_s, rate, "step", MEANING_COLOURS["load"])]
    x, y = Axis("time (s)"), Axis("requests per second", low=0.0)
    text = f"Requests a second over the length of {trace_name()}: {len(requests):,} requests."
    picture("load", text, svg("The load", series, x, y, size=(380, 230)),
            lambda: points_of(series, x.label, y.label))  # fmt: skip


def answer(found: dict[str, Any]) -> None:
    """What the demo comes to: the plan, and what the other GPUs would cost."""
    rows = roads(found)[:MAX_ROADS]
    shown = [(r["plan"], r["usd_per_hour"], MEANING_COLOURS["good" if not i else "ideal"]) for i, r in enumerate(rows)]
    plan = found["plan"]
    line = plan["lines"][0]
    limits = " and ".join(f"{name.replace('_p95_s', '').upper()} p95 ≤ {one['limit']:g} s"
                          for name, one in found["slo"].items())  # fmt: skip
    text = (
        f"The demo's answer for {found['model']}, {limits}: {line['instances'][0]} x {line['instance_type']} "
        f"({line['gpu']}, {line['precision']}) at {plan['usd_per_hour']:,.2f} USD an hour, proven and simulated. "
        f"Beside it, other ways to serve the same load. Prices as of {found['prices_as_of']}."
    )
    bound = ("proven lower bound", found["lower_bound_usd_per_hour"])
    picture("demo-answer", text, bars("The answer", shown, "USD per hour", size=(380, 230), mark=bound), rows)


left, right = st.columns([3, 2], gap="large")
with left:
    try:
        load()
    except PlanError as problem:
        error(problem)
    if is_demo():
        answer(json.loads(demo_answer().read_text()))
with right:
    st.header("Begin")
    upload_field()
    st.page_link("views/workload.py", label="Look at the workload, or make one", icon=":material/show_chart:")
    st.page_link("views/recommend.py", label="Find the cheapest fleet", icon=":material/shopping_cart:")
    st.markdown(
        "1. **Workload**: when requests arrive and how long they are.\n"
        "2. **Capacity**: measured step times say what rate each GPU sustains within your limits.\n"
        "3. **Purchase**: the cheapest mix of instances, precision and commitment, with a proven bound.\n"
        "4. **Proof**: the mix is simulated on the whole workload before it is shown."
    )
command("plan demo" if is_demo() else with_trace("plan trace stats {trace}"), light=True)
