"""The requests that a `workload` section means, and demand by size in place of requests."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from catalogs.errors import InputError
from simulator.workload.requests import Requests
from simulator.workload.scaling import repeat_requests, scale_requests
from simulator.workload.spec import WorkloadSpec
from simulator.workload.synthesis import merge_classes, rate_factor, synthesize
from simulator.workload.traces import read_trace


def load_workload(spec: WorkloadSpec, seed: int = 0) -> Requests:
    """The requests that a workload section means.

    Args:
        spec: with resolved paths.
        seed: same spec and seed, same requests.

    Raises:
        InputError: a trace that cannot be read, or buckets (which are rates, not requests).
    """
    if spec.buckets is not None:
        raise InputError("buckets are rates by size, not requests that can be simulated", where=str(spec.buckets),
                         remedy="a trace, or arrivals with lengths")  # fmt: skip
    if spec.trace is not None:
        requests = read_trace(spec.trace, sort=spec.sort, hash_block_tokens=spec.hash_block_tokens, limit=spec.limit)
    elif spec.classes:
        seeds = np.random.SeedSequence(seed).generate_state(len(spec.classes))
        parts = []
        for one, class_seed in zip(spec.classes, seeds, strict=True):
            part = read_trace(one.trace) if one.trace is not None else synthesize(one, int(class_seed))
            parts.append(replace(scale_requests(part, one.scale), request_class=None))
        requests = merge_classes(parts, [one.name for one in spec.classes])
    else:
        requests = synthesize(spec, seed)
    if spec.scale != 1.0:
        requests = scale_requests(requests, spec.scale)
    if spec.repeat_s is not None:
        requests = repeat_requests(requests, spec.repeat_s)
    factor = rate_factor(spec)
    return requests if factor is None else scale_requests(requests, factor)


def read_buckets(path: Path) -> list[tuple[int, int, float]]:
    """Demand by size: (input_tokens, output_tokens, rate_rps) a row.

    Raises:
        InputError: unreadable, wrong columns, a number out of range, or no demand at all.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"input_tokens", "output_tokens", "rate_rps"} - set(reader.fieldnames or ())
            if missing:
                raise InputError(f"no column {' or '.join(sorted(missing))}", where=f"{path}:1",
                                 remedy="input_tokens,output_tokens,rate_rps")  # fmt: skip
            rows = [_bucket(row, f"{path}:{reader.line_num}") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', error)}", where=str(path)) from error
    if not any(rate > 0 for *_, rate in rows):
        raise InputError("no bucket has any demand", where=str(path))
    return rows


def _bucket(row: Mapping[str, Any], where: str) -> tuple[int, int, float]:
    try:
        found = int(row["input_tokens"]), int(row["output_tokens"]), float(row["rate_rps"])
    except (TypeError, ValueError) as error:
        raise InputError(f"is not two whole numbers and a rate: {dict(row)}", where=where) from error
    if found[0] < 1 or found[1] < 0 or not (np.isfinite(found[2]) and found[2] >= 0):
        raise InputError(f"is out of range: {found}", where=where, remedy="input > 0, output >= 0, rate >= 0")
    return found
