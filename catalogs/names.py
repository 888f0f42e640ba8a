"""Names as people write them: case, spaces and punctuation do not count; the unknown is refused with the nearest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from catalogs.errors import InputError


@lru_cache(maxsize=10_000)
def normalise(name: str) -> str:
    """Lower case, letters and digits only: ``"RTX PRO-6000"`` and ``"RTX-PRO-6000"`` become ``"rtxpro6000"``."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def nearest(name: str, known: Iterable[str], num: int = 3, cutoff: float = 0.3) -> list[str]:
    """The known names closest to ``name``, best first; those that begin with it before all others.

    Args:
        name: as it was written.
        known: what it may mean.
        num: at most so many.
        cutoff: share of the characters that must agree, 0 to 1.
    """
    by_key = {normalise(k): k for k in known}
    key = normalise(name)
    family = [k for k in by_key if len(key) > 2 and k.startswith(key)]
    close = difflib.get_close_matches(key, by_key, n=num + len(family), cutoff=cutoff)
    return [by_key[k] for k in [*family, *(k for k in close if k not in family)][:num]]


def nearest_file(path: Path) -> str:
    """``did you mean FOLDER/NAME?`` for a file that is not there, or nothing where no neighbour's name is close."""
    folder = path.parent if path.parent.is_dir() else Path()
    try:
        names = [p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")][:1000]
    except OSError:  # a folder that may not be listed
        return ""
    close = nearest(path.name, names, num=1, cutoff=0.6)
    return f"did you mean {folder / close[0]}?" if close else ""


def resolve(name: str, known: Iterable[str], kind: str, where: str = "") -> str:
    """The known name that ``name`` means.

    Raises:
        InputError: no known name matches; the message gives the nearest.
    """
    names = list(known)
    by_key = {normalise(k): k for k in names}
    found = by_key.get(normalise(name))
    if found is not None:
        return found
    close = nearest(name, names)
    remedy = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(names)[:12])}"
    raise InputError(f"unknown {kind} {name!r}", where=where, remedy=remedy)
