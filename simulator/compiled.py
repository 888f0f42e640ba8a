"""How the hot loop is compiled: once a machine, kept on disk, IEEE arithmetic, no Python wrappers inside."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba import njit
from numba.core import types

F = TypeVar("F", bound=Callable[..., Any])

SOURCES = (
    "compiled.py", "decoding.py", "engine_state.py", "feed.py", "kv_cache.py", "kv_tiers.py", "loop.py", "packed.py",
    "preemption.py", "prefilling.py", "routing.py", "shared_prefix.py", "speculation.py", "step_eval.py",
    "swapping.py", "waiting.py",
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
    compiled: F = _for_any_constant(njit(**_OPTIONS, **_NO_WRAPPER)(function))
    return compiled


def entry(function: F) -> F:
    """Compile a function that Python calls."""
    compiled: F = _for_any_constant(njit(**_OPTIONS)(function))
    return compiled


def _for_any_constant(dispatcher: Any) -> Any:
    """Compile one body for all constants that a function is called with: numba would compile one for each."""
    template_for, unliteral = dispatcher.get_call_template, cast(Any, types).unliteral

    def plainly(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        return template_for(tuple(map(unliteral, args)), {name: unliteral(kind) for name, kind in kws.items()})

    dispatcher.get_call_template = plainly
    return dispatcher
