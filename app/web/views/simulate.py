"""Simulate: one fleet under the visitor's workload; latencies against the SLO, the fleet over time, the losses."""

from __future__ import annotations

import json

import streamlit as st

from app.charts import MEANING_COLOURS, PALETTE, Series
from app.web.fleet_form import form
from app.web.parts import begin, chart, command, download, drawing, error, heading, listing, outcome, table, words
from app.web.run_charts import (
    METRICS,
    SHARES,
    breakdown,
    breakdown_figure,
    curves,
    latency_figure,
    losses,
    over_time,
    replicas,
    replicas_figure,
)
from app.web.work import Shown
from app.web.workload_state import on_file, trace_name
from catalogs.errors import PlanError

heading("Simulate", "What one fleet does to every request of the workload.")


def show(shown: Shown) -> None:
    """The answer: figures, charts, tables, notes."""
    from app.cli.simulate import run_notes, run_tables

    answer = shown.answer
    a, b, c, d, e = st.columns(5)
    a.metric("TTFT p95 (s)", f"{answer['ttft_s']['p95']:.3f}" if answer["ttft_s"]["p95"] is not None else "–")
    b.metric("TPOT p95 (ms)", f"{1e3 * answer['tpot_s']['p95']:.1f}" if answer["tpot_s"]["p95"] is not None else "–")
    c.metric("Requests a second", f"{answer['requests_per_s']:.2f}")
    d.metric("Output tokens a second", f"{answer['output_tokens_per_s']:,.0f}")
    e.metric("USD for the run", f"{answer['usd']:,.2f}" if answer["usd"] is not None else "–")
    kept = all(x["ok"] for x in answer["slo"].values())
    (st.success if kept else st.warning)("The promise is kept." if kept else "The promise is missed.")
    limits = ", ".join(f"{name} {one['limit']:g} s" for name, one in answer["slo"].items())
    drawing(
        "cdf", f"Share of requests that are at least so fast, and the promised limits ({limits}). The bars at 95 % are "
        "the percentile's 95 % interval once the run has settled.", latency_figure(shown.latencies, answer),
        lambda: [{"metric": METRICS[n], "share": s, "seconds": v} for n, values in curves(shown.latencies).items()
                 for s, v in zip(SHARES, values, strict=True)],
    )  # fmt: skip
    show_course(shown)
    drawing("time", "Where the requests' time went, and what the engines did meanwhile.", breakdown_figure(answer),
            breakdown(answer))  # fmt: skip
    for i, found in enumerate(run_tables({**answer, "over_time": None})):  # that course is drawn above
        st.header(words(found.title))
        name = found.title.lower().replace(" ", "-") if i else "latencies"
        listing(found, name)
    with st.expander("What it rests on"):
        for note in run_notes(answer):
            st.text(note)
    download("run.json", lambda: json.dumps(answer, indent=1), "run-json", "Download the answer (JSON)")


def show_course(shown: Shown) -> None:
    """The fleet over time."""
    if "live_fleet" in shown.answer:
        drawing("replicas", "Replicas by purchase form over time; marks are spot notices, losses and refusals.",
                replicas_figure(shown.answer), replicas(shown.answer))  # fmt: skip
        befell = losses(shown.answer)
        if befell:
            table([{"time (s)": e["t_s"], "kind": e["kind"], "what": e["what"]} for e in befell], "losses")
        else:
            st.caption("No machine was lost or refused.")
    else:
        num = sum(int(line["count"]) for line in shown.scenario["fleet"])
        st.caption(f"A fixed fleet: {num} {'replica' if num == 1 else 'replicas'} from the first request to the last.")
    course = over_time(shown.answer, shown.series)
    if not len(course.get("t_s", ())):
        return
    t_s = course["t_s"]
    held = [Series("running", t_s, course["running"], colour=MEANING_COLOURS["measured"]),
            Series("waiting", t_s, course["waiting"], colour=MEANING_COLOURS["bad"])]  # fmt: skip
    chart("batch", "Requests that run and wait, over all replicas.", held, "time (s)", "requests")
    use, what = [Series("KV cache in use", t_s, course["kv"], colour=PALETTE[3])], "Share of the KV cache in use"
    if "busy" in course:
        what += " and of the time that GPUs are in steps"
        use.append(Series("GPU busy", t_s, course["busy"], colour=MEANING_COLOURS["good"]))
    chart("kv", f"{what}, mean over the replicas.", use, "time (s)", "share")
    if "usd" in course:
        chart("usd", "What the machines held cost.", [Series("cost", t_s, course["usd"], "step")], "time (s)",
              "USD per hour")  # fmt: skip


st.caption(f"Workload: {trace_name()}.")
try:
    scenario, wanted = form()
    if wanted:
        begin("simulate", "Simulating", scenario)
        st.session_state["simulate-scenario"] = scenario
    shown = outcome("simulate")
    if shown is not None:
        show(shown)
        st.session_state["simulate-scenario"] = shown.scenario
    elif "job-simulate" not in st.session_state:
        st.info("Choose a fleet and simulate it under the workload.")
    asked = st.session_state.get("simulate-scenario", scenario)
    command(on_file(asked, "scenario.yaml", "plan simulate scenario.yaml"))
except PlanError as problem:
    error(problem)
