"""The columns and file forms in which traces come, and a line-by-line look at a file in which something is wrong."""

from __future__ import annotations

import csv
import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from catalogs.errors import InputError
from catalogs.files import parse_json
from catalogs.names import nearest, nearest_file

if TYPE_CHECKING:
    import pyarrow as pa

PIECE_BYTES = 2 * 1024 * 1024  # Arrow reads up to 32 of them ahead
PIECE_ROWS = 262_144
WHOLE_NUMBER = re.compile("-?[0-9]{1,40}")
Fault = tuple[str, str, str]  # what, why, remedy


@dataclass(frozen=True)
class Layout:
    """Which column holds what. ``arrivals_per_s``: units of the arrival column in a second (1000: milliseconds)."""

    name: str
    arrival: str
    input_tokens: str
    output_tokens: str
    arrivals_per_s: float = 1.0
    is_clock: bool = False  # the arrival is a date and time
    hash_ids: str | None = None
    request_class: str | None = None
    session: str | None = None
    failures_have_no_output: bool = False  # 0 output tokens mark a request that failed

    @property
    def required(self) -> tuple[str, str, str]:
        return self.arrival, self.input_tokens, self.output_tokens


PLAN = Layout(
    "plan", "arrival_s", "input_tokens", "output_tokens",
    hash_ids="hash_ids", request_class="request_class", session="session",
)  # fmt: skip
LAYOUTS = (
    PLAN,
    # github.com/Azure/AzurePublicDataset, LLM inference traces of 2023 and 2024
    Layout("azure", "TIMESTAMP", "ContextTokens", "GeneratedTokens", is_clock=True),
    # github.com/HPMLL/BurstGPT; its readme says that 0 response tokens mark a failure
    Layout(
        "burstgpt", "Timestamp", "Request tokens", "Response tokens",
        request_class="Log Type", session="Session ID", failures_have_no_output=True,
    ),
    # github.com/kvcache-ai/Mooncake, JSON lines, milliseconds
    Layout("mooncake", "timestamp", "input_length", "output_length", arrivals_per_s=1000.0, hash_ids="hash_ids"),
)  # fmt: skip


class Row(NamedTuple):
    """One row as the slow pass sees it: its line (or row number), its values by column, and what is wrong with it."""

    where: str
    values: Mapping[str, Any]
    misshapen: str = ""


@dataclass(frozen=True)
class Source:
    """A file whose form and columns are known."""

    path: Path
    form: str  # csv, json or parquet
    layout: Layout
    columns: tuple[str, ...]
    gzipped: bool
    zoned: bool = False  # a CSV clock with an offset from UTC

    def wanted(self, arrival: bool = True) -> list[str]:
        """The columns to read, those that the file has."""
        layout = self.layout
        names = [layout.arrival] if arrival else []
        names += [layout.input_tokens, layout.output_tokens]
        optional = (layout.hash_ids, layout.request_class, layout.session) if arrival else ()
        return names + [n for n in optional if n is not None and n in self.columns]

    def batches(self, arrival: bool = True) -> Iterator[pa.RecordBatch]:
        """The file in pieces, in Arrow's types."""
        return {"csv": _csv_batches, "json": _json_batches, "parquet": _parquet_batches}[self.form](self, arrival)

    def rows(self) -> Iterator[Row]:
        """The file row by row: slow, and it says where each row stands."""
        try:
            yield from {"csv": _csv_rows, "json": _json_rows, "parquet": _parquet_rows}[self.form](self)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"broke off: {error}", where=str(self.path)) from error


def open_source(path: Path, need_arrival: bool = True) -> Source:
    """Recognise a file's form and columns from its first bytes.

    Raises:
        InputError: not a file, unreadable, empty, an archive, binary, or columns that no layout has.
    """
    head = _head(path)
    gzipped = head[:2] == b"\x1f\x8b"
    if head[:4] == b"PAR1":
        return _parquet_source(path, need_arrival)
    if gzipped:
        try:
            with gzip.open(path) as file:
                head = file.read(65536)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"is not a whole gzip file: {error}", where=str(path)) from error
    if not head.strip():
        raise InputError("is empty", where=str(path), remedy="a trace needs a header and a row")
    if head[:4] == b"PK\x03\x04":
        raise InputError("is a zip archive", where=str(path), why="an archive can hold anything",
                         remedy="unzip it, or compress the trace with gzip")  # fmt: skip
    if b"\0" in head:
        raise InputError("is binary, not text or Parquet", where=str(path), remedy="CSV, JSON lines or Parquet")
    text = head.decode("utf-8-sig", errors="replace")
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    if not lines:
        raise InputError("is empty", where=str(path), remedy="a trace needs a header and a row")
    if lines[0].lstrip()[0] in "{[":
        return _json_source(path, lines[0], gzipped, need_arrival)
    return _csv_source(path, lines, gzipped, need_arrival)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(65536)
    except IsADirectoryError as error:
        raise InputError("is a folder, a trace file is needed", where=str(path)) from error
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(path), remedy=nearest_file(path)) from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', error)}", where=str(path)) from error


def _recognise(path: Path, columns: list[str], need_arrival: bool, line: int = 1) -> Layout:
    where = f"{path}:{line}" if line else str(path)
    doubles = sorted({c for c in columns if columns.count(c) > 1})
    if doubles:
        raise InputError(f"column {doubles[0]!r} appears twice", where=where)
    for layout in LAYOUTS:
        needed = layout.required if need_arrival else layout.required[1:]
        if set(needed) <= set(columns):
            return layout
    best = max(LAYOUTS, key=lambda layout: len(set(layout.required) & set(columns)))
    missing = [c for c in best.required if c not in columns]
    shown = ",".join(columns)[:120]
    close = nearest(missing[0], columns, num=1)
    hint = f"rename {close[0]!r} to {missing[0]!r}" if close and close[0] not in best.required else ""
    raise InputError(
        f"no column {' or '.join(missing)} among {shown!r}",
        where=where,
        why="a request is its arrival, its input and its output length",
        remedy=hint or "columns " + "; ".join(",".join(lay.required) for lay in LAYOUTS),
    )


def _fields(line: str, path: Path) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error as error:
        raise InputError(f"is not CSV: {error}", where=f"{path}:1") from error


def _csv_source(path: Path, lines: list[str], gzipped: bool, need_arrival: bool) -> Source:
    columns = _fields(lines[0], path)
    if len(columns) == 1 and any(mark in lines[0] for mark in "\t;"):
        raise InputError("columns are not separated by commas", where=f"{path}:1", remedy="write it with commas")
    layout = _recognise(path, columns, need_arrival)
    zoned = False
    if layout.is_clock and len(lines) > 1:
        first = _fields(lines[1], path)
        index = columns.index(layout.arrival) if layout.arrival in columns else 0
        time_of_day = first[index].replace("T", " ").partition(" ")[2] if index < len(first) else ""
        zoned = any(mark in time_of_day for mark in "+-Z")
    return Source(path, "csv", layout, tuple(columns), gzipped, zoned)


def _json_source(path: Path, line: str, gzipped: bool, need_arrival: bool) -> Source:
    try:
        first = parse_json(line)
    except ValueError as error:
        raise InputError(f"the first line is not JSON: {error}", where=f"{path}:1",
                         remedy="JSON lines: one object a line") from error  # fmt: skip
    if not isinstance(first, dict):
        raise InputError("the first line is not a JSON object", where=f"{path}:1", remedy="one object a line")
    return Source(path, "json", _recognise(path, list(first), need_arrival), tuple(first), gzipped)


def _parquet_source(path: Path, need_arrival: bool) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = list(pq.ParquetFile(path).schema_arrow.names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"is not a whole Parquet file: {str(error).splitlines()[0]}", where=str(path)) from error
    return Source(path, "parquet", _recognise(path, columns, need_arrival, line=0), tuple(columns), gzipped=False)


def _csv_batches(source: Source, arrival: bool) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.csv

    layout = source.layout
    clock = pa.timestamp("ns", tz="UTC" if source.zoned else None)
    types: dict[str, Any] = {layout.arrival: clock if layout.is_clock else pa.float64()}
    types |= {layout.input_tokens: pa.float64(), layout.output_tokens: pa.float64()}
    types |= {name: pa.string() for name in (layout.hash_ids, layout.request_class, layout.session) if name}
    with pa.input_stream(str(source.path), compression="gzip" if source.gzipped else None) as stream:
        options = pa.csv.ConvertOptions(
            column_types=types, include_columns=source.wanted(arrival), strings_can_be_null=False
        )
        reading = pa.csv.ReadOptions(block_size=PIECE_BYTES, use_threads=False)
        try:
            yield from pa.csv.open_csv(stream, reading, pa.csv.ParseOptions(), options)
        except (OSError, EOFError) as error:
            raise InputError(f"broke off: {str(error).splitlines()[0]}", where=str(source.path)) from error


def _json_batches(source: Source, arrival: bool) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.json

    layout = source.layout
    types = {layout.hash_ids: pa.list_(pa.int64()), layout.request_class: pa.string(), layout.session: pa.string()}
    names = source.wanted(arrival)
    schema = pa.schema([(name, types.get(name, pa.float64())) for name in names])
    parsing = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    with pa.input_stream(str(source.path), compression="gzip" if source.gzipped else None) as stream:
        try:
            reading = pa.json.ReadOptions(block_size=PIECE_BYTES, use_threads=False)
            yield from pa.json.open_json(stream, reading, parsing)
        except (OSError, EOFError) as error:
            raise InputError(f"broke off: {str(error).splitlines()[0]}", where=str(source.path)) from error


def _parquet_batches(source: Source, arrival: bool) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source.path) as file:
            yield from file.iter_batches(batch_size=PIECE_ROWS, columns=source.wanted(arrival))
    except OSError as error:
        raise InputError(f"is damaged: {str(error).splitlines()[0]}", where=str(source.path)) from error


def _text(source: Source) -> IO[str]:
    if source.gzipped:
        return gzip.open(source.path, "rt", encoding="utf-8-sig", errors="replace", newline="")
    return source.path.open(encoding="utf-8-sig", errors="replace", newline="")


def _csv_rows(source: Source) -> Iterator[Row]:
    with _text(source) as file:
        reader = csv.reader(file)
        try:
            header = next(row for row in reader if row)
            for row in reader:
                if row:
                    wrong = (
                        f"has {len(row)} fields where the header has {len(header)}" if len(row) != len(header) else ""
                    )
                    yield Row(str(reader.line_num), dict(zip(header, row, strict=False)), wrong)
        except csv.Error as error:
            raise InputError(str(error), where=f"{source.path}:{reader.line_num}") from error


def _json_rows(source: Source) -> Iterator[Row]:
    with _text(source) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    values = parse_json(line)
                except ValueError as error:
                    raise InputError(f"is not JSON: {error}", where=f"{source.path}:{number}") from error
                is_object = isinstance(values, dict)
                yield Row(str(number), values if is_object else {}, "" if is_object else "is not a JSON object")


def _parquet_rows(source: Source) -> Iterator[Row]:
    number = 0
    for batch in _parquet_batches(source, True):
        for values in batch.to_pylist():
            number += 1
            yield Row(f"row {number}", values)


def fault_finder(source: Source, max_tokens: int, check_order: bool) -> Callable[[Row], Fault | None]:
    """A check to call on each row in turn; answers the first thing that is wrong with it."""
    layout, last = source.layout, -math.inf

    def fault(row: Row) -> Fault | None:
        nonlocal last
        values = row.values
        if row.misshapen:
            return row.misshapen, "", ""
        arrival = _seconds(values.get(layout.arrival), layout)
        if isinstance(arrival, str):
            return arrival, "", ""
        lowest_output = 0
        if layout.failures_have_no_output and _number(values.get(layout.output_tokens)) == 0:
            return None
        for name, lowest in ((layout.input_tokens, 1), (layout.output_tokens, lowest_output)):
            wrong = _count_fault(values.get(name), name, lowest, max_tokens)
            if wrong:
                return wrong
        if check_order and arrival < last:
            why = "arrivals must ascend; a trace out of order may be two traces or two clocks"
            remedy = "`plan trace import --sort`, or `sort: true` in the workload, if the order does not matter"
            return f"arrives before the row above it ({arrival:g} s after {last:g} s)", why, remedy
        last = max(last, arrival)
        wrong_hash = _hash_fault(values.get(layout.hash_ids)) if layout.hash_ids else None
        return (wrong_hash, "", "whole numbers with spaces between") if wrong_hash else None

    return fault


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _seconds(value: Any, layout: Layout) -> float | str:
    """The arrival in seconds, or what is wrong with it."""
    if value is None or value == "":
        return f"{layout.arrival} is empty"
    if layout.is_clock and not isinstance(value, (int, float)):
        try:
            return (value if isinstance(value, datetime) else datetime.fromisoformat(str(value))).timestamp()
        except ValueError:
            return f"{layout.arrival} {str(value)[:40]!r} is not a date and time"
    number = _number(value)
    if number is None or not math.isfinite(number):
        return f"{layout.arrival} {str(value)[:40]!r} is not a number"
    if number < 0 and not layout.is_clock:
        return f"{layout.arrival} {str(value)[:40]!r} is negative"
    return number / layout.arrivals_per_s


def _count_fault(value: Any, name: str, lowest: int, max_tokens: int) -> Fault | None:
    if value is None or value == "":
        return f"{name} is empty", "", ""
    number = _number(value)
    if number is None or not math.isfinite(number):
        return f"{name} {str(value)[:40]!r} is not a number", "", ""
    if number != int(number):
        return f"{name} {str(value)[:40]!r} is not a whole number", "", ""
    if number < lowest:
        return f"{name} {str(value)[:40]!r} is below {lowest}", "", ""
    if number > max_tokens:
        return f"{name} {str(value)[:40]!r} is above {max_tokens:,}", "no model reads that many tokens", ""
    return None


def _hash_fault(value: Any) -> str | None:
    parts = value.strip(" []\t").replace(",", " ").replace(";", " ").split() if isinstance(value, str) else value
    if parts is not None and not isinstance(parts, list):
        return f"hash_ids {str(value)[:40]!r} is not a list"
    for part in parts or ():
        if not WHOLE_NUMBER.fullmatch(str(part)) or abs(int(part)) >= 2**63:
            return f"hash_ids holds {str(part)[:40]!r}, which is not a whole number"
    return None
