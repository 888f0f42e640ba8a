"""Runs and compare: what was asked before, and two answers side by side."""

from __future__ import annotations

import json

import streamlit as st

from app.cli.compare import difference, leaves
from app.cli.output import plain
from app.runs import list_runs, load_run
from app.web.parts import command, error, heading, table
from catalogs.errors import PlanError

heading("Runs and compare", "Every answer is kept with its inputs, so that it can be asked again.")
try:
    runs = list_runs()
except PlanError as problem:
    error(problem)
    st.stop()
if not runs:
    st.info("No runs yet. The Recommend page makes the first one; `plan demo` does too.")
    st.page_link("views/recommend.py", label="Find the cheapest fleet", icon=":material/shopping_cart:")
    st.stop()

rows = [{"run": r.run_id, "kind": r.kind, "created (UTC)": r.created_at, "title": r.title} for r in runs]
table(rows, "runs")

names = {r.run_id: f"{r.run_id} · {r.kind} · {r.title or r.created_at}" for r in runs}
ids = list(names)


def chosen(key: str, fallback: int) -> str:
    """The run that the URL or the box names."""
    wanted = st.query_params.get(key)
    if wanted and wanted not in ids:
        st.warning("The run that the address names is gone; this is another.")
    index = ids.index(wanted) if wanted in ids else min(fallback, len(ids) - 1)
    found = st.selectbox(
        f"Run {key.upper()}", ids, index=index, format_func=lambda i: names.get(i, i), key=f"run-{key}"
    )
    st.query_params[key] = found
    return str(found)


left, right = st.columns(2)
with left:
    first = chosen("a", 0)
with right:
    second = chosen("b", 1)
try:
    a, b = load_run(first), load_run(second)
except PlanError as problem:  # removed between two clicks
    error(problem)
    st.stop()
if first == second:
    st.subheader(f"Run {first}")
    table([{"figure": k, "value": str(v)} for k, v in leaves(a.answer).items()], "answer")
    st.download_button("Download the answer (JSON)", json.dumps(plain(a.answer), indent=1), f"{first}.json")
    command(f"plan runs show {first}")
else:
    for title, x, y in (("Asked differently", a.inputs, b.inputs), ("Answered differently", a.answer, b.answer)):
        st.subheader(title)
        changed = difference(x, y)
        shown = [
            {"figure": r["figure"], first: str(r["a"]), second: str(r["b"]),
             "change": f"{r['change']:+.1%}" if isinstance(r["change"], float) else ""} for r in changed
        ]  # fmt: skip
        if shown:
            table(shown, title.lower().replace(" ", "-"))
        else:
            st.caption("No difference.")
    command(f"plan compare {first} {second}")
