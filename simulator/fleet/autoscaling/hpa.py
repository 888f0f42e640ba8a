"""Kubernetes' HorizontalPodAutoscaler v2: the ratio rule, missing metrics, stabilization windows, rate policies.

Source: kubernetes.io "Horizontal Pod Autoscaling" (01650250), KEP 853, pkg/controller/podautoscaler
(replica_calculator.go, horizontal.go). Parameter names and defaults are Kubernetes' own, in snake case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from simulator.fleet.autoscaling.signals import FleetSnapshot


@dataclass(frozen=True)
class ScalingPolicy:
    """At most ``value`` pods, or percent of the pods, change within ``period_seconds``."""

    type: Literal["Pods", "Percent"]
    value: float
    period_seconds: float


@dataclass(frozen=True)
class ScalingRules:
    """One direction of ``behavior``."""

    stabilization_window_seconds: float
    policies: tuple[ScalingPolicy, ...]
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"


SCALE_UP_DEFAULT = ScalingRules(0.0, (ScalingPolicy("Percent", 100, 15), ScalingPolicy("Pods", 4, 15)))
SCALE_DOWN_DEFAULT = ScalingRules(300.0, (ScalingPolicy("Percent", 100, 15),))


@dataclass(frozen=True)
class HpaMetric:
    """A metric and its target; ``external`` metrics are fleet totals held at ``target`` for each replica."""

    metric: str
    target: float
    external: bool = False


@dataclass(frozen=True)
class HpaConfig:
    """The parts of a HorizontalPodAutoscaler and of its controller's flags that matter here."""

    metrics: tuple[HpaMetric, ...]
    min_replicas: int = 1
    max_replicas: int = 10
    scale_up: ScalingRules = SCALE_UP_DEFAULT
    scale_down: ScalingRules = SCALE_DOWN_DEFAULT
    tolerance: float = 0.1
    sync_period_s: float = 15.0


def replicas_from_pods(
    values: Sequence[float | None], num_unready: int, num_replicas: int, target: float, tolerance: float = 0.1
) -> int:
    """Replicas that bring the mean over pods to ``target`` (replica_calculator.calcPlainMetricReplicas).

    Args:
        values: one for each ready pod; None: no metric. Missing ones count as ``target`` when scaling down and as 0
            when scaling up, unready ones as 0 when scaling up; if that turns the decision round, nothing is done.
        num_unready: pods that exist and are not ready.
        num_replicas: the current scale.
    """
    known = [v for v in values if v is not None]
    num_missing = len(values) - len(known)
    if not known:
        return num_replicas
    ratio = sum(known) / len(known) / target
    up_with_unready = num_unready > 0 and ratio > 1
    if not up_with_unready and not num_missing:
        return num_replicas if _within(ratio, tolerance) else _ceil(ratio * len(known))
    assumed = known + [target if ratio < 1 else 0.0] * num_missing + [0.0] * (num_unready if up_with_unready else 0)
    new_ratio = sum(assumed) / len(assumed) / target
    if _within(new_ratio, tolerance) or (ratio < 1 < new_ratio) or (new_ratio < 1 < ratio):
        return num_replicas
    wanted = _ceil(new_ratio * len(assumed))
    turned = (new_ratio < 1 and wanted > num_replicas) or (new_ratio > 1 and wanted < num_replicas)
    return num_replicas if turned else wanted


def replicas_from_total(total: float, num_replicas: int, target: float, tolerance: float = 0.1) -> int:
    """Replicas for an external metric of type AverageValue: ``ceil(total / target)`` unless within tolerance."""
    if num_replicas and _within(total / (target * num_replicas), tolerance):
        return num_replicas
    return _ceil(total / target)


def _within(ratio: float, tolerance: float) -> bool:
    return abs(ratio - 1.0) <= tolerance + 1e-12


def _ceil(value: float) -> int:
    return math.ceil(value - 1e-9)  # 3.0000000000000004 replicas are 3


@dataclass
class Hpa:
    """The controller with its memory: recommendations for the windows, scale events for the rate policies."""

    config: HpaConfig
    _recommendations: list[tuple[float, int]] = field(default_factory=list)
    _up_events: list[tuple[float, int]] = field(default_factory=list)
    _down_events: list[tuple[float, int]] = field(default_factory=list)

    @property
    def interval_s(self) -> float:
        """The controller's sync period."""
        return self.config.sync_period_s

    def target_replicas(self, now_s: float, fleet: FleetSnapshot) -> int:
        """The largest proposal of any metric, held by windows, rates and bounds."""
        if fleet.num_replicas == 0:  # spec.replicas 0 turns the autoscaler off until someone sets it
            return 0
        proposals = [self._propose(metric, fleet) for metric in self.config.metrics]
        known = [p for p in proposals if p is not None]
        if not known:
            return fleet.num_replicas
        return self.decide(now_s, fleet.num_replicas, max(known))

    def _propose(self, metric: HpaMetric, fleet: FleetSnapshot) -> int | None:
        c = self.config
        if metric.external:
            return replicas_from_total(fleet.total(metric.metric), fleet.num_replicas, metric.target, c.tolerance)
        values = fleet.per_replica.get(metric.metric, ())
        if all(v is None for v in values):
            return None
        if metric.metric == "ttft_s":  # Object metric: one value for the fleet
            mean = fleet.mean(metric.metric)
            assert mean is not None
            ratio = mean / metric.target
            return fleet.num_replicas if _within(ratio, c.tolerance) else _ceil(ratio * fleet.num_ready)
        unready = max(0, fleet.num_replicas - fleet.num_ready)
        return replicas_from_pods(values, unready, fleet.num_replicas, metric.target, c.tolerance)

    def decide(self, now_s: float, num_replicas: int, desired: int) -> int:
        """Pass a raw recommendation through stabilization, rate policies and bounds; remembers what it did."""
        c = self.config
        if num_replicas > c.max_replicas:
            new = c.max_replicas
        elif num_replicas < c.min_replicas:
            new = c.min_replicas
        else:
            new = self._limit_rate(now_s, num_replicas, self._stabilize(now_s, num_replicas, desired))
        if new > num_replicas:
            self._up_events.append((now_s, new - num_replicas))
        elif new < num_replicas:
            self._down_events.append((now_s, num_replicas - new))
        return new

    def _stabilize(self, now_s: float, num_replicas: int, desired: int) -> int:
        up_s = self.config.scale_up.stabilization_window_seconds
        down_s = self.config.scale_down.stabilization_window_seconds
        self._recommendations = [(t, r) for t, r in self._recommendations if t > now_s - max(up_s, down_s)]
        lowest = min([r for t, r in self._recommendations if t > now_s - up_s] + [desired])
        highest = max([r for t, r in self._recommendations if t > now_s - down_s] + [desired])
        self._recommendations.append((now_s, desired))
        if num_replicas < lowest:
            return lowest
        return min(num_replicas, highest)

    def _limit_rate(self, now_s: float, num_replicas: int, desired: int) -> int:
        c = self.config
        if desired > num_replicas:
            limit = max(num_replicas, self._limit(now_s, num_replicas, c.scale_up, up=True))
            return min(desired, limit, c.max_replicas)
        if desired < num_replicas:
            limit = min(num_replicas, self._limit(now_s, num_replicas, c.scale_down, up=False))
            return max(desired, limit, c.min_replicas)
        return desired

    def _limit(self, now_s: float, num_replicas: int, rules: ScalingRules, *, up: bool) -> int:
        if rules.select_policy == "Disabled" or not rules.policies:
            return num_replicas
        limits = []
        for policy in rules.policies:
            added = _within_period(self._up_events, now_s, policy.period_seconds)
            removed = _within_period(self._down_events, now_s, policy.period_seconds)
            start = num_replicas - added + removed
            if policy.type == "Pods":
                limits.append(start + (policy.value if up else -policy.value))
            else:
                share = policy.value / 100
                limits.append(_ceil(start * (1 + share)) if up else math.floor(start * (1 - share) + 1e-9))
        widest = max if up == (rules.select_policy == "Max") else min
        return int(widest(limits))


def _within_period(events: list[tuple[float, int]], now_s: float, period_s: float) -> int:
    return sum(change for t, change in events if t > now_s - period_s)
