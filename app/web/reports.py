"""A cost report from an uploaded bill: asked for here, drawn on the spend page, handed out on the reports page."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import streamlit as st

from app.report.send import CONTENT_TYPES
from app.runs import list_runs
from app.web.fields import choice, keep, text
from app.web.parts import begin, command, job_of, outcome
from app.web.work import Built
from catalogs.errors import InputError

SLOT = "report"
MAX_BILL_BYTES = 200 * 1024 * 1024


def ask() -> Built | None:
    """The bill, the plan to compare with and the month as fields, and the report once it is built.

    Raises:
        InputError: a bill that is no bill, or is too large.
    """
    uploaded = st.file_uploader("A bill: CUR 2.0 or FOCUS, .csv, .csv.gz or .parquet")
    labels = {"": "no plan", **{r.run_id: f"{r.run_id} · {r.title}" for r in list_runs("recommend")}}
    a, b = st.columns(2)
    run = choice(a, "Plan to compare with", list(labels), "against", "", format_func=lambda i: labels.get(i, i))
    month = text(b, "Month", "month", f"{datetime.now(UTC):%Y-%m}", help="YYYY-MM")
    keep({"against": run, "month": month})
    if uploaded is not None:
        begin_report(uploaded, run, month)
    elif job_of(SLOT) is None:
        st.info("Upload a bill to see spend against the plan, idle machines' cost and what lapsed.")
        command("plan report build --bill focus.csv --run last --month 2026-10 -o report.html")
        return None
    found: Built | None = outcome(SLOT)
    return found


def begin_report(uploaded: Any, run: str, month: str) -> None:
    """Begin to build the report of an upload, unless it is the one that was asked for last.

    Raises:
        InputError: see ``ask``.
    """
    question = (uploaded.file_id, run, month)
    if st.session_state.get("report-question") == question:
        return
    suffix = suffix_of(uploaded.name)
    if uploaded.size > MAX_BILL_BYTES:
        raise InputError("the bill is larger than 200 MB", where="bill", remedy="`plan report build` reads larger ones")
    begin(SLOT, "Reading the bill", uploaded.getvalue(), suffix, run, month)
    st.session_state["report-question"] = question


def suffix_of(name: str) -> str:
    """The ending under which an uploaded bill is kept.

    Raises:
        InputError: not the ending of a bill.
    """
    for suffix in (".csv.gz", ".csv", ".parquet"):
        if name.lower().endswith(suffix):
            return suffix
    raise InputError(
        "this is not a bill", where="bill", why="the form is recognised by the file's ending",
        remedy="a .csv, .csv.gz or .parquet file",
    )  # fmt: skip


def downloads(built: Built) -> None:
    """The report in every form."""
    from app.report.render import RENDERERS

    for column, (form, mime) in zip(st.columns(len(CONTENT_TYPES)), CONTENT_TYPES.items(), strict=True):
        text = RENDERERS[form](built.report)
        label = f"Report ({'Markdown' if form == 'md' else form.upper()})"
        column.download_button(label, text, f"gpu-cost-{built.month}.{form}", mime, key=f"report-{form}")
