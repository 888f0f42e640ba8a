"""The form of a scenario's fleet, fixed or living; it makes the same keys as a scenario file."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.web import engine_form
from app.web.fields import PRECISIONS, TP_SIZES, choice, decoders, keep, number, several, whole
from app.web.workload_state import seed, workload_section
from catalogs.load import gpus, instances
from catalogs.units import SECONDS_PER_HOUR
from simulator.fleet.spot import catalogue_zones

FRAMEWORKS = ("vllm", "sglang", "tensorrt-llm", "tgi")
ROUTERS = ("round_robin", "least_loaded", "power_of_two", "least_kv", "random", "prefix_affinity", "session_affinity")
NO_PRICE = "no price"
FIXED, HPA = "fixed", "hpa"
MOST_HOURS = 48.0


def form() -> tuple[dict[str, Any], bool]:
    """The scenario that the fields describe, and whether the visitor asks for it now."""
    a, b, c = st.columns(3)
    model = choice(a, "Model", decoders(), "model", "llama-3.1-8b")
    gpu = choice(b, "GPU", sorted(gpus()), "gpu", "L40S")
    sold = [name for name, one in instances().items() if one.gpu == gpu]
    machine = choice(c, "Machine (for its price)", [*sold, NO_PRICE], "instance", sold[0] if sold else NO_PRICE)
    with st.form("fleet"):
        line, top = _line(gpu, machine)
        slo = _slo()
        engine, dtype = engine_form.form(line["engine"]["framework"])
        line["engine"] |= engine
        if dtype != "auto":
            line["kv_cache_dtype"] = dtype
        with st.expander("A fleet that lives: autoscaling, spot, a longer load", expanded=_lives()):
            live = _live(line["count"])
        asked = st.form_submit_button("Simulate", type="primary")
    keep({"model": model, "gpu": gpu, "instance": machine})
    repeat = live.pop("repeat_s", None)
    workload = {**workload_section(), **({"repeat_s": repeat} if repeat else {})}
    scenario = {"model": model, "workload": workload, "fleet": [line], **top, "slo": slo, **live, "seed": seed()}
    return scenario, bool(asked)


def _line(gpu: str, machine: str) -> tuple[dict[str, Any], dict[str, Any]]:
    a, b, c, d, e = st.columns(5)
    count = whole(a, "Replicas", "count", 2, (1, 512))
    size = choice(b, "Tensor parallel size", TP_SIZES, "tp", "1")
    precision = choice(c, "Precision", PRECISIONS, "precision", "bf16")
    framework = choice(d, "Engine", FRAMEWORKS, "framework", "vllm")
    router = choice(e, "Router", ROUTERS, "router", "round_robin")
    keep({"count": count, "tp": size, "precision": precision, "framework": framework, "router": router})
    line = {"gpu": gpu, "count": count, "tensor_parallel_size": int(size), "precision": precision,
            "engine": {"framework": framework}}  # fmt: skip
    if machine != NO_PRICE:
        line["instance"] = machine
    return line, {"router": router}


def _slo() -> dict[str, float]:
    a, b, _ = st.columns([1, 1, 3])
    ttft = number(a, "TTFT p95 limit (s)", "ttft", 1.0, (0.01, 600.0), format="%.2f")
    tpot = number(b, "TPOT p95 limit (ms)", "tpot_ms", 50.0, (1.0, 5000.0), format="%.0f")
    keep({"ttft": ttft, "tpot_ms": tpot})
    return {"ttft_p95_s": ttft, "tpot_p95_s": tpot / 1000.0}


def _lives() -> bool:
    query = st.query_params
    return query.get("scaling", FIXED) != FIXED or bool(query.get("zones")) or query.get("hours", "0") != "0"


def _live(count: int) -> dict[str, Any]:
    """Sections of a living fleet; empty for a fixed one."""
    a, b, c, d = st.columns(4)
    scaling = choice(a, "Replicas follow the load", (FIXED, HPA), "scaling", FIXED, help="hpa: Kubernetes' autoscaler "
                     "on the number of running requests of a replica.")  # fmt: skip
    target = whole(b, "Running requests aimed at", "target", 24, (1, 10_000))
    most = whole(c, "Replicas at most", "most", 16, (1, 512))
    hours = number(d, "Repeat the load for (h; 0: once)", "hours", 0.0, (0.0, MOST_HOURS), format="%.1f")
    e, f, g = st.columns([2, 1, 1], vertical_alignment="bottom")
    zones = several(e, "Spot zones (none: no spot)", sorted({z.region for z in catalogue_zones()}), "zones", "")
    spare = whole(f, "Spare spot replicas", "spare", 1, (0, 100))
    fallback = g.checkbox("On-demand while spot is lost", st.query_params.get("fallback", "1") == "1")
    keep({"scaling": scaling, "target": target, "most": most, "hours": hours, "zones": ",".join(zones),
          "spare": spare, "fallback": "1" if fallback else "0"})  # fmt: skip
    found: dict[str, Any] = {}
    if scaling == HPA:
        found["autoscaling"] = {
            "controller": "hpa", "metrics": [{"metric": "running_requests", "target": target}],
            "min_replicas": min(count, most), "max_replicas": most,
        }  # fmt: skip
    if zones:
        found["spot"] = {"zones": zones, "num_overprovision": spare, "dynamic_ondemand_fallback": fallback}
    if found:
        found["control"] = {"sample_interval_s": 60.0 if hours else 10.0}
    return {**found, **({"repeat_s": hours * SECONDS_PER_HOUR} if hours else {})}
