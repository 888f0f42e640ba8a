"""Time of a layer's routed experts: grouped GEMMs over the experts that the step's tokens reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.precisions import Precision
from calibrate.roofline import peak_flops
from calibrate.work import expected_experts_hit
from catalogs.schema import Gpu

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Experts:
    """Routed experts as one GPU runs them.

    Attributes:
        num_experts: of the layer, over all GPUs. num_local: on this GPU. per_token: chosen by each token.
        hidden, inter: widths on this GPU. num_matrices: 3 for gated MLPs.
    """

    num_experts: int
    num_local: int
    per_token: int
    hidden: int
    inter: int
    num_matrices: int = 3


def experts_time_s(
    fit: Mapping[str, Any], gpu: Gpu, form: Precision, experts: Experts, tokens: FloatArray
) -> FloatArray:
    """Seconds of one layer's experts for each number of tokens that enter the layer (over all its GPUs)."""
    share = experts.num_local / experts.num_experts
    hit = expected_experts_hit(tokens, experts.num_experts, experts.per_token) * share
    rows = tokens * experts.per_token * share
    weights = experts.num_matrices * experts.hidden * experts.inter
    flops = 2.0 * rows * weights
    num_bytes = hit * weights * form.weight_bytes + rows * 2.0 * (2 * experts.hidden + 3 * experts.inter)
    compute = flops / (fit["eff_flops"] * peak_flops(gpu, form.compute))
    traffic = num_bytes / (fit["eff_bandwidth"] * gpu.memory_bandwidth_bytes_per_s)
    return np.asarray(np.maximum(compute, traffic) + fit["launch_s"])
