"""DCGM counters (``DCGM_FI_*``) set against the roofline: what a GPU is busy with, and what bounds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calibrate.server.prometheus_text import Sample
from catalogs.errors import InputError
from catalogs.schema import Gpu
from catalogs.units import MHZ, MIB

# our name: DCGM's field and its factor to our unit
_FIELDS: dict[str, tuple[str, float]] = {
    "gpu_util": ("DCGM_FI_DEV_GPU_UTIL", 0.01),
    "memory_used_bytes": ("DCGM_FI_DEV_FB_USED", MIB),
    "memory_free_bytes": ("DCGM_FI_DEV_FB_FREE", MIB),
    "power_w": ("DCGM_FI_DEV_POWER_USAGE", 1.0),
    "temperature_c": ("DCGM_FI_DEV_GPU_TEMP", 1.0),
    "sm_clock_hz": ("DCGM_FI_DEV_SM_CLOCK", MHZ),
    "engine_active": ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", 1.0),
    "sm_active": ("DCGM_FI_PROF_SM_ACTIVE", 1.0),
    "tensor_active": ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", 1.0),
    "dram_active": ("DCGM_FI_PROF_DRAM_ACTIVE", 1.0),
    "pcie_tx_bytes_per_s": ("DCGM_FI_PROF_PCIE_TX_BYTES", 1.0),
    "nvlink_tx_bytes_per_s": ("DCGM_FI_PROF_NVLINK_TX_BYTES", 1.0),
}
BUSY = 0.6  # of the time or rate: above it a resource is said to bound the GPU
FULL = 0.95  # of the memory


@dataclass(frozen=True)
class GpuCounters:
    """One GPU's counters at an instant, or averaged: ratios 0 to 1, bytes, Hz, watts; None where not exported."""

    gpu: str
    model: str
    values: dict[str, float]

    def get(self, name: str) -> float | None:
        """A counter, or None."""
        return self.values.get(name)


def read_counters(samples: Sequence[Sample], where: str = "") -> list[GpuCounters]:
    """The counters of each GPU in an exposition of dcgm-exporter.

    Raises:
        InputError: it holds no DCGM field.
    """
    by_gpu: dict[str, dict[str, list[float]]] = {}
    models: dict[str, str] = {}
    names = {field: (ours, factor) for ours, (field, factor) in _FIELDS.items()}
    for sample in samples:
        if sample.name in names:
            ours, factor = names[sample.name]
            host = sample.labels.get("Hostname", "")
            gpu = f"{host}/{sample.labels.get('gpu', '?')}".lstrip("/")
            models[gpu] = sample.labels.get("modelName", models.get(gpu, ""))
            by_gpu.setdefault(gpu, {}).setdefault(ours, []).append(sample.value * factor)
    if not by_gpu:
        raise InputError(
            "no DCGM_FI_* counters",
            where=where,
            remedy="the /metrics path of dcgm-exporter (port 9400), or its text in a file",
        )
    return [
        GpuCounters(gpu, models[gpu], {name: sum(v) / len(v) for name, v in values.items()})
        for gpu, values in sorted(by_gpu.items())
    ]


def against_roofline(counters: GpuCounters, sheet: Gpu | None, dtype: str = "bf16") -> dict[str, Any]:
    """Achieved rates and what bounds the GPU, with the numbers that say so.

    Tensor activity is a share of cycles in which the tensor pipes are busy, DRAM activity of those in which memory
    moves data; times the data sheet's peaks they are rates, and their quotient the arithmetic intensity, which stands
    left (memory) or right (compute) of the roofline's ridge.
    """
    tensor, dram = counters.get("tensor_active"), counters.get("dram_active")
    used, free = counters.get("memory_used_bytes"), counters.get("memory_free_bytes")
    answer: dict[str, Any] = {"gpu": counters.gpu, "model": counters.model, **counters.values}
    answer["memory_share"] = used / (used + free) if used is not None and free is not None and used + free else None
    if sheet is not None and tensor is not None and dram is not None:
        peak = sheet.peak_flops.get(dtype) or sheet.peak_flops.get("fp16") or sheet.peak_flops["fp32"]
        flops, moved = tensor * peak, dram * sheet.memory_bandwidth_bytes_per_s
        answer |= {
            "flops_per_s": flops,
            "dram_bytes_per_s": moved,
            "intensity_flops_per_byte": flops / moved if moved else None,
            "ridge_flops_per_byte": peak / sheet.memory_bandwidth_bytes_per_s,
        }
    answer["bound_by"], answer["because"] = _bound(counters, answer["memory_share"])
    return answer


def _bound(counters: GpuCounters, memory_share: float | None) -> tuple[str, str]:
    tensor, dram = counters.get("tensor_active"), counters.get("dram_active")
    engine = counters.get("engine_active")
    engine = counters.get("gpu_util") if engine is None else engine
    links = [v for n in ("nvlink_tx_bytes_per_s", "pcie_tx_bytes_per_s") if (v := counters.get(n))]
    if tensor is not None and tensor >= BUSY and tensor >= (dram or 0.0):
        return "compute", f"tensor pipes are busy {tensor:.0%} of the time"
    if dram is not None and dram >= BUSY:
        return "memory bandwidth", f"DRAM is active {dram:.0%} of the time"
    if engine is not None and engine < 0.5:
        full = f"; memory is {memory_share:.0%} full" if memory_share else ""
        return "no work", f"the GPU runs kernels only {engine:.0%} of the time: too few requests or a slow host{full}"
    if memory_share is not None and memory_share >= FULL and tensor is not None and tensor < BUSY:
        said = f"memory is {memory_share:.0%} full while tensor pipes are busy {tensor:.0%}"
        return "memory capacity", f"{said}: larger batches do not fit"
    if links and max(links) > 10e9 and (tensor or 0.0) < 0.3:
        return (
            "interconnect",
            f"{max(links) / 1e9:.0f} GB/s leave the GPU while tensor pipes are busy {tensor or 0:.0%}",
        )
    if tensor is None and dram is None:
        return "unknown", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE and DCGM_FI_PROF_DRAM_ACTIVE are not exported"
    return (
        "launch overhead",
        f"kernels run {engine or 0:.0%} of the time, yet tensor {tensor or 0:.0%}, DRAM {dram or 0:.0%}",
    )
