"""Recommend: the limits as a form, the cheapest fleet as a purchase list, its cost, proof and alternatives."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import streamlit as st
from pandas import DataFrame

from app.cli.output import plain
from app.web.answer_charts import (
    latency_front,
    latency_front_figure,
    machines,
    machines_figure,
    promises,
    promises_figure,
    roads,
    roads_figure,
    swings,
    swings_figure,
)
from app.web.parts import begin, command, drawing, error, heading, outcome, table, words
from app.web.workload_state import trace_name, trace_path
from catalogs.errors import PlanError
from catalogs.load import gpus, models, prices

PURCHASES = ("on_demand", "spot", "reserved_1yr", "reserved_3yr", "capacity_block")
PRECISIONS = ("bf16", "fp8", "int8", "int4-awq", "int4-gptq")

heading("Recommend", "The cheapest fleet that keeps the latency promise, verified by simulation before it is shown.")


def asked(name: str, fallback: str) -> str:
    """A setting from the URL."""
    return str(st.query_params.get(name, fallback))


def number(name: str, fallback: float, low: float, high: float) -> float:
    """A number from the URL, within its range."""
    try:
        return min(high, max(low, float(asked(name, str(fallback)))))
    except ValueError:
        return fallback


def several(name: str, fallback: str, known: Iterable[str]) -> list[str]:
    """The choices of the URL that there are."""
    known = set(known)
    return [x for x in asked(name, fallback).split(",") if x in known]


def form() -> dict[str, Any] | None:
    """The settings, when the visitor asks for a plan."""
    names = sorted(n for n, m in models().items() if m.kind == "decoder")
    regions = sorted({p.region for p in prices()})
    wanted = asked("model", "llama-3.1-8b")
    region = asked("region", "us-east-1")
    with st.form("limits"):
        a, b, c, d = st.columns(4)
        model = a.selectbox("Model", names, index=names.index(wanted) if wanted in names else 0)
        ttft = b.number_input("TTFT p95 (s)", 0.01, 600.0, number("ttft", 1.0, 0.01, 600.0), format="%.2f")
        tpot = c.number_input("TPOT p95 (ms)", 1.0, 5000.0, number("tpot_ms", 50.0, 1.0, 5000.0), format="%.0f")
        scale = d.number_input("Load, times the trace", 0.01, 1000.0, number("scale", 1.0, 0.01, 1000.0))
        e, f, g = st.columns(3)
        place = e.selectbox("Region", regions, index=regions.index(region) if region in regions else 0)
        precision = f.multiselect("Precision", PRECISIONS, several("precision", "bf16,fp8", PRECISIONS))
        purchase = g.multiselect("Purchase", PURCHASES, several("purchase", "on_demand", PURCHASES))
        only = st.multiselect("GPUs (none chosen: all)", sorted(gpus()), several("gpus", "", gpus()))
        if not st.form_submit_button("Find the cheapest fleet", type="primary"):
            return None
    if not precision or not purchase:
        st.warning("Choose at least one precision and one purchase form.")
        return None
    st.query_params.update({
        "model": model, "ttft": f"{ttft:g}", "tpot_ms": f"{tpot:g}", "scale": f"{scale:g}", "region": place,
        "precision": ",".join(precision), "purchase": ",".join(purchase), "gpus": ",".join(only),
    })  # fmt: skip
    return {
        "model": model,
        "workload": {"trace": str(trace_path()), "scale": scale},
        "slo": {"ttft_p95_s": ttft, "tpot_p95_s": tpot / 1000.0},
        "region": place,
        "candidates": {"gpus": only or "all", "precision": precision, "purchase": purchase},
    }


def work(settings: dict[str, Any], progress: Any) -> dict[str, Any]:
    """Plan, keep the run, and return the answer; one that cannot be kept is shown all the same."""
    from app.cli.recommend import save
    from planner.problem import problem_from
    from planner.recommend import recommend

    problem = problem_from(settings)
    answer = recommend(problem, progress)
    try:
        answer["run"] = save(problem, answer)
    except PlanError as problem_of_ours:
        answer["not_kept"] = f"{problem_of_ours.what}; {problem_of_ours.remedy}"
    return dict(plain(answer))


def show(answer: dict[str, Any]) -> None:
    """The answer."""
    from app.cli.recommend import notes, tables

    plan = answer["plan"]
    a, b, c, d = st.columns(4)
    a.metric("USD an hour", f"{plan['usd_per_hour']:,.2f}")
    b.metric("USD a month", f"{plan['usd_per_month']:,.0f}")
    per_million = plan.get("usd_per_million_output_tokens")
    c.metric("USD per M output tokens", "–" if per_million is None else f"{per_million:,.3f}")
    d.metric("Proven within", f"{answer['mip_gap']:.2%}")
    (st.success if answer["verified"] else st.warning)(notes(answer)[0])
    if answer.get("not_kept"):
        st.warning("The answer could not be kept among the runs. " + words(answer["not_kept"]))
    first, *rest = tables(answer)
    st.subheader("Purchase list")
    table([dict(zip(first.columns, row, strict=True)) for row in first.rows], "purchase-list")
    show_charts(answer)
    for i, found in enumerate(rest):
        st.subheader(words(found.title))
        table([dict(zip(found.columns, row, strict=True)) for row in found.rows], f"plan-{i}")
    with st.expander("What it rests on"):
        for note in notes(answer)[1:]:
            st.text(note)
    st.download_button("Download the answer (JSON)", json.dumps(answer, indent=1), "plan.json")
    st.page_link("views/export.py", label="Deploy it", icon=":material/ios_share:")


def show_charts(answer: dict[str, Any]) -> None:
    """What the other roads cost, how far the promises are from their limits, and the machines by period."""
    st.subheader("What the other roads cost")
    drawing(
        "alternatives", "Cost of this plan and of what it was chosen over. A hatched bar is a bound: that road costs "
        "at least so much, and was not worth simulating.", roads_figure(answer), DataFrame(roads(answer)),
    )  # fmt: skip
    if promises(answer):
        st.subheader("How safe the promise is")
        sure = answer.get("confidence") or {}
        draws = f" It held on {sure['kept']} of {sure['draws']} fresh draws." if sure else ""
        drawing(
            "promises", "Simulated latency as a share of its limit: right of 1 the promise is broken." + draws,
            promises_figure(answer), DataFrame(promises(answer)),
        )  # fmt: skip
    if latency_front(answer):
        st.subheader("What a tighter promise costs")
        off = (answer.get("cost_range") or {}).get("step_time_error")
        ends = f" The bar at this plan is its cost if step times are {off:.0%} shorter or longer." if off else ""
        drawing(
            "front", "The cheapest plan when every latency limit is multiplied." + ends,
            latency_front_figure(answer), DataFrame(latency_front(answer)),
        )  # fmt: skip
    if swings(answer):
        st.subheader("What moves the price most")
        drawing("swings", "Cost when one thing changes and the plan is made anew.",
                swings_figure(answer), DataFrame(swings(answer)))  # fmt: skip
    if machines(answer):
        st.subheader("Machines by period")
        drawing("machines", "Machines to run in each planning period, by purchase form.",
                machines_figure(answer), DataFrame(machines(answer)))  # fmt: skip


def as_command(settings: dict[str, Any]) -> str:
    """The same question on the command line."""
    chosen = settings["candidates"]
    words = [
        "plan recommend", f"--model {settings['model']}", f"--trace {Path(settings['workload']['trace']).name}",
        f"--scale {settings['workload']['scale']:g}", *[f"--slo {k}={v:g}" for k, v in settings["slo"].items()],
        f"--region {settings['region']}", f"--precision {','.join(chosen['precision'])}",
        f"--purchase {','.join(chosen['purchase'])}",
    ]  # fmt: skip
    if chosen["gpus"] != "all":
        words.append(f"--gpus '{','.join(chosen['gpus'])}'")
    return " \\\n  ".join(words)


st.caption(f"Workload: {trace_name()}.")
try:
    settings = form()
    if settings is not None:
        st.session_state["recommend-settings"] = settings
        begin("recommend", "Planning", lambda progress: work(settings, progress))
    answer = outcome("recommend")
    if answer is not None:
        show(answer)
    elif "job-recommend" not in st.session_state:
        st.info("Set the limits and ask. With the demo trace the first answer takes some seconds.")
    if "recommend-settings" in st.session_state:
        command(as_command(st.session_state["recommend-settings"]))
except PlanError as problem:
    error(problem)
