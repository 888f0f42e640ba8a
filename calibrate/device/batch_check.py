"""Whole steps of the measured decoder against what a fitted profile says they take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from calibrate.device.measurements import MeasurementFile
from calibrate.device.probe import measured_gpu
from calibrate.profiles import Profile
from calibrate.step import StepShape
from calibrate.step_time import OVERHEAD_KEYS, step_model
from catalogs.errors import MissingError
from catalogs.schema import Engine, Model, Replica


def check_steps(held: MeasurementFile, profile: Profile) -> list[dict[str, Any]]:
    """Predicted and measured seconds of every step in a file, none of which the profile was fitted on.

    Steps run as CUDA graphs are left out where the same step also ran eagerly: a profile's kernels are timed apart.

    Raises:
        MissingError: the file holds no steps, or does not say of which decoder.
    """
    shape = held.header.get("decoder_model")
    steps = [p for p in held.family("step") if not p.variant.endswith("/graph")]
    if not steps or not shape:
        raise MissingError(
            "no whole steps in the file",
            where=held.path,
            why="they are what a profile is checked on",
            remedy="measure without --no-batches: plan calibrate run",
        )
    dtype = steps[0].dtype
    kv = "fp32" if dtype == "fp32" else "auto"
    replica = Replica(
        Model(**shape), measured_gpu(held.header, held.path), precision=dtype, kv_cache_dtype=kv, engine=Engine("none")
    )
    none = dict.fromkeys(OVERHEAD_KEYS, 0.0)  # the timed steps have no engine around them
    model = step_model(replica, replace(profile, engine_overheads={"none": none}))
    rows = []
    for point in steps:
        s = point.shape
        told = model.step_time_s(
            StepShape(
                int(s["num_prefill_tokens"]),
                float(s["prefill_mean_context"]),
                int(s["num_decode"]),
                float(s["decode_mean_context"]),
                int(s["num_sampled"]),
            )
        )
        error = told / point.median_s - 1.0
        rows.append(
            {**{k: int(v) for k, v in s.items()}, "measured_s": point.median_s, "predicted_s": told, "error": error}
        )
    return rows


def summarise_errors(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Median, 90th percentile and worst absolute error."""
    sizes = np.abs([row["error"] for row in rows])
    return {"median": float(np.median(sizes)), "p90": float(np.quantile(sizes, 0.9)), "worst": float(sizes.max())}
