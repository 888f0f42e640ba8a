"""Form fields that the URL restores; what the address asks for and cannot have is said beside the field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from catalogs.load import models

PRECISIONS = ("bf16", "fp16", "fp8", "int8", "int4-awq", "int4-gptq")
TP_SIZES = ("1", "2", "4", "8")
LONGEST_TEXT = 200  # letters that a field, or the URL, may hold
NOT_THERE = "The address asks for {0}, which there is not."


def decoders() -> list[str]:
    """Models that generate tokens, by name."""
    return sorted(name for name, model in models().items() if model.kind == "decoder")


def asked(key: str) -> str | None:
    """What the URL asks for; None: nothing."""
    found = st.query_params.get(key)
    return None if found is None else str(found)[:LONGEST_TEXT]


def choice(column: Any, label: str, options: Sequence[str], key: str, fallback: str, **settings: Any) -> str:
    """One of some names."""
    wanted = asked(key)
    start = wanted if wanted is not None and wanted in options else fallback
    found = column.selectbox(label, options, index=list(options).index(start) if start in options else 0,
                             key=f"field-{key}", **settings)  # fmt: skip
    if wanted is not None and wanted not in options:
        _beside(column, NOT_THERE.format("another one"))
    return str(found)


def several(column: Any, label: str, options: Sequence[str], key: str, fallback: str, **settings: Any) -> list[str]:
    """Some of some names; the URL separates them by commas."""
    wanted = asked(key)
    names = [x for x in (fallback if wanted is None else wanted).split(",") if x]
    found = column.multiselect(label, options, [x for x in names if x in options], key=f"field-{key}", **settings)
    if any(x not in options for x in names):
        _beside(column, NOT_THERE.format("names"))
    return [str(x) for x in found]


def number(column: Any, label: str, key: str, fallback: float, bounds: tuple[float, float], **settings: Any) -> float:
    """A number within its bounds."""
    low, high = bounds
    wanted = asked(key)
    try:
        value = fallback if wanted is None else float(wanted)
    except ValueError:
        value = math.nan
    inside = low <= value <= high
    start = value if inside else fallback if math.isnan(value) else min(high, max(low, value))
    found = float(column.number_input(label, low, high, start, key=f"field-{key}", **settings))
    if not inside:
        _beside(column, f"The address asks for what is outside {low:g} to {high:g}.")
    return found


def whole(column: Any, label: str, key: str, fallback: int, bounds: tuple[int, int], **settings: Any) -> int:
    """A whole number within its bounds."""
    low, high = bounds
    wanted = asked(key)
    readable = wanted is None or (wanted.isascii() and wanted.removeprefix("-").isdecimal() and len(wanted) < 16)
    value = fallback if wanted is None or not readable else int(wanted)
    start = min(high, max(low, value))
    found = int(column.number_input(label, low, high, start, step=1, key=f"field-{key}", **settings))
    if not readable or not low <= value <= high:
        _beside(column, f"The address asks for what is no whole number from {low:,} to {high:,}.")
    return found


def slider(column: Any, label: str, key: str, fallback: int, bounds: tuple[int, int], **settings: Any) -> int:
    """A whole number to slide; the URL restores it within its bounds."""
    low, high = bounds
    wanted = asked(key) or ""
    start = int(wanted) if wanted.isascii() and wanted.isdecimal() and len(wanted) < 12 else fallback
    start = min(high, max(low, start))
    found = int(column.slider(label, low, high, start, key=f"field-{key}", **settings))
    st.query_params[key] = str(found)
    return found


def factor(column: Any, label: str, key: str, stops: Sequence[float]) -> float:
    """A factor to slide between given stops, 1 among them; the URL restores the nearest of them."""
    try:
        wanted = float(asked(key) or 1.0)
    except ValueError:
        wanted = math.nan
    inside = stops[0] <= wanted <= stops[-1]
    start = min(stops, key=lambda stop: abs(stop - wanted)) if inside else 1.0
    found = column.select_slider(label, stops, start, key=f"field-{key}", format_func=lambda v: f"× {v:g}")
    if not inside:
        _beside(column, f"The address asks for what is outside {stops[0]:g} to {stops[-1]:g}.")
    return float(found)


def text(column: Any, label: str, key: str, fallback: str, **settings: Any) -> str:
    """A line of text."""
    wanted = asked(key)
    start = fallback if wanted is None else wanted
    return str(column.text_input(label, start, key=f"field-{key}", max_chars=LONGEST_TEXT, **settings))


def keep(values: Mapping[str, object]) -> None:
    """Write the view into the URL."""
    st.query_params.update({key: f"{v:g}" if isinstance(v, float) else str(v) for key, v in values.items()})


def _beside(column: Any, text: str) -> None:
    column.caption(f":material/warning: {text}")
