"""Knative's pod autoscaler: a stable and a panic window over concurrency (or requests a second).

Source: knative/serving pkg/autoscaler/scaling/autoscaler.go (00a4a55c) and the config-autoscaler map (0d68a7be).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from simulator.fleet.autoscaling.signals import FleetSnapshot, TimeWindow


@dataclass(frozen=True)
class KpaConfig:
    """config-autoscaler and a revision's annotations, under Knative's names."""

    metric: str = "ongoing_requests"  # Knative: concurrency; or requests_per_s (rps)
    container_concurrency_target_default: float = 100.0
    container_concurrency_target_percentage: float = 70.0
    requests_per_second_target_default: float = 200.0
    stable_window_s: float = 60.0
    panic_window_percentage: float = 10.0
    panic_threshold_percentage: float = 200.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    scale_to_zero_grace_period_s: float = 30.0
    scale_down_delay_s: float = 0.0
    activation_scale: int = 1
    min_scale: int = 0
    max_scale: int = 0  # 0: no bound
    tick_interval_s: float = 2.0

    @property
    def target_value(self) -> float:
        """What one pod should carry on average: the concurrency target times its percentage, or the rps target."""
        if self.metric == "requests_per_s":
            return self.requests_per_second_target_default * self.container_concurrency_target_percentage / 100
        return self.container_concurrency_target_default * self.container_concurrency_target_percentage / 100


@dataclass
class Kpa:
    """The decider with its panic state and windows."""

    config: KpaConfig
    num_ready_at_start: int = 0
    panic_since_s: float | None = None
    max_panic_pods: int = 0
    _delay: TimeWindow | None = None
    _stable: TimeWindow = field(init=False)
    _panic: TimeWindow = field(init=False)
    _zero_since_s: float | None = None

    def __post_init__(self) -> None:
        c = self.config
        if self.num_ready_at_start > 1:  # a restarted autoscaler has no history, so it must not scale down yet
            self.panic_since_s = 0.0
        self.max_panic_pods = self.num_ready_at_start
        self._delay = TimeWindow(c.scale_down_delay_s) if c.scale_down_delay_s > 0 else None
        self._stable = TimeWindow(c.stable_window_s)
        self._panic = TimeWindow(c.stable_window_s * c.panic_window_percentage / 100)

    @property
    def interval_s(self) -> float:
        """Knative's tick."""
        return self.config.tick_interval_s

    def target_replicas(self, now_s: float, fleet: FleetSnapshot) -> int:
        """Average the metric in both windows, decide, wait out the grace period before zero, keep the bounds."""
        value = fleet.total(self.config.metric)
        self._stable.add(now_s, value)
        self._panic.add(now_s, value)
        desired = self.decide(now_s, fleet.num_ready, self._stable.mean(), self._panic.mean())
        if desired == 0 and fleet.num_replicas > 0:
            if self._zero_since_s is None:
                self._zero_since_s = now_s
            if now_s - self._zero_since_s < self.config.scale_to_zero_grace_period_s:
                desired = 1
        else:
            self._zero_since_s = None
        desired = max(desired, self.config.min_scale)
        return min(desired, self.config.max_scale) if self.config.max_scale else desired

    def decide(self, now_s: float, num_ready: int, stable_value: float, panic_value: float) -> int:
        """One Scale() of autoscaler.go: desired pods from the two windows' averages."""
        c, target = self.config, self.config.target_value
        ready = max(1, num_ready)
        most, least = math.ceil(c.max_scale_up_rate * ready), math.floor(ready / c.max_scale_down_rate)
        raw_stable, raw_panic = math.ceil(stable_value / target - 1e-9), math.ceil(panic_value / target - 1e-9)
        desired = min(max(raw_stable, least), most)
        desired_panic = min(max(raw_panic, least), most)
        if c.activation_scale > 1:
            desired = max(desired, c.activation_scale) if raw_stable > 0 else desired
            desired_panic = max(desired_panic, c.activation_scale) if raw_panic > 0 else desired_panic
        self._update_panic(now_s, raw_panic / ready >= c.panic_threshold_percentage / 100)
        if self.panic_since_s is not None:
            self.max_panic_pods = max(self.max_panic_pods, desired, desired_panic)
            desired = self.max_panic_pods
        if self._delay is not None:
            self._delay.add(now_s, desired)
            desired = int(self._delay.maximum())
        return desired

    def _update_panic(self, now_s: float, over: bool) -> None:
        if over:
            self.panic_since_s = now_s
        elif self.panic_since_s is not None and self.panic_since_s + self.config.stable_window_s < now_s:
            self.panic_since_s, self.max_panic_pods = None, 0
