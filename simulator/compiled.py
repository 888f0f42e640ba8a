"""How the hot loop is compiled: once a machine, kept on disk, IEEE arithmetic, no Python wrappers inside."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])

SOURCES = (
    "compiled.py", "disaggregation.py", "event_heap.py", "feed.py", "handover.py", "kv_cache.py", "loop.py",
    "phases.py", "routing.py", "shared_prefix.py", "step_eval.py",
)  # fmt: skip
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "no_cfunc_wrapper": True, "nogil": True}
_NO_WRAPPER: dict[str, Any] = {"no_cpython_wrapper": True}


def _cache_folder() -> str:
    """Where compiled code is kept: a folder for this state of all the sources.

    Numba looks at a function's own file only, and would keep machine code whose callees have changed.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join((here / name).read_bytes() for name in SOURCES)).hexdigest()[:16]
    beside = here / "__pycache__"
    writable = os.access(beside if beside.exists() else here, os.W_OK)
    base = beside if writable else Path(tempfile.gettempdir()) / f"plan-compiled-{os.getuid()}"
    return str(base / f"compiled-{digest}")


if not os.environ.get("NUMBA_CACHE_DIR"):
    setattr(numba.config, "CACHE_DIR", _cache_folder())  # noqa: B010 - numba's stubs do not know it


def inner(function: F) -> F:
    """Compile a function that only compiled functions call."""
    compiled: F = njit(**_OPTIONS, **_NO_WRAPPER)(function)
    return compiled


def entry(function: F) -> F:
    """Compile a function that Python calls."""
    compiled: F = njit(**_OPTIONS)(function)
    return compiled
