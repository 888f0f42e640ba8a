"""How the hot loop is compiled: once a machine, kept on disk, IEEE arithmetic, no Python wrappers inside."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba import njit
from numba.core import types

F = TypeVar("F", bound=Callable[..., Any])

SOURCES = (
    "engine/adapters.py", "engine/compiled.py", "engine/course.py", "engine/decoding.py", "engine/disaggregation.py",
    "engine/draws.py", "engine/engine_state.py", "engine/event_heap.py", "engine/feed.py", "engine/front_end.py",
    "engine/handover.py", "engine/kv_cache.py", "engine/kv_tiers.py", "engine/lockstep.py", "engine/loop.py",
    "engine/packed.py", "engine/policies.py", "engine/preemption.py", "engine/prefilling.py", "engine/routing.py",
    "engine/speculation.py", "engine/static_batches.py", "engine/step_eval.py", "engine/swapping.py",
    "engine/transfers.py", "engine/waiting.py", "workload/shared_prefix.py",
)  # fmt: skip
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "no_cfunc_wrapper": True, "nogil": True}
_NO_WRAPPER: dict[str, Any] = {"no_cpython_wrapper": True}


def _cache_folder() -> str | None:
    """Where compiled code is kept: a folder for this state of all the sources; None where nothing can be written.

    Numba looks at a function's own file only, and would keep machine code whose callees have changed.
    """
    here = Path(__file__).parents[1]
    digest = hashlib.sha256(b"".join((here / name).read_bytes() for name in SOURCES)).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpu-capacity-planner"
    shared = Path(os.environ.get("TMPDIR") or "/tmp") / f"plan-compiled-{os.getuid()}"
    folder = next((f for f in (here / "__pycache__", home, shared) if _is_ours(f)), None)
    return str(folder / f"compiled-{digest}") if folder else None


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can have put code there: it is loaded as it lies."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not others_write
    return ours and os.access(folder, os.W_OK)


if not os.environ.get("NUMBA_CACHE_DIR"):
    _folder = _cache_folder()
    _OPTIONS["cache"] = _folder is not None
    setattr(numba.config, "CACHE_DIR", _folder or "")  # noqa: B010 - numba's stubs do not know it


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
