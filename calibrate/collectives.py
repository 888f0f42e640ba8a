"""Time of the exchanges between GPUs: all-reduce, all-gather, all-to-all, send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def all_reduce_time_s(
    fit: Mapping[str, Any], link_bytes_per_s: float, num_gpus: int, num_bytes: FloatArray
) -> FloatArray:
    """Seconds to sum ``num_bytes`` over GPUs: a ring moves 2 (g - 1) / g of them over each link, one direction."""
    if num_gpus < 2:
        return np.zeros_like(num_bytes)
    moved = 2.0 * (num_gpus - 1) / num_gpus * num_bytes
    return np.asarray(moved / (fit["eff_link"] * link_bytes_per_s) + fit["launch_s"])


def all_gather_time_s(
    fit: Mapping[str, Any], link_bytes_per_s: float, num_gpus: int, num_bytes: FloatArray
) -> FloatArray:
    """Seconds to give every GPU all ``num_bytes`` (or, reversed, reduce-scatter): (g - 1) / g over each link."""
    if num_gpus < 2:
        return np.zeros_like(num_bytes)
    return np.asarray((num_gpus - 1) / num_gpus * num_bytes / (fit["eff_link"] * link_bytes_per_s) + fit["launch_s"])


def send_time_s(fit: Mapping[str, Any], link_bytes_per_s: float, num_bytes: FloatArray) -> FloatArray:
    """Seconds to hand ``num_bytes`` to the next pipeline stage."""
    return np.asarray(num_bytes / (fit["eff_link"] * link_bytes_per_s) + fit["launch_s"])
