"""SkyServe's request-rate autoscaler with its hysteresis; its spot mix and placer are in ``simulator/fleet/spot.py``.

Source: skypilot 0.14.1, sky/serve/autoscalers.py and constants.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from simulator.fleet.autoscaling.signals import FleetSnapshot, TimeWindow

DECISION_INTERVAL_S = 20.0
NO_REPLICA_DECISION_INTERVAL_S = 5.0
QPS_WINDOW_S = 60.0


@dataclass(frozen=True)
class SkyServeConfig:
    """replica_policy of a SkyServe service."""

    target_qps_per_replica: float
    min_replicas: int = 1
    max_replicas: int | None = None  # None: as many as min_replicas
    upscale_delay_seconds: float = 300.0
    downscale_delay_seconds: float = 1200.0


@dataclass
class SkyServe:
    """The autoscaler with its two counters and its own target."""

    config: SkyServeConfig
    target: int = field(init=False)
    upscale_counter: int = 0
    downscale_counter: int = 0
    _rates: TimeWindow = field(default_factory=lambda: TimeWindow(QPS_WINDOW_S))

    def __post_init__(self) -> None:
        self.target = self.config.min_replicas

    @property
    def interval_s(self) -> float:
        """20 s; 5 s while there should be no replica."""
        return NO_REPLICA_DECISION_INTERVAL_S if self.target == 0 else DECISION_INTERVAL_S

    def target_replicas(self, now_s: float, fleet: FleetSnapshot) -> int:
        """Average the request rate over the QPS window and decide."""
        self._rates.add(now_s, fleet.requests_per_s)
        return self.decide(self._rates.mean())

    def decide(self, requests_per_s: float) -> int:
        """One decision: act once the same direction has been wanted for the whole delay."""
        c = self.config
        most = c.min_replicas if c.max_replicas is None else c.max_replicas
        wanted = max(c.min_replicas, min(most, math.ceil(requests_per_s / c.target_qps_per_replica - 1e-9)))
        if self.target == 0:
            self.target = wanted
        elif wanted > self.target:
            self.upscale_counter, self.downscale_counter = self.upscale_counter + 1, 0
            if self.upscale_counter >= int(c.upscale_delay_seconds / DECISION_INTERVAL_S):
                self.upscale_counter, self.target = 0, wanted
        elif wanted < self.target:
            self.upscale_counter, self.downscale_counter = 0, self.downscale_counter + 1
            if self.downscale_counter >= int(c.downscale_delay_seconds / DECISION_INTERVAL_S):
                self.downscale_counter, self.target = 0, wanted
        else:
            self.upscale_counter = self.downscale_counter = 0
        return self.target
