"""KV on its way from prefill to decode replicas, as arrays (see ``handover``)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

QUEUES = ("remote_head", "remote_tail", "arrived_head", "arrived_tail")


class Transfers(NamedTuple):
    """KV on the way.

    Attributes:
        heap_s, heap, num_heap: what happens next: row i < n: its prompt is computed; n + i: its KV has come.
        block_bytes: (1,) KV of one block, whole model. latency_s: (1,) of a transfer, before its first byte.
        hidden_share: (1,) of a transfer's bytes that can move while the prompt is computed: 0, or layer by layer all
            but the last layer's.
        start_s, end_s, num_bytes: (n,) of each request's transfer; NaN and 0 where it had none.
    """

    heap_s: F64
    heap: I64
    num_heap: I64
    block_bytes: F64
    latency_s: F64
    hidden_share: F64
    start_s: F64
    end_s: F64
    num_bytes: F64


def new_transfers(
    num_requests: int, block_bytes: float = 0.0, latency_s: float = 0.0, hidden_share: float = 0.0
) -> Transfers:
    """None yet."""
    return Transfers(
        np.zeros(2 * num_requests), np.zeros(2 * num_requests, np.int64), np.zeros(1, np.int64),
        np.array([block_bytes]), np.array([latency_s]), np.array([hidden_share]),
        np.full(num_requests, np.nan), np.full(num_requests, np.nan), np.zeros(num_requests),
    )  # fmt: skip
