"""Attention backends besides the engine's own: eager, memory-efficient (as xFormers), the first FlashAttention.

Fitted on one table of whole-prompt attention on an A100 (fxmarty/efficient-attention-benchmark): eager attention writes
its scores to memory and reads them back, ``score_bytes`` a score, and computes those that the causal mask then drops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from calibrate.families import FAMILIES, column
from calibrate.fit import accuracy, fit_physics, form_of, held_out, predict
from catalogs.errors import InputError
from catalogs.names import normalise, resolve
from catalogs.schema import Engine, Gpu
from catalogs.units import MILLISECONDS_PER_SECOND

# engine option ``attention_backend``, vLLM's names and plain ones: variant of the prefill kernels; "": the engine's own
BACKENDS: Mapping[str, str] = {
    "auto": "", "FLASH_ATTN": "", "FLASHINFER": "", "TRITON_ATTN": "", "flash_attention_2": "", "flash_attention_3": "",
    "eager": "eager", "TORCH_SDPA": "mem_efficient", "XFORMERS": "mem_efficient", "mem_efficient": "mem_efficient",
    "flash_attention_1": "flash1",
}  # fmt: skip
_COLUMNS = {"eager": "eager_ms", "mem_efficient": "sdpa_ms", "flash1": "flash_ms"}
_MASK_WASTE = {"eager": 2.0}  # of causal attention: half of what is computed is dropped


def backend_variant(engine: Engine) -> str:
    """Variant of the prefill kernels that an engine's ``attention_backend`` option asks for; "" for its own.

    Raises:
        InputError: unknown backend.
    """
    name = str(engine.options.get("attention_backend", "auto"))
    known = {normalise(k): v for k, v in BACKENDS.items()}
    if normalise(name) not in known:
        resolve(name, BACKENDS, "attention_backend", "engine.options")
        raise InputError(f"unknown attention_backend {name!r}")
    return known[normalise(name)]


def fit_backends(path: Path, gpu: Gpu) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters, errors) of each backend's prefill kernels, by variant.

    Args:
        path: table with batch, seqlen, headdim, nheads and one time in milliseconds a backend; nothing is masked.
    """
    table = pd.read_csv(path)
    family, form = FAMILIES["prefill_attention"], form_of("prefill_attention", "bf16")
    fits: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for variant, name in _COLUMNS.items():
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
        fits[variant] = fit | ({"mask_waste": _MASK_WASTE[variant]} if variant in _MASK_WASTE else {})
        errors[variant] = {**error, "basis": "held-out shapes on A100; elsewhere not checked"}
    return fits, errors
