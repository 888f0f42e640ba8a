"""docs/reference.md, written from the commands themselves: `python -m app.cli.reference > docs/reference.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from app.cli.main import cli

HEAD = """# Command reference

Written from the commands' own help by `make docs`; a test holds it current. Every command prints its results to stdout
and all else to stderr. Exit codes: 0 done; 1 a gate failed (no feasible plan, SLO missed, over budget, drift found);
2 wrong usage or input; 3 missing data, profile or credentials; 4 a fault of ours.
"""


def commands(command: click.Command, path: str, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Each command's full name and help text, depth first."""
    context = click.Context(
        command, info_name=path.split()[-1], parent=parent, terminal_width=100, max_content_width=100
    )
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from commands(found, f"{path} {name}", context)


def reference() -> str:
    """The whole page."""
    blocks = [f"## `{path}`\n\n```\n{text.rstrip()}\n```\n" for path, text in commands(cli, "plan")]
    return "\n".join([HEAD, *blocks])


if __name__ == "__main__":
    sys.stdout.write(reference())
