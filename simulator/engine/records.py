"""What a run leaves behind: one row a request, one row a replica."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

COMPLETED, REJECTED, FAILED = 0, 1, 2
COUNTS = ("drafted", "accepted", "swap_outs", "swap_ins", "cpu_hits", "disk_hits", "lora_loads")
UNDECIDED = -1  # the status of a request that has not ended
STATUS_NAMES = ("completed", "rejected", "failed")


@dataclass(frozen=True)
class Handover:
    """How each request went from its prefill replica to its decode replica; NaN and -1 where it did not.

    Attributes:
        prefill_replica: (n,) int64. prefill_end_s: (n,) the prompt is computed.
        start_s, end_s: (n,) of the KV transfer. num_bytes: (n,) KV moved.
        decode_scheduled_s: (n,) seat on the decode replica.
    """

    prefill_replica: NDArray[np.int64]
    prefill_end_s: NDArray[np.float64]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    decode_scheduled_s: NDArray[np.float64]
    num_bytes: NDArray[np.float64]


@dataclass(frozen=True)
class Records:
    """Per-request instants (seconds on the workload's clock; NaN: never reached) and per-replica totals.

    Attributes:
        arrival_s, scheduled_s, first_token_s, finish_s: (n,) float64.
        replica: (n,) int64 index of the replica that served it; -1: none.
        status: (n,) int8, see ``STATUS_NAMES``.
        num_cached_tokens: (n,) int64 prompt tokens found in the prefix cache.
        num_preemptions: (n,) int64.
        iterations, preemptions, busy_s: (r,) per replica.
        prefix_queries, prefix_hits: (r,) prompt tokens asked of and found in the prefix cache.
        num_gpu_blocks: (r,) KV blocks of each replica.
        end_s: when the last replica went idle.
        stall_s: (n,) preempted and waiting to be admitted again; None where it was not measured.
        counts: (r,) each, what techniques did, by the names in ``COUNTS``: tokens that speculation proposed and that
            were accepted; sequences swapped out and in; prompt tokens found in host memory and on disk; LoRA adapters
            copied to the GPU.
        copied_s: (r,) by which copies (of swapped or offloaded KV, of adapters) made steps longer; None: not measured.
        handover: KV transfers between prefill and decode replicas; None without disaggregation.
        series: optional time series, name to array, all on ``series["t_s"]``.
    """

    arrival_s: NDArray[np.float64]
    scheduled_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    replica: NDArray[np.int64]
    status: NDArray[np.int8]
    num_cached_tokens: NDArray[np.int64]
    num_preemptions: NDArray[np.int64]
    iterations: NDArray[np.int64]
    preemptions: NDArray[np.int64]
    busy_s: NDArray[np.float64]
    prefix_queries: NDArray[np.int64]
    prefix_hits: NDArray[np.int64]
    num_gpu_blocks: NDArray[np.int64]
    end_s: float
    series: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    stall_s: NDArray[np.float64] | None = None
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    handover: Handover | None = None
    copied_s: NDArray[np.float64] | None = None
