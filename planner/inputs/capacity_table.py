"""Your own measurements in place of ours: what one replica of each GPU sustains at your SLO, a size bucket a row."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError
from catalogs.names import nearest, nearest_file
from simulator.workload.load import read_buckets
from simulator.workload.requests import Requests

FloatArray = NDArray[np.float64]
TABLE_COLUMNS = ("gpu", "precision", "input_tokens", "output_tokens", "max_rps")
Size = tuple[float, float]  # input tokens, output tokens


@dataclass(frozen=True)
class Buckets:
    """Demand by request size: ``rate_rps[i]`` requests a second of ``sizes[i]``."""

    sizes: tuple[Size, ...]
    rate_rps: FloatArray

    @property
    def output_tokens_per_s(self) -> float:
        """Tokens generated a second."""
        return float(sum(o * r for (_, o), r in zip(self.sizes, self.rate_rps, strict=True)))


@dataclass(frozen=True)
class TableEntry:
    """One GPU at one precision: what a replica sustains by size, and its price where the table gives one."""

    gpu: str
    precision: str
    max_rps: dict[Size, float]
    usd_per_hour: float | None
    where: str


def read_capacity_table(path: Path) -> list[TableEntry]:
    """Rows ``gpu,precision,input_tokens,output_tokens,max_rps[,usd_per_hour]`` grouped by GPU and precision.

    A rate of 0 means that the GPU cannot serve the bucket at the SLO.

    Raises:
        InputError: a missing column, a value that is no number, negative or not finite, a bucket given twice, two
            prices for one GPU.
    """
    found: dict[tuple[str, str], TableEntry] = {}
    for where, row in _rows(path, TABLE_COLUMNS):
        if not row["gpu"].strip():
            raise InputError("no GPU is named", where=where)
        key = (row["gpu"].strip(), (row["precision"] or "").strip() or "bf16")
        size = (_number(row, "input_tokens", where, 1), _number(row, "output_tokens", where, 0))
        rate = _number(row, "max_rps", where, 0)
        priced = (row.get("usd_per_hour") or "").strip()
        usd = _number(row, "usd_per_hour", where, 0) if priced else None
        entry = found.setdefault(key, TableEntry(*key, {}, usd, where))
        if size in entry.max_rps:
            raise InputError(f"{key[0]} {key[1]} has two rates for {size[0]:g} in, {size[1]:g} out", where=where)
        if usd is not None and entry.usd_per_hour is not None and usd != entry.usd_per_hour:
            raise InputError(f"{key[0]} has two prices: {entry.usd_per_hour:g} and {usd:g} USD an hour", where=where)
        if entry.usd_per_hour is None and usd is not None:
            found[key] = TableEntry(*key, entry.max_rps, usd, entry.where)
        found[key].max_rps[size] = rate
    if not found:
        raise InputError("has no rows", where=str(path))
    return list(found.values())


def read_demand(path: Path, scale: float = 1.0) -> Buckets:
    """Rows ``input_tokens,output_tokens,rate_rps``; rows of one size are added up.

    Raises:
        InputError: as for the capacity table; or no demand at all.
    """
    sizes: dict[Size, float] = {}
    for input_tokens, output_tokens, rate in read_buckets(path):
        size = (float(input_tokens), float(output_tokens))
        sizes[size] = sizes.get(size, 0.0) + rate * scale
    return Buckets(tuple(sizes), np.array(list(sizes.values())))


def buckets_of(requests: Requests, entries: Sequence[TableEntry], duration_s: float) -> Buckets:
    """A trace as demand by the table's own sizes: each request counts in the smallest size that covers it.

    Raises:
        InputError: requests are larger than every size of the table.
    """
    sizes = sorted({size for e in entries for size in e.max_rps}, key=lambda s: (s[0] * s[1], s))
    bucket = np.full(len(requests), -1)
    for i, (most_in, most_out) in reversed(list(enumerate(sizes))):
        bucket[(requests.input_tokens <= most_in) & (requests.output_tokens <= most_out)] = i
    if (bucket < 0).any():
        lost = int((bucket < 0).sum())
        raise InputError(
            f"{lost} of {len(requests)} requests are larger than every size of the capacity table",
            why="what it takes to serve them is not known",
            remedy=f"add a size of at least {requests.input_tokens.max()} in, {requests.output_tokens.max()} out",
        )
    return Buckets(tuple(sizes), np.bincount(bucket, minlength=len(sizes)) / duration_s)


def loads(entry: TableEntry, sizes: Sequence[Size]) -> FloatArray:
    """(S,) share of one replica that one request a second takes; inf where the table has a gap or a rate of 0."""
    rates = np.array([entry.max_rps.get(size, 0.0) for size in sizes])
    return np.asarray(np.divide(1.0, rates, out=np.full(len(sizes), np.inf), where=rates > 0))


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as source:
            reader = csv.DictReader(source)
            have = [c.strip() for c in reader.fieldnames or ()]
            reader.fieldnames = have
            for column in columns:
                if column not in have:
                    close = nearest(column, have, num=1)
                    remedy = f"is it {close[0]!r}?" if close else f"columns: {','.join(columns)}"
                    raise InputError(f"has no column {column!r}", where=f"{path}:1", remedy=remedy)
            for row in reader:
                yield f"{path}:{reader.line_num}", {k: v or "" for k, v in row.items() if k is not None}
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(path), remedy=nearest_file(path)) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from error


def _number(row: dict[str, str], column: str, where: str, least: float) -> float:
    text = row[column].strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < least:
        raise InputError(f"{column} is {text!r}: needs a number of {least:g} or more", where=where)
    return value
