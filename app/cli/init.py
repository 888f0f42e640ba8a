"""`plan init`: a commented plan.yaml that runs as it is."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from catalogs.errors import InputError, MissingError

FILES = ("plan.yaml", "requests.csv")


def demo_file(name: str) -> str:
    """The text of a bundled demo file."""
    return (files("app") / "demo" / name).read_text(encoding="utf-8")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=Path())
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
def init(folder: Path, force: bool) -> None:
    """Write a commented plan.yaml, and the demo trace it reads, into FOLDER (default: here).

    \b
    Example:
      plan init myplan && plan recommend -c myplan/plan.yaml
    """
    from catalogs.files import write_text

    present = [name for name in FILES if (folder / name).exists()]
    if present and not force:
        raise InputError(
            f"{' and '.join(present)} already there", where=str(folder / present[0]),
            why="init does not overwrite your work", remedy="another FOLDER, or --force",
        )  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            write_text(folder / name, demo_file(name))
    except OSError as error:
        raise MissingError(f"cannot write: {error.strerror}", where=str(folder), remedy="another FOLDER") from error
    click.echo(f"wrote {folder / 'plan.yaml'} and {folder / 'requests.csv'}")
    click.echo(f"next: plan recommend -c {folder / 'plan.yaml'}")
