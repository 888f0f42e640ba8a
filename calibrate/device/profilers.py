"""Reads profiler output into kernel families: PyTorch's Chrome traces, Nsight Systems' SQLite exports.

A trace is a list of intervals of device work; on a machine without a GPU, of CPU operators' own time. What a family
takes, and how long the device waits between kernels, tell what a step is bound by.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from catalogs.errors import InputError
from catalogs.files import gunzipped, parse_json

MICRO, NANO = 1e-6, 1e-9
MAX_BYTES = 4 * 1024**3  # of a compressed trace, unpacked
CHROME_SCHEMA = 1  # of PyTorch's profiler (Kineto)
NSIGHT_SCHEMAS = (2, 3)  # major versions of the SQLite export

# The first pattern that a kernel's name holds decides; the order matters: flash attention kernels hold "gemm" too.
_FAMILIES: tuple[tuple[str, str], ...] = (
    ("collective", r"nccl|all_?reduce|all_?gather|reduce_?scatter|custom_ar|gloo|c10d|multimem"),
    ("attention", r"flash|fmha|attention|attn|paged|mla_|sdpa"),
    ("moe", r"moe|grouped_?gemm|topk_?gating|expert"),
    ("convolution", r"conv|winograd|implicit_gemm|dgrad|wgrad|fprop"),
    ("gemm", r"gemm|gemv|cutlass|cublas|nvjet|xmma|wgmma|marlin|\bb?addb?mm\b|\bb?mm\b|linear|matmul|splitk|_mm\b"),
    ("norm", r"norm"),
    ("sampling", r"argmax|softmax|top_?k|multinomial|sort|sampl|penalt"),
    ("kv_cache", r"reshape_and_cache|concat_and_cache|copy_blocks|index_copy|index_put|index_select|slot_mapping"),
    ("copy", r"memcpy|memset|copy|cat|fill|to_copy|transpose|contiguous|clone|embedding|gather|index"),
    ("elementwise", r"elementwise|vectorized|silu|gelu|swiglu|act_|rotary|rope|add|mul|sub|div|relu|triton|reduce|pow"),
)


@dataclass(frozen=True)
class Interval:
    """One piece of work: name, start and duration in seconds; ``self_s`` without what it called."""

    name: str
    start_s: float
    duration_s: float
    self_s: float


@dataclass(frozen=True)
class Trace:
    """The work in a trace. ``device``: what did it. ``idle_share``: share of the span in which nothing ran on it."""

    source: str
    device: str
    work: tuple[Interval, ...]

    @property
    def span_s(self) -> float:
        """From the first start to the last end."""
        return max(w.start_s + w.duration_s for w in self.work) - min(w.start_s for w in self.work)

    @property
    def idle_share(self) -> float:
        """Share of the span in which no work ran: launch overhead and waiting."""
        busy_s, end_s = 0.0, -np.inf
        for work in sorted(self.work, key=lambda w: w.start_s):
            stop_s = work.start_s + work.duration_s
            busy_s += max(0.0, stop_s - max(work.start_s, end_s))
            end_s = max(end_s, stop_s)
        return 1.0 - busy_s / self.span_s if self.span_s > 0 else 0.0


def family_of(name: str) -> str:
    """The kernel family that a kernel's or operator's name means; ``other`` if none."""
    lowered = name.lower()
    return next((family for family, pattern in _FAMILIES if re.search(pattern, lowered)), "other")


def read_trace(path: str | Path) -> Trace:
    """A trace from a Chrome trace (.json, .json.gz) or an Nsight Systems export (.sqlite).

    Raises:
        InputError: no such file, not a trace, of an unknown version, or empty; ``.nsys-rep`` with the export command.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", where=str(path), remedy="a Chrome trace (.json) or an Nsight export (.sqlite)")
    if path.suffix in (".nsys-rep", ".qdrep"):
        raise InputError(
            "a report of Nsight Systems itself cannot be read",
            where=str(path),
            remedy=f"nsys export --type sqlite {path.name}",
        )
    with path.open("rb") as file:
        head = file.read(16)
    return _nsight(path) if head.startswith(b"SQLite format 3") else _chrome(path)


def _chrome(path: Path) -> Trace:
    try:
        raw = path.read_bytes()
        document = parse_json(gunzipped(raw, MAX_BYTES) if raw.startswith(b"\x1f\x8b") else raw)
    except (OSError, ValueError) as error:
        raise InputError(
            f"not a trace: {str(error)[:100]}",
            where=str(path),
            remedy="export one with torch.profiler.profile(...).export_chrome_trace, or nsys export --type sqlite",
        ) from None
    if not isinstance(document, dict) or "traceEvents" not in document:
        raise InputError("no traceEvents: not a Chrome trace", where=str(path), remedy="export_chrome_trace makes one")
    version = document.get("schemaVersion")
    if version != CHROME_SCHEMA:
        raise InputError(
            f"a trace of schema {version!r}; PyTorch's schema {CHROME_SCHEMA} is known",
            where=str(path),
            why="times may be in another unit and categories may mean something else",
            remedy="export with torch.profiler of PyTorch 1.9 or later",
        )
    events = _complete_events(document["traceEvents"], str(path))
    kernels = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if kernels:
        return Trace(f"PyTorch profiler, {path.name}", _gpu_name(document), tuple(map(_whole, kernels)))
    operators = [e for e in events if e.get("cat") == "cpu_op"]
    if not operators:
        raise InputError(
            "the trace holds neither kernels nor operators",
            where=str(path),
            remedy="profile with activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]",
        )
    return Trace(f"PyTorch profiler, {path.name}", "CPU", tuple(_own_times(operators)))


def _complete_events(events: object, where: str) -> list[dict[str, Any]]:
    """The events that have a duration (phase X), each with a number for its start and its duration."""
    if not isinstance(events, list):
        raise InputError("traceEvents is not a list: not a Chrome trace", where=where,
                         remedy="export_chrome_trace makes one")  # fmt: skip
    found = [e for e in events if isinstance(e, dict) and e.get("ph") == "X" and "dur" in e]
    for event in found:
        if not all(isinstance(event.get(key), (int, float)) for key in ("ts", "dur")) or "name" not in event:
            raise InputError(f"an event without a name, or whose ts or dur is no number: {str(event)[:100]}",
                             where=where, remedy="the trace as the profiler wrote it")  # fmt: skip
    return found


def _gpu_name(document: dict[str, Any]) -> str:
    devices = document.get("deviceProperties")
    first = devices[0] if isinstance(devices, list) and devices else None
    return str(first.get("name", "")) if isinstance(first, dict) else "GPU"


def _whole(event: dict[str, Any]) -> Interval:
    took = float(event["dur"]) * MICRO
    return Interval(str(event["name"]), float(event["ts"]) * MICRO, took, took)


def _own_times(events: Sequence[dict[str, Any]]) -> Iterable[Interval]:
    """Operators' time without that of the operators they call, by nesting within a thread."""
    threads: dict[object, list[dict[str, Any]]] = {}
    for event in events:
        threads.setdefault((event.get("pid"), event.get("tid")), []).append(event)
    for own in threads.values():
        own.sort(key=lambda e: (float(e["ts"]), -float(e["dur"])))
        inside = [0.0] * len(own)
        stack: list[int] = []
        for index, event in enumerate(own):
            while stack and float(own[stack[-1]]["ts"]) + float(own[stack[-1]]["dur"]) <= float(event["ts"]):
                stack.pop()
            if stack:
                inside[stack[-1]] += float(event["dur"])
            stack.append(index)
        for event, called in zip(own, inside, strict=True):
            took = float(event["dur"])
            yield Interval(
                str(event["name"]), float(event["ts"]) * MICRO, took * MICRO, max(took - called, 0.0) * MICRO
            )


def _nsight(path: Path) -> Trace:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as base:
            return _nsight_trace(base, path)
    except sqlite3.Error as error:
        raise InputError(
            f"cannot be read as an Nsight Systems export: {error}",
            where=str(path),
            remedy="export it again: nsys export --type sqlite REPORT.nsys-rep",
        ) from None


def _nsight_trace(base: sqlite3.Connection, path: Path) -> Trace:
    tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    version = ""
    if "META_DATA_EXPORT" in tables:
        found = dict(base.execute("SELECT name, value FROM META_DATA_EXPORT"))
        version = str(found.get("EXPORT_SCHEMA_VERSION", ""))
    major = version.split(".")[0]
    if not major.isdigit() or int(major) not in NSIGHT_SCHEMAS:
        raise InputError(
            f"an Nsight export of schema {version or 'unknown'}; {' and '.join(map(str, NSIGHT_SCHEMAS))} are known",
            where=str(path),
            why="columns may mean something else",
            remedy="export with a current Nsight Systems: nsys export --type sqlite REPORT.nsys-rep",
        )
    if "CUPTI_ACTIVITY_KIND_KERNEL" not in tables:
        raise InputError("the export holds no CUDA kernels", where=str(path), remedy="profile with nsys -t cuda,nvtx")
    rows = base.execute(
        "SELECT COALESCE(s.value, 'unknown'), k.start, k.end FROM CUPTI_ACTIVITY_KIND_KERNEL AS k"
        " LEFT JOIN StringIds AS s ON s.id = k.demangledName"
    ).fetchall()
    for table, name in (("CUPTI_ACTIVITY_KIND_MEMCPY", "memcpy"), ("CUPTI_ACTIVITY_KIND_MEMSET", "memset")):
        if table in tables:
            rows += [(name, start, end) for start, end in base.execute(f"SELECT start, end FROM {table}")]
    if not rows:
        raise InputError("the export holds no CUDA kernels", where=str(path), remedy="profile with nsys -t cuda,nvtx")
    device = "GPU"
    if "TARGET_INFO_GPU" in tables:
        device = next((str(name) for (name,) in base.execute("SELECT name FROM TARGET_INFO_GPU")), device)
    work = [Interval(str(n), start * NANO, (end - start) * NANO, (end - start) * NANO) for n, start, end in rows]
    return Trace(f"Nsight Systems export {version}, {path.name}", device, tuple(work))


def families(trace: Trace) -> list[dict[str, Any]]:
    """Each family's share of the work, longest first: number, total, median and p90 of a kernel, the longest's name."""
    groups: dict[str, list[Interval]] = {}
    for work in trace.work:
        groups.setdefault(family_of(work.name), []).append(work)
    total_s = sum(w.self_s for w in trace.work) or 1.0
    rows = []
    for family, own in groups.items():
        times = np.array([w.self_s for w in own])
        by_name: dict[str, float] = {}
        for work in own:
            by_name[work.name] = by_name.get(work.name, 0.0) + work.self_s
        rows.append(
            {
                "family": family,
                "num": len(own),
                "total_s": float(times.sum()),
                "share": float(times.sum() / total_s),
                "median_s": float(np.median(times)),
                "p90_s": float(np.quantile(times, 0.9)),
                "most": max(by_name, key=lambda name: by_name[name])[:80],
            }
        )
    return sorted(rows, key=lambda row: -float(row["total_s"]))
