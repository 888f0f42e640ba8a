"""The commands of the documentation: found, run, and their shown output kept current.

A block fenced as ``console`` holds commands after ``$ `` and the output of each below it. `...` alone on a line stands
for lines left out. ``python -m tests.docs_blocks --write`` runs them all and writes what they print; the test compares.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
LEFT_OUT = "..."


@dataclass(frozen=True)
class Step:
    """One command of a page and the output that the page shows."""

    command: str
    shown: list[str]


def pages() -> list[Path]:
    """Every page that may hold commands."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def steps(text: str) -> list[Step]:
    """The commands of a page, in their order."""
    found: list[Step] = []
    for block in BLOCK.findall(text):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Step(line[2:], []))
            elif found:
                found[-1].shown.append(line)
    return found


def run(command: str, folder: Path) -> list[str]:
    """What a command prints to stdout, run in a folder; `plan` is this checkout's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PLAN_HOME": str(folder / ".plan"), "COLUMNS": "120"}
    environment |= {"PLAN_TODAY": "2026-11-23", "PLAN_CACHE": str(folder / ".cache")}
    words = shlex.split(command)
    if words[0] == "make":
        words = ["plan", words[1]]
    if words[0] == "plan":
        words = [sys.executable, "-m", "app.cli", *words[1:]]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise AssertionError(f"{command}: exit {done.returncode}\n{done.stderr}")
    return [line.rstrip() for line in done.stdout.rstrip().splitlines()]


def matches(shown: list[str], printed: list[str]) -> bool:
    """Whether the printed lines are the shown ones, where `...` stands for any number of lines."""
    if LEFT_OUT not in shown:
        return shown == printed
    at = shown.index(LEFT_OUT)
    if printed[:at] != shown[:at]:
        return False
    rest = shown[at + 1 :]
    return any(matches(rest, printed[i:]) for i in range(at, len(printed) + 1))


def prepare(folder: Path) -> None:
    """What the pages take for granted: the examples beside the reader."""
    shutil.copytree(ROOT / "examples", folder / "examples")


def rewrite(page: Path) -> None:
    """Run a page's commands and write what they print; a block that leaves lines out keeps its first and last lines."""
    text = page.read_text()
    with TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)

        def block(match: re.Match[str]) -> str:
            out = []
            for step in steps(match.group(0)):
                printed = run(step.command, folder)
                if LEFT_OUT in step.shown:
                    head = step.shown.index(LEFT_OUT)
                    tail = len(step.shown) - head - 1
                    if head + tail < len(printed):
                        printed = [*printed[:head], LEFT_OUT, *printed[len(printed) - tail :]]
                out += [f"$ {step.command}", *printed]
            return "```console\n" + "\n".join(out) + "\n```"

        page.write_text(BLOCK.sub(block, text))


def write_demo_answer() -> None:
    """The bundled answer that the web app opens with."""
    with TemporaryDirectory() as name:
        answer = "\n".join(run("plan demo --format json", Path(name))) + "\n"
    (ROOT / "app" / "demo" / "answer.json").write_text(answer)


if __name__ == "__main__":
    for path in [Path(p).resolve() for p in sys.argv[1:] if p != "--write"] or pages():
        if steps(path.read_text()):
            print(path.relative_to(ROOT))
            rewrite(path)
    if "--write" in sys.argv and len(sys.argv) == 2:
        write_demo_answer()
