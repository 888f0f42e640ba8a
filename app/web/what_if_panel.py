"""Sliders under a plan: load, limits and a price, answered from the capacities that were simulated for it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from app.charts import MEANING_COLOURS
from app.cli.what_if import question, tables
from app.runs import load_run
from app.web.fields import choice, factor, keep
from app.web.parts import command, drawing, error, listing, words
from app.web.style import LABELS, NEUTRAL, ink, lay_out
from app.web.workload_state import private_file
from catalogs.errors import PlanError
from planner.what_if import Change, model_of, price_names, solve_again

LOADS = (0.25, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0)
LIMITS = (0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
PRICES = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0, 4.0)
Asked = Callable[[dict[str, Any], str], None]


@st.fragment
def panel(answer: Mapping[str, Any], ask: Asked) -> None:
    """The sliders and their answer; ``ask`` starts the changed question (settings, its command) anew."""
    if st.session_state.pop("recommend-anew", False):
        st.rerun()  # the whole page: a button's run is of this fragment alone
    try:
        model = model_of(answer, "this plan")
    except PlanError as problem:
        st.caption("No sliders here: this plan cannot be solved again under another load, limit or price, for "
                   f"{words(problem.why)}. Ask anew instead.")  # fmt: skip
        return
    st.header("What if")
    change = sliders(model)
    if change == Change():
        st.caption("Move a slider: the plan is solved again from the capacities that were simulated for it.")
        return
    try:
        with st.spinner("Solving again, at most some seconds..."):
            found = solve_again(model, change)
        show(found)
    except PlanError as problem:
        error(problem)
        return
    run = answer.get("run")
    if run:
        text = as_command(str(run), change)
        st.button("Ask this anew and verify it", on_click=begin_anew, args=(str(run), change, text, ask))
        command(text)


def sliders(model: Mapping[str, Any]) -> Change:
    """The change that the fields describe; the URL restores it."""
    a, b, c, d = st.columns(4)
    known = model["slo_factors"]
    load = factor(a, "Load, times this plan's", "if_load", LOADS)
    limits = [f for f in LIMITS if known[0] <= f <= known[-1]]
    if len(limits) > 1:
        slo = factor(b, "Latency limits, times these", "if_slo", limits)
    else:
        slo = 1.0
        b.caption("No slider for the latency limits: this plan was made without `explore`, which simulates what "
                  "replicas serve at other limits. Change the limits in the form and ask anew.")  # fmt: skip
    names = price_names(model)
    name = choice(c, "Price of", names, "if_price_of", names[0], format_func=lambda n: LABELS.get(n, n))
    price = factor(d, "That price, times today's", "if_price", PRICES)
    keep({"if_load": load, "if_slo": slo, "if_price_of": name, "if_price": price})
    return Change(load, slo, {name: price} if price != 1.0 else {})


def show(found: Mapping[str, Any]) -> None:
    """What it comes to beside the plan, and that nothing of it is verified."""
    now, before = found["plan"]["usd_per_hour"], found["usd_per_hour_before"]
    st.warning(f"Not verified: {found['verified_why']}.", icon=":material/science:")
    a, b = st.columns([1, 3])
    more = f"{now - before:+,.2f}" if abs(now - before) >= 0.005 else None
    a.metric("With these changes (USD an hour)", f"{now:,.2f}", more, delta_color="inverse")
    with b:
        drawing("what-if", "Cost of the plan and of what these changes come to, with its range where a capacity is "
                "interpolated between limits that were simulated.", cost_figure(found), rows(found))  # fmt: skip
    listing(tables(found)[0], "what-if-list")
    st.caption(words("Assumed: " + "; ".join(found["assumptions"]) + "."))


def rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The plan and the changed one: USD an hour, and the range that is left open."""
    ends = found["cost_range"] or {}
    return [
        {"what": "the plan", "usd_per_hour": found["usd_per_hour_before"], "cheap": None, "dear": None},
        {"what": "changed", "usd_per_hour": found["plan"]["usd_per_hour"], "cheap": ends.get("cheap"),
         "dear": ends.get("dear")},
    ]  # fmt: skip


def cost_figure(found: Mapping[str, Any]) -> go.Figure:
    """Two bars; the changed one with its range."""
    shown = go.Figure()
    for row, colour in zip(rows(found), (MEANING_COLOURS["good"], NEUTRAL), strict=True):
        usd, cheap, dear = row["usd_per_hour"], row["cheap"], row["dear"]
        spread = {} if cheap is None or dear is None else {"error_x": {
            "type": "data", "symmetric": False, "array": [max(0.0, dear - usd)],
            "arrayminus": [max(0.0, usd - cheap)], "thickness": 2, "width": 8}}  # fmt: skip
        shown.add_bar(y=[row["what"]], x=[usd], orientation="h", showlegend=False, marker_color=colour,
                      text=f"{usd:,.2f}", textposition="inside", insidetextanchor="start",
                      textfont={"color": ink(colour)}, name=row["what"], **spread)  # fmt: skip
    lay_out(shown, "USD per hour", "", height=170)
    shown.update_layout(hovermode="closest")
    shown.update_yaxes(autorange="reversed")
    shown.update_xaxes(rangemode="tozero")
    return shown


def as_command(run: str, change: Change) -> str:
    """The same on the command line, and what verifies it."""
    prices = "".join(f" --price {name}={value:g}" for name, value in change.prices.items())
    return (
        f"plan what-if {run} --load {change.load:g} --slo {change.slo:g}{prices} -o changed.yaml\n"
        "plan recommend -c changed.yaml"
    )


def begin_anew(run: str, change: Change, text: str, ask: Asked) -> None:
    """Start the changed question; the form takes its load and limits."""
    try:
        settings = question(load_run(run), change, private_file(f"{secrets.token_hex(16)}-prices.csv"))
    except PlanError as problem:
        st.session_state.update({"recommend-refused": problem, "recommend-anew": True})
        return
    slo = settings["slo"]
    fields = {"scale": settings["workload"]["scale"], "ttft": slo.get("ttft_p95_s"),
              "tpot_ms": 1000.0 * slo["tpot_p95_s"] if "tpot_p95_s" in slo else None}  # fmt: skip
    for key, value in fields.items():
        if value is not None:
            st.session_state[f"field-{key}"] = float(value)
    for key in ("if_load", "if_slo", "if_price"):
        st.session_state.pop(f"field-{key}", None)
        st.query_params.pop(key, None)
    ask(settings, text)
    st.session_state["recommend-anew"] = True
