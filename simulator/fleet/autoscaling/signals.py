"""What a controller may see of a fleet, and the sliding windows in which controllers average it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

METRICS = (
    "queue_length",  # requests that wait, per replica
    "running_requests",  # requests being served, per replica
    "ongoing_requests",  # waiting and running, per replica
    "kv_use",  # share of KV blocks in use, 0 to 1
    "gpu_use",  # share of time in which the GPU was busy, 0 to 1
    "tokens_per_s",  # prompt and output tokens computed, per replica
    "requests_per_s",  # arrivals, per replica
    "ttft_s",  # recent p95 time to first token
)
RATIO_METRICS = ("kv_use", "gpu_use", "ttft_s")  # averages that do not add up over replicas


@dataclass(frozen=True)
class FleetSnapshot:
    """A fleet as its metrics pipeline shows it; possibly old.

    Attributes:
        num_replicas: replicas that exist or boot and are not draining (Kubernetes: ``status.replicas``).
        num_ready: those that serve.
        per_replica: metric name to one value for each ready replica; None: that replica did not report.
        num_requests: all requests in the fleet, waiting in the gateway, queued or running.
        requests_per_s: arrivals at the gateway, over the last metrics interval.
    """

    num_replicas: int
    num_ready: int
    per_replica: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    num_requests: float = 0.0
    requests_per_s: float = 0.0

    def total(self, metric: str) -> float:
        """A metric's sum over the replicas (``requests_per_s`` and ``ongoing_requests``: the gateway's own)."""
        if metric == "requests_per_s":
            return self.requests_per_s
        if metric == "ongoing_requests":
            return self.num_requests
        return float(sum(v for v in self.per_replica.get(metric, ()) if v is not None))

    def mean(self, metric: str) -> float | None:
        """A metric's mean over the replicas that report it; None if none does."""
        values = [v for v in self.per_replica.get(metric, ()) if v is not None]
        return float(sum(values) / len(values)) if values else None


class Autoscaler(Protocol):
    """Decides how many replicas a fleet should have."""

    @property
    def interval_s(self) -> float:
        """How often it is asked."""
        ...

    def target_replicas(self, now_s: float, fleet: FleetSnapshot) -> int:
        """The wanted number of replicas, within the controller's own bounds."""
        ...


class TimeWindow:
    """Samples of the last ``length_s`` seconds; a sample at exactly ``now - length_s`` has left."""

    def __init__(self, length_s: float) -> None:
        self.length_s = length_s
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, now_s: float, value: float) -> None:
        """Record a value and drop those that are too old."""
        self._samples.append((now_s, value))
        while self._samples[0][0] <= now_s - self.length_s and len(self._samples) > 1:
            self._samples.popleft()

    def mean(self) -> float:
        """Mean of the samples in the window; 0 when empty."""
        return sum(v for _, v in self._samples) / len(self._samples) if self._samples else 0.0

    def maximum(self) -> float:
        """Largest sample in the window; 0 when empty."""
        return max((v for _, v in self._samples), default=0.0)
