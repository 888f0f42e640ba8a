"""Writes a workload as a trace in the contract's columns: CSV or Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalogs.errors import InputError
from catalogs.files import replacing
from simulator.workload.requests import Requests

if TYPE_CHECKING:
    import pyarrow as pa


def to_arrow(requests: Requests) -> pa.Table:
    """The contract's columns; ``hash_ids`` as lists."""
    import pyarrow as pa

    columns: dict[str, Any] = {
        "arrival_s": requests.arrival_s,
        "input_tokens": requests.input_tokens,
        "output_tokens": requests.output_tokens,
    }
    if requests.hash_offsets is not None:
        columns["hash_ids"] = pa.LargeListArray.from_arrays(requests.hash_offsets, requests.hash_ids)
    if requests.request_class is not None:
        codes = pa.array(requests.request_class)
        columns["request_class"] = pa.DictionaryArray.from_arrays(codes, list(requests.class_names)).cast(pa.string())
    if requests.session is not None:
        columns["session"] = requests.session
    return pa.table(columns)


def write_trace(requests: Requests, path: str | Path) -> None:
    """Write the contract's CSV or Parquet, by the name's ending; whole or not at all.

    Raises:
        InputError: another ending, a folder that cannot be written, or a closed loop (which has no arrivals).
    """
    if requests.concurrency is not None:
        raise InputError(
            "a closed loop has no arrivals to write",
            where=str(path),
            why="a request arrives when an earlier one ends, which depends on the fleet",
            remedy="put the closed_loop process in a scenario's workload",
        )
    kind = "".join(Path(path).suffixes[-2:] if Path(path).suffix == ".gz" else Path(path).suffixes[-1:]).lower()
    if kind not in (".csv", ".csv.gz", ".parquet"):
        raise InputError(f"cannot write a trace as {kind or 'a file without ending'!r}", where=str(path),
                         remedy="name it .csv, .csv.gz or .parquet")  # fmt: skip
    table = to_arrow(requests)
    with replacing(path) as temporary:
        if kind == ".parquet":
            import pyarrow.parquet as pq

            pq.write_table(table, temporary, compression="zstd")
        else:
            _write_csv(table, temporary, compressed=kind.endswith(".gz"))


def _write_csv(table: pa.Table, path: Path, *, compressed: bool) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv

    arrival = pc.round(table["arrival_s"], 6)
    table = table.set_column(0, "arrival_s", arrival)
    if "hash_ids" in table.column_names:
        index = table.column_names.index("hash_ids")
        lists = table["hash_ids"].combine_chunks()
        texts = pa.LargeListArray.from_arrays(lists.offsets, lists.values.cast(pa.string()))
        table = table.set_column(index, "hash_ids", pc.binary_join(texts.cast(pa.list_(pa.string())), " "))
    texts = table["request_class"].unique().to_pylist() if "request_class" in table.column_names else []
    plain = not any(set(text) & set(',"\r\n') for text in texts)
    options = pa.csv.WriteOptions(include_header=False, quoting_style="none" if plain else "needed")
    with pa.output_stream(str(path), compression="gzip" if compressed else None) as out:
        out.write((",".join(table.column_names) + "\n").encode())
        pa.csv.write_csv(table, out, options)
