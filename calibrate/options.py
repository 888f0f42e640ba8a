"""Techniques beyond an engine's common core: numbers in ``Engine.options``, checked where they are read."""

from __future__ import annotations

import math

from catalogs.errors import InputError
from catalogs.schema import Engine

RECOMPUTATION = ("none", "selective", "full")


def recomputation_of(engine: Engine) -> str | None:
    """The ``activation_recomputation`` option: what is computed again of a step's activations; None: none are kept.

    Raises:
        InputError: another word, or ``activation_checkpoint_layers`` beside it.
    """
    given = engine.options.get("activation_recomputation")
    if given is None:
        return None
    if given not in RECOMPUTATION:
        raise InputError(f"activation_recomputation is {given!r}", where="engine.activation_recomputation",
                         remedy=" or ".join(RECOMPUTATION))  # fmt: skip
    if "activation_checkpoint_layers" in engine.options:
        raise InputError("activation_recomputation beside activation_checkpoint_layers", where="engine",
                         why="both say which activations are computed again", remedy="one of them")  # fmt: skip
    return str(given)


def number_option(engine: Engine, name: str, default: float, low: float = 0.0, high: float = math.inf) -> float:
    """The value of an option, or ``default`` where it is not given.

    Raises:
        InputError: it is no number between ``low`` and ``high``.
    """
    given = engine.options.get(name)
    if given is None:
        return default
    try:
        value = float(str(given))
    except ValueError:
        value = math.nan
    if isinstance(given, bool) or not low <= value <= high or math.isinf(value):
        span = f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"
        raise InputError(f"{name} is {given!r}", where=f"engine.{name}", remedy=f"a number, {span}")
    return value
