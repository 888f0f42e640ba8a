"""The fit of attention backends that no engine's tables have, on one table of an A100 (see ``backends.py``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from calibrate.fitting.families import FAMILIES, column
from calibrate.fitting.fit import accuracy, fit_physics, form_of, held_out, predict
from catalogs.schema import Gpu
from catalogs.units import MILLISECONDS_PER_SECOND

COLUMNS = {"eager": "eager_ms", "mem_efficient": "sdpa_ms", "flash1": "flash_ms"}
MASK_WASTE = {"eager": 2.0}  # of causal attention: half of what is computed is dropped


def fit_backends(path: Path, gpu: Gpu) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters, errors) of each backend's prefill kernels, by variant.

    Args:
        path: table with batch, seqlen, headdim, nheads and one time in milliseconds a backend; nothing is masked.
    """
    table = pd.read_csv(path)
    family, form = FAMILIES["prefill_attention"], form_of("prefill_attention", "bf16")
    fits: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for variant, name in COLUMNS.items():
        rows = pd.DataFrame(
            {
                "batch": table["batch"], "query_tokens": table["seqlen"], "context_tokens": table["seqlen"] / 2,
                "num_heads": table["nheads"], "num_kv_heads": table["nheads"], "head_dim": table["headdim"],
                "window": 0.0, "kv_bytes": 2.0, "time_s": table[name] / MILLISECONDS_PER_SECOND,
            }
        )  # fmt: skip
        start = {**family.start, "launch_s": (4e-5, 1e-6, 3e-4)}
        if variant == "eager":
            start["score_bytes"] = (16.0, 1.0, 100.0)
        own = replace(family, start=start)
        unseen = held_out(rows, ("query_tokens", "num_heads", "head_dim"))
        fit: dict[str, Any] = fit_physics(own, form, [(gpu, rows[~unseen])])
        error = accuracy(predict(own, gpu, form, rows[unseen], fit), column(rows[unseen], "time_s"))
        fits[variant] = fit | ({"mask_waste": MASK_WASTE[variant]} if variant in MASK_WASTE else {})
        errors[variant] = {**error, "basis": "held-out shapes on A100; elsewhere not checked"}
    return fits, errors
