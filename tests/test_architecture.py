"""The picture of the house in docs/architecture.md is the code's: its arrows are the imports between rooms."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("catalogs", "calibrate", "simulator", "planner", "app")
LAUNCHES = ("app/cli", "app/web")  # `plan web` starts the app, whose pages use what the command line reads and prints


def room(parts: tuple[str, ...]) -> str:
    """The folder that a module stands in, two levels at most."""
    inner = len(parts) > 1 and (ROOT / parts[0] / parts[1]).is_dir()
    return f"{parts[0]}/{parts[1]}" if inner else parts[0]


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from ((*node.module.split("."), name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (tuple(name.name.split(".")) for name in node.names)


def imports() -> set[tuple[str, str]]:
    """(room, room that it imports from)."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            here = path.relative_to(ROOT).with_suffix("").parts
            mine = room(here) if len(here) > 2 else here[0]
            found |= {(mine, room(name)) for name in imported(path) if name[0] in PACKAGES}
    return {(a, b) for a, b in found if a != b and (a, b) != LAUNCHES}


def drawn() -> set[tuple[str, str]]:
    """(room, room below it) of the picture."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    picture = re.search(r"```mermaid\n(.*?)```", page, re.DOTALL)
    assert picture is not None
    arrows = re.findall(r"^ *(\w+) --> (\w+)$", picture[1], re.MULTILINE)
    return {(a.replace("_", "/", 1), b.replace("_", "/", 1)) for a, b in arrows}


def below(arrows: set[tuple[str, str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        here = todo.pop()
        todo += [b for a, b in arrows if a == here and b not in seen]
        seen |= {b for a, b in arrows if a == here}
    return seen


def test_every_import_goes_down_the_picture_and_every_arrow_is_an_import() -> None:
    arrows, real = drawn(), imports()
    assert arrows <= real
    reach: Mapping[str, set[str]] = {a: below(arrows, a) for a, _ in real}
    assert {(a, b) for a, b in real if b not in reach[a]} == set()


def test_no_room_stands_above_itself() -> None:
    arrows = drawn()
    assert [a for a, _ in arrows if a in below(arrows, a)] == []
