"""What the tests of pools and sweeps run in workers; it must be importable there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from catalogs.errors import InputError
from simulator.sweep import Point


def square(task: int) -> int:
    return task * task


def picky(task: int) -> int:
    """Refuses 3, breaks on 5, dies on 7."""
    if task == 3:
        raise InputError("three is refused", remedy="two")
    if task == 5:
        raise ZeroDivisionError("five")
    if task == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def slow_answer(point: Point) -> dict[str, Any]:
    """Notes that it ran, when and in which process, in the folder that the point names, and takes a while."""
    folder = Path(point.overrides["folder"])
    (folder / f"{time.monotonic_ns()}-{os.getpid()}-{point.number}").touch()
    time.sleep(point.overrides.get("takes_s", 0.0))
    return {"ttft_s": {"mean": float(point.number)}, "requests": {"completed": point.number}}


def note_process(folder: str) -> int:
    """Leaves the worker's process id in a folder."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(0.05)
    return os.getpid()
