"""Exchanges between GPUs that were timed apart from any kernel table: ``measured_links.csv``, each row with its source.

``chunk_bytes`` is what NCCL's benchmarks call the size: all of an all-reduce, one GPU's part of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calibrate.fitting.families import FAMILIES
from calibrate.fitting.fit import fit_family, fit_physics, form_of, valid_range
from catalogs.schema import Gpu
from catalogs.units import MICROSECONDS_PER_SECOND

MEASURED = Path(__file__).with_name("measured_links.csv")
# The gather's ring turned round is the scatter: one fit serves both.
FAMILY_OF = {"all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "all_gather"}


def fit_links(document: dict[str, Any], gpu: Gpu, base: Mapping[str, Any]) -> dict[str, Any]:
    """Refit a carried profile's exchanges to what was timed between such GPUs; a GPU without rows stays as it is.

    Args:
        document: the profile's JSON form, changed in place. base: the profile that it is carried from, whose start-up
            for each further GPU stands where all rows are of one number of GPUs.
    """
    rows = pd.read_csv(MEASURED)
    rows = rows[rows["gpu"] == gpu.name]
    rows = rows.assign(
        family=rows["collective"].map(FAMILY_OF),
        bytes=rows["chunk_bytes"] * np.where(rows["collective"] == "all_reduce", 1, rows["num_gpus"]),
        time_s=rows["time_us"] / MICROSECONDS_PER_SECOND,
    )
    for (name, link), frame in rows.groupby(["family", "link"]):
        family, variants = FAMILIES[str(name)], dict(base["families"][name])
        _, error = fit_family(str(name), str(link), gpu, frame)
        fit: dict[str, Any] = dict(fit_physics(family, form_of(str(name), str(link)), [(gpu, frame)]))  # few: on all
        fit["valid_range"] = valid_range(family, frame)
        if frame["num_gpus"].nunique() == 1:
            further = int(frame["num_gpus"].iloc[0]) - 1
            start_s = fit["launch_s"] + fit["hop_s"] * further
            fit["hop_s"] = min(variants[link]["hop_s"], start_s / (further + 1))
            fit["launch_s"] = float(f"{start_s - fit['hop_s'] * further:.4g}")
        document["families"][name] = {**variants, link: fit}
        document["error"].setdefault(name, {})[link] = error
    for source in rows["source"].unique():
        document["source"] += f"; exchanges fitted on {source}"
    return document
