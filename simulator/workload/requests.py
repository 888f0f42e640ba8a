"""Requests as columns: when each arrives, how long it is, what it shares with others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError

MAX_REQUESTS = 200_000_000


@dataclass(frozen=True)
class Requests:
    """A workload of n requests, sorted by arrival.

    Attributes:
        arrival_s: (n,) float64, seconds from the start, ascending.
        input_tokens: (n,) int64, > 0.
        output_tokens: (n,) int64, >= 0; what the request will generate. Policies never see it.
        hash_offsets: (n + 1,) int64 or None; request i has the prefix blocks
            ``hash_ids[hash_offsets[i]:hash_offsets[i+1]]``.
        hash_ids: int64 or None; equal ids at equal places mean equal prefixes.
        hash_block_tokens: prompt tokens that one hash id stands for (Mooncake: 512).
        request_class: (n,) int64 or None, index into ``class_names``.
        class_names: names of the request classes.
        session: (n,) int64 or None; requests of one conversation or tenant.
        concurrency: None for an open loop; else a closed loop: arrivals beyond the first ``concurrency`` requests
            happen when an earlier one ends (``arrival_s`` is then ignored and filled in by the run).
    """

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    hash_offsets: NDArray[np.int64] | None = None
    hash_ids: NDArray[np.int64] | None = None
    hash_block_tokens: int = 512
    request_class: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = field(default=("default",))
    session: NDArray[np.int64] | None = None
    concurrency: int | None = None

    def __len__(self) -> int:
        return len(self.input_tokens)

    def answered_once(self) -> Requests:
        """As an encoder or a vision model answers, whatever a trace says of the output."""
        return replace(self, output_tokens=np.ones_like(self.output_tokens))


def demand_few_enough(expected: float, remedy: str) -> None:
    """Raise ``InputError`` for a load of more requests than memory would hold."""
    if not expected <= MAX_REQUESTS:
        raise InputError(f"the load has about {expected:.3g} requests", why=f"{MAX_REQUESTS:,} is the most",
                         remedy=remedy)  # fmt: skip


@dataclass(frozen=True)
class Slo:
    """A promised latency: a percentile of a metric, over all requests or one class."""

    metric: str  # ttft tpot e2e
    percentile: float  # 0 to 100
    limit_s: float
    request_class: str | None = None

    @property
    def name(self) -> str:
        """As in the plan's ``slo`` section: ``ttft_p95_s``."""
        return f"{self.metric}_p{self.percentile:g}_s"
