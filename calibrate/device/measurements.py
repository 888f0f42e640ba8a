"""Measured kernels and batches in one tidy form, kept in an append-only JSON Lines file.

The first line is the header (device, software, who and when); each further line is a point, a case that was skipped
with its reason, or a remark. A point's key is its content (family, dtype, variant, shape), so that an interrupted run
resumes by reading what is already there.

Families and their shapes (counts; ``bytes`` in bytes):

==================  ===============================================================================================
gemm                m, n, k: (m, k) activations times (k, n) weights. variant: dense, sparse24, weight_only
prefill_attention   batch, tokens, context (keys before these tokens), num_heads, num_kv_heads, head_dim; causal
decode_attention    batch, context (mean), max_context, num_heads, num_kv_heads, head_dim
encoder_attention   batch, tokens, num_heads, num_kv_heads, head_dim; every token sees all
elementwise         tokens, width. variant: the operation (silu_mul, add, gelu, rope, kv_write, argmax)
norm                tokens, width. variant: rms_norm, layer_norm
conv                batch, size (of the input, square), in_channels, out_channels, kernel, stride
bandwidth           bytes: read and written in all. variant: copy, read
all_reduce          bytes (of one GPU's message), num_gpus
send_recv           bytes, num_gpus
launch              num_kernels: small kernels in a row; the time is for one of them. variant: eager, graph
step                the five fields of ``StepShape``. variant: name of the model
encoder_batch       batch, tokens. variant: name of the model
vision_batch        batch, image_size. variant: name of the model
==================  ===============================================================================================

Attention variants are the backends: math, mem_efficient, flash, and paged (KV gathered from blocks, then attended).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from catalogs.errors import InputError
from catalogs.files import parse_json, read_text

SCHEMA_VERSION = 1
SHAPES: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "prefill_attention": ("batch", "tokens", "context", "num_heads", "num_kv_heads", "head_dim"),
    "decode_attention": ("batch", "context", "max_context", "num_heads", "num_kv_heads", "head_dim"),
    "encoder_attention": ("batch", "tokens", "num_heads", "num_kv_heads", "head_dim"),
    "elementwise": ("tokens", "width"),
    "norm": ("tokens", "width"),
    "conv": ("batch", "size", "in_channels", "out_channels", "kernel", "stride"),
    "bandwidth": ("bytes",),
    "all_reduce": ("bytes", "num_gpus"),
    "send_recv": ("bytes", "num_gpus"),
    "launch": ("num_kernels",),
    "step": (
        "num_prefill_tokens",
        "prefill_mean_context",
        "num_decode",
        "decode_mean_context",
        "num_sampled",
    ),
    "encoder_batch": ("batch", "tokens"),
    "vision_batch": ("batch", "image_size"),
}


@dataclass(frozen=True)
class Measurement:
    """One timed case: the median of ``num_samples`` runs and the spread around it.

    Attributes:
        family: a key of ``SHAPES``.
        dtype: as in the catalogue: fp32 tf32 fp16 bf16 fp8 int8 int4.
        shape: the family's shape.
        median_s, p10_s, p90_s: seconds.
        num_samples: how many runs they rest on.
        variant: backend, operation or model; see the module's table.
        clock_hz: the device's clock while it ran, where it can be read.
        temperature_c: likewise.
    """

    family: str
    dtype: str
    shape: Mapping[str, float]
    median_s: float
    p10_s: float
    p90_s: float
    num_samples: int
    variant: str = ""
    clock_hz: float | None = None
    temperature_c: float | None = None

    @property
    def key(self) -> str:
        """The case's content, without its result."""
        return case_key(self.family, self.dtype, self.variant, self.shape)


@dataclass(frozen=True)
class MeasurementFile:
    """All that a measurements file holds."""

    header: Mapping[str, Any]
    points: tuple[Measurement, ...]
    skipped: tuple[Mapping[str, Any], ...] = ()
    remarks: tuple[str, ...] = ()
    path: str = field(default="", compare=False)

    def family(self, name: str, dtype: str | None = None, variant: str | None = None) -> tuple[Measurement, ...]:
        """The points of one family, of one dtype and variant where given."""
        return tuple(
            p
            for p in self.points
            if p.family == name and dtype in (None, p.dtype) and (variant is None or p.variant == variant)
        )


def case_key(family: str, dtype: str, variant: str, shape: Mapping[str, float]) -> str:
    """A case's content as one string: equal cases have equal keys."""
    return "|".join([family, dtype, variant, *(f"{name}={float(shape[name]):g}" for name in sorted(shape))])


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append records, one a line, each written whole; a torn line that a killed run left is cut off first."""
    text = "".join(json.dumps(line, allow_nan=False, sort_keys=True) + "\n" for line in lines)
    with path.open("a+b") as out:
        size = out.seek(0, os.SEEK_END)
        if size and (out.seek(size - 1), out.read(1))[1] != b"\n":
            out.seek(0)
            out.truncate(out.read().rfind(b"\n") + 1)
        out.write(text.encode())


def header_line(header: Mapping[str, Any]) -> dict[str, Any]:
    """The first line of a file."""
    return {"kind": "header", "schema_version": SCHEMA_VERSION, **header}


def point_line(point: Measurement) -> dict[str, Any]:
    """A point as a line."""
    return {"kind": "point", **asdict(point)}


def skip_line(family: str, dtype: str, variant: str, reason: str) -> dict[str, Any]:
    """A case or a whole dtype that could not be measured, and why."""
    return {"kind": "skipped", "family": family, "dtype": dtype, "variant": variant, "reason": reason}


def remark_line(text: str) -> dict[str, Any]:
    """Something the reader of the figures should know: throttling, a sweep that shrank."""
    return {"kind": "remark", "text": text}


def read_measurements(path: str | Path) -> MeasurementFile:
    """Read a measurements file; a torn last line (the run was killed while writing it) is left out.

    Raises:
        InputError: no such file, no header, a newer schema, a line that is not a record or lacks a field.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            "no such measurements file",
            where=str(path),
            remedy="make one with `plan calibrate run -o FILE.jsonl`",
        )
    lines = read_text(path, "measurements").splitlines()
    records = [r for i, line in enumerate(lines) if (r := _record(path, i, line, last=i == len(lines) - 1)) is not None]
    if not records or records[0].get("kind") != "header":
        raise InputError(
            "the first line is not a measurements header",
            where=f"{path}:1",
            why="the header says which device the figures belong to",
            remedy="pass a file that `plan calibrate run` wrote",
        )
    version = records[0].get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"measurements of schema {version!r}; this program reads schema {SCHEMA_VERSION}",
            where=f"{path}:1",
            remedy="use the version of plan that wrote the file, or measure again",
        )
    return MeasurementFile(
        header=records[0],
        points=tuple(_point(path, r) for r in records if r["kind"] == "point"),
        skipped=tuple(r for r in records if r["kind"] == "skipped"),
        remarks=tuple(str(r.get("text", "")) for r in records if r["kind"] == "remark"),
        path=str(path),
    )


def _record(path: Path, index: int, line: str, last: bool) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        record = parse_json(line)
    except json.JSONDecodeError as error:
        if last:
            return None
        raise InputError(
            f"not a JSON record: {error.msg}",
            where=f"{path}:{index + 1}",
            why="a measurements file holds one JSON record a line",
            remedy="remove the line, or measure again into a new file",
        ) from None
    if not isinstance(record, dict) or record.get("kind") not in ("header", "point", "skipped", "remark"):
        raise InputError(
            "not a measurement record",
            where=f"{path}:{index + 1}",
            remedy="pass a file that `plan calibrate run` wrote",
        )
    return record | {"line": index + 1}


def _point(path: Path, record: Mapping[str, Any]) -> Measurement:
    where = f"{path}:{record['line']}"
    family = str(record.get("family"))
    if family not in SHAPES:
        raise InputError(f"unknown family {family!r}", where=where, remedy=f"known: {', '.join(SHAPES)}")
    shape, times = record.get("shape"), ("median_s", "p10_s", "p90_s", "num_samples")
    missing = [name for name in SHAPES[family] if not isinstance(shape, dict) or name not in shape]
    missing += [name for name in ("dtype", *times) if name not in record]
    if missing:
        raise InputError(f"a {family} point lacks {', '.join(missing)}", where=where, remedy="measure it again")
    numbers = {**record["shape"], **{name: record[name] for name in times}}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InputError(f"{name} is {value!r}, not a number", where=where, remedy="measure it again")
    if not record["median_s"] > 0:
        raise InputError(f"median_s is {record['median_s']}, must be > 0", where=where, remedy="measure it again")
    fields: dict[str, Any] = {name: record[name] for name in Measurement.__dataclass_fields__ if name in record}
    return Measurement(**fields)
