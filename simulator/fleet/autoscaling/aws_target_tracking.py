"""AWS target tracking: two alarms that the service manages, proportional scale-out, cautious scale-in.

Source: Amazon EC2 Auto Scaling and Application Auto Scaling user guides (target tracking, warm-up, cooldown); alarm
periods as read off the alarms that the service makes (3 points out, 15 points in; scale-in below 90 % of the target).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from simulator.fleet.autoscaling.signals import RATIO_METRICS, FleetSnapshot


@dataclass(frozen=True)
class TargetTrackingConfig:
    """A target tracking policy; ``period_s`` is 60 with detailed monitoring, 300 with basic."""

    metric: str
    target_value: float
    min_capacity: int = 1
    max_capacity: int = 10
    disable_scale_in: bool = False
    estimated_instance_warmup_s: float = 300.0  # default cooldown of a group without a default warm-up
    scale_in_cooldown_s: float = 0.0  # Application Auto Scaling only
    scale_out_cooldown_s: float = 0.0  # the same
    period_s: float = 60.0
    scale_out_evaluation_periods: int = 3
    scale_in_evaluation_periods: int = 15
    scale_in_share_of_target: float = 0.9


@dataclass
class TargetTracking:
    """The policy with its alarms' memory and the instances that still warm up."""

    config: TargetTrackingConfig
    _high: int = 0
    _low: int = 0
    _warm_until_s: float = -math.inf
    _last_out_s: float = -math.inf
    _last_in_s: float = -math.inf
    _values: list[float] = field(default_factory=list)

    @property
    def interval_s(self) -> float:
        """The metric's period: alarms see one point each."""
        return self.config.period_s

    def target_replicas(self, now_s: float, fleet: FleetSnapshot) -> int:
        """Feed one metric point to both alarms and act on the one in alarm."""
        c = self.config
        value = fleet.mean(c.metric)
        capacity = min(max(fleet.num_replicas, c.min_capacity), c.max_capacity)
        if value is None:
            if c.metric in RATIO_METRICS or fleet.num_ready == 0:
                return capacity
            value = fleet.total(c.metric) / fleet.num_ready
        elif c.metric in ("requests_per_s", "ongoing_requests"):
            value = fleet.total(c.metric) / fleet.num_ready
        return self.decide(now_s, capacity, value)

    def decide(self, now_s: float, capacity: int, value: float) -> int:
        """The new desired capacity after one more metric point (a mean over the instances that are warm)."""
        c = self.config
        self._high = self._high + 1 if value > c.target_value else 0
        self._low = self._low + 1 if value < c.target_value * c.scale_in_share_of_target else 0
        wanted = proportional_capacity(capacity, value, c.target_value)
        if self._high >= c.scale_out_evaluation_periods and wanted > capacity:
            if now_s < self._warm_until_s or now_s - self._last_out_s < c.scale_out_cooldown_s:
                return capacity  # those that warm up count already
            self._warm_until_s, self._last_out_s = now_s + c.estimated_instance_warmup_s, now_s
            return min(wanted, c.max_capacity)
        if self._low >= c.scale_in_evaluation_periods and not c.disable_scale_in and wanted < capacity:
            if now_s < self._warm_until_s or now_s - self._last_in_s < c.scale_in_cooldown_s:
                return capacity
            self._last_in_s, self._low = now_s, 0
            return max(wanted, c.min_capacity)
        return capacity


def proportional_capacity(capacity: int, value: float, target: float) -> int:
    """Instances that bring the metric to its target: fractions to add round up, fractions to remove round down."""
    return math.ceil(capacity * value / target - 1e-9)
