"""Workload: what the requests look like, and how bursty they are."""

from __future__ import annotations

import numpy as np
import streamlit as st

from app.charts import MEANING_COLOURS, Series
from app.cli.compare import leaves
from app.cli.output import cell
from app.web.parts import chart, command, error, heading, table
from app.web.workload_state import current, trace_name, trace_path
from catalogs.errors import PlanError

heading("Workload", "When requests arrive, how long they are, and what they share.")
try:
    from simulator.trace_stats import arrivals_per_window, describe

    requests = current()
    found = describe(requests)
    st.markdown(f"Showing **{len(requests):,} requests**. Another trace: on the Start page.")
    a, b, c, d = st.columns(4)
    a.metric("Requests", f"{len(requests):,}")
    b.metric("Mean rate (requests/s)", f"{found['rate_rps']:.3g}")
    c.metric("Mean input (tokens)", f"{found['input_tokens']['mean']:,.0f}")
    d.metric("Mean output (tokens)", f"{found['output_tokens']['mean']:,.0f}")

    windows = st.slider("Windows over the trace's length", 20, 400, 120)
    t_s, rate = arrivals_per_window(requests, windows)
    chart(
        "arrivals", "Arrival rate over time; spikes are bursts that a plan must survive.",
        [Series("load", t_s, rate, "step", MEANING_COLOURS["load"])], "time (s)", "requests per second",
    )  # fmt: skip

    share = np.linspace(0.0, 1.0, 201)
    lengths = [
        Series(name, np.maximum(1, np.quantile(tokens, share)), share, "line")
        for name, tokens in (("input", requests.input_tokens), ("output", requests.output_tokens))
    ]
    chart("lengths", "Share of requests that are at most so long.", lengths, "tokens", "share of requests", log_x=True)
    rows = [
        {"what": f"{kind} tokens", **{k: v for k, v in found[f"{kind}_tokens"].items() if not isinstance(v, dict)}}
        for kind in ("input", "output")
    ]
    table(rows, "lengths-table")
    st.subheader("Burstiness and sharing")
    rows = [{"what": name, "value": cell(value)} for key in ("burstiness", "prefix_sharing")
            for name, value in leaves(found.get(key) or {}, key.replace("_", " ")).items()]  # fmt: skip
    table(rows, "burstiness")
except PlanError as problem:
    error(problem)
st.caption(f"Source: {trace_name()}")
command(f"plan trace stats {trace_path().name}")
