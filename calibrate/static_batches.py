"""Time of a batch through an encoder or a vision model: a roofline, a power limit, and a floor for its launches.

A batch of dense, fixed-shape work keeps every unit busy, so the board's power caps the clock where a data sheet's peak
cannot be held: cards of one chip at 70 to 400 W differ by it. Per item

    work  = a * FLOPs / peak + bytes / bandwidth
    power = FLOPs * energy_per_flop / TDP,    energy_per_flop = e * width of the type in bytes * process node in nm
    time  = launches + items * (work^4 + power^4)^(1/4)

``bytes`` are the activations that move between kernels; they follow the type's width. The three fitted constants
(bytes a token or FLOP, e) and ``a`` stand in ``static_batches.json`` with their errors on GPUs that were left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.physics import work
from calibrate.physics.precisions import on_gpu
from calibrate.physics.roofline import peak_flops
from catalogs.schema import Gpu, Model, Replica

FloatArray = NDArray[np.float64]
CONSTANTS = Path(__file__).parent / "static_batches.json"
SMOOTHNESS = 4.0  # how sharply work gives way to power
# Nanometres of the process by compute capability, from NVIDIA's architecture white papers: Volta, Turing 12 (TSMC
# 12FFN); GA100 7 (TSMC N7); GA10x 8 (Samsung 8N); Ada, Hopper, Blackwell 5 (TSMC 4N and 4NP, of the 5 nm family).
PROCESS_NM = ((7.9, 12.0), (8.0, 7.0), (8.8, 8.0), (99.0, 5.0))
KERNELS_PER_ENCODER_LAYER = 7
KERNELS_PER_VISION_FLOP = 58 / 8.2e9  # ResNet-50: 53 convolutions, pooling, classifier


@cache
def fitted_constants() -> Mapping[str, Any]:
    """The project's fit: ``compute_factor``, ``encoder_bytes_per_width_byte``, ``vision_bytes_per_flop_byte``,
    ``energy_j_per_flop_byte_nm``, ``launch_s``, and ``error``."""
    document: dict[str, Any] = json.loads(CONSTANTS.read_text())
    return document


def process_nm(gpu: Gpu) -> float:
    """Process node of a GPU, nanometres."""
    return next(nm for newest, nm in PROCESS_NM if gpu.compute_capability <= newest)


def seconds_per_item(gpu: Gpu, dtype: str, flops: float, num_bytes: float, fit: Mapping[str, Any]) -> float:
    """Seconds of one item in a large batch.

    Args:
        gpu: data sheet.
        dtype: of the arithmetic; a key of ``Gpu.peak_flops``.
        flops: arithmetic of an item.
        num_bytes: activation bytes of an item, in that type.
        fit: as ``fitted_constants`` gives it.
    """
    busy = fit["compute_factor"] * flops / peak_flops(gpu, dtype) + num_bytes / gpu.memory_bandwidth_bytes_per_s
    if gpu.tdp_w <= 0.0:
        return float(busy)
    power = flops * _joules_per_flop(gpu, dtype, fit) / gpu.tdp_w
    return float((busy**SMOOTHNESS + power**SMOOTHNESS) ** (1.0 / SMOOTHNESS))


def _joules_per_flop(gpu: Gpu, dtype: str, fit: Mapping[str, Any]) -> float:
    width = 1.0 if dtype in ("int8", "fp8") else 0.5 if dtype in ("int4", "fp4") else 4.0 if dtype == "fp32" else 2.0
    return float(fit["energy_j_per_flop_byte_nm"] * width * process_nm(gpu))


def power_demand(gpu: Gpu, dtype: str, fit: Mapping[str, Any] | None = None) -> float:
    """Power that dense arithmetic at the data sheet's peak would take, over the board's limit; 0: no TDP known."""
    if gpu.tdp_w <= 0.0:
        return 0.0
    return peak_flops(gpu, dtype) * _joules_per_flop(gpu, dtype, fit or fitted_constants()) / gpu.tdp_w


def _dtype(replica: Replica) -> tuple[str, float]:
    """Type of the arithmetic and bytes of an activation between kernels, as the GPU runs the replica's precision."""
    form = on_gpu(replica.precision, replica.gpu)
    return form.compute, min(form.activation_bytes, 4.0)


def _launch_s(model: Model, fit: Mapping[str, Any]) -> float:
    if model.kind == "vision":
        return float(fit["launch_s"] * KERNELS_PER_VISION_FLOP * (model.flops_per_item or 0.0))
    return float(fit["launch_s"] * KERNELS_PER_ENCODER_LAYER * model.num_layers)


def activation_bytes(replica: Replica, items: float, fit: Mapping[str, Any] | None = None) -> float:
    """Bytes that activations move between kernels, for so many images or tokens."""
    known, model = fit or fitted_constants(), replica.model
    _, width = _dtype(replica)
    if model.kind == "vision":
        return float(items * known["vision_bytes_per_flop_byte"] * (model.flops_per_item or 0.0) * width)
    return float(items * known["encoder_bytes_per_width_byte"] * model.hidden_size * model.num_layers * width)


def positionwise_s(replica: Replica, items: FloatArray, fit: Mapping[str, Any] | None = None) -> FloatArray:
    """Seconds of all but attention, for each number of images (vision) or tokens (encoders).

    Args:
        replica: model, GPU, precision.
        items: images or tokens of the batch; 0 gives 0.
        fit: constants; None or empty: the project's.
    """
    known, model = fit or fitted_constants(), replica.model
    dtype, _ = _dtype(replica)
    flops = model.flops_per_item or 0.0 if model.kind == "vision" else 2.0 * _layer_parameters(model)
    num_bytes = activation_bytes(replica, 1.0, known)
    each = seconds_per_item(replica.gpu, dtype, flops, num_bytes, known) / replica.tensor_parallel_size
    weights = work.replica_weight_bytes(replica) / replica.gpu.memory_bandwidth_bytes_per_s
    time = np.maximum(items * each, weights) + _launch_s(model, known)
    return np.where(items > 0, time, 0.0)


def attention_s(
    replica: Replica, tokens: FloatArray, mean_context: FloatArray, fit: Mapping[str, Any] | None = None
) -> FloatArray:
    """Seconds of an encoder's attention: ``tokens`` attend to ``mean_context`` keys each, both ways; 0 for vision."""
    model = replica.model
    if model.kind != "encoder":
        return np.zeros_like(tokens)
    known = fit or fitted_constants()
    dtype, _ = _dtype(replica)
    each = seconds_per_item(replica.gpu, dtype, 1.0, 0.0, known)
    per_key = model.num_layers * work.attention_flops(model, 1.0, 1.0, replica.tensor_parallel_size)
    return np.asarray(tokens * mean_context * per_key * each)


def batch_time_s(
    replica: Replica, batch: int, tokens_per_item: float = 1.0, fit: Mapping[str, Any] | None = None
) -> float:
    """Seconds of a whole batch: ``batch`` images, or ``batch`` sequences of ``tokens_per_item`` tokens."""
    one = np.ones(1)
    if replica.model.kind == "vision":
        return float(positionwise_s(replica, one * batch, fit)[0])
    tokens = one * batch * tokens_per_item
    attention = attention_s(replica, tokens, one * tokens_per_item, fit)
    return float((positionwise_s(replica, tokens, fit) + attention)[0])


def _layer_parameters(model: Model) -> float:
    """Weights that each token of an encoder multiplies."""
    gemms = (*work.attention_gemms(model), *work.mlp_gemms(model))
    return model.num_layers * float(sum(g.n * g.k * g.count * g.share for g in gemms))
