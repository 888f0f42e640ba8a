"""A user's own record of spot availability, checked before it is believed."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError, MissingError
from catalogs.files import parse_json, read_text
from simulator.fleet.spot import Availability, Zone, demand_few_steps
from simulator.workload.traces import EPOCH_FLOOR_S


def read_availability(
    path: str | Path, duration_s: float, start: float | None = None, gaps: str = "refuse", where: str = "spot.trace"
) -> Availability:
    """Read a path of availability and lay it on the run's clock.

    Two forms: CSV with a first column ``time_s`` and one column of 0 and 1 (or instance counts) a zone, named by zone;
    or JSON of SkyPilot's spot-traces form, ``{"metadata": {"gap_seconds": ...}, "data": [...]}``, for one zone.

    Args:
        duration_s: of the run; the trace must cover it.
        start: the trace's time at which the run starts; None: its first instant, which must then be on the run's own
            clock (near 0).
        gaps: ``refuse``, ``hold`` the last state, or ``down`` while nothing was recorded.

    Raises:
        MissingError: no such file.
        InputError: unreadable, unsorted, gaps, another clock, or shorter than the run.
    """
    file = Path(path)
    if not file.exists():
        raise MissingError(f"no spot trace {file}", where=where, remedy="a CSV with time_s and one column a zone")
    names, times, values = _read_json(file) if file.suffix == ".json" else _read_csv(file)
    step = _check_times(times, file, gaps)
    if start is None:
        if abs(times[0]) > EPOCH_FLOOR_S:
            raise InputError(
                f"time starts at {times[0]:.0f}, which is another clock than the run's (0 to {duration_s:.0f} s)",
                where=str(file),
                why="losses would fall outside the run and none would be seen",
                remedy=f"spot: {{trace_start: {times[0]:.0f}}} lays its first instant on the start of the run",
            )
        start = float(times[0])
    num_steps = max(1.0, np.ceil(duration_s / step))
    end = start + step * (num_steps - 1)
    if start < times[0] - step or end > times[-1] + step:
        raise InputError(
            f"covers {times[0]:.0f} to {times[-1]:.0f} s, the run needs {start:.0f} to {end:.0f} s",
            where=str(file),
            remedy="a longer trace, a shorter run or another trace_start",
        )
    demand_few_steps(num_steps, str(file))
    grid = start + step * np.arange(int(num_steps))
    last = np.clip(np.searchsorted(times, grid + 1e-6, side="right") - 1, 0, len(times) - 1)
    up = values[last] > 0
    if gaps == "down":
        up &= (grid - times[last] <= 1.5 * step)[:, None]
    return Availability(_zones(names, values), 0.0, float(step), np.ascontiguousarray(up.T))


def _zones(names: Sequence[str], values: NDArray[np.float64]) -> tuple[Zone, ...]:
    counts = values.max(axis=0)
    return tuple(
        Zone(name, name[:-1] or name, float((values[:, i] > 0).mean()), int(counts[i]) if counts[i] > 1 else None)
        for i, name in enumerate(names)
    )


def _read_json(file: Path) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    try:
        document = parse_json(read_text(file, "a spot trace"))
        gap = float(document["metadata"]["gap_seconds"])
        data = np.asarray(document["data"], float)
        if not 0 < gap < 1e9 or data.ndim != 1 or not np.isfinite(data).all():
            raise ValueError("gap_seconds is no number of seconds above 0, or data no list of finite numbers")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"not a spot trace: {error}",
            where=str(file),
            remedy='{"metadata": {"gap_seconds": 195}, "data": [0, 1, ...]}',
        ) from None
    times: NDArray[np.float64] = gap * np.arange(len(data), dtype=float)
    return [file.stem.split("_")[0]], times, data.reshape(-1, 1)


def _read_csv(file: Path) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    try:
        lines = list(csv.reader(io.StringIO(read_text(file, "a spot trace"), newline="")))
    except csv.Error as error:
        raise InputError(f"is not CSV: {error}", where=str(file)) from error
    header = lines[0] if lines else []
    if len(header) < 2 or header[0].strip() != "time_s":
        raise InputError(
            f"its header is {','.join(header) or 'empty'}", where=f"{file}:1", remedy="time_s,us-east-1a,us-east-1b"
        )
    rows = []
    for number, row in enumerate(lines[1:], start=2):
        try:
            rows.append([float(cell) for cell in row])
        except ValueError:
            raise InputError(f"not a number in {','.join(row)}", where=f"{file}:{number}") from None
        if not np.isfinite(rows[-1]).all():
            raise InputError(f"not a finite number in {','.join(row)}", where=f"{file}:{number}")
        if len(row) != len(header):
            raise InputError(f"{len(row)} cells, the header has {len(header)}", where=f"{file}:{number}")
    table = np.asarray(rows).reshape(-1, len(header))
    return [name.strip() for name in header[1:]], table[:, 0], table[:, 1:]


def _check_times(times: NDArray[np.float64], file: Path, gaps: str) -> float:
    if len(times) < 2 or not np.isfinite(times).all():
        raise InputError(
            "fewer than two instants, or one that is no number", where=str(file), remedy="a value for each probe"
        )
    steps = np.diff(times)
    if (steps <= 0).any():
        at = int(np.flatnonzero(steps <= 0)[0])
        raise InputError(
            f"time goes from {times[at]:g} to {times[at + 1]:g}",
            where=f"{file}:{at + 3}",
            remedy="rows in order of time",
        )
    step = float(np.median(steps))
    wide = np.flatnonzero(steps > 1.5 * step)
    if len(wide) and gaps == "refuse":
        at = int(wide[0])
        raise InputError(
            f"{len(wide)} gaps, the first from {times[at]:.0f} to {times[at + 1]:.0f} s (the usual step is {step:g} s)",
            where=f"{file}:{at + 3}",
            why="what happened in a gap is not known",
            remedy="spot: {trace_gaps: hold} keeps the last state, {trace_gaps: down} assumes no capacity",
        )
    return step
