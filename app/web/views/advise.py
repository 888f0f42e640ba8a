"""Advise: from the fleet of today, step by step to the cheapest one."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st
from pandas import DataFrame

from app.web.answer_charts import steps_figure
from app.web.fields import PRECISIONS, choice, decoders, keep, number
from app.web.parts import begin, command, download, drawing, error, heading, outcome, table, words
from app.web.workload_state import on_file, seed, trace_name, workload_section
from catalogs.errors import InputError, PlanError
from catalogs.load import instances

PURCHASES = ("on_demand", "spot", "reserved_1yr", "reserved_3yr")
KEYS = ("instance_type", "count", "precision", "purchase")
FIRST = "g6e.xlarge:4:bf16:on_demand"

heading("Advise", "The steps that save most from the fleet that you run today, each simulated before it is shown.")


def today_of(text: str) -> list[dict[str, Any]]:
    """The fleet that the URL names (``g6e.xlarge:4:bf16:on_demand,...``); lines that make no sense are left out."""
    found = []
    for line in text.split(","):
        kind, count, precision, purchase = (*line.split(":"), "", "", "")[:4]
        if kind in instances() and count.isdecimal() and int(count[:5]) > 0 and precision in PRECISIONS:
            form = purchase if purchase in PURCHASES else PURCHASES[0]
            found.append(dict(zip(KEYS, (kind, int(count[:5]), precision, form), strict=True)))
    return found


def form() -> tuple[dict[str, Any], bool]:
    """The settings that the fields describe, and whether the visitor asks now.

    Raises:
        InputError: no whole line says what runs today.
    """
    started = today_of(st.query_params.get("today", FIRST)) or today_of(FIRST)
    with st.form("today"):
        a, b, c = st.columns(3)
        model = choice(a, "Model", decoders(), "model", "llama-3.1-8b")
        ttft = number(b, "TTFT p95 (s)", "ttft", 1.0, (0.01, 600.0), format="%.2f")
        tpot = number(c, "TPOT p95 (ms)", "tpot_ms", 50.0, (1.0, 5000.0), format="%.0f")
        st.markdown("What runs today")
        edited = st.data_editor(
            DataFrame(started), num_rows="dynamic", width="stretch", hide_index=True, key="today-fleet",
            column_config={
                "instance_type": st.column_config.SelectboxColumn("Instance type", options=list(instances())),
                "count": st.column_config.NumberColumn("Machines", min_value=1, max_value=10_000, step=1),
                "precision": st.column_config.SelectboxColumn("Precision", options=PRECISIONS),
                "purchase": st.column_config.SelectboxColumn("Purchase", options=PURCHASES),
            },
        )  # fmt: skip
        asked = bool(st.form_submit_button("Find the savings", type="primary"))
    fleet = edited.dropna().to_dict("records")
    if not fleet:
        raise InputError("no fleet is described", where="What runs today", remedy="one whole line at least")
    today = [{**line, "count": int(line["count"])} for line in fleet]
    lines = ",".join(":".join(str(line[key]) for key in KEYS) for line in today)
    if asked:
        keep({"model": model, "ttft": ttft, "tpot_ms": tpot, "today": lines})
    return {
        "model": model, "workload": workload_section(), "slo": {"ttft_p95_s": ttft, "tpot_p95_s": tpot / 1000.0},
        "today": today, "seed": seed(),
    }, asked  # fmt: skip


def show(answer: dict[str, Any]) -> None:
    """The waterfall and what each step changes."""
    a, b, c = st.columns(3)
    a.metric("Today (USD an hour)", f"{answer['today_usd_per_hour']:,.2f}")
    b.metric("At best (USD an hour)", f"{answer['best_usd_per_hour']:,.2f}")
    c.metric("Saved", "–" if answer["saving_share"] is None else f"{answer['saving_share']:.0%}")
    for name in answer["unpriced"]:
        st.warning(f"No price is known for {words(name)}: it is left out of today's cost.")
    rows = [
        {"step": s["step"], "what may change": s["what"], "USD an hour": s["usd_per_hour"],
         "saves (USD an hour)": s["saving_usd_per_hour"], **(s["slo"] or {}), "quality kept": s["quality"],
         "fleet": s["plan"] or s["why_not"]}
        for s in answer["steps"]
    ]  # fmt: skip
    drawing("steps", "What each step saves an hour. A step that finds no plan stands in the table alone.",
            steps_figure(answer), DataFrame(rows))  # fmt: skip
    table(rows, "advice")
    download("advice.json", lambda: json.dumps(answer, indent=1), "advice-json", "Download the advice (JSON)")


st.caption(f"Workload: {trace_name()}.")
try:
    settings, wanted = form()
    if wanted:
        st.session_state["advise-settings"] = settings
        begin("advise", "Advising", settings)
    answer = outcome("advise")
    if answer is not None:
        show(answer)
    elif "job-advise" not in st.session_state:
        st.info("Say what runs today and ask. Each step is simulated, which takes some minutes the first time.")
    command(on_file(st.session_state.get("advise-settings", settings), "plan.yaml", "plan advise -c plan.yaml"))
except PlanError as problem:
    error(problem)
