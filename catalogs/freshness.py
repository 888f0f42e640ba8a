"""How old a price is, and when that is too old to plan on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import date

from catalogs.errors import InputError
from catalogs.schema import Price
from catalogs.tables import first_day

STALE_AFTER_DAYS = 30


def today() -> date:
    """Today, or the day in ``$PLAN_TODAY`` (for tests and for answers that must be repeated).

    Raises:
        InputError: ``$PLAN_TODAY`` is not a date.
    """
    given = os.environ.get("PLAN_TODAY")
    if not given:
        return date.today()
    try:
        return date.fromisoformat(given)
    except ValueError:
        raise InputError(f"{given!r} is not a date", where="$PLAN_TODAY", remedy="write it as 2026-07-20") from None


def age_days(as_of: str, on: date) -> int | None:
    """Days from the earliest day that ``as_of`` may mean to ``on``; ``None`` when ``as_of`` is no date."""
    start = first_day(as_of[:10])
    return None if start is None else (on - start).days


def is_stale(as_of: str, on: date, after_days: int = STALE_AFTER_DAYS) -> bool:
    """Whether a price is older than ``after_days``; one without a date always is."""
    age = age_days(as_of, on)
    return age is None or age > after_days


def stale_note(used: Iterable[Price], on: date, after_days: int = STALE_AFTER_DAYS) -> str | None:
    """One sentence for an answer that rests on old prices; ``None`` when all are fresh."""
    prices = list(used)
    old = [p for p in prices if is_stale(p.as_of, on, after_days)]
    if not old:
        return None
    oldest = min(p.as_of for p in old)
    return (
        f"{len(old)} of {len(prices)} prices are older than {after_days} days (the oldest is of {oldest}): "
        "`plan prices refresh` fetches today's."
    )
