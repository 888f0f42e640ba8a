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
    try:
        stated = requires(PROJECT) or []
    except PackageNotFoundError:  # run from a folder that was never installed
        return f"pip install -e '.[{extra}]' in the project's folder"
    needs = [line.split(";")[0].strip() for line in stated if re.search(rf"extra == ['\"]{extra}['\"]", line)]
    return shlex.join([str(Path(sys.prefix) / "bin" / "pip"), "install", *needs])
