"""A load on a server and what came of it: the latencies that clients saw, the throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from calibrate.server.endpoint_client import Reply

QUANTILES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99}


@dataclass(frozen=True)
class LoadPoint:
    """A load and what came of it.

    Attributes:
        input_tokens, output_tokens: means over requests.
        concurrency: requests in flight (closed loop); rate_rps: arrivals (open loop); one of them may be None.
        ttft_s, tpot_s, itl_s, e2e_s: seconds by statistic (mean, p50, p90, p95, p99), as far as known.
        num_failed: requests without a whole answer.
    """

    input_tokens: float
    output_tokens: float
    num_requests: int
    concurrency: float | None = None
    rate_rps: float | None = None
    ttft_s: Mapping[str, float] = field(default_factory=dict)
    tpot_s: Mapping[str, float] = field(default_factory=dict)
    itl_s: Mapping[str, float] = field(default_factory=dict)
    e2e_s: Mapping[str, float] = field(default_factory=dict)
    requests_per_s: float | None = None
    output_tokens_per_s: float | None = None
    num_failed: int = 0
    source: str = ""
    server: Mapping[str, float] = field(default_factory=dict)  # what the server's own metrics said

    @property
    def in_flight(self) -> float | None:
        """Requests in flight: the concurrency, else by Little's law from throughput and mean time in the system."""
        if self.concurrency is not None:
            return self.concurrency
        mean = self.e2e_s.get("mean", self.e2e_s.get("p50"))
        return self.requests_per_s * mean if self.requests_per_s and mean else None


def statistics(values: Sequence[float]) -> dict[str, float]:
    """Mean and quantiles; empty for no values."""
    if not values:
        return {}
    found = np.percentile(values, list(QUANTILES.values()))
    return {"mean": float(np.mean(values)), **dict(zip(QUANTILES, map(float, found), strict=True))}


def summarise(replies: Sequence[Reply], concurrency: float | None, rate_rps: float | None = None) -> LoadPoint:
    """The load point that some replies make; needs at least one that is ok."""
    good = [r for r in replies if r.ok]
    begin_s, end_s = min(r.sent_at_s for r in replies), max(r.finish_at_s for r in replies)
    gaps = [b - a for r in good for a, b in zip(r.token_at_s, r.token_at_s[1:], strict=False)]
    return LoadPoint(
        input_tokens=float(np.mean([r.input_tokens for r in good])),
        output_tokens=float(np.mean([r.output_tokens for r in good])),
        num_requests=len(good),
        concurrency=concurrency,
        rate_rps=rate_rps,
        ttft_s=statistics([r.ttft_s for r in good]),
        tpot_s=statistics([t for r in good if (t := r.tpot_s) is not None]),
        itl_s=statistics(gaps),
        e2e_s=statistics([r.e2e_s for r in good]),
        requests_per_s=len(good) / (end_s - begin_s),
        output_tokens_per_s=sum(r.output_tokens for r in good) / (end_s - begin_s),
        num_failed=len(replies) - len(good),
        source="plan calibrate endpoint",
    )


def point_to_dict(point: LoadPoint) -> dict[str, Any]:
    """A point as JSON holds it."""
    return asdict(point)
