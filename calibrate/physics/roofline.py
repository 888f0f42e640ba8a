"""The data-sheet limits that no kernel passes, and the time that a share of them gives."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibrate.physics.precisions import Precision
from catalogs.schema import Gpu

FloatArray = NDArray[np.float64]
# Kernels between the GEMMs. Launch: small kernels of vLLM 0.19 on the RTX 4090 and RTX PRO 6000 (LLMServingSim 5daddb2:
# 1.9 to 2.7 us). Bandwidth: between Vidur's kernels of 2023 on A100 and H100 (0.5 to 0.6 of DRAM's, arXiv 2405.05465
# repository) and vLLM 0.19's on the RTX 4090 (1.0).
ELEMENTWISE = {"eff_bandwidth": 0.8, "launch_s": 2.1e-6}


def peak_flops(gpu: Gpu, dtype: str) -> float:
    """FLOP/s of a dtype; 16-bit types stand in for each other, and what has no units runs as fp32."""
    for name in (dtype, *{"bf16": ("fp16",), "fp16": ("bf16",), "tf32": ("fp32",)}.get(dtype, ())):
        if name in gpu.peak_flops:
            return gpu.peak_flops[name]
    return gpu.peak_flops["fp32"]


# Compute capabilities with 64 FP32 lanes a multiprocessor; later ones have 128.
FP32_LANES_OF_64 = (7.0, 7.2, 7.5, 8.0)


def clock_hz(gpu: Gpu) -> float | None:
    """Boost clock that the data sheet's FP32 peak implies (two FLOPs a lane and cycle); None: no data sheet.

    Lanes a multiprocessor: CUDA C++ Programming Guide, arithmetic instructions by compute capability.
    """
    if gpu.compute_capability < 7.0 or gpu.tdp_w <= 0.0:
        return None
    lanes = 64.0 if gpu.compute_capability in FP32_LANES_OF_64 else 128.0
    return gpu.peak_flops["fp32"] / (2.0 * lanes * gpu.num_sms)


def floor_s(gpu: Gpu, dtype: str, flops: FloatArray | float, num_bytes: FloatArray | float) -> FloatArray:
    """Least seconds for ``flops`` and for ``num_bytes`` of DRAM traffic (Williams et al. 2009, the roofline)."""
    compute = np.asarray(flops, dtype=np.float64) / peak_flops(gpu, dtype)
    return np.maximum(compute, np.asarray(num_bytes, dtype=np.float64) / gpu.memory_bandwidth_bytes_per_s)


def gemm_flops(m: FloatArray | float, n: float, k: float) -> FloatArray | float:
    """FLOPs of (m, k) x (k, n)."""
    return 2.0 * m * n * k


def gemm_bytes(form: Precision, m: FloatArray | float, n: float, k: float) -> FloatArray | float:
    """Bytes read and written once: weights, activations in, 16-bit results out."""
    return n * k * form.weight_bytes + m * k * form.activation_bytes + 2.0 * m * n
