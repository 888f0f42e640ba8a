"""The optional packages: what each extra of this project brings, and the command that installs it here."""

from __future__ import annotations

import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

PROJECT = "gpu-capacity-planner"


def how_to_install(extra: str) -> str:
    """A ``pip install`` of what an extra of ``pyproject.toml`` names, in the environment that runs this program.

    The packages are named one by one, so that it works from any folder and whether or not the project is on an index.
    """
    needs = required(extra)
    if not needs:  # run from a folder that was never installed
        return f"pip install -e '.[{extra}]' in the project's folder"
    return shlex.join([str(Path(sys.prefix) / "bin" / "pip"), "install", *needs])


def required(extra: str | None = None) -> list[str]:
    """What ``pyproject.toml`` requires, with versions (``numpy>=1.26``): of an extra, or always.

    Empty where the project runs from a folder that was never installed.
    """
    try:
        stated = [line.partition(";") for line in requires(PROJECT) or []]
    except PackageNotFoundError:
        return []
    return [
        needed.strip()
        for needed, _, condition in stated
        if ("extra ==" not in condition if extra is None else re.search(rf"extra == ['\"]{extra}['\"]", condition))
    ]
