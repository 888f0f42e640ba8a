"""Calibration: the profiles and what they rest on, their measured errors, and a model's kernels on the roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from app.web.calibration_charts import compared_figure, errors_figure, kernels, roofline_figure, step_figure
from app.web.fields import PRECISIONS, TP_SIZES, choice, decoders, keep, slider
from app.web.parts import begin, command, drawing, heading, outcome, table, tabs, words
from calibrate.profile_error import measured_accuracy
from catalogs.errors import InputError
from catalogs.load import gpus, models, resolve_engine
from catalogs.schema import Engine, Replica

MAX_TABLE_BYTES = 20 * 1024 * 1024

heading("Calibration", "How long a step takes, what that rests on, and how wrong it may be.")


def replica_of() -> tuple[Replica, int, int]:
    """The replica and the batch that the visitor looks at; kept in the URL."""
    a, b, c, d = st.columns(4)
    model = choice(a, "Model", decoders(), "model", "llama-3.1-8b")
    gpu = choice(b, "GPU", sorted(gpus()), "gpu", "H100-SXM")
    precision = choice(c, "Precision", PRECISIONS, "precision", "bf16")
    size = choice(d, "Tensor parallel size", TP_SIZES, "tp", "1")
    keep({"model": model, "gpu": gpu, "precision": precision, "tp": size})
    e, f = st.columns(2)
    batch = slider(e, "Sequences at once", "batch", 64, (1, 512))
    context = slider(f, "Tokens of context in each", "context", 1024, (128, 32768), step=128)
    engine = resolve_engine(Engine(), models()[model], gpus()[gpu])
    return (Replica(models()[model], gpus()[gpu], tensor_parallel_size=int(size), precision=precision, engine=engine),
            batch, context)  # fmt: skip


def look() -> None:
    """A decode step of a model on a GPU: its time and error, the roofline, its parts, the memory."""
    from calibrate.bottleneck import decode_shape, explain_bottleneck, step_cost
    from calibrate.memory import memory_plan
    from calibrate.profile_error import replica_error
    from calibrate.profiles import best_profile
    from planner.capacity.confidence import step_error

    replica, batch, context = replica_of()
    profile = best_profile(replica)
    plan = memory_plan(replica)
    context = min(context, plan.max_model_len or context)
    cost = step_cost(replica, profile, decode_shape(batch, context))
    bottleneck, why = explain_bottleneck(cost, plan, replica, batch, float(context))
    errors = replica_error(replica, profile)
    a, b, c, d = st.columns(4)
    a.metric("Step (ms)", f"{1e3 * cost.seconds:.2f}")
    b.metric("Its error, median", f"± {step_error(errors):.1%}")
    c.metric("Output tokens a second", f"{batch / cost.seconds:,.0f}")
    d.metric("KV tokens that fit", f"{plan.num_kv_tokens:,}")
    st.markdown(f"**Bottleneck: {bottleneck}.** {words(why)}.")
    st.caption(f"Profile: {words(profile.name)} ({words(profile.source)}).")
    drawing("roofline", "Each part of the step against the data sheet's roofline: the lower it lies, the more is lost.",
            roofline_figure(cost), kernels(cost))  # fmt: skip
    drawing("step", "Where the step's time goes; the colours are those of what bounds each part.", step_figure(cost),
            kernels(cost))  # fmt: skip
    rows = [{"name": f"{family} ({e.get('variant', '')})", "median": e["median"], "p90": e["p90"], "fit": "unseen",
             "rests on": e.get("basis", ""), "outside the fit": "; ".join(e.get("outside", []))}
            for family, e in errors.items() if e.get("median") and e.get("p90")]  # fmt: skip
    if rows:
        drawing("kernel-errors", "How wrong each kernel's time may be, on shapes that the fit did not see; wider where "
                "this model lies outside what was measured.", errors_figure(rows), rows)  # fmt: skip
    else:
        st.caption("No error is known for these kernels: nobody measured them on this GPU.")
    st.header("Memory")
    table([{"part": p.name, "GiB": p.num_bytes / 2**30, "source": p.source, "rests on": p.note} for p in plan.parts],
          "memory")  # fmt: skip
    command(
        f"plan estimate {replica.model.name} --gpu {replica.gpu.name} --tp {replica.tensor_parallel_size} "
        f"--precision {replica.precision} --batch {batch} --context {context}"
    )


def profiles() -> None:
    """The shipped profiles, where each comes from, and the errors of one of them."""
    from calibrate.profiles import shipped_profiles

    shipped = shipped_profiles()
    table([{"profile": p.name, "GPU": p.gpu, "source": p.source, "as of": p.as_of} for p in shipped.values()],
          "profiles")  # fmt: skip
    name = choice(st, "Look into", list(shipped), "profile", "h100-sxm")
    keep({"profile": name})
    one = shipped[name]
    st.markdown(f"**{words(one.name)}** · {words(one.gpu)} · {words(one.source)} · {one.as_of}")
    st.caption(words(one.method or "no method is noted"))
    rows = [{"name": f"{family} ({variant})", "median": e["median"], "p90": e["p90"], "fit": "unseen",
             "points": e.get("num_points"), "basis": e.get("basis", "")}
            for family, variants in one.error.items() for variant, e in variants.items()
            if e.get("median") and e.get("p90")]  # fmt: skip
    if rows:
        drawing("profile-errors", "Errors of the profile's kernels on held-out shapes, from median to 90th percentile.",
                errors_figure(rows), rows)  # fmt: skip
    else:
        st.caption("Nothing of it was checked against measurements on this GPU: it stands on the data sheet.")
    command(f"plan calibrate list\nplan calibrate show {name}")


def accuracy() -> None:
    """Errors of whole predictions against published measurements, and against the visitor's own."""
    rows = measured_accuracy()
    shown = [{"name": r["metric"], "group": r["what"], **r} for r in rows if r.get("median") and r.get("what")]
    if shown:
        drawing("accuracy", "Predicted against published measurements: relative error from median to 90th percentile, "
                "on points that the fit saw (fitted) and on points that it did not (unseen).",
                errors_figure(shown), rows)  # fmt: skip
    st.header("Against your own measurements")
    uploaded = st.file_uploader(
        "Measured figures", help="A tidy .csv of serving points (gpu, tp, model, precision, framework, isl, osl, "
        "concurrency_or_rate, metric, value, unit, notes), or what `plan calibrate run` wrote (.jsonl).",
    )  # fmt: skip
    if uploaded is not None and st.button("Predict them", type="primary"):
        suffix = Path(uploaded.name).suffix.lower()
        if suffix not in (".csv", ".jsonl"):
            raise InputError("this is no table of measurements", where="upload", remedy="a .csv or a .jsonl file")
        if uploaded.size > MAX_TABLE_BYTES:
            raise InputError("the table is larger than 20 MB", where="upload", remedy="`plan calibrate validate`")
        begin("validate", "Predicting", uploaded.getvalue(), suffix)
    found = outcome("validate")
    if found is not None:
        show_compared(*found)
    command("plan calibrate validate best measured.csv --plot errors.svg\nplan doctor")


def show_compared(compared: list[Any], notes: list[str]) -> None:
    """A scatter a metric, and the errors."""
    from calibrate.fitting.validate import summarise

    if not compared:
        raise InputError("no point that can be predicted", where="upload", why="; ".join(notes[:3]))
    for metric in dict.fromkeys(c.metric for c in compared):
        drawing(f"compared-{metric}", f"Predicted against measured {metric}; on the line they are equal.",
                compared_figure(compared, metric),
                [vars(c) | {"error": c.error} for c in compared if c.metric == metric])  # fmt: skip
    table([vars(s) for s in summarise(compared, by_group=False)], "errors")


tabs({"A model on a GPU": look, "Profiles": profiles, "Predicted against measured": accuracy}, "tabs-calibration")
