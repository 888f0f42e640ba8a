"""Export and reports: a plan turned into what deploys it."""

from __future__ import annotations

import streamlit as st

from app.cli.export import TARGETS
from app.runs import list_runs
from app.web.parts import command, error, heading
from catalogs.errors import PlanError

LANGUAGES = {"skypilot": "yaml", "karpenter": "yaml", "keda": "yaml", "hpa": "yaml", "terraform": "hcl"}

heading("Export and reports", "Launch commands and manifests for a plan, each saying what it assumed.")
try:
    runs = list_runs("recommend")
except PlanError as problem:
    error(problem)
    st.stop()
if not runs:
    st.info("No plan yet. The Recommend page makes one.")
    st.page_link("views/recommend.py", label="Find the cheapest fleet", icon=":material/shopping_cart:")
    st.stop()
by_id = {r.run_id: r for r in runs}
wanted = st.query_params.get("run")
ids = list(by_id)
left, right = st.columns(2)
with left:
    run_id = st.selectbox(
        "Plan", ids, index=ids.index(wanted) if wanted in ids else 0,
        format_func=lambda i: f"{i} · {by_id[i].title or by_id[i].created_at}",
    )  # fmt: skip
with right:
    asked = st.query_params.get("target", "")
    target = st.selectbox("Form", TARGETS, index=TARGETS.index(asked) if asked in TARGETS else 0)
st.query_params.update({"run": run_id, "target": target})
try:
    from planner.export import EXPORTERS, deployment_of

    found = by_id[run_id]
    text = EXPORTERS[target](deployment_of(found.inputs, found.answer))
    st.code(text, language=LANGUAGES.get(target, "bash"))
    suffix = {"yaml": "yaml", "hcl": "tf"}.get(LANGUAGES.get(target, ""), "sh")
    st.download_button("Download", text, f"{run_id}-{target}.{suffix}")
except PlanError as problem:
    error(problem)
command(f"plan export {target} {run_id}")
