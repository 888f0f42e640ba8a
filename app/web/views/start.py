"""Start: what the tool does in one picture, and two ways in."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import streamlit as st

from app.charts import MEANING_COLOURS, Axis, Series, bars, stacked, svg
from app.web.answer_rows import roads
from app.web.parts import as_csv, command, download, error, heading, picture, points_of
from app.web.workload_state import current, demo_answer, is_demo, trace_name, upload_field, with_trace
from catalogs.errors import PlanError
from simulator.workload.trace_stats import arrivals_per_window

if TYPE_CHECKING:
    from pandas import DataFrame

MAX_ROADS = 7
SIZE = (380, 230)  # of a picture in pixels

heading("GPU capacity planner", "The cheapest fleet of GPUs that keeps your latency promise, verified by simulation.")


def load() -> tuple[str, str, Callable[[], DataFrame]]:
    """The load over time, which every plan starts from: the picture, its words, its points."""
    requests = current()
    t_s, rate = arrivals_per_window(requests, num_windows=90)
    series = [Series("load", t_s, rate, "step", MEANING_COLOURS["load"])]
    x, y = Axis("time (s)"), Axis("requests per second", low=0.0)
    text = f"Requests a second over the length of {trace_name()}: {len(requests):,} requests."
    return svg("The load", series, x, y, size=SIZE), text, lambda: points_of(series, x.label, y.label)


def from_load_to_fleet(found: dict[str, Any]) -> None:
    """What the tool does in one picture: the demo's load above, and below it what it comes to."""
    above, of_load, points = load()
    rows = roads(found)[:MAX_ROADS]
    shown = [(r["plan"], r["usd_per_hour"], MEANING_COLOURS["good" if not i else "ideal"]) for i, r in enumerate(rows)]
    plan = found["plan"]
    line = plan["lines"][0]
    limits = " and ".join(f"{name.replace('_p95_s', '').upper()} p95 ≤ {one['limit']:g} s"
                          for name, one in found["slo"].items())  # fmt: skip
    text = (
        f"{of_load} The demo's answer for {found['model']}, {limits}: {line['instances'][0]} x "
        f"{line['instance_type']} ({line['gpu']}, {line['precision']}) at {plan['usd_per_hour']:,.2f} USD an hour, "
        f"proven and simulated. Beside it, other ways to serve the same load. Prices as of {found['prices_as_of']}."
    )
    bound = ("proven lower bound", found["lower_bound_usd_per_hour"])
    below = bars("The answer", shown, "USD per hour", size=SIZE, mark=bound)
    steps = ("what each GPU sustains within the limits,", "the cheapest mix of them, simulated on this load")
    picture("demo-answer", text, stacked((above, below), steps, SIZE), rows)
    download("load.csv", lambda: as_csv(points()), "points-load")


left, right = st.columns([3, 2], gap="large")
with left:
    try:
        if is_demo():
            from_load_to_fleet(json.loads(demo_answer().read_text()))
        else:
            found, text, points = load()
            picture("load", text, found, points)
    except PlanError as problem:
        error(problem)
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
