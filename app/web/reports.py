"""A cost report from an uploaded bill: asked for here, drawn on the spend page, handed out on the reports page."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from app.runs import list_runs
from app.web.parts import command
from catalogs.errors import InputError

if TYPE_CHECKING:
    from app.report.schema import Report

MAX_BILL_BYTES = 200 * 1024 * 1024
FORMS = {"html": "text/html", "md": "text/markdown", "json": "application/json", "csv": "text/csv"}


@dataclass(frozen=True)
class Built:
    """A report and what it was asked for with."""

    report: Report
    month: str
    command: str


def ask() -> Built | None:
    """The bill, the plan to compare with and the month as fields, and the report once there is a bill.

    Raises:
        InputError: a bill that is no bill, is too large, or has nothing in the month.
    """
    from app.report.build import build
    from app.report.sources import Sources

    uploaded = st.file_uploader("A bill: CUR 2.0 or FOCUS, .csv, .csv.gz or .parquet")
    labels = {"": "no plan", **{r.run_id: f"{r.run_id} · {r.title}" for r in list_runs("recommend")}}
    a, b = st.columns(2)
    run = str(a.selectbox("Plan to compare with", list(labels), format_func=lambda i: labels.get(i, i)))
    month = b.text_input("Month", f"{datetime.now(UTC):%Y-%m}", help="YYYY-MM", key="report-month")
    if uploaded is None:
        st.info("Upload a bill to see spend against the plan, idle machines' cost and what lapsed.")
        command("plan report build --bill focus.csv --run last --month 2026-10 -o report.html")
        return None
    if uploaded.size > MAX_BILL_BYTES:
        raise InputError("the bill is larger than 200 MB", where="bill", remedy="`plan report build` reads larger ones")
    suffix = suffix_of(uploaded.name)
    with tempfile.TemporaryDirectory(prefix="plan-web-") as folder:
        path = Path(folder) / f"bill{suffix}"
        path.write_bytes(uploaded.getvalue())
        found = build(Sources.model_validate({"bill": path, "run": run or None, "month": month}), datetime.now(UTC))
    text = f"plan report build --bill bill{suffix} {f'--run {run} ' if run else ''}--month {month} -o report.html"
    return Built(found, month, text)


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

    for column, (form, mime) in zip(st.columns(len(FORMS)), FORMS.items(), strict=True):
        text = RENDERERS[form](built.report)
        label = f"Report ({'Markdown' if form == 'md' else form.upper()})"
        column.download_button(label, text, f"gpu-cost-{built.month}.{form}", mime, key=f"report-{form}")
