"""Techniques beyond an engine's common core: numbers in ``Engine.options``, checked where they are read."""

from __future__ import annotations

import math

from catalogs.errors import InputError
from catalogs.schema import Engine


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
