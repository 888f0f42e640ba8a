"""A task that any pool may run: a function of one argument, and its result or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from catalogs.errors import PlanError

Function = Callable[[Any], Any]


@dataclass(frozen=True)
class Failure:
    """Why a task has no result: words for people, and the kind of error."""

    what: str
    kind: str


@dataclass(frozen=True)
class Done:
    """A task's number, and its result or ``Failure``."""

    number: int
    result: Any


def attempt(function: Function, task: Any) -> Any:
    """The function's result, or its ``Failure``: an exception in a worker is an answer, not an end."""
    try:
        return function(task)
    except PlanError as error:
        return Failure(str(error), type(error).__name__)
    except MemoryError:
        return Failure("out of memory", "MemoryError")
    except Exception as error:
        return Failure(f"this is a fault of ours: {type(error).__name__}: {error}", type(error).__name__)
