"""What every page has: the equivalent command, downloads, errors in words, a job's progress."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app.charts import Limit, Series
from app.web.jobs import CancelledError, Job, Jobs
from app.web.style import figure
from catalogs.errors import PlanError


@st.cache_resource
def jobs() -> Jobs:
    """The jobs of this server."""
    return Jobs()


def heading(title: str, lead: str) -> None:
    """A page's title and the sentence that says what it is for."""
    st.title(title)
    st.caption(lead)


def command(text: str) -> None:
    """The `plan` command that gives the same result."""
    with st.expander("The same as a command"):
        st.code(text, language="bash")


def table(rows: Sequence[Mapping[str, Any]] | pd.DataFrame, name: str) -> None:
    """A table with its download; names come from users, so nothing in it is read as HTML or a formula."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    st.dataframe(frame, hide_index=True, width="stretch", column_config=_wide_enough(frame))
    out = io.StringIO()
    frame.map(_no_formula).to_csv(out, index=False)
    st.download_button(f"Download {name}.csv", out.getvalue(), f"{name}.csv", "text/csv", key=f"download-{name}")


def chart(
    name: str, alternative: str, series: Sequence[Series], x_label: str, y_label: str, *, log_x: bool = False,
    log_y: bool = False, limits: Sequence[Limit] = (),
) -> None:  # fmt: skip
    """A chart, its text alternative and the download of its points."""
    frames = [pd.DataFrame({"series": s.name, x_label: list(s.x), y_label: list(s.y)}) for s in series]
    points = pd.concat(frames) if frames else pd.DataFrame(columns=["series", x_label, y_label])
    found = figure(series, x_label, y_label, log_x=log_x, log_y=log_y, limits=limits)
    drawing(name, alternative, found, points)


def drawing(name: str, alternative: str, found: go.Figure, points: pd.DataFrame) -> None:
    """A figure, its text alternative and the download of its points."""
    st.plotly_chart(found, width="stretch", key=f"chart-{name}")
    st.caption(alternative)
    st.download_button(
        "Download the points (CSV)", points.map(_no_formula).to_csv(index=False), f"{name}.csv", "text/csv",
        key=f"points-{name}",
    )  # fmt: skip


def error(problem: BaseException) -> None:
    """An error in words: what, where, why and what would work."""
    if isinstance(problem, PlanError):
        where = f"**{words(problem.where)}**: " if problem.where else ""
        lines = [where + words(problem.what)]
        lines += [f"Why it matters: {words(problem.why)}"] if problem.why else []
        lines += [f"Try: {words(problem.remedy)}"] if problem.remedy else []
        st.error("\n\n".join(lines))
    else:
        st.error(f"A fault of ours: {type(problem).__name__}. The server's log has the details.")


def begin(slot: str, title: str, work: Any) -> None:
    """Start a job of this visitor under a name; an earlier one of that name is cancelled."""
    before = jobs().find(st.session_state.get(f"job-{slot}"))
    if before is not None and not before.done:
        before.cancel()
    st.session_state[f"job-{slot}"] = jobs().start(title, work).job_id


def outcome(slot: str) -> Any | None:
    """The result of the visitor's job of this name; None while there is none. Progress and errors are shown."""
    job = jobs().find(st.session_state.get(f"job-{slot}"))
    if job is None:
        return None
    if not job.done:
        _progress(job, slot)
        return None
    assert job.future is not None
    if job.future.cancelled():
        st.info("Stopped. Nothing was kept.")
        return None
    problem = job.future.exception()
    if isinstance(problem, CancelledError):
        st.info("Stopped. Nothing was kept.")
        return None
    if problem is not None:
        error(problem)
        return None
    return job.future.result()


def _progress(job: Job, slot: str) -> None:
    @st.fragment(run_every=0.4)
    def watch() -> None:
        if job.done:
            st.rerun()
        st.progress(job.share, text=f"{job.title}: {job.text}")
        if st.button("Stop", key=f"stop-{slot}"):
            job.cancel()

    watch()


def words(text: str) -> str:
    """Text as it is: Markdown's signs lose their meaning."""
    for sign in "\\`*_{}[]<>#|~$:":
        text = text.replace(sign, f"\\{sign}")
    return text


def _wide_enough(frame: pd.DataFrame) -> dict[str, Any]:
    """Columns of long texts as wide as their longest, so that no name is cut; the table scrolls sideways."""
    longest = {
        str(name): int(frame[name].map(lambda v: len(v) if isinstance(v, str) else 0).max()) for name in frame.columns
    } if len(frame) else {}  # fmt: skip
    return {name: st.column_config.TextColumn(width=20 + 7 * num) for name, num in longest.items() if num > 40}


def _no_formula(value: object) -> object:
    """A cell that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "@", "-", "\t") else value
