"""Simulate: one fleet under the visitor's workload; latencies against the SLO, batch and KV over time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from app.charts import Limit, Series
from app.cli.output import plain
from app.web.parts import begin, chart, command, error, heading, outcome, table, words
from app.web.workload_state import current, trace_name, trace_path
from catalogs.errors import PlanError
from catalogs.load import gpus, models

PRECISIONS = ("bf16", "fp16", "fp8", "int8", "int4-awq", "int4-gptq")
FRAMEWORKS = ("vllm", "sglang", "tensorrt-llm", "tgi")
ROUTERS = ("round_robin", "least_loaded", "power_of_two", "least_kv", "random", "prefix_affinity", "session_affinity")
METRICS = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E"}

heading("Simulate", "What one fleet does to every request of the workload.")


@dataclass(frozen=True)
class Shown:
    """What the page draws of a run."""

    answer: dict[str, Any]
    latencies: dict[str, Any]
    series: dict[str, Any]


def pick(column: Any, label: str, options: tuple[str, ...] | list[str], key: str, fallback: str) -> str:
    """A choice that the URL restores."""
    wanted = st.query_params.get(key, fallback)
    return str(column.selectbox(label, options, index=list(options).index(wanted) if wanted in options else 0))


def whole(column: Any, label: str, key: str, fallback: int, high: int) -> int:
    """A whole number that the URL restores."""
    text = st.query_params.get(key, str(fallback))
    value = min(high, max(1, int(text))) if text.isdecimal() and len(text) < 10 else fallback
    return int(column.number_input(label, 1, high, value))


def form() -> dict[str, Any] | None:
    """The scenario, when the visitor asks."""
    with st.form("fleet"):
        a, b, c, d = st.columns(4)
        decoders = sorted(n for n, m in models().items() if m.kind == "decoder")
        model = pick(a, "Model", decoders, "model", "llama-3.1-8b")
        gpu = pick(b, "GPU", sorted(gpus()), "gpu", "L40S")
        count = whole(c, "Replicas", "count", 2, 512)
        tp = int(pick(d, "Tensor parallel size", ("1", "2", "4", "8"), "tp", "1"))
        e, f, g, h = st.columns(4)
        precision = pick(e, "Precision", PRECISIONS, "precision", "bf16")
        framework = pick(f, "Engine", FRAMEWORKS, "framework", "vllm")
        router = pick(g, "Router", ROUTERS, "router", "round_robin")
        ttft = h.number_input("TTFT p95 limit (s)", 0.01, 600.0, 1.0)
        if not st.form_submit_button("Simulate", type="primary"):
            return None
    st.query_params.update({
        "model": model, "gpu": gpu, "count": str(count), "tp": str(tp), "precision": precision,
        "framework": framework, "router": router,
    })  # fmt: skip
    engine = {"framework": framework}
    line = {"gpu": gpu, "count": count, "tensor_parallel_size": tp, "precision": precision, "engine": engine}
    return {
        "model": model, "workload": {"trace": str(trace_path())}, "fleet": [line], "router": router,
        "slo": {"ttft_p95_s": ttft}, "seed": 0,
    }  # fmt: skip


def work(scenario: dict[str, Any], requests: Any, progress: Any) -> Shown:
    """Play the scenario."""
    from simulator.run import simulate
    from simulator.scenario import Scenario

    progress("building the fleet", 0.1)
    read = Scenario.model_validate(scenario)
    span_s = float(requests.arrival_s[-1]) if len(requests) else 1.0
    progress(f"simulating {len(requests):,} requests", 0.3)
    result = simulate(read, requests, series_interval_s=max(span_s / 300.0, 0.5))
    progress("drawing", 0.9)
    latencies = {name: result.latencies.of_metric(name) for name in METRICS}
    return Shown(dict(plain(result.document)), latencies, dict(result.records.series))


def show(shown: Shown, limit_s: float) -> None:
    """The charts of a run."""
    from app.cli.simulate import run_notes, run_tables

    answer = shown.answer
    a, b, c, d = st.columns(4)
    a.metric("TTFT p95 (s)", f"{answer['ttft_s']['p95']:.3f}")
    b.metric("TPOT p95 (ms)", f"{1e3 * (answer['tpot_s']['p95'] or 0):.1f}")
    c.metric("Requests a second", f"{answer['requests_per_s']:.2f}")
    d.metric("Output tokens a second", f"{answer['output_tokens_per_s']:,.0f}")
    kept = all(x["ok"] for x in answer["slo"].values())
    (st.success if kept else st.warning)("The promise is kept." if kept else "The promise is missed.")
    share = np.linspace(0.0, 1.0, 201)
    curves = []
    for name, label in METRICS.items():
        values = shown.latencies[name]
        values = values[np.isfinite(values)]
        if len(values):
            curves.append(Series(label, np.maximum(1e-4, np.quantile(values, share)), share))
    chart("cdf", f"Share of requests that are at least so fast; 95 % must have their first token within {limit_s:g} s.",
          curves, "seconds", "share of requests", log_x=True, limits=[Limit("95 %", 0.95)])  # fmt: skip
    t_s = shown.series.get("t_s")
    if t_s is not None and len(t_s):
        chart("batch", "Requests that run and wait, over all replicas.",
              [Series("running", t_s, shown.series["num_running"]),
               Series("waiting", t_s, shown.series["num_waiting"])], "time (s)", "requests")  # fmt: skip
        chart("kv", "Share of the KV cache in use, mean over the replicas.",
              [Series("KV in use", t_s, shown.series["kv_share"])], "time (s)", "share of blocks")  # fmt: skip
    went = answer["time_breakdown"]["request"]
    chart("time", "Where the requests' time went.",
          [Series("share", range(1, len(went) + 1), list(went.values()), "bar", labels=list(went))], "",
          "share of the time")  # fmt: skip
    for i, found in enumerate(run_tables(answer)):
        st.subheader(words(found.title))
        table([dict(zip(found.columns, row, strict=True)) for row in found.rows], f"run-{i}")
    for note in run_notes(answer):
        st.text(note)
    st.download_button("Download the answer (JSON)", json.dumps(answer, indent=1), "run.json")


st.caption(f"Workload: {trace_name()}.")
try:
    scenario = form()
    if scenario is not None:
        requests = current()
        st.session_state["simulate-limit"] = scenario["slo"]["ttft_p95_s"]
        st.session_state["simulate-scenario"] = scenario
        begin("simulate", "Simulating", lambda progress: work(scenario, requests, progress))
    shown = outcome("simulate")
    if shown is not None:
        show(shown, st.session_state["simulate-limit"])
    elif "job-simulate" not in st.session_state:
        st.info("Choose a fleet and simulate it under the workload.")
    if "simulate-scenario" in st.session_state:
        asked = st.session_state["simulate-scenario"]
        text = json.dumps({**asked, "workload": {"trace": trace_path().name}}, indent=1)
        command(f"cat > scenario.yaml <<'END'\n{text}\nEND\nplan simulate scenario.yaml")
except PlanError as problem:
    error(problem)
