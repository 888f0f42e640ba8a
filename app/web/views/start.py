"""Start: what the tool does in one picture, and two ways in."""

from __future__ import annotations

import streamlit as st

from app.charts import MEANING_COLOURS, Series
from app.web.parts import chart, command, error, heading
from app.web.workload_state import current, keep_upload, trace_name, trace_path
from catalogs.errors import PlanError

heading("GPU capacity planner", "The cheapest fleet of GPUs that keeps your latency promise, verified by simulation.")

left, right = st.columns([3, 2])
with right:
    st.subheader("Begin")
    uploaded = st.file_uploader(
        "Your trace", help="Arrival time, input and output tokens of each request: CSV, JSON lines or Parquet; "
        "Azure, Mooncake and BurstGPT forms are recognised. It stays on this machine.",
    )  # fmt: skip
    if uploaded is not None and st.session_state.get("upload_id") != uploaded.file_id:
        try:
            st.session_state["trace_path"] = str(keep_upload(uploaded.name, uploaded.getvalue()))
            st.session_state["trace_name"] = uploaded.name
            st.session_state["upload_id"] = uploaded.file_id
        except PlanError as problem:
            error(problem)
    st.page_link("views/workload.py", label="Look at the workload", icon=":material/show_chart:")
    st.page_link("views/recommend.py", label="Find the cheapest fleet", icon=":material/shopping_cart:")
    st.markdown(
        "1. **Workload**: when requests arrive and how long they are.\n"
        "2. **Capacity**: measured step times say what rate each GPU sustains within your limits.\n"
        "3. **Purchase**: the cheapest mix of instances, precision and commitment, with a proven bound.\n"
        "4. **Proof**: the mix is simulated on the whole workload before it is shown."
    )
with left:
    try:
        from simulator.trace_stats import arrivals_per_window

        requests = current()
        t_s, rate = arrivals_per_window(requests, num_windows=120)
        chart(
            "load", f"Requests a second over the length of {trace_name()}: {len(requests):,} requests.",
            [Series("load", t_s, rate, "step", MEANING_COLOURS["load"])], "time (s)", "requests per second",
        )  # fmt: skip
    except PlanError as problem:
        error(problem)
        if st.button("Back to the demo trace"):
            for key in ("trace_path", "trace_name"):
                st.session_state.pop(key, None)
            st.rerun()
command(f"plan trace stats {trace_path().name}")
