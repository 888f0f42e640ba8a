"""Time of the exchanges between GPUs: all-reduce, all-gather, reduce-scatter, all-to-all, send.

A start-up that grows with the number of GPUs, then the bytes that a ring moves over each link, one direction
(Patarasuk and Yuan 2009): 2 (g - 1) / g of the message for an all-reduce, (g - 1) / g for the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.physics import residual

FloatArray = NDArray[np.float64]


def ring_physics_s(
    fit: Mapping[str, Any], link_bytes_per_s: float, num_gpus: FloatArray | int, num_bytes: FloatArray, passes: float
) -> FloatArray:
    """Seconds before the correction.

    Args:
        fit: launch_s, hop_s (a further GPU): start-up; eff_link: share of the link's speed; sharpness: of the corner.
        passes: 2 for all-reduce, 1 for gather, scatter and all-to-all.
    """
    g = np.asarray(num_gpus, dtype=np.float64)
    moved = passes * (g - 1.0) / g * num_bytes / (fit["eff_link"] * link_bytes_per_s)
    start = fit["launch_s"] + fit.get("hop_s", 0.0) * (g - 1.0)
    q = fit.get("sharpness", 1.0)
    return np.asarray((start**q + moved**q) ** (1.0 / q))


def ring_time_s(
    fit: Mapping[str, Any], link_bytes_per_s: float, num_gpus: int, num_bytes: FloatArray, passes: float
) -> FloatArray:
    """Seconds with the correction; never above the link's speed; 0 for one GPU."""
    if num_gpus < 2:
        return np.zeros_like(num_bytes)
    size = np.maximum(num_bytes, 1.0)
    time = ring_physics_s(fit, link_bytes_per_s, num_gpus, size, passes)
    time = time * np.exp(
        residual.evaluate_all(fit.get("residual"), ({"bytes": size, "num_gpus": np.asarray(num_gpus)},))
    )
    return np.asarray(np.maximum(time, (num_gpus - 1) / num_gpus * size / link_bytes_per_s))


def all_reduce_time_s(
    fit: Mapping[str, Any], link_bytes_per_s: float, num_gpus: int, num_bytes: FloatArray
) -> FloatArray:
    """Seconds to sum ``num_bytes`` over GPUs."""
    return ring_time_s(fit, link_bytes_per_s, num_gpus, num_bytes, 2.0)


def all_gather_time_s(
    fit: Mapping[str, Any], link_bytes_per_s: float, num_gpus: int, num_bytes: FloatArray
) -> FloatArray:
    """Seconds to give every GPU all ``num_bytes`` (or, reversed, reduce-scatter)."""
    return ring_time_s(fit, link_bytes_per_s, num_gpus, num_bytes, 1.0)


def all_to_all_time_s(
    fit: Mapping[str, Any], link_bytes_per_s: float, num_gpus: int, num_bytes: FloatArray
) -> FloatArray:
    """Seconds in which each GPU hands each other its share of ``num_bytes``."""
    return ring_time_s(fit, link_bytes_per_s, num_gpus, num_bytes, 1.0)


def send_time_s(fit: Mapping[str, Any], link_bytes_per_s: float, num_bytes: FloatArray) -> FloatArray:
    """Seconds to hand ``num_bytes`` to the next pipeline stage: an all-to-all of two, of which half moves."""
    return ring_time_s(fit, link_bytes_per_s, 2, 2.0 * num_bytes, 1.0)
