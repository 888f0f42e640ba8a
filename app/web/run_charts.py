"""A simulated run as figures: latencies against their limits, the fleet over time, where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from app.charts import MEANING_COLOURS, PALETTE, PURCHASE_COLOURS
from app.web.style import LABELS, NEUTRAL, TOP, ink, lay_out

METRICS = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E"}
COLOURS = dict(zip(METRICS, PALETTE, strict=False))
SHARES = np.linspace(0.0, 1.0, 201)
PARTS = {"queue": MEANING_COLOURS["bad"], "prefill": PALETTE[0], "decode": PALETTE[2], "stall": PALETTE[3],
         "step": PALETTE[2], "overhead": PALETTE[1], "idle": NEUTRAL}  # fmt: skip
LEAST_S = 1e-4


def curves(latencies: Mapping[str, Any]) -> dict[str, Any]:
    """Each metric's quantiles at ``SHARES``, in seconds; a metric that no request has is left out."""
    found = {}
    for name in METRICS:
        values = latencies[name][np.isfinite(latencies[name])]
        if len(values):
            found[name] = np.maximum(LEAST_S, np.quantile(values, SHARES))
    return found


def latency_figure(latencies: Mapping[str, Any], answer: Mapping[str, Any]) -> go.Figure:
    """Latency CDFs, the promised limits, and each p95's 95 % interval once the run has settled."""
    found = go.Figure()
    for name, values in curves(latencies).items():
        found.add_scatter(x=values, y=SHARES, mode="lines", name=METRICS[name], line={"color": COLOURS[name]})
    for name, label in METRICS.items():
        steady = ((answer.get("steady_state") or {}).get(f"{name}_s")) or {}
        if steady.get("p95_half_width_95"):
            found.add_scatter(
                x=[steady["p95"]], y=[0.95], mode="markers", showlegend=False, name=f"{label} p95, settled",
                marker={"color": COLOURS[name], "size": 7},
                error_x={"type": "data", "array": [steady["p95_half_width_95"]], "thickness": 2, "width": 7},
            )  # fmt: skip
    for i, (name, one) in enumerate((answer.get("slo") or {}).items()):
        metric = name.partition("_")[0]
        found.add_vline(
            one["limit"], line_dash="dash", line_color=MEANING_COLOURS["limit"],
            annotation_text=f"{METRICS.get(metric, metric)} limit", annotation_yshift=18 - 14 * (i % 2),
        )  # fmt: skip
    lay_out(found, "seconds", "share of requests")
    found.update_xaxes(type="log", dtick=1)
    found.update_yaxes(range=[0.0, 1.02])
    found.update_layout(hovermode="closest", margin={"l": 10, "r": 10, "t": TOP, "b": 10})
    return found


def replicas(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Replicas by purchase form and state at each sample of a live fleet."""
    series = answer["live_fleet"]["series"]
    names = [n for n in series if n.startswith("ready_") and any(series[n])] + ["booting", "draining", "target"]
    return [{"t_s": t, **{n.removeprefix("ready_"): series[n][i] for n in names}} for i, t in enumerate(series["t_s"])]


def replicas_figure(answer: Mapping[str, Any]) -> go.Figure:
    """Stacked replicas by purchase form, the target, and a mark at each spot notice, loss and refusal."""
    rows = replicas(answer)
    t_s = [r["t_s"] for r in rows]
    found = go.Figure()
    for name in (n for n in rows[0] if n not in ("t_s", "target")):
        colour = PURCHASE_COLOURS.get(name, NEUTRAL)
        found.add_scatter(
            x=t_s, y=[r[name] for r in rows], name=LABELS.get(name, name), stackgroup="one", mode="lines",
            line={"color": colour, "shape": "hv", "width": 1}, fillcolor=colour,
            fillpattern={"shape": "/" if name == "booting" else ""},
        )  # fmt: skip
    found.add_scatter(x=t_s, y=[r["target"] for r in rows], name="target", mode="lines",
                      line={"color": NEUTRAL, "dash": "dot", "shape": "hv"})  # fmt: skip
    tops = [sum(v for k, v in r.items() if k not in ("t_s", "target")) for r in rows]
    for kind, symbol in (("spot notice", "triangle-down"), ("other loss or refusal", "x")):
        chosen = [e for e in losses(answer) if e["kind"] == kind]
        if chosen:
            found.add_scatter(
                x=[e["t_s"] for e in chosen], y=np.interp([e["t_s"] for e in chosen], t_s, tops), mode="markers",
                name=f"{kind} ({len(chosen)})", text=[e["what"] for e in chosen], hovertemplate="%{x:.0f} s: %{text}",
                marker={"symbol": symbol, "size": 10, "color": MEANING_COLOURS["bad"]},
            )  # fmt: skip
    lay_out(found, "time (s)", "replicas")
    found.update_yaxes(rangemode="tozero")
    return found


def losses(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What befell a live fleet: instant, kind and words."""
    return [
        {"t_s": e["t_s"], "kind": "spot notice" if "spot notice" in e["what"] else "other loss or refusal",
         "what": e["what"]}
        for e in answer["live_fleet"]["events"]
    ]  # fmt: skip


def over_time(answer: Mapping[str, Any], series: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    """The samples of a run under common names: t_s, running, waiting, kv and, of a live fleet, busy, ttft, usd."""
    if "live_fleet" in answer:
        live = answer["live_fleet"]["series"]
        names = {"t_s": "t_s", "running": "running_requests", "waiting": "queue_length", "kv": "kv_use",
                 "busy": "gpu_use", "ttft": "ttft_p95_s", "usd": "usd_per_hour"}  # fmt: skip
        return {key: live[name] for key, name in names.items() if live.get(name)}
    names = {"t_s": "t_s", "running": "num_running", "waiting": "num_waiting", "kv": "kv_share"}
    return {key: series[name] for key, name in names.items() if name in series}


def breakdown(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Shares of the requests' time and of the engines' time."""
    return [
        {"whose": whose, "part": part, "share": share}
        for key, whose in (("engine", "engines"), ("request", "requests"))
        for part, share in answer["time_breakdown"][key].items()
    ]


def breakdown_figure(answer: Mapping[str, Any]) -> go.Figure:
    """Two bars of shares: where the requests waited or worked, and what the engines did."""
    found = go.Figure()
    for row in breakdown(answer):
        colour = PARTS.get(row["part"], NEUTRAL)
        label = f"{row['part']} {row['share']:.0%}" if row["share"] >= 0.04 else ""
        found.add_bar(
            y=[row["whose"]], x=[row["share"]], orientation="h", name=f"{row['whose']}: {row['part']}",
            marker_color=colour, text=label, textposition="inside", insidetextanchor="middle",
            textfont={"color": ink(colour)}, showlegend=False,
        )  # fmt: skip
    lay_out(found, "share of the time", "", height=190)
    found.update_layout(barmode="stack", hovermode="closest")
    found.update_xaxes(tickformat=".0%", range=[0, 1])
    return found
