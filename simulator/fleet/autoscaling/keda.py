"""KEDA: its operator switches a workload on and off (0 <-> 1), the HPA that it makes does the rest.

Source: keda.sh ScaledObject specification and scaling-deployments; names and defaults are KEDA's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from simulator.fleet.autoscaling.hpa import (
    SCALE_DOWN_DEFAULT,
    SCALE_UP_DEFAULT,
    Hpa,
    HpaConfig,
    HpaMetric,
    ScalingRules,
)
from simulator.fleet.autoscaling.signals import FleetSnapshot


@dataclass(frozen=True)
class KedaTrigger:
    """A trigger: the fleet's total of ``metric`` is held at ``threshold`` for each replica."""

    metric: str
    threshold: float
    activation_threshold: float = 0.0


@dataclass(frozen=True)
class KedaConfig:
    """A ScaledObject."""

    triggers: tuple[KedaTrigger, ...]
    polling_interval: float = 30.0
    cooldown_period: float = 300.0
    initial_cooldown_period: float = 0.0
    idle_replica_count: int | None = None
    min_replica_count: int = 0
    max_replica_count: int = 100
    scale_up: ScalingRules = SCALE_UP_DEFAULT
    scale_down: ScalingRules = SCALE_DOWN_DEFAULT
    sync_period_s: float = 15.0  # of the HPA that KEDA makes


@dataclass
class Keda:
    """Operator and HPA as one state machine, each on its own clock."""

    config: KedaConfig
    _hpa: Hpa = field(init=False)
    _next_poll_s: float = 0.0
    _next_sync_s: float = 0.0
    _last_active_s: float | None = None

    def __post_init__(self) -> None:
        c = self.config
        self._hpa = Hpa(
            HpaConfig(
                metrics=tuple(HpaMetric(t.metric, t.threshold, external=True) for t in c.triggers),
                min_replicas=max(1, c.min_replica_count),
                max_replicas=c.max_replica_count,
                scale_up=c.scale_up,
                scale_down=c.scale_down,
                sync_period_s=c.sync_period_s,
            )
        )

    @property
    def interval_s(self) -> float:
        """The step at which both clocks can tick."""
        return float(math.gcd(round(self.config.polling_interval), round(self.config.sync_period_s)) or 1)

    def target_replicas(self, now_s: float, fleet: FleetSnapshot) -> int:
        """Operator first (it alone touches zero), then the HPA, each when due."""
        replicas = fleet.num_replicas
        if now_s >= self._next_poll_s - 1e-9:
            self._next_poll_s = now_s + self.config.polling_interval
            replicas = self._poll(now_s, fleet)
        if replicas > 0 and now_s >= self._next_sync_s - 1e-9:
            self._next_sync_s = now_s + self.config.sync_period_s
            if replicas == fleet.num_replicas and replicas != self.config.idle_replica_count:
                return self._hpa.target_replicas(now_s, fleet)
        return replicas

    def _poll(self, now_s: float, fleet: FleetSnapshot) -> int:
        c, replicas = self.config, fleet.num_replicas
        if any(fleet.total(t.metric) > t.activation_threshold for t in c.triggers):
            self._last_active_s = now_s
            idle = replicas == 0 or (c.idle_replica_count is not None and replicas == c.idle_replica_count)
            return max(1, c.min_replica_count) if idle else replicas
        since = c.cooldown_period if self._last_active_s is not None else c.initial_cooldown_period
        if now_s - (self._last_active_s or 0.0) < since:
            return replicas
        if c.idle_replica_count is not None:
            return min(replicas, c.idle_replica_count)
        return 0 if c.min_replica_count == 0 else max(replicas, c.min_replica_count)
