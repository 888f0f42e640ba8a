"""Reading published kernel tables: columns that must be there, units that must be right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from calibrate.physics.roofline import peak_flops
from catalogs.errors import InputError, MissingError
from catalogs.schema import Gpu

_TEXTS = ("_dtype", "_name", "distribution")  # endings of the columns that hold words


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A Parquet or CSV table that has ``columns``.

    Raises:
        InputError: unreadable, empty, a column is missing (named), or one of numbers holds something else.
    """
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except Exception as error:  # pyarrow and pandas raise many kinds
        raise InputError(f"cannot be read: {error}", where=str(path)) from error
    missing = [name for name in columns if name not in frame]
    if missing:
        raise InputError(
            f"column{'s' if len(missing) > 1 else ''} {', '.join(missing)} missing",
            where=str(path),
            why="the kernel's shape or time cannot be told without",
            remedy=f"the table has {', '.join(map(str, frame.columns))}",
        )
    if frame.empty:
        raise InputError("the table has no rows", where=str(path))
    for name in columns:
        if not name.endswith(_TEXTS) and not pd.api.types.is_numeric_dtype(frame[name]):
            bad = pd.to_numeric(frame[name], errors="coerce").isna()
            row = int(np.argmax(bad)) if bad.any() else 0
            raise InputError(
                f"column {name} holds {str(frame[name].iloc[row])[:40]!r} in data row {row + 1}, not a number",
                where=str(path),
            )
    return frame


def positive_times(frame: pd.DataFrame, name: str, unit_s: float, path: Path) -> pd.Series[float]:
    """A time column in seconds.

    Raises:
        InputError: not numbers, or not > 0.
    """
    values = pd.to_numeric(frame[name], errors="coerce") * unit_s
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        raise InputError(
            f"column {name}: {int(bad.sum())} values are not times > 0, first in data row {int(np.argmax(bad)) + 1}",
            where=str(path),
        )
    return values


def check_unit(flops: pd.Series[float], time_s: pd.Series[float], gpu: Gpu, dtype: str, name: str, path: Path) -> None:
    """Check a time column's unit: the fastest large kernels must run at 2 to 130 % of the GPU's peak.

    Raises:
        InputError: they do not, so that the unit (or the GPU) must be another.
    """
    share = float((flops / time_s / peak_flops(gpu, dtype)).quantile(0.99))
    if 0.02 <= share <= 1.3:
        return
    raise InputError(
        f"column {name}: the fastest kernels would run at {share:.3g} times {gpu.name}'s {dtype} peak",
        where=str(path),
        why="the column is in another unit than milliseconds, or the table is of another GPU",
        remedy="convert it to milliseconds, or name the GPU with --gpu",
    )


def one_folder(folder: Path, what: str) -> Path:
    """The folder, if it is one.

    Raises:
        MissingError: it is not there. InputError: it is a file.
    """
    if not folder.exists():
        raise MissingError(f"no folder {folder}", remedy=f"the folder that holds {what}")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file", remedy=f"the folder that holds {what}")
    return folder
