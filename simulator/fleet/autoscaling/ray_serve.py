"""Ray Serve's deployment autoscaler: ongoing requests against a target, after a delay of one mind.

Source: ray-project/ray python/ray/serve/autoscaling_policy.py (00590c45) and config.py (00239d48).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from simulator.fleet.autoscaling.signals import FleetSnapshot, TimeWindow

CONTROL_LOOP_INTERVAL_S = 0.1


@dataclass(frozen=True)
class RayServeConfig:
    """AutoscalingConfig, under Ray's names."""

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 2.0
    look_back_period_s: float = 30.0
    metrics_interval_s: float = 10.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    downscale_to_zero_delay_s: float | None = None
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0


@dataclass
class RayServe:
    """The policy with its decision counter; asked once a second, it counts the control loops in between."""

    config: RayServeConfig
    interval_s: float = 1.0
    decision_counter: int = 0
    _requests: TimeWindow = field(init=False)
    _next_metric_s: float = 0.0

    def __post_init__(self) -> None:
        self._requests = TimeWindow(self.config.look_back_period_s)

    def target_replicas(self, now_s: float, fleet: FleetSnapshot) -> int:
        """Average the ongoing requests over the look-back period and decide."""
        if now_s >= self._next_metric_s - 1e-9 or fleet.num_replicas == 0:
            self._requests.add(now_s, fleet.num_requests)
            self._next_metric_s = now_s + self.config.metrics_interval_s
        loops = max(1, round(self.interval_s / CONTROL_LOOP_INTERVAL_S))
        return self.decide(self._requests.mean(), fleet.num_replicas, loops)

    def decide(self, num_requests: float, num_replicas: int, num_loops: int = 1) -> int:
        """The target after ``num_loops`` control loops that all saw the same numbers."""
        c = self.config
        if num_replicas == 0:  # the cold start path skips every delay
            return max(math.ceil(c.upscaling_factor), c.min_replicas) if num_requests > 0 else c.min_replicas
        desired = self._scaled(num_requests / c.target_ongoing_requests, num_replicas)
        desired = max(c.min_replicas, min(c.max_replicas, desired))
        return self._delayed(desired, num_replicas, num_loops)

    def _scaled(self, raw: float, num_replicas: int) -> int:
        c = self.config
        factor = c.upscaling_factor if raw > num_replicas else c.downscaling_factor
        scaled = math.ceil(num_replicas + factor * (raw - num_replicas) - 1e-9)
        if math.ceil(raw) < num_replicas == scaled:  # a small factor must not freeze the way down
            scaled -= 1
        return scaled

    def _delayed(self, desired: int, num_replicas: int, num_loops: int) -> int:
        c = self.config
        if desired > num_replicas:
            self.decision_counter = max(self.decision_counter, 0) + num_loops
            delay_s = c.upscale_delay_s
        elif desired < num_replicas:
            self.decision_counter = min(self.decision_counter, 0) - num_loops
            to_zero = num_replicas == 1
            delay_s = c.downscale_delay_s
            if to_zero and c.downscale_to_zero_delay_s is not None:
                delay_s = c.downscale_to_zero_delay_s
            if not to_zero:
                desired = max(1, desired)
        else:
            self.decision_counter = 0
            return num_replicas
        if abs(self.decision_counter) > int(delay_s / CONTROL_LOOP_INTERVAL_S + 1e-9):
            self.decision_counter = 0
            return desired
        return num_replicas
