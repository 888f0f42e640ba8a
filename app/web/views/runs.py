"""Runs and compare: what was asked before, and two answers side by side."""

from __future__ import annotations

import json

import streamlit as st

from app.cli.compare import difference, leaves
from app.cli.output import plain
from app.runs import Run, list_runs, load_run
from app.web.parts import as_named, command, download, error, heading, table, words
from app.web.style import LABELS
from catalogs.errors import PlanError

heading("Runs and compare", "Every answer is kept with its inputs, so that it can be asked again.")
try:
    runs = list_runs()
except PlanError as problem:
    error(problem)
    command("plan runs list")
    st.stop()
if not runs:
    st.info("No runs yet. The Recommend page makes the first one; `plan demo` does too.")
    st.page_link("views/recommend.py", label="Find the cheapest fleet", icon=":material/shopping_cart:")
    command("plan runs list")
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


def side(run: Run) -> None:
    """One run's main figures and what it buys or plays."""
    answer = run.answer
    if run.kind == "recommend" and "plan" in answer:
        st.metric("USD an hour", f"{answer['plan']['usd_per_hour']:,.2f}")
        for line in answer["plan"].get("lines", []):
            counts = line["instances"]
            span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
            st.markdown(words(f"{span} x {line['instance_type']} ({line['gpu']}, {line['precision']}, "
                              f"{LABELS.get(line['purchase'], line['purchase'])})"))  # fmt: skip
    elif "ttft_s" in answer:
        st.metric("TTFT p95 (s)", f"{answer['ttft_s']['p95']:.3f}" if answer["ttft_s"]["p95"] is not None else "–")
        st.metric("Output tokens a second", f"{answer['output_tokens_per_s']:,.0f}")
    for name, one in (answer.get("slo") or {}).items():
        if one.get("simulated") is not None:
            kept = "kept" if one["ok"] else "missed"
            st.caption(words(f"{name}: {one['simulated']:.3g} s of {one['limit']:g} s, {kept}"))


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
    st.header(f"Run {first}")
    table([{"figure": k, "value": as_named(str(v))} for k, v in leaves(a.answer).items()], "answer")
    download(f"{first}.json", lambda: json.dumps(plain(a.answer), indent=1), "run-json", "Download the answer (JSON)")
    command(f"plan runs show {first}")
else:
    for column, run in ((left, a), (right, b)):
        with column:
            side(run)
    for title, x, y in (("Asked differently", a.inputs, b.inputs), ("Answered differently", a.answer, b.answer)):
        st.header(title)
        changed = difference(x, y)
        shown = [
            {"figure": r["figure"], first: as_named(str(r["a"])), second: as_named(str(r["b"])),
             "change": f"{r['change']:+.1%}" if isinstance(r["change"], float) else ""} for r in changed
        ]  # fmt: skip
        if shown:
            table(shown, title.lower().replace(" ", "-"))
        else:
            st.caption("No difference.")
    command(f"plan compare {first} {second}")
