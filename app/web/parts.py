"""What every page has: the equivalent command, downloads, errors in words, a job's progress."""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, TypeAlias

import streamlit as st

from app.charts import Limit, Series
from app.cli.output import Table, cell
from app.web.jobs import Job, Jobs
from app.web.style import THEME, figure, look
from app.web.worker import apart
from catalogs.errors import PlanError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


Rows: TypeAlias = "Sequence[Mapping[str, Any]] | pd.DataFrame"

OWN_FOLDER = re.compile(r"[^\s'\"]*/plan-web-[^/]+/([0-9a-f]{32}/)?")  # of the server, in a file's path
WHOLE_ROWS = 16  # a table of so many is shown whole, a longer one scrolls
MOST_ROWS = 100  # of a table of the page; a longer one is drawn by a script that draws what is seen
SCROLLS_PX = 560
LETTER_PX = 6.2  # of a table's text
WIDEST_PX = 340  # of a column, beyond which its text is wrapped
WRAPS_PX = 72  # of a row that wraps


@st.cache_resource
def jobs() -> Jobs:
    """The jobs of this server."""
    return Jobs()


def heading(title: str, lead: str) -> None:
    """A page's title and the sentence that says what it is for."""
    st.title(title)
    st.caption(lead)


def command(text: str, light: bool = False) -> None:
    """The `plan` command that gives the same result; ``light``: without the highlighter, which is 1.5 MB of script."""
    with st.expander("The same as a command"):
        if light:
            st.html(f'<pre class="command">{escape(text)}</pre>')
        else:
            st.code(text, language="bash")


def tabs(pages: Mapping[str, Callable[[], None]], key: str) -> str:
    """Tabs of which only the open one is drawn, its errors in words; the URL restores it. Returns its name."""
    names, wanted = list(pages), st.query_params.get("tab")
    shown = st.tabs(names, default=wanted if wanted in names else names[0], key=key, on_change="rerun")
    name, container = next(((n, t) for n, t in zip(names, shown, strict=True) if t.open), (names[0], shown[0]))
    st.query_params["tab"] = name
    with container:
        try:
            pages[name]()
        except PlanError as problem:
            error(problem)
    return name


def table(rows: Rows, name: str) -> None:
    """A table with its download; names come from users, so nothing in it is read as markup or a formula.

    A table of the page wraps its texts and is walked through by a screen reader; only a very long one is drawn.
    """
    frame = _frame(rows)
    alternative = f"Table {name}: {', '.join(map(str, frame.columns))}; {len(frame)} rows."
    if len(frame) <= MOST_ROWS:
        height: Any = "content" if len(frame) <= WHOLE_ROWS else SCROLLS_PX
        st.table(_as_words(frame), border="horizontal", height=height, hide_index=True, alt=alternative)
    else:
        lines = max(1, math.ceil(_longest(frame) * LETTER_PX / WIDEST_PX))  # of the longest text, once it is wrapped
        row = None if lines == 1 else max(WRAPS_PX, 17 + 18 * lines)
        st.dataframe(_readable(frame), hide_index=True, width="stretch", column_config=_columns(frame),
                     alt=alternative, placeholder="–", row_height=row)  # fmt: skip
    download(f"{name}.csv", lambda: as_csv(frame), f"download-{name}")


def listing(found: Table, name: str) -> None:
    """A table of the command line's; every column has a name, and two of one name are told apart by a number."""
    import pandas as pd

    seen: Counter[str] = Counter()
    columns = []
    for i, column in enumerate(found.columns):
        title = column or ("what" if i == 0 else "result")
        seen[title] += 1
        columns.append(title if seen[title] == 1 else f"{title} #{seen[title]}")
    table(pd.DataFrame([list(row) for row in found.rows], columns=columns), name)


def chart(
    name: str, alternative: str, series: Sequence[Series], x_label: str, y_label: str, *, log_x: bool = False,
    log_y: bool = False, limits: Sequence[Limit] = (),
) -> None:  # fmt: skip
    """A chart, its text alternative and the download of its points."""
    found = figure(series, x_label, y_label, log_x=log_x, log_y=log_y, limits=limits)
    drawing(name, alternative, found, lambda: points_of(series, x_label, y_label))


def points_of(series: Sequence[Series], x_label: str, y_label: str) -> pd.DataFrame:
    """The points of some series as one table."""
    import pandas as pd

    frames = [pd.DataFrame({"series": s.name, x_label: list(s.x), y_label: list(s.y)}) for s in series]
    return pd.concat(frames) if frames else pd.DataFrame(columns=["series", x_label, y_label])


def drawing(name: str, alternative: str, found: go.Figure, points: Rows | Callable[[], Rows]) -> None:
    """A figure, its text alternative and the download of its points."""
    st.plotly_chart(found, width="stretch", key=f"chart-{name}", alt=_plain(alternative), config={"displaylogo": False})
    st.caption(alternative)
    download(f"{name}.csv", lambda: as_csv(_frame(points() if callable(points) else points)), f"points-{name}")


def picture(name: str, alternative: str, svg: str, points: Rows | Callable[[], Rows]) -> None:
    """A picture that needs no script beyond the page's own, so it is there first. Its text alternative, its download.

    Streamlit's image element is a script of its own, which the browser asks for once it knows that there is an image;
    an image within Markdown is drawn by what the page has already.
    """
    widest = 'width="100%" height="100%"'
    coloured = re.sub(r'width="\d+" height="\d+"', widest, svg, count=1)
    coloured = coloured.replace("<svg ", f'<svg color="{THEME[look()]["text"]}" ', 1)
    content = base64.b64encode(coloured.encode()).decode()
    text = words(" ".join(_plain(alternative).split()))
    st.markdown(f"![{text}](data:image/svg+xml;base64,{content})")
    st.caption(alternative)
    download(f"{name}.csv", lambda: as_csv(_frame(points() if callable(points) else points)), f"points-{name}")


def download(file_name: str, content: Callable[[], str], key: str, label: str = "") -> None:
    """A quiet button under what it downloads; the file is made when it is asked for."""
    kinds = {"csv": "text/csv", "json": "application/json", "yaml": "text/yaml", "svg": "image/svg+xml"}
    mime = kinds.get(file_name.rpartition(".")[2], "text/plain")
    st.download_button(label or file_name, content, file_name, mime, key=key, type="tertiary",
                       icon=":material/download:", on_click="ignore", help=f"Download {words(file_name)}")  # fmt: skip


def error(problem: BaseException) -> None:
    """An error in words: what, where, why and what would work."""
    if not isinstance(problem, PlanError):
        st.error(f"A fault of ours: {type(problem).__name__}. The server's log has the details.")
        return
    where, what, why, remedy = (
        words(as_named(text)) for text in (problem.where, problem.what, problem.why, problem.remedy)
    )
    lines = [f"**{where}**: {what}" if where else what]
    lines += [f"Why it matters: {why}"] if why else []
    lines += [f"Try: {remedy}"] if remedy else []
    st.error("\n\n".join(lines))


def as_named(text: str) -> str:
    """Text in which an upload's path is its name alone."""
    return OWN_FOLDER.sub("", text)


def begin(slot: str, title: str, *args: Any) -> None:
    """Start the work of this name (``app.web.work``) as a job; an earlier one is stopped. The URL finds it again."""
    before = job_of(slot)
    if before is not None and not before.done:
        before.cancel()
    job_id = jobs().start(slot, title, apart(slot, *args)).job_id
    st.session_state[f"job-{slot}"] = st.query_params["job"] = job_id


def job_of(slot: str) -> Job | None:
    """The visitor's job of this name, or the one that the URL names (its id cannot be guessed)."""
    return jobs().find(slot, st.session_state.get(f"job-{slot}") or str(st.query_params.get("job", "")))


def outcome(slot: str) -> Any | None:
    """The result of the visitor's job of this name; None while there is none. Progress and errors are shown."""
    job = job_of(slot)
    if job is None:
        return None
    st.session_state[f"job-{slot}"] = st.query_params["job"] = job.job_id
    if job.stopped:
        st.info("Stopped. Nothing was kept.")
        return None
    if not job.done:
        _progress(job, slot)
        return None
    assert job.future is not None
    problem = job.future.exception()
    if problem is not None:
        error(problem)
        return None
    return job.future.result()


def _progress(job: Job, slot: str) -> None:
    @st.fragment(run_every=0.4)
    def watch() -> None:
        if job.done or job.stopped:
            st.rerun()
        st.progress(job.share, text=f"{job.title}: {job.text}")
        if st.button("Stop", key=f"stop-{slot}", icon=":material/stop_circle:"):
            job.cancel()
            st.rerun()

    watch()


def words(text: str) -> str:
    """Text as it is: Markdown's signs lose their meaning."""
    for sign in "\\`*_{}[]<>#|~$:":
        text = text.replace(sign, f"\\{sign}")
    return text


def _plain(text: str) -> str:
    """Text for a place that reads no Markdown."""
    return text.replace("\\", "")


def _frame(rows: Rows) -> pd.DataFrame:
    import pandas as pd

    return rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))


def as_csv(frame: pd.DataFrame) -> str:
    """A table as its download: cells that a spreadsheet would run as a formula are made plain."""
    return frame.map(_no_formula).to_csv(index=False)


def _as_words(frame: pd.DataFrame) -> Any:
    """Every cell and name as words, numbers to four figures and to the right."""
    import pandas as pd

    data = frame.to_dict("split")["data"]
    cells = [[words(cell(value)) for value in row] for row in data]
    found = pd.DataFrame(cells, columns=[words(str(name)) for name in frame.columns])
    numbers = [i for i in range(len(found.columns)) if _are_numbers([row[i] for row in data])]
    right: list[tuple[str, str | float]] = [("text-align", "right !important")]
    return found.style.set_table_styles([{"selector": f".col{i}", "props": right} for i in numbers])


def _are_numbers(column: Sequence[object]) -> bool:
    known = [value for value in column if value is not None]
    return bool(known) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)


def _readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns that mix words and numbers as words, numbers to four figures; the others are formatted as they are."""
    mixed = [name for name in frame.columns if frame[name].dtype.kind == "O"]
    return frame.assign(
        **{name: frame[name].map(lambda v: cell(v) if isinstance(v, int | float) else v) for name in mixed}
    )


def _columns(frame: pd.DataFrame) -> dict[str, Any]:
    """Long texts as wide as their longest, or wrapped, so that none is cut; numbers to four figures, as elsewhere."""
    found: dict[str, Any] = {}
    for name in frame.columns:
        column = frame[name]
        longest = _longest(frame[[name]])
        if longest > 40:
            found[str(name)] = st.column_config.TextColumn(width=round(min(WIDEST_PX, LETTER_PX * longest)) + 20)
        elif column.dtype.kind == "f":
            large = bool((column.abs() >= 1e4).any())
            found[str(name)] = st.column_config.NumberColumn(format="localized" if large else "%.4g")
    return found


def _longest(frame: pd.DataFrame) -> int:
    """Letters of the longest text in a table."""
    return max((len(v) for name in frame.columns for v in frame[name] if isinstance(v, str)), default=0)


def _no_formula(value: object) -> object:
    """A cell that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "@", "-", "\t") else value
