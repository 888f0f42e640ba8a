"""How the hot loop is compiled: once a machine, kept on disk, IEEE arithmetic, no Python wrappers inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "no_cfunc_wrapper": True, "nogil": True}
_NO_WRAPPER: dict[str, Any] = {"no_cpython_wrapper": True}


def inner(function: F) -> F:
    """Compile a function that only compiled functions call."""
    compiled: F = njit(**_OPTIONS, **_NO_WRAPPER)(function)
    return compiled


def entry(function: F) -> F:
    """Compile a function that Python calls."""
    compiled: F = njit(**_OPTIONS)(function)
    return compiled
