"""Reads traces: the contract's columns, Azure LLM, BurstGPT and Mooncake, as CSV, JSON lines or Parquet.

A file is read in pieces, so that what only needs a pass over it (``plan trace stats``) holds one piece in memory.
The fast path is Arrow's; when it meets something wrong, the file is read again line by line to say where.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError
from simulator.workload.requests import Requests
from simulator.workload.trace_layouts import Layout, Source, fault_finder, open_source

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("plan.traces")
MAX_TOKENS = 16_000_000  # no model reads a longer prompt; such a number is a mistake in the file
EXACT_BELOW = 2.0**53  # whole numbers that float64 holds
EPOCH_FLOOR_S = 1e8  # a first arrival beyond this (3 years) is a time of day since 1970, not since the trace's start
MOONCAKE_BLOCK_TOKENS = 512
ALL_FAILED, ONLY_SERVED = "every request in it failed", "only served requests are a load"


@dataclass(frozen=True)
class Piece:
    """Some rows of a trace. ``hash_counts`` says how many of ``hash_ids`` each row has."""

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    hash_counts: NDArray[np.int64] | None = None
    hash_ids: NDArray[np.int64] | None = None
    request_class: NDArray[np.int64] | None = None  # index into the reader's ``class_names``
    session: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)


class TraceReader:
    """A pass over a trace file, a piece at a time.

    Attributes:
        layout: the columns that were recognised.
        class_names: request classes seen so far.
        num_dropped: rows left out because the trace marks them as failed (BurstGPT: no response).

    Raises (while iterating):
        InputError: unreadable, empty, wrong columns, a value that is not a number, is negative or NaN, or arrivals out
            of order (unless ``sort``); with file and line.
    """

    def __init__(self, path: str | Path, *, sort: bool = False) -> None:
        self.path, self.sort = Path(path), sort
        self.source: Source = open_source(self.path)
        self.layout: Layout = self.source.layout
        self.num_dropped = 0
        self._classes: dict[str, int] = {}
        self._sessions: dict[Any, int] = {}
        self._t0_ns: int | None = None
        self._epoch_s = 0.0
        self._last_s = -np.inf
        self._num_rows = 0

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._classes) or ("default",)

    def __iter__(self) -> Iterator[Piece]:
        import pyarrow as pa

        try:
            for batch in self.source.batches():
                piece = self._piece(batch)
                self._num_rows += len(batch)
                if len(piece):
                    yield piece
        except InputError:
            raise
        except (pa.ArrowException, ValueError, TypeError, OverflowError, OSError, _BadRowError) as error:
            self._explain(error)
        if self._num_rows == 0:
            raise InputError("no requests in it", where=str(self.path), remedy="a trace needs a header and a row")

    def _piece(self, batch: pa.RecordBatch) -> Piece:
        layout = self.layout
        arrival = self._arrival(batch.column(layout.arrival))
        inputs = _whole_numbers(batch.column(layout.input_tokens), layout.input_tokens)
        outputs = _whole_numbers(batch.column(layout.output_tokens), layout.output_tokens)
        names = batch.schema.names
        counts, ids = _hash_ids(batch.column(layout.hash_ids)) if layout.hash_ids in names else (None, None)
        classes = self._codes(batch, layout.request_class, self._classes)
        sessions = self._codes(batch, layout.session, self._sessions)
        piece = Piece(arrival, inputs, outputs, counts, ids, classes, sessions)
        if layout.failures_have_no_output:
            served = (inputs > 0) & (outputs > 0)
            self.num_dropped += int(len(served) - served.sum())
            piece = keep_rows(piece, served)
        self._check(piece)
        if len(piece):
            self._last_s = float(piece.arrival_s[-1])
        return piece

    def _arrival(self, column: pa.Array) -> NDArray[np.float64]:
        import pyarrow as pa

        if column.null_count:
            raise _BadRowError(f"{self.layout.arrival} is empty")
        if pa.types.is_timestamp(column.type):
            ns = _numpy(column.cast(pa.timestamp("ns", tz=column.type.tz), safe=False).cast(pa.int64()))
            if self._t0_ns is None and len(ns):
                self._t0_ns = int(ns.min() if self.sort else ns[0])
            return np.asarray((ns - (self._t0_ns or 0)) / 1e9, dtype=np.float64)
        seconds = _floats(column) / self.layout.arrivals_per_s
        if not np.isfinite(seconds).all():
            raise _BadRowError("an arrival is not finite")
        if self._num_rows == 0 and len(seconds) and seconds[0] > EPOCH_FLOOR_S:
            self._epoch_s = float(seconds.min() if self.sort else seconds[0])
        return np.asarray(seconds - self._epoch_s, dtype=np.float64)

    def _codes(self, batch: pa.RecordBatch, name: str | None, known: dict[Any, int]) -> NDArray[np.int64] | None:
        import pyarrow as pa

        if name is None or name not in batch.schema.names:
            return None
        column = batch.column(name)
        if not pa.types.is_integer(column.type):
            column = column.cast(pa.string())
        encoded = column.dictionary_encode()
        numbers = [known.setdefault("" if v is None else v, len(known)) for v in encoded.dictionary.to_pylist()]
        if encoded.indices.null_count:
            numbers.append(known.setdefault("", len(known)))
            encoded = encoded.indices.fill_null(len(numbers) - 1)
        else:
            encoded = encoded.indices
        codes: NDArray[np.int64] = np.asarray(numbers, dtype=np.int64)[_numpy(encoded)]
        return codes

    def _check(self, piece: Piece) -> None:
        arrival, inputs, outputs = piece.arrival_s, piece.input_tokens, piece.output_tokens
        if not len(piece):
            return
        if arrival.min() < 0 and not (self.sort and self.layout.is_clock):
            raise _BadRowError("an arrival is negative")
        if inputs.min() < 1 or outputs.min() < 0 or max(inputs.max(), outputs.max()) > MAX_TOKENS:
            raise _BadRowError("a token count is out of range")
        if not self.sort and (arrival[0] < self._last_s or (np.diff(arrival) < 0).any()):
            raise _BadRowError("arrivals are not in order")

    def _explain(self, error: Exception) -> None:
        if self.source.form == "parquet" and not isinstance(error, _BadRowError):
            raise InputError(f"is damaged: {str(error).splitlines()[0]}", where=str(self.path)) from error
        find = fault_finder(self.source, MAX_TOKENS, check_order=not self.sort)
        for row in self.source.rows():
            fault = find(row)
            if fault is not None:
                what, why, remedy = fault
                raise InputError(what, where=f"{self.path}:{row.where}", why=why, remedy=remedy) from error
        raise InputError(f"cannot be read: {str(error).splitlines()[0]}", where=str(self.path)) from error


class _BadRowError(Exception):
    """Something is wrong in this piece; the line-by-line pass will say where."""


def read_trace(
    path: str | Path, *, sort: bool = False, hash_block_tokens: int | None = None, limit: int | None = None
) -> Requests:
    """Read a whole trace.

    Args:
        path: CSV, JSON lines or Parquet, plain or gzipped; Azure, BurstGPT, Mooncake or the contract's columns.
        sort: put arrivals in order instead of refusing a trace that is not.
        hash_block_tokens: prompt tokens that one hash id stands for; None: 512 as Mooncake has it, or the largest power
            of two below that the counts of ids in the file allow.
        limit: read this many requests at most.

    Raises:
        InputError: see ``TraceReader``.
    """
    reader = TraceReader(path, sort=sort)
    pieces, num = [], 0
    for piece in reader:
        pieces.append(piece if limit is None else keep_rows(piece, np.arange(len(piece)) < limit - num))
        num += len(pieces[-1])
        if limit is not None and num >= limit:
            break
    if not num:
        raise InputError(ALL_FAILED, where=str(path), why=ONLY_SERVED)
    if reader.num_dropped:
        log.warning("%s: %d failed requests left out (no response)", path, reader.num_dropped)
    requests = requests_of(pieces, reader.class_names, hash_block_tokens)
    if sort and (np.diff(requests.arrival_s) < 0).any():
        requests = take(requests, np.argsort(requests.arrival_s, kind="stable"))
    if requests.arrival_s[0] < 0:  # a clock whose first row was not the earliest
        requests = replace(requests, arrival_s=requests.arrival_s - requests.arrival_s[0])
    return requests


def requests_of(pieces: Sequence[Piece], class_names: tuple[str, ...], hash_block_tokens: int | None) -> Requests:
    """Join pieces into one workload."""
    ids = counts = None
    if pieces[0].hash_ids is not None:
        counts = _joined(pieces, "hash_counts")
        ids = _joined(pieces, "hash_ids")
    inputs = _joined(pieces, "input_tokens")
    block = hash_block_tokens or (infer_hash_block_tokens(inputs, counts) if counts is not None else None)
    return Requests(
        arrival_s=_joined(pieces, "arrival_s"),
        input_tokens=inputs,
        output_tokens=_joined(pieces, "output_tokens"),
        hash_offsets=None if counts is None else np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        hash_ids=ids,
        hash_block_tokens=block or MOONCAKE_BLOCK_TOKENS,
        request_class=_joined(pieces, "request_class") if pieces[0].request_class is not None else None,
        class_names=class_names,
        session=_joined(pieces, "session") if pieces[0].session is not None else None,
    )


def _joined(pieces: Sequence[Piece], name: str) -> NDArray[Any]:
    columns: list[NDArray[Any]] = [getattr(p, name) for p in pieces]
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


def infer_hash_block_tokens(input_tokens: NDArray[np.int64], hash_counts: NDArray[np.int64]) -> int:
    """The largest power of two up to 512 at which no request has more ids than blocks (the last may be partial)."""
    block = MOONCAKE_BLOCK_TOKENS
    while block > 1 and (hash_counts > -(-input_tokens // block)).any():
        block //= 2
    return block


def keep_rows(piece: Piece, kept: NDArray[np.bool_]) -> Piece:
    """The rows of a piece where ``kept`` is true."""
    if kept.all():
        return piece
    counts, ids = piece.hash_counts, piece.hash_ids
    if counts is not None and ids is not None:
        ids, counts = ids[np.repeat(kept, counts)], counts[kept]
    return Piece(
        piece.arrival_s[kept],
        piece.input_tokens[kept],
        piece.output_tokens[kept],
        counts,
        ids,
        None if piece.request_class is None else piece.request_class[kept],
        None if piece.session is None else piece.session[kept],
    )


def take(requests: Requests, rows: NDArray[np.int64]) -> Requests:
    """The given rows of a workload, in the given order; a row may be taken more than once."""
    offsets, ids = requests.hash_offsets, requests.hash_ids
    if offsets is not None and ids is not None:
        counts = np.diff(offsets)[rows]
        new_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        ids = ids[np.arange(new_offsets[-1]) + np.repeat(offsets[rows] - new_offsets[:-1], counts)]
        offsets = new_offsets
    return replace(
        requests,
        arrival_s=requests.arrival_s[rows],
        input_tokens=requests.input_tokens[rows],
        output_tokens=requests.output_tokens[rows],
        hash_offsets=offsets,
        hash_ids=ids,
        request_class=None if requests.request_class is None else requests.request_class[rows],
        session=None if requests.session is None else requests.session[rows],
    )


def read_lengths(path: str | Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Input and output lengths of a trace, or of a file that has lengths alone (arrivals empty or absent).

    Raises:
        InputError: unreadable, no rows, or a length that is not a whole number in range.
    """
    import pyarrow as pa

    source = open_source(Path(path), need_arrival=False)
    layout, inputs, outputs = source.layout, [], []
    try:
        for batch in source.batches(arrival=False):
            inputs.append(_whole_numbers(batch.column(layout.input_tokens), layout.input_tokens))
            outputs.append(_whole_numbers(batch.column(layout.output_tokens), layout.output_tokens))
    except InputError:
        raise
    except (pa.ArrowException, ValueError, TypeError, OSError, OverflowError, _BadRowError) as error:
        raise InputError(f"cannot be read: {str(error).splitlines()[0]}", where=str(path)) from error
    if not sum(map(len, inputs)):
        raise InputError("no lengths in it", where=str(path))
    joined = np.concatenate(inputs), np.concatenate(outputs)
    served = (joined[0] > 0) & (joined[1] > 0) if layout.failures_have_no_output else np.ones(len(joined[0]), bool)
    if not served.any():
        raise InputError(ALL_FAILED, where=str(path), why=ONLY_SERVED)
    joined = joined[0][served], joined[1][served]
    if joined[0].min() < 1 or joined[1].min() < 0 or max(joined[0].max(), joined[1].max()) > MAX_TOKENS:
        raise InputError("a token count is out of range", where=str(path), remedy=f"input 1 to {MAX_TOKENS:,}")
    return joined


def _numpy(column: pa.Array) -> NDArray[Any]:
    """A column of numbers without empty cells, copied; pyarrow's own way loads pandas, which takes a second."""
    kind = np.dtype(column.type.to_pandas_dtype())
    if not len(column):
        return np.zeros(0, kind)
    return np.frombuffer(column.buffers()[1], kind, len(column), column.offset * kind.itemsize).copy()


def _whole_numbers(column: pa.Array, name: str) -> NDArray[np.int64]:
    import pyarrow as pa

    if column.null_count:
        raise _BadRowError(f"{name} is empty")
    if pa.types.is_integer(column.type):
        return _numpy(column.cast(pa.int64()))
    values = _floats(column)
    if not (np.abs(values) <= EXACT_BELOW).all() or (values != np.floor(values)).any():
        raise _BadRowError(f"{name} is not a whole number")
    return values.astype(np.int64)


def _floats(column: pa.Array) -> NDArray[np.float64]:
    """A column as it is where it holds float64, since pyarrow's own cast loads all its functions."""
    import pyarrow as pa

    return _numpy(column if pa.types.is_float64(column.type) else column.cast(pa.float64()))


def _hash_ids(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts a row, and all ids; a cell is a list of integers or a string of them with spaces between."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(column.type):
        return np.zeros(len(column), dtype=np.int64), np.zeros(0, dtype=np.int64)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        bare = pc.utf8_trim(pc.fill_null(column, ""), " []\t")
        parts = pc.split_pattern_regex(bare, r"[\s,;]+")
        counts = np.where(pc.equal(bare, "").to_numpy(zero_copy_only=False), 0, pc.list_value_length(parts).to_numpy())
        texts = pc.list_flatten(parts)
        ids = _numpy(texts.filter(pc.not_equal(texts, "")).cast(pa.int64()))
    else:
        counts = _numpy(pc.fill_null(pc.list_value_length(column), 0))
        ids = _numpy(pc.list_flatten(column).cast(pa.int64()))
    return counts.astype(np.int64), np.asarray(ids)
