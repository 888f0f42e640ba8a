"""Time of a linear layer: the slower of its arithmetic and its traffic, plus a floor for the launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.precisions import Precision
from calibrate.roofline import floor_s, gemm_bytes, gemm_flops, peak_flops
from catalogs.schema import Gpu

FloatArray = NDArray[np.float64]


def gemm_time_s(fit: Mapping[str, Any], gpu: Gpu, form: Precision, m: FloatArray, n: float, k: float) -> FloatArray:
    """Seconds of (m, k) x (k, n) for each m.

    Args:
        fit: a profile's parameters of the family: eff_flops, eff_bandwidth (shares of peak), launch_s.
        gpu: data sheet. form: number format as this GPU runs it.
        m: tokens. n, k: widths.
    """
    compute = np.asarray(gemm_flops(m, n, k)) / (fit["eff_flops"] * peak_flops(gpu, form.compute))
    traffic = np.asarray(gemm_bytes(form, m, n, k)) / (fit["eff_bandwidth"] * gpu.memory_bandwidth_bytes_per_s)
    time = np.maximum(compute, traffic) + fit["launch_s"]
    return np.asarray(
        np.maximum(time, floor_s(gpu, form.compute, gemm_flops(m, n, k), n * k * form.weight_bytes * 0.0))
    )
