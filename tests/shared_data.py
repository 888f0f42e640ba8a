"""Where the published measurements are that tests fit on and check against; they are not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data(relative: str) -> Path:
    """The path of a file of ``../shared/data`` (or of ``PLAN_SHARED_DATA``); skips the test where it is absent."""
    root = Path(os.environ.get("PLAN_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    path = root / relative
    if not path.exists():
        pytest.skip(f"{relative} is not here (looked in {root}; PLAN_SHARED_DATA names another place)")
    return path
