"""Recommend: the limits as a form, the cheapest fleet as a purchase list, its cost, proof and alternatives."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import streamlit as st
from pandas import DataFrame

from app.cli.output import Table
from app.runs import load_run
from app.web.answer_charts import (
    latency_front_figure,
    machines_figure,
    promises_figure,
    quality_front_figure,
    roads_figure,
    swings_figure,
)
from app.web.answer_rows import NEAR, latency_front, machines, near_roads, promises, quality_front, roads, swings
from app.web.fields import choice, keep, number, several
from app.web.parts import (
    begin,
    command,
    download,
    drawing,
    error,
    heading,
    job_of,
    listing,
    outcome,
    tabs,
    words,
)
from app.web.style import LABELS
from app.web.what_if_panel import panel
from app.web.workload_state import on_file, seed, trace_name, with_trace, workload_section
from catalogs.errors import PlanError
from catalogs.load import gpus, models, prices

PURCHASES = ("on_demand", "spot", "reserved_1yr", "reserved_3yr", "savings_plan", "capacity_block")
PRECISIONS = ("bf16", "fp8", "int8", "int4-awq", "int4-gptq")
DRAWN = ("What moves the cost", "Cost against latency", "Cost against quality")  # tables that are shown as charts
WHY_NOT, PROMISE, SCHEDULE = "Why not the others", "Latency promise", "What to run when"

heading("Recommend", "The cheapest fleet that keeps the latency promise, verified by simulation before it is shown.")


def form() -> tuple[dict[str, Any], bool]:
    """The settings that the fields describe, and whether the visitor asks for a plan now."""
    with st.form("limits"):
        a, b, c, late, d = st.columns(5)
        model = choice(a, "Model", sorted(models()), "model", "llama-3.1-8b")
        ttft = number(b, "TTFT p95 (s)", "ttft", 1.0, (0.01, 600.0), format="%.2f")
        tpot = number(c, "TPOT p95 (ms)", "tpot_ms", 50.0, (1.0, 5000.0), format="%.0f")
        whole = number(late, "E2E p95 (s; 0: none)", "e2e", 0.0, (0.0, 3600.0), format="%.2f",
                       help="The whole time of a request; all that encoders and vision models have.")  # fmt: skip
        scale = number(d, "Load, times the trace", "scale", 1.0, (0.01, 1000.0))
        e, f, g = st.columns([1, 2, 2])
        region = choice(e, "Region", sorted({p.region for p in prices()}), "region", "us-east-1")
        precision = several(f, "Precision", PRECISIONS, "precision", "bf16,fp8")
        purchase = several(g, "Purchase", PURCHASES, "purchase", "on_demand", format_func=lambda x: LABELS.get(x, x))
        h, i, j = st.columns([2, 1, 1])
        only = several(h, "GPUs (none chosen: all)", sorted(gpus()), "gpus", "")
        score = number(i, "Quality kept, at least (%)", "quality", 0.0, (0.0, 100.0), format="%.1f",
                       help="Share of the unquantized model's score, where it was measured. 0: any.")  # fmt: skip
        budget = number(j, "Budget (USD a month; 0: none)", "budget", 0.0, (0.0, 1e9), format="%.0f")
        asked = bool(st.form_submit_button("Find the cheapest fleet", type="primary"))
    if not precision or not purchase:
        st.warning("Choose at least one precision and one purchase form.")
        asked = False
    generates = models()[model].kind == "decoder"
    if not generates and not whole:
        st.warning(f"{model} answers at once: promise its E2E.")
        asked = False
    if asked:
        keep({"model": model, "ttft": ttft, "tpot_ms": tpot, "e2e": whole, "scale": scale, "region": region,
              "quality": score, "precision": ",".join(precision), "purchase": ",".join(purchase),
              "gpus": ",".join(only), "budget": budget})  # fmt: skip
    return {
        "model": model,
        "workload": {**workload_section(), "scale": scale},
        "slo": {
            **({"ttft_p95_s": ttft, "tpot_p95_s": tpot / 1000.0} if generates else {}),
            **({"e2e_p95_s": whole} if whole else {}),
        },
        "region": region,
        "candidates": {"gpus": only or "all", "precision": precision, "purchase": purchase},
        **({"quality": {"min_score": score / 100.0}} if score else {}),
        **({"budget_usd_per_month": budget} if budget else {}),
        "seed": seed(),
    }, asked


def ask(settings: dict[str, Any], text: str) -> None:
    """Begin to answer a question; ``text`` is its command."""
    st.query_params.pop("run", None)
    st.session_state["recommend-command"] = text
    begin("recommend", "Planning", settings)


def show(answer: dict[str, Any]) -> None:
    """The answer."""
    from app.cli.answer_tables import notes, tables

    plan = answer["plan"]
    a, b, c, d = st.columns(4)
    a.metric("USD an hour", f"{plan['usd_per_hour']:,.2f}")
    b.metric("USD a month", f"{plan['usd_per_month']:,.0f}")
    unit, usd = "output tokens", plan.get("usd_per_million_output_tokens")
    if usd is None and plan.get("usd_per_thousand_requests") is not None:  # a model that answers at once
        unit, usd = "requests", 1000.0 * plan["usd_per_thousand_requests"]
    c.metric(f"USD per M {unit}", "–" if usd is None else f"{usd:,.3f}")
    d.metric("Proven within", f"{answer['mip_gap']:.2%}")
    (st.success if answer["verified"] else st.warning)(notes(answer)[0])
    if answer.get("not_kept"):
        st.warning("The answer could not be kept among the runs. " + words(answer["not_kept"]))
    first, *rest = tables(answer)
    st.header("Purchase list")
    listing(first, "purchase-list")
    panel(answer, ask)
    behind(answer, {one.title: one for one in rest})
    download("plan.json", lambda: json.dumps(answer, indent=1), "plan-json", "Download the answer (JSON)")
    st.page_link("views/export.py", label="Deploy it", icon=":material/ios_share:")


@st.fragment
def behind(answer: dict[str, Any], found: dict[str, Table]) -> None:
    """What stands behind the plan, of which the open tab alone is drawn; ``found`` are the answer's other tables."""
    pages: dict[str, Callable[[], None]] = {"Why not the others": lambda: other_roads(answer, found)}
    pages["How safe it is"] = lambda: safety(answer, found)
    if latency_front(answer) or quality_front(answer) or swings(answer):
        pages["What would change it"] = lambda: changes(answer)
    if machines(answer):
        pages["Over time"] = lambda: over_time(answer, found)
    pages["What it rests on"] = lambda: grounds(answer, found)
    tabs(pages, "tabs-recommend")


def other_roads(answer: dict[str, Any], found: dict[str, Table]) -> None:
    """What the other roads cost, and why they were not taken."""
    st.header("What the other roads cost")
    far = len(roads(answer)) - len(near_roads(answer))
    rest = f" {far} that cost more than {NEAR:g} times the plan stand in the table alone." if far else ""
    drawing(
        "alternatives", "Cost of this plan and of what it was chosen over. A hatched bar is a bound: that road costs "
        "at least so much, and was not worth simulating." + rest, roads_figure(answer), DataFrame(roads(answer)),
    )  # fmt: skip
    titled(found, WHY_NOT)


def safety(answer: dict[str, Any], found: dict[str, Table]) -> None:
    """How far each promise is from its limit, and how sure that is."""
    if promises(answer):
        st.header("How safe the promise is")
        sure = answer.get("confidence") or {}
        draws = f" It held on {sure['kept']} of {sure['draws']} fresh draws." if sure else ""
        drawing(
            "promises", "Simulated latency as a share of its limit: right of 1 the promise is broken." + draws,
            promises_figure(answer), DataFrame(promises(answer)),
        )  # fmt: skip
    titled(found, PROMISE)


def changes(answer: dict[str, Any]) -> None:
    """What a tighter promise and more quality cost, and what moves the price."""
    if latency_front(answer):
        st.header("What a tighter promise costs")
        off = (answer.get("cost_range") or {}).get("step_time_error")
        ends = (
            f" The bar at this plan is its cost if steps take {off:.0%} longer, or are shorter by that factor."
            if off
            else ""
        )
        drawing(
            "front", "The cheapest plan when every latency limit is multiplied." + ends,
            latency_front_figure(answer), DataFrame(latency_front(answer)),
        )  # fmt: skip
    if len(quality_front(answer)) > 1:
        st.header("What quality costs")
        drawing(
            "quality", "The cheapest plan that keeps at least so much of the unquantized model's score, as measured by "
            "those whom the catalogue names; an unmeasured precision is in none of them.",
            quality_front_figure(answer), DataFrame(quality_front(answer)),
        )  # fmt: skip
    if swings(answer):
        st.header("What moves the price most")
        drawing("swings", "Cost when one thing changes and the plan is made anew.",
                swings_figure(answer), DataFrame(swings(answer)))  # fmt: skip


def over_time(answer: dict[str, Any], found: dict[str, Table]) -> None:
    """The machines of each planning period."""
    st.header("Machines by period")
    drawing("machines", "Machines to run in each planning period, by purchase form.",
            machines_figure(answer), DataFrame(machines(answer)))  # fmt: skip
    titled(found, SCHEDULE)


def grounds(answer: dict[str, Any], found: dict[str, Table]) -> None:
    """What the figures rest on, and the tables that no other tab shows."""
    from app.cli.answer_tables import notes

    for note in notes(answer)[1:]:
        st.text(note)
    for title in found:
        if not title.startswith((*DRAWN, WHY_NOT, PROMISE, SCHEDULE)):
            titled(found, title)


def titled(found: dict[str, Table], start: str) -> None:
    """The table whose title begins so, under its title; nothing where the answer has none."""
    for title, one in found.items():
        if title.startswith(start):
            st.header(words(title))
            listing(one, start.lower().replace(" ", "-"))


def as_command(settings: dict[str, Any]) -> str:
    """The same question on the command line: by flags where there is a trace, else as a plan file."""
    if "trace" not in settings["workload"]:
        return on_file(settings, "plan.yaml", "plan recommend -c plan.yaml")
    chosen = settings["candidates"]
    parts = [
        "plan recommend", f"--model {settings['model']}", "--trace {trace}",
        f"--scale {settings['workload']['scale']:g}", *[f"--slo {k}={v:g}" for k, v in settings["slo"].items()],
        f"--region {settings['region']}", f"--precision {','.join(chosen['precision'])}",
        f"--purchase {','.join(chosen['purchase'])}",
    ]  # fmt: skip
    if chosen["gpus"] != "all":
        parts.append(f"--gpus '{','.join(chosen['gpus'])}'")
    if "quality" in settings:
        parts.append(f"--min-score {settings['quality']['min_score']:g}")
    if "budget_usd_per_month" in settings:
        parts.append(f"--budget {settings['budget_usd_per_month']:g}")
    return with_trace(" \\\n  ".join(parts))


def earlier() -> dict[str, Any] | None:
    """The kept answer that the URL names."""
    wanted = st.query_params.get("run")
    if not wanted:
        return None
    try:
        run = load_run(wanted)
    except PlanError as problem:
        error(problem)
        return None
    if run.kind != "recommend":
        return None
    st.caption(f"Run {run.run_id} of {run.created_at}, as it was kept.")
    return {**run.answer, "run": run.run_id}


st.caption(f"Workload: {trace_name()}.")
try:
    settings, wanted = form()
    if wanted:
        ask(settings, as_command(settings))
    refused = st.session_state.pop("recommend-refused", None)
    if refused is not None:
        error(refused)
    asked_now = job_of("recommend") is not None
    answer = outcome("recommend") if asked_now else earlier()
    if answer is not None:
        show(answer)
        if answer.get("run"):
            st.query_params["run"] = answer["run"]
    elif not asked_now:
        st.info(
            "Set the limits and ask. A first answer takes half a minute to some minutes, by the load and the choice; "
            "the next ones remember what was simulated."
        )
    if "recommend-command" in st.session_state:
        command(st.session_state["recommend-command"])
    elif answer is not None and answer.get("run"):
        command(f"plan explain {answer['run']}")
    else:
        command(as_command(settings))
except PlanError as problem:
    error(problem)
