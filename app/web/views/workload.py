"""Workload: what the requests look like, a load of one's own making, and the demand to come."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import streamlit as st

from app.charts import MEANING_COLOURS, Series
from app.cli.trace import description_tables
from app.web.fields import choice, keep, slider
from app.web.parts import chart, command, drawing, heading, listing, table, tabs
from app.web.style import add_band, figure
from app.web.synthesis import form
from app.web.workload_state import (
    current,
    keep_synthetic,
    synthesis_command,
    synthetic,
    trace_name,
    upload_field,
    with_trace,
)
from simulator.workload.trace_stats import arrivals_per_window, describe, prefix_hits_per_window

BINS = {"1 s": 1.0, "10 s": 10.0, "1 min": 60.0, "10 min": 600.0, "1 h": 3600.0}
SEASONS = {"1 min": 60.0, "10 min": 600.0, "1 h": 3600.0, "a day": 86_400.0, "a week": 604_800.0}
MOST_BINS = 240  # of the forecast's first choice of bin

heading("Workload", "When requests arrive, how long they are, what they share, and what is to come.")


def show_requests() -> None:
    """The workload as it is."""
    requests = current()
    found = describe(requests)
    a, b, c, d = st.columns(4)
    a.metric("Requests", f"{len(requests):,}")
    b.metric("Mean rate (requests/s)", f"{found['rate_rps']:.3g}" if found["rate_rps"] else "–")
    c.metric("Mean input (tokens)", f"{found['input_tokens']['mean']:,.0f}")
    d.metric("Mean output (tokens)", f"{found['output_tokens']['mean']:,.0f}")
    windows = slider(st, "Windows over the trace's length", "windows", 120, (20, 400))
    t_s, rate = arrivals_per_window(requests, windows)
    chart("arrivals", "Arrival rate over time; spikes are bursts that a plan must survive.",
          [Series("load", t_s, rate, "step", MEANING_COLOURS["load"])], "time (s)", "requests per second")  # fmt: skip
    share = np.linspace(0.0, 1.0, 201)
    lengths = [
        Series(name, np.maximum(1, np.quantile(tokens, share)), share, "line")
        for name, tokens in (("input", requests.input_tokens), ("output", requests.output_tokens))
    ]
    chart("lengths", "Share of requests that are at most so long.", lengths, "tokens", "share of requests", log_x=True)
    show_sharing(requests, windows, found["prefix_sharing"])
    for i, part in enumerate(description_tables(found)[1:]):
        st.header(part.title)
        listing(part, ("length-statistics", "burstiness", "classes")[i])


def show_sharing(requests: Any, windows: int, summary: dict[str, float] | None) -> None:
    """How much of the prompts was said before."""
    st.header("Prefix sharing")
    hits = prefix_hits_per_window(requests, windows)
    if hits is None or summary is None:
        st.caption("The trace says nothing of it: it has no hash_ids column. A synthetic load with conversations or "
                   "system prompts has.")  # fmt: skip
        return
    chart(
        "sharing", f"Prompt blocks that were seen before, of each window's: what an infinite prefix cache would hit, "
        f"{summary['infinite_cache_hit_rate']:.1%} over all. A real cache is smaller; Simulate shows its hits.",
        [Series("seen before", *hits, "step")], "time (s)", "share of prompt blocks",
    )  # fmt: skip


def make() -> None:
    """A synthetic load from fields; it is the workload of every page once it is taken."""
    spec, seed = form()
    if st.button("Use this load on every page", type="primary"):
        keep_synthetic(spec, seed)
        st.rerun()
    requests = synthetic(json.dumps(spec), seed)
    t_s, rate = arrivals_per_window(requests, 120)
    chart("synthetic", f"The load that these fields make: {len(requests):,} requests.",
          [Series("load", t_s, rate, "step", MEANING_COLOURS["load"])], "time (s)", "requests per second")  # fmt: skip
    command(synthesis_command(spec, seed) + "plan trace stats load.csv")


def forecast() -> None:
    """Demand after the trace with its band, and what the same method said of the trace's own end."""
    from simulator.workload.forecast import METHODS, forecast_document
    from simulator.workload.forecast import forecast as look_ahead

    arrival_s = current().arrival_s
    span_s = float(arrival_s[-1] - arrival_s[0])
    start = next((name for name, s in BINS.items() if span_s / s <= MOST_BINS), "1 h")
    a, b, c, d = st.columns(4)
    bin_name = choice(a, "Bin", list(BINS), "bin", start)
    season = choice(b, "Demand repeats after", list(SEASONS), "season", "10 min" if span_s < 7200 else "a day")
    ahead = choice(c, "Look ahead", list(SEASONS), "horizon", "10 min" if span_s < 7200 else "a day")
    method = choice(d, "Method", ["auto", *METHODS], "method", "auto")
    keep({"bin": bin_name, "season": season, "horizon": ahead, "method": method})
    settings = (BINS[bin_name], SEASONS[season], SEASONS[ahead], method)
    found = look_ahead(arrival_s, *settings)
    document = forecast_document(found)
    history_s = [float(arrival_s[0]) + i * found.bin_s for i in range(len(found.history_rps))]
    ahead_s = [b["start_s"] for b in document["bins"]]
    shown = figure(
        [Series("the trace", history_s, found.history_rps, "step", MEANING_COLOURS["load"]),
         Series(f"forecast ({found.method.replace('_', ' ')})", ahead_s, found.rate_rps, "line",
                MEANING_COLOURS["predicted"]), *held_out(arrival_s, history_s, settings)],
        "time (s)", "requests per second",
    )  # fmt: skip
    add_band(shown, "10th to 90th percentile", ahead_s, list(found.low_rps), list(found.high_rps),
             MEANING_COLOURS["predicted"])  # fmt: skip
    drawing("forecast", f"Demand of {trace_name()} and after it; the band is what the method's own errors on held-out "
            "ends of the trace leave open. Dotted: what it would have said of the last quarter, from what came before.",
            shown, document["bins"])  # fmt: skip
    if found.season_bins is None:
        st.info("The trace is shorter than two seasons: the forecast is its mean.")
    if found.backtest:
        rows = [{"method": n.replace("_", " "), "error on held-out ends (share of the demand)": e,
                 "used": "yes" if n == found.method else ""} for n, e in found.backtest.items()]  # fmt: skip
        table(rows, "backtest")
    command(with_trace(f"plan trace forecast {{trace}} --bin {settings[0]:g} --season {settings[1]:g} "
                       f"--horizon {settings[2]:g} --method {method}"))  # fmt: skip


def held_out(arrival_s: Any, history_s: list[float], settings: tuple[float, float, float, str]) -> list[Series]:
    """The last quarter of the trace as the first three quarters foretell it; nothing where they are too short."""
    from catalogs.errors import InputError
    from simulator.workload.forecast import forecast as look_ahead

    cut = history_s[3 * len(history_s) // 4]
    try:
        told = look_ahead(arrival_s[arrival_s < cut], settings[0], settings[1], history_s[-1] - cut, settings[3])
    except (InputError, IndexError):
        return []
    at_s = [told.start_s + i * told.bin_s for i in range(len(told.rate_rps))]
    return [Series("last quarter, foretold", at_s, told.rate_rps, "line", MEANING_COLOURS["measured"])]


st.caption(f"Showing {trace_name()}.")
with st.expander("Another trace", icon=":material/upload:"):
    upload_field()
name = tabs({"The requests": show_requests, "Make a load": make, "Forecast": forecast}, "tabs-workload")
if name == "The requests":
    command(with_trace("plan trace stats {trace}"))
