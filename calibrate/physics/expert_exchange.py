"""Tokens to the GPUs of their experts and back, between data-parallel ranks.

vLLM's ``--all2all-backend``: ``allgather_reducescatter`` (its default, and what sliced experts always use) gives every
rank the tokens of all by NCCL's all-gather and sums the results by its reduce-scatter (0.19: ``AgRsAll2AllManager`` in
``distributed/device_communicators/all2all.py``). Beside a token's hidden state go the router's logits, or, where the
experts' activations are quantized, which are sent narrow, the weights and numbers of its experts
(``fused_moe/prepare_finalize/naive_dp_ep.py``). The other backends send a token once to each GPU that has one of its
experts, in the width of the experts' activations, and bring 16-bit results back. Their kernels are timed as NCCL's
all-to-all; the busiest GPU's link sets the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.physics.collectives import all_gather_time_s, all_to_all_time_s
from calibrate.physics.expert_layout import splits_tokens
from calibrate.physics.moe import Experts
from catalogs.names import resolve
from catalogs.schema import Replica

FloatArray = NDArray[np.float64]
GATHERING = "allgather_reducescatter"
WITHOUT_GRAPHS = "deepep_high_throughput"  # its kernels cannot be captured: no CUDA graphs over several ranks
GONE = ("naive", "pplx")  # vLLM 0.19 falls back on its default for them
BACKENDS = (GATHERING, WITHOUT_GRAPHS, "deepep_low_latency", *GONE)


def exchange_backend(replica: Replica) -> str:
    """The exchange that the engine's ``all2all_backend`` option asks for; sliced experts always gather.

    Raises:
        InputError: no such backend.
    """
    asked = str(replica.engine.options.get("all2all_backend", GATHERING))
    backend = resolve(asked, BACKENDS, "all2all_backend", "engine.options")
    return GATHERING if backend in GONE or replica.expert_parallel_size == 1 else backend


def exchange_family(replica: Replica) -> str:
    """The profile's kernels that time a replica's exchange; see ``exchange_backend``."""
    return "all_gather" if exchange_backend(replica) == GATHERING else "all_to_all"


def dispatched_bytes(replica: Replica, activation_bytes: float) -> float:
    """Bytes of a token on its way to the experts of all ranks, by gathering; ``activation_bytes``: of a value."""
    moe, hidden = replica.model.moe, replica.model.hidden_size
    assert moe is not None
    if activation_bytes >= 2.0:
        return 2.0 * (hidden + moe.num_experts)
    return activation_bytes * hidden + 8.0 * moe.num_experts_per_token  # a weight and a number, 32 bit each


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
    if exchange_family(replica) == "all_gather":
        group = ranks if splits_tokens(replica) else dp
        together, width = tokens * dp, dispatched_bytes(replica, activation_bytes)
        there = all_gather_time_s(fit, link_bytes_per_s, group, together * width)
        return there + all_gather_time_s(fit, link_bytes_per_s, group, together * hidden * 2.0)
    copies = ranks * (1.0 - (1.0 - 1.0 / ranks) ** experts.per_token)  # distinct GPUs that a token reaches
    sent = tokens / tp * copies * hidden * busiest
    there = all_to_all_time_s(fit, link_bytes_per_s, ranks, sent * activation_bytes)
    return there + all_to_all_time_s(fit, link_bytes_per_s, ranks, sent * 2.0)
