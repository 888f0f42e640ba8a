"""Reading CSV tables into the nouns: every bad row of a file is collected, then one error names them all."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TypeVar

from catalogs.errors import InputError, MissingError

T = TypeVar("T")


@dataclass
class Row:
    """One row of a table: typed access that notes what is wrong instead of stopping at it."""

    cells: Mapping[str, str]
    where: str
    problems: list[str] = field(default_factory=list)

    def text(self, column: str, *, required: bool = True, allowed: tuple[str, ...] = ()) -> str:
        """The cell as text; noted when empty and required, or not among ``allowed``."""
        value = (self.cells.get(column) or "").strip()
        if required and not value:
            self._note(column, "is empty")
        elif value and allowed and value not in allowed:
            self._note(column, f"is {value!r}, not one of {', '.join(allowed)}")
        return value

    def optional_number(self, column: str, *, minimum: float = 0.0, maximum: float = float("inf")) -> float | None:
        """The cell as a number, ``None`` when empty; noted when it is not a number or outside the limits."""
        value = (self.cells.get(column) or "").strip()
        if not value:
            return None
        try:
            number = float(value)
        except ValueError:
            self._note(column, f"is {value!r}, not a number")
            return None
        if not minimum <= number <= maximum or math.isinf(number):  # NaN fails too
            self._note(column, f"is {value}, outside {minimum:g} to {maximum:g}")
            return None
        return number

    def number(self, column: str, *, minimum: float = 0.0, maximum: float = float("inf")) -> float:
        """The cell as a number; noted when empty."""
        value = self.optional_number(column, minimum=minimum, maximum=maximum)
        if value is None and not (self.cells.get(column) or "").strip():
            self._note(column, "is empty")
        return 0.0 if value is None else value

    def whole(self, column: str, *, minimum: int = 0) -> int:
        """The cell as a whole number; noted when empty or fractional."""
        value = self.number(column, minimum=minimum)
        if value != int(value):
            self._note(column, f"is {value:g}, not a whole number")
        return int(value)

    def optional_whole(self, column: str) -> int | None:
        """The cell as a whole number, ``None`` when empty."""
        return self.whole(column) if (self.cells.get(column) or "").strip() else None

    def flag(self, column: str) -> bool:
        """The cell as 0 or 1."""
        return self.text(column, allowed=("0", "1")) == "1"

    def day(self, column: str) -> str:
        """The cell as a date: a day, a month (``2026-10``) or a year, as exactly as the source gives it."""
        value = self.text(column)
        if value and first_day(value) is None:
            self._note(column, f"is {value!r}, not a date (2026-07-20, 2026-07 or 2026)")
        return value

    def _note(self, column: str, problem: str) -> None:
        self.problems.append(f"{self.where}: {column} {problem}")


def first_day(as_of: str) -> date | None:
    """The earliest day that ``as_of`` (a day, a month or a year) may mean; ``None`` when it is no date."""
    parts = as_of.split("-")
    try:
        numbers = [int(p) for p in parts]
        year, month, day = [*numbers, 1, 1][:3] if len(numbers) <= 3 else (0, 0, 0)
        return date(year, month, day)
    except ValueError:
        return None


def read_table(path: Path, build: Callable[[Row], T], key: Callable[[T], object]) -> list[T]:
    """Every row of a CSV file as a noun.

    Args:
        path: the file; its first line names the columns.
        build: a row to a noun, noting problems in the row.
        key: what must be unique in the file.

    Raises:
        MissingError: the file is not there.
        InputError: any row is bad; the message names every one, with its line.
    """
    if not path.is_file():
        raise MissingError("catalogue file not found", where=str(path), remedy="reinstall the package")
    nouns: list[T] = []
    problems: list[str] = []
    seen: dict[object, int] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for cells in reader:
            line = reader.line_num
            row = Row({k: v for k, v in cells.items() if k is not None and isinstance(v, str)}, f"{path.name}:{line}")
            if None in cells or None in cells.values():
                row.problems.append(f"{row.where}: the number of cells differs from the heading's")
            noun = build(row)
            if not row.problems:
                first = seen.setdefault(key(noun), line)
                if first != line:
                    row.problems.append(f"{row.where}: {key(noun)} is already on line {first}")
            problems += row.problems
            nouns.append(noun)
    if problems:
        shown = "\n  ".join(problems[:20]) + (f"\n  and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise InputError(
            f"{len(problems)} bad cells in the catalogue:\n  {shown}",
            where=str(path),
            why="every answer rests on these figures",
            remedy="correct the rows named",
        )
    return nouns


def scaled(value: float | None, factor: float) -> float | None:
    """A number in its unit to the unit of the code; ``None`` stays ``None``."""
    return None if value is None else value * factor
