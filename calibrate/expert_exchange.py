"""Tokens to the GPUs of their experts and back, between data-parallel ranks.

vLLM's ``--all2all-backend``: ``allgather_reducescatter`` (its default) gives every rank the tokens of all and sums the
results; the others send a token once to each GPU that has one of its experts, in the width of the experts' activations,
and bring 16-bit results back. Their kernels are timed as NCCL's all-to-all; the busiest GPU's link sets the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.collectives import all_gather_time_s, all_to_all_time_s
from calibrate.moe import Experts
from catalogs.names import resolve
from catalogs.schema import Engine, Replica

FloatArray = NDArray[np.float64]
GATHERING = "allgather_reducescatter"
BACKENDS = (GATHERING, "pplx", "deepep_high_throughput", "deepep_low_latency")


def ranks_sharing_experts(replica: Replica) -> int:
    """Data-parallel ranks over which a replica's experts are spread, and which therefore step together; 1 without."""
    shares = replica.model.moe is not None and replica.expert_parallel_size > 1
    return replica.data_parallel_size if shares else 1


def exchange_family(engine: Engine) -> str:
    """The profile's kernels that the engine's ``all2all_backend`` option asks for.

    Raises:
        InputError: no such backend.
    """
    asked = str(engine.options.get("all2all_backend", GATHERING))
    backend = resolve(asked, BACKENDS, "all2all_backend", "engine.options")
    return "all_gather" if backend == GATHERING else "all_to_all"


def exchange_time_s(
    fit: Mapping[str, Any], replica: Replica, link_bytes_per_s: float, experts: Experts, tokens: FloatArray,
    busiest: FloatArray, activation_bytes: float,
) -> FloatArray:  # fmt: skip
    """Seconds of one layer's exchange, both ways.

    Args:
        fit: parameters of the family that ``exchange_family`` names.
        tokens: of one rank. busiest: rows of the busiest GPU over the mean.
        activation_bytes: of a value on its way to the experts.
    """
    hidden, dp, tp = replica.model.hidden_size, replica.data_parallel_size, replica.tensor_parallel_size
    ranks = dp * tp
    if exchange_family(replica.engine) == "all_gather":
        return 2.0 * all_gather_time_s(fit, link_bytes_per_s, ranks, tokens * dp * hidden * 2.0)
    copies = ranks * (1.0 - (1.0 - 1.0 / ranks) ** experts.per_token)  # distinct GPUs that a token reaches
    sent = tokens / tp * copies * hidden * busiest
    there = all_to_all_time_s(fit, link_bytes_per_s, ranks, sent * activation_bytes)
    return there + all_to_all_time_s(fit, link_bytes_per_s, ranks, sent * 2.0)
