"""The `autoscaling` section of a scenario: a controller under its own parameter names and defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from catalogs.units import SECONDS_PER_HOUR
from catalogs.yaml_source import Strict
from simulator.fleet import autoscaling as scaling
from simulator.fleet.autoscaling.hpa import SCALE_DOWN_DEFAULT, SCALE_UP_DEFAULT
from simulator.fleet.autoscaling.planned import DAYS, Forecaster
from simulator.workload.requests import Requests

Replicas = Annotated[int, Field(ge=0, le=100_000)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Metric = Literal[
    "queue_length", "running_requests", "ongoing_requests", "kv_use", "gpu_use", "tokens_per_s", "requests_per_s",
    "ttft_s",
]  # fmt: skip
BOUNDS = (
    ("min_replicas", "max_replicas"), ("min_replica_count", "max_replica_count"), ("min_capacity", "max_capacity"),
)  # fmt: skip


class _Controller(Strict):
    """What all controllers share: the fleet line that they scale, and how old their metrics are."""

    line: Annotated[int, Field(ge=0)] = 0
    metrics_delay_s: NotNegative = 0.0
    pauses: tuple[tuple[NotNegative, NotNegative], ...] = ()

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        for low, high in BOUNDS:
            least, most = getattr(self, low, None), getattr(self, high, None)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{low} {least} is above {high} {most}: no count would satisfy both")
        return self


class PolicySpec(Strict):
    """At most ``value`` pods, or percent of them, change within ``period_seconds``."""

    type: Literal["Pods", "Percent"]
    value: Positive
    period_seconds: Annotated[float, Field(gt=0, le=1800)]


class RulesSpec(Strict):
    """One direction of an HPA's ``behavior``; what is left out is Kubernetes' default for that direction."""

    stabilization_window_seconds: Annotated[float, Field(ge=0, le=3600)] | None = None
    policies: tuple[PolicySpec, ...] | None = None
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"


def _rules(spec: RulesSpec | None, default: scaling.ScalingRules) -> scaling.ScalingRules:
    if spec is None:
        return default
    window = spec.stabilization_window_seconds
    policies = tuple(scaling.ScalingPolicy(p.type, p.value, p.period_seconds) for p in spec.policies or ())
    return scaling.ScalingRules(
        default.stabilization_window_seconds if window is None else window,
        policies if spec.policies is not None else default.policies,
        spec.select_policy,
    )


class BehaviorSpec(Strict):
    """An HPA's ``behavior``."""

    scale_up: RulesSpec | None = None
    scale_down: RulesSpec | None = None


class MetricSpec(Strict):
    """A metric and its target a replica; ``external``: the fleet's total, as KEDA's triggers are."""

    metric: Metric
    target: Positive
    external: bool = False


class HpaSpec(_Controller):
    """Kubernetes HorizontalPodAutoscaler v2."""

    controller: Literal["hpa"]
    metrics: Annotated[tuple[MetricSpec, ...], Field(min_length=1)]
    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Replicas
    behavior: BehaviorSpec = Field(default_factory=BehaviorSpec)
    tolerance: NotNegative = 0.1
    sync_period_s: Positive = 15.0

    def build(self, _requests: Requests, _lead_s: float) -> scaling.Autoscaler:
        metrics = tuple(scaling.HpaMetric(m.metric, m.target, m.external) for m in self.metrics)
        return scaling.Hpa(
            scaling.HpaConfig(
                metrics, self.min_replicas, self.max_replicas, _rules(self.behavior.scale_up, SCALE_UP_DEFAULT),
                _rules(self.behavior.scale_down, SCALE_DOWN_DEFAULT), self.tolerance, self.sync_period_s,
            )
        )  # fmt: skip


class TriggerSpec(Strict):
    """A KEDA trigger."""

    metric: Metric
    threshold: Positive
    activation_threshold: NotNegative = 0.0


class KedaSpec(_Controller):
    """KEDA ScaledObject."""

    controller: Literal["keda"]
    triggers: Annotated[tuple[TriggerSpec, ...], Field(min_length=1)]
    polling_interval: Positive = 30.0
    cooldown_period: NotNegative = 300.0
    initial_cooldown_period: NotNegative = 0.0
    idle_replica_count: Replicas | None = None
    min_replica_count: Replicas = 0
    max_replica_count: Replicas = 100
    behavior: BehaviorSpec = Field(default_factory=BehaviorSpec)

    def build(self, _requests: Requests, _lead_s: float) -> scaling.Autoscaler:
        triggers = tuple(scaling.KedaTrigger(t.metric, t.threshold, t.activation_threshold) for t in self.triggers)
        return scaling.Keda(
            scaling.KedaConfig(
                triggers, self.polling_interval, self.cooldown_period, self.initial_cooldown_period,
                self.idle_replica_count, self.min_replica_count, self.max_replica_count,
                _rules(self.behavior.scale_up, SCALE_UP_DEFAULT), _rules(self.behavior.scale_down, SCALE_DOWN_DEFAULT),
            )
        )  # fmt: skip


class KpaSpec(_Controller):
    """Knative pod autoscaler."""

    controller: Literal["kpa"]
    metric: Literal["ongoing_requests", "requests_per_s"] = "ongoing_requests"
    container_concurrency_target_default: Positive = 100.0
    container_concurrency_target_percentage: Annotated[float, Field(gt=0, le=100)] = 70.0
    requests_per_second_target_default: Positive = 200.0
    stable_window_s: Positive = 60.0
    panic_window_percentage: Annotated[float, Field(gt=0, le=100)] = 10.0
    panic_threshold_percentage: Positive = 200.0
    max_scale_up_rate: Annotated[float, Field(gt=1)] = 1000.0
    max_scale_down_rate: Annotated[float, Field(gt=1)] = 2.0
    scale_to_zero_grace_period_s: NotNegative = 30.0
    scale_down_delay_s: NotNegative = 0.0
    activation_scale: Annotated[int, Field(ge=1)] = 1
    min_scale: Replicas = 0
    max_scale: Replicas = 0
    tick_interval_s: Positive = 2.0

    @model_validator(mode="after")
    def _scales(self) -> Self:
        if self.max_scale and self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} is above max_scale {self.max_scale}")
        return self

    def build(self, _requests: Requests, _lead_s: float) -> scaling.Autoscaler:
        own = {
            name: getattr(self, name) for name in type(self).model_fields if name in scaling.KpaConfig.__annotations__
        }
        return scaling.Kpa(scaling.KpaConfig(**own))


class TargetTrackingSpec(_Controller):
    """AWS target tracking."""

    controller: Literal["aws_target_tracking"]
    metric: Metric
    target_value: Positive
    min_capacity: Replicas = 1
    max_capacity: Replicas
    disable_scale_in: bool = False
    estimated_instance_warmup_s: NotNegative = 300.0
    scale_in_cooldown_s: NotNegative = 0.0
    scale_out_cooldown_s: NotNegative = 0.0
    period_s: Positive = 60.0
    scale_out_evaluation_periods: Annotated[int, Field(ge=1)] = 3
    scale_in_evaluation_periods: Annotated[int, Field(ge=1)] = 15
    scale_in_share_of_target: Annotated[float, Field(gt=0, le=1)] = 0.9

    def build(self, _requests: Requests, _lead_s: float) -> scaling.Autoscaler:
        names = scaling.TargetTrackingConfig.__annotations__
        return scaling.TargetTracking(scaling.TargetTrackingConfig(**{name: getattr(self, name) for name in names}))


class RayServeSpec(_Controller):
    """Ray Serve deployment autoscaling."""

    controller: Literal["ray_serve"]
    min_replicas: Replicas = 1
    max_replicas: Replicas
    target_ongoing_requests: Positive = 2.0
    look_back_period_s: Positive = 30.0
    metrics_interval_s: Positive = 10.0
    upscale_delay_s: NotNegative = 30.0
    downscale_delay_s: NotNegative = 600.0
    downscale_to_zero_delay_s: NotNegative | None = None
    upscaling_factor: Positive = 1.0
    downscaling_factor: Positive = 1.0

    def build(self, _requests: Requests, _lead_s: float) -> scaling.Autoscaler:
        names = scaling.RayServeConfig.__annotations__
        return scaling.RayServe(scaling.RayServeConfig(**{name: getattr(self, name) for name in names}))


class SkyServeSpec(_Controller):
    """SkyServe request-rate autoscaler."""

    controller: Literal["skyserve"]
    target_qps_per_replica: Positive
    min_replicas: Replicas = 1
    max_replicas: Replicas
    upscale_delay_seconds: NotNegative = 300.0
    downscale_delay_seconds: NotNegative = 1200.0

    def build(self, _requests: Requests, _lead_s: float) -> scaling.Autoscaler:
        names = scaling.SkyServeConfig.__annotations__
        return scaling.SkyServe(scaling.SkyServeConfig(**{name: getattr(self, name) for name in names}))


class EntrySpec(Strict):
    """From ``at`` (HH:MM) on ``days`` there are ``replicas``."""

    at: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    replicas: Replicas
    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = DAYS  # type: ignore[assignment]


class ScheduledSpec(_Controller):
    """A timetable; the run starts at ``start`` on ``first_day``."""

    controller: Literal["scheduled"]
    schedule: Annotated[tuple[EntrySpec, ...], Field(min_length=1)]
    first_day: Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"] = "mon"
    start: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] = "00:00"

    def build(self, _requests: Requests, _lead_s: float) -> scaling.Autoscaler:
        entries = [
            scaling.ScheduleEntry(_clock(e.at), e.replicas, tuple(map(DAYS.index, e.days))) for e in self.schedule
        ]
        return scaling.Scheduled(entries, DAYS.index(self.first_day), _clock(self.start))


def _clock(text: str) -> float:
    hours, minutes = text.split(":")
    return SECONDS_PER_HOUR * int(hours) + 60.0 * int(minutes)


class PredictiveSpec(_Controller):
    """Scales ahead of a forecast, made from ``history`` (a trace that ends where the run begins) and the run so far.

    ``season_s`` is how long until demand repeats; ``lead_s`` how far to look, the mean cold start if left out.
    """

    controller: Literal["predictive"]
    method: Literal["seasonal_naive", "holt_winters", "mean"] = "seasonal_naive"
    requests_per_s_per_replica: Positive
    min_replicas: Replicas = 1
    max_replicas: Replicas
    history: Path | None = None
    season_s: Positive = 86400.0
    bin_s: Positive = 300.0
    lead_s: Positive | None = None
    headroom: NotNegative = 0.1

    def build(self, _requests: Requests, lead_s: float) -> scaling.Autoscaler:
        from simulator.workload.forecast import METHODS, demand_series
        from simulator.workload.traces import read_trace

        past = [] if self.history is None else demand_series(read_trace(self.history).arrival_s, self.bin_s).tolist()
        season = max(2, round(self.season_s / self.bin_s))

        def forecaster(history: np.ndarray[Any, np.dtype[np.float64]], steps: int) -> Any:
            if len(history) >= 2 * season or (self.method == "seasonal_naive" and len(history) >= season):
                return METHODS[self.method](history, steps, season)
            return np.full(steps, history[-1])

        chosen: Forecaster = forecaster
        return scaling.Predictive(
            chosen, self.requests_per_s_per_replica, self.min_replicas, self.max_replicas, self.lead_s or lead_s,
            self.headroom, self.bin_s, past,
        )  # fmt: skip


class OracleSpec(_Controller):
    """Knows the arrivals to come; for reference."""

    controller: Literal["oracle"]
    requests_per_s_per_replica: Positive
    min_replicas: Replicas = 1
    max_replicas: Replicas
    lead_s: Positive | None = None

    def build(self, requests: Requests, lead_s: float) -> scaling.Autoscaler:
        return scaling.Oracle(
            requests.arrival_s,
            self.requests_per_s_per_replica,
            self.min_replicas,
            self.max_replicas,
            self.lead_s or lead_s,
        )


CONTROLLERS: Mapping[str, type[_Controller]] = {
    "hpa": HpaSpec, "keda": KedaSpec, "kpa": KpaSpec, "aws_target_tracking": TargetTrackingSpec,
    "ray_serve": RayServeSpec, "skyserve": SkyServeSpec, "scheduled": ScheduledSpec, "predictive": PredictiveSpec,
    "oracle": OracleSpec,
}  # fmt: skip
ControllerSpec = Annotated[
    HpaSpec | KedaSpec | KpaSpec | TargetTrackingSpec | RayServeSpec | SkyServeSpec | ScheduledSpec | PredictiveSpec
    | OracleSpec,
    Field(discriminator="controller"),
]  # fmt: skip


def scaler(spec: Any, requests: Requests, lead_s: float, num_ready: int) -> Callable[[], scaling.Autoscaler]:
    """Makes the controller anew for each run; Knative's looks at what stands when it starts."""

    def make() -> scaling.Autoscaler:
        made: scaling.Autoscaler = spec.build(requests, lead_s)
        return scaling.Kpa(made.config, num_ready) if isinstance(made, scaling.Kpa) else made

    return make
