"""The form of a synthetic load: the keys of a scenario's workload section as fields, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from app.web.fields import choice, keep, number, whole


@dataclass(frozen=True)
class Field:
    """One key of the form: its label with the unit, where it starts, and its bounds (whole ones for whole numbers)."""

    label: str
    start: float
    low: float
    high: float


FIELDS: Mapping[str, Field] = {
    "rate_rps": Field("Mean rate (requests/s)", 5.0, 0.001, 100_000.0),
    "cv": Field("Variation of the gaps (cv)", 2.0, 0.01, 50.0),
    "peak_to_mean": Field("Peak over mean", 1.6, 1.0, 2.0),
    "period_s": Field("Period (s)", 86_400.0, 1.0, 31_536_000.0),
    "num_requests": Field("Requests", 5000, 1, 200_000),
    "value": Field("tokens", 256, 1, 1_000_000),
    "low": Field("least tokens", 50, 0, 1_000_000),
    "high": Field("most tokens", 400, 1, 1_000_000),
    "mean": Field("mean tokens", 800.0, 1.0, 1_000_000.0),
    "length_cv": Field("variation (cv)", 0.9, 0.0, 20.0),
    "mean_turns": Field("Turns of a conversation, mean", 4.0, 1.0, 10.0),
    "think_time_s": Field("Pause between turns (s)", 30.0, 0.0, 86_400.0),
    "tokens": Field("System prompt (tokens)", 1000, 1, 1_000_000),
    "num": Field("System prompts", 5, 1, 100_000),
}
PROCESSES: Mapping[str, tuple[str, ...]] = {
    "poisson": ("rate_rps", "num_requests"),
    "gamma": ("rate_rps", "cv", "num_requests"),
    "diurnal": ("rate_rps", "peak_to_mean", "period_s", "num_requests"),
    "constant": ("rate_rps", "num_requests"),
}
LENGTHS: Mapping[str, tuple[str, ...]] = {
    "lognormal": ("mean", "length_cv"), "fixed": ("value",), "uniform": ("low", "high"),
}  # fmt: skip
EXTRAS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "sessions": ("Conversations, whose turns share what was said before", ("mean_turns", "think_time_s")),
    "system_prompts": ("System prompts that many requests begin with", ("tokens", "num")),
}
MEAN_OUTPUT_TOKENS = 200.0


def form() -> tuple[dict[str, Any], int]:
    """The workload section that the fields describe, and its seed; the URL restores them."""
    kept: dict[str, object] = {}
    a, *rest = st.columns(5)
    process = choice(a, "Arrivals", list(PROCESSES), "process", "poisson")
    kept["process"] = process
    spec: dict[str, Any] = {"arrivals": {"process": process, **_values(rest, PROCESSES[process], "", kept)}}
    for side, start in (("input", None), ("output", MEAN_OUTPUT_TOKENS)):
        a, *rest = st.columns(5)
        kind = choice(a, f"{side.capitalize()} lengths", list(LENGTHS), f"{side}_lengths", "lognormal")
        kept[f"{side}_lengths"] = kind
        starts = {} if start is None else {"mean": start}
        spec[f"{side}_tokens"] = {
            "distribution": kind, **_values(rest, LENGTHS[kind], f"{side}_", kept, starts, f"{side.capitalize()}: ")
        }  # fmt: skip
    for key, (label, names) in EXTRAS.items():
        a, *rest = st.columns([2, 1, 1])
        kept[key] = "1" if a.checkbox(label, st.query_params.get(key) == "1") else ""
        if kept[key]:
            spec[key] = _values(rest, names, "", kept)
    seed = whole(st.columns(5)[0], "Seed", "seed", 0, (0, 2**31 - 1), help="Same seed, same requests.")
    keep({**kept, "seed": seed})
    return spec, seed


def _values(
    columns: list[Any], names: tuple[str, ...], prefix: str, kept: dict[str, object],
    starts: Mapping[str, float] | None = None, before: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The fields of some keys, side by side."""
    found: dict[str, Any] = {}
    for column, name in zip(columns, names, strict=False):
        one, key = FIELDS[name], prefix + name
        start = (starts or {}).get(name, one.start)
        if isinstance(one.low, int):
            value: float = whole(column, before + one.label, key, int(start), (one.low, int(one.high)))
        else:
            value = number(column, before + one.label, key, start, (one.low, one.high))
        found[name.removeprefix("length_")] = kept[key] = value
    return found
