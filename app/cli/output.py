"""One answer, four forms: table, json, csv, md. Results go to stdout, all else to stderr."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

if TYPE_CHECKING:
    from rich.table import Table as RichTable

PIPE_COLUMNS = 120  # what a table may take where no terminal says how wide it is
LONG_WORD = 24  # characters; longer ones (paths, addresses) are broken over lines where there is no other way
GAP = 3  # characters between two columns
FORMATS = ("table", "json", "csv", "md")
F = TypeVar("F", bound=Callable[..., Any])
Progress = Callable[[str, float], None]  # what is being done, share done (0 to 1)


@dataclass(frozen=True)
class Table:
    """A titled table; cells are strings, numbers or None (shown as a dash)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def format_option(command: F) -> F:
    """The ``--format`` flag that every command has."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="Form of the answer.",
    )(command)


def emit(
    form: str,
    document: Mapping[str, Any],
    tables: Sequence[Table],
    notes: Sequence[str] = (),
    main_table: int = 0,
) -> None:
    """Print an answer in the chosen form.

    Args:
        form: one of ``FORMATS``.
        document: the whole answer, for ``json``.
        tables: what people read; ``csv`` prints ``tables[main_table]`` alone.
        notes: sentences after the tables.
    """
    if form == "json":
        click.echo(json.dumps(plain(document), indent=1, allow_nan=False))
    elif form == "csv":
        click.echo(_csv(tables[main_table]), nl=False)
    elif form == "md":
        click.echo("\n\n".join([*map(_markdown, tables), *notes]))
    else:
        _print_tables(tables, notes)


def plain(value: Any) -> Any:
    """JSON-ready: numpy scalars to Python's, NaN and infinities to None, tuples to lists."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def cell(value: object) -> str:
    """A cell as people read it: four significant digits, a dash for what is not known."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([["" if c is None else c for c in row] for row in table.rows])
    return out.getvalue()


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    head = [f"**{table.title}**", ""] if table.title else []
    body = [line([cell(c) for c in row]) for row in table.rows]
    return "\n".join([*head, line(list(table.columns)), line(["---"] * len(table.columns)), *body])


def _print_tables(tables: Sequence[Table], notes: Sequence[str]) -> None:
    from rich.console import Console
    from rich.text import Text

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else PIPE_COLUMNS, highlight=False)
    for table in tables:
        cells = [[cell(c) for c in row] for row in table.rows]
        lines, room = [list(table.columns), *cells], console.width - 1
        widths = column_widths(lines, room)
        while widths is None and not terminal:  # a pipe has no edge, and who searches in it wants a row on a line
            room += GAP
            widths = column_widths(lines, room)
        if table.title:
            console.print(Text(table.title, style="italic"))
        if widths is None:
            console.print(_records(table, cells))
        else:
            Console(width=room + 1, highlight=False).print(_grid(table, cells, widths))
    for note in notes:
        console.print(Text(note))


def column_widths(lines: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """How wide each column may be so that a line fits ``room`` characters; the widest give way first.

    None where a word of up to ``LONG_WORD`` characters would have to be broken.
    """
    columns = list(zip(*lines, strict=True))
    words = [max(len(word) for text in column for word in text.split() or [""]) for column in columns]
    widths = [max(len(line) for text in column for line in text.split("\n")) for column in columns]
    room -= GAP * len(columns)
    for least in (words, [min(LONG_WORD, word) for word in words]):
        if sum(least) <= room:
            while sum(widths) > room:
                i = max((width - low and width, i) for i, (width, low) in enumerate(zip(widths, least, strict=True)))[1]
                widths[i] -= 1
            return widths
    return None


def _grid(table: Table, cells: Sequence[Sequence[str]], widths: Sequence[int]) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD)
    for i, (name, width) in enumerate(zip(table.columns, widths, strict=True)):
        numeric = all(isinstance(r[i], (int, float)) or r[i] is None for r in table.rows)
        justify: Literal["left", "right"] = "right" if numeric and table.rows else "left"
        shown.add_column(Text(name), justify=justify, overflow="fold", width=width)
    for row in cells:
        shown.add_row(*map(Text, row))
    return shown


def _records(table: Table, cells: Sequence[Sequence[str]]) -> RichTable:
    """A row as lines of name and value, for terminals that are too narrow for the columns."""
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=None, padding=(0, 1), show_header=False)
    shown.add_column(overflow="fold", width=min(24, max(len(name) for name in table.columns)))
    shown.add_column(overflow="fold")
    for row in cells:
        shown.add_row("")
        for name, value in zip(table.columns, row, strict=True):
            shown.add_row(Text(name), Text(value))
    shown.add_row("")
    return shown


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A progress bar on a terminal's stderr; silent in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _text, _share: None
        return
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    with RichProgress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda text, share: bar.update(task, description=text, completed=share)
