"""Calibration: the profiles and what they rest on, their measured errors, and a model's kernels on the roofline."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from app.charts import Series
from app.cli.doctor import measured_accuracy
from app.web.parts import chart, command, error, heading, table
from catalogs.errors import PlanError
from catalogs.load import gpus, models
from catalogs.schema import Replica

PRECISIONS = ("bf16", "fp16", "fp8", "int8", "int4-awq", "int4-gptq")

heading("Calibration", "How long a step takes, what that rests on, and how wrong it may be.")


def show_profiles() -> None:
    """The shipped profiles and their origin."""
    from calibrate.profiles import shipped_profiles

    rows = [
        {"profile": p.name, "GPU": p.gpu, "source": p.source, "as of": p.as_of} for p in shipped_profiles().values()
    ]
    table(rows, "profiles")
    st.subheader("Predicted against measured")
    accuracy = measured_accuracy()
    if accuracy:
        table(accuracy, "accuracy")
    else:
        st.info("No accuracy table is shipped with this build; `make validation` computes it from published data.")
    command("plan calibrate list\nplan doctor")


def choose() -> tuple[Replica, int, int]:
    """The replica and the batch that the visitor looks at; kept in the URL."""
    from catalogs.load import resolve_engine
    from catalogs.schema import Engine, Replica

    query = st.query_params
    decoders = sorted(n for n, m in models().items() if m.kind == "decoder")
    names = sorted(gpus())
    a, b, c, d = st.columns(4)

    def pick(column: Any, label: str, options: list[str], key: str, fallback: str) -> str:
        wanted = query.get(key, fallback)
        index = options.index(wanted) if wanted in options else 0
        found = str(column.selectbox(label, options, index=index))
        query[key] = found
        return found

    model = models()[pick(a, "Model", decoders, "model", "llama-3.1-8b")]
    gpu = gpus()[pick(b, "GPU", names, "gpu", "H100-SXM")]
    precision = pick(c, "Precision", list(PRECISIONS), "precision", "bf16")
    tp = int(pick(d, "Tensor parallel size", ["1", "2", "4", "8"], "tp", "1"))
    batch = st.slider("Sequences at once", 1, 512, 64)
    context = st.slider("Tokens of context in each", 128, 32768, 1024, step=128)
    engine = resolve_engine(Engine(), model, gpu)
    return Replica(model, gpu, tensor_parallel_size=tp, precision=precision, engine=engine), batch, context


def show_roofline(replica: Replica, batch: int, context: int) -> None:
    """Memory, the parts of a decode step on the roofline, and the bottleneck in words."""
    from calibrate.bottleneck import decode_shape, explain_bottleneck, step_cost
    from calibrate.memory import memory_plan
    from calibrate.profiles import best_profile

    profile = best_profile(replica)
    plan = memory_plan(replica, profile)
    context = min(context, plan.max_model_len or context)
    cost = step_cost(replica, profile, decode_shape(batch, context))
    bottleneck, why = explain_bottleneck(cost, plan, replica, batch, float(context))
    a, b, c = st.columns(3)
    a.metric("Step (ms)", f"{1e3 * cost.seconds:.2f}")
    b.metric("Output tokens a second", f"{batch / cost.seconds:,.0f}")
    c.metric("KV tokens that fit", f"{plan.num_kv_tokens:,}")
    st.markdown(f"**Bottleneck: {bottleneck}.** {why}.")
    st.caption(f"Profile: {profile.name} ({profile.source}).")
    x = np.geomspace(min(0.5, cost.intensity / 4), 4 * max(cost.ridge, cost.intensity), 60)
    roof = np.minimum(cost.peak_flops, x * cost.bandwidth_bytes_per_s) / 1e12
    points = [
        Series(p.name, [p.flops / p.num_bytes], [p.flops / p.seconds / 1e12], "points")
        for p in cost.parts
        if p.flops and p.num_bytes
    ]
    roofline = Series("roofline (data sheet)", x, roof, "line", "#999999")
    chart(
        "roofline", "Each part of the step against the data sheet's roofline: the lower it lies, the more is lost.",
        [roofline, *points], "FLOP per byte of DRAM traffic", "TFLOP/s", log_x=True, log_y=True,
    )  # fmt: skip
    table([{"part": p.name, "GiB": p.num_bytes / 2**30, "source": p.source, "rests on": p.note} for p in plan.parts],
          "memory")  # fmt: skip
    command(
        f"plan estimate {replica.model.name} --gpu {replica.gpu.name} --tp {replica.tensor_parallel_size} "
        f"--precision {replica.precision} --batch {batch} --context {context}"
    )


look, rest = st.tabs(["A model on a GPU", "Profiles and their errors"])
with look:
    try:
        show_roofline(*choose())
    except PlanError as problem:
        error(problem)
with rest:
    try:
        show_profiles()
    except PlanError as problem:
        error(problem)
