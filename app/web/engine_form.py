"""The engine's settings beyond its defaults, as fields that make a scenario's ``engine:`` keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app.web.fields import choice, decoders, keep, number, whole
from simulator.scenario.technique_spec import BACKENDS, METHODS

DEFAULT, NONE = "default", "none"
SWITCH: Mapping[str, bool] = {"on": True, "off": False}
GIB_BOUNDS = (0.0, 100_000.0)


def form(framework: str) -> tuple[dict[str, Any], str]:
    """The engine's keys beside ``framework``, and the KV cache's dtype; fields left alone add none."""
    with st.expander("The engine: batch, memory, prefix caching, speculation, swap, KV offload", expanded=_asked()):
        found, dtype = _limits()
        return {**found, **_speculation(framework), **_memory_tiers(framework)}, dtype


def _asked() -> bool:
    query, plain = st.query_params, ("", "0", "0.0", DEFAULT, NONE, "auto")
    keys = ("max_num_seqs", "max_num_batched_tokens", "gpu_memory", "prefix_caching", "kv_dtype", "speculation",
            "preemption", "offload_gib")  # fmt: skip
    return any(query.get(key, "") not in plain for key in keys)


def _limits() -> tuple[dict[str, Any], str]:
    a, b, c, d, e = st.columns(5, vertical_alignment="bottom")
    seqs = whole(a, "Sequences at once (0: default)", "max_num_seqs", 0, (0, 100_000))
    tokens = whole(b, "Tokens a step (0: default)", "max_num_batched_tokens", 0, (0, 1_000_000))
    share = number(c, "Share of GPU memory (0: default)", "gpu_memory", 0.0, (0.0, 1.0), format="%.2f", step=0.05)
    caching = choice(d, "Prefix caching", (DEFAULT, *SWITCH), "prefix_caching", DEFAULT)
    dtype = choice(e, "KV cache", ("auto", "fp8"), "kv_dtype", "auto")
    keep({"max_num_seqs": seqs, "max_num_batched_tokens": tokens, "gpu_memory": share, "prefix_caching": caching,
          "kv_dtype": dtype})  # fmt: skip
    given = {"max_num_seqs": seqs, "max_num_batched_tokens": tokens, "gpu_memory_utilization": share}
    found: dict[str, Any] = {key: value for key, value in given.items() if value}
    if caching in SWITCH:
        found["enable_prefix_caching"] = SWITCH[caching]
    return found, dtype


def _speculation(framework: str) -> dict[str, Any]:
    a, b, c, d = st.columns(4, vertical_alignment="bottom")
    method = choice(a, "Speculation", (NONE, *METHODS.get(framework, ())), "speculation", NONE)
    tokens = whole(b, "Tokens guessed a step", "spec_tokens", 3, (1, 64))
    rate = number(c, "Share of guesses accepted", "spec_accept", 0.7, (0.0, 1.0), format="%.2f", step=0.05,
                  help="Assumed: it is the workload's and the drafter's own. Measure it.")  # fmt: skip
    drafter = choice(d, "Drafter (for draft)", decoders(), "spec_model", "llama-3.1-8b")
    keep({"speculation": method, "spec_tokens": tokens, "spec_accept": rate, "spec_model": drafter})
    if method == NONE:
        return {}
    found = {"method": method, "num_speculative_tokens": tokens, "acceptance_rate": rate}
    return {"speculative": {**found, **({"draft_model": drafter} if method == "draft" else {})}}


def _memory_tiers(framework: str) -> dict[str, Any]:
    a, b, *_ = st.columns(4, vertical_alignment="bottom")
    c, d, e, f = st.columns(4, vertical_alignment="bottom")
    mode = choice(a, "Preemption", (DEFAULT, "recompute", "swap"), "preemption", DEFAULT)
    swap = number(b, "Swap space (GiB; 0: default)", "swap_gib", 0.0, GIB_BOUNDS, format="%.1f")
    host = number(c, "KV offload to host (GiB; 0: none)", "offload_gib", 0.0, GIB_BOUNDS, format="%.1f")
    disk = number(d, "and to disk (GiB)", "offload_disk_gib", 0.0, GIB_BOUNDS, format="%.1f")
    speed = number(e, "The disk reads (GB/s)", "disk_gb_per_s", 3.0, (0.01, 1000.0), format="%.1f")
    backend = choice(f, "Offload by", (DEFAULT, *BACKENDS.get(framework, ())), "offload_by", DEFAULT)
    keep({"preemption": mode, "swap_gib": swap, "offload_gib": host, "offload_disk_gib": disk, "disk_gb_per_s": speed,
          "offload_by": backend})  # fmt: skip
    found: dict[str, Any] = {}
    if mode != DEFAULT:
        found["preemption_mode"] = mode
    if swap:
        found["swap_space_gib"] = swap
    if host:
        found["kv_offload"] = {
            "cpu_gib": host, **({"disk_gib": disk, "disk_gb_per_s": speed} if disk else {}),
            **({"backend": backend} if backend != DEFAULT else {}),
        }  # fmt: skip
    return found
