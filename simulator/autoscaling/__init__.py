"""The real autoscalers as state machines, under their own parameter names and defaults."""

from simulator.autoscaling.aws_target_tracking import TargetTracking, TargetTrackingConfig
from simulator.autoscaling.hpa import Hpa, HpaConfig, HpaMetric, ScalingPolicy, ScalingRules
from simulator.autoscaling.keda import Keda, KedaConfig, KedaTrigger
from simulator.autoscaling.kpa import Kpa, KpaConfig
from simulator.autoscaling.oscillation import Oscillation, find_oscillation
from simulator.autoscaling.planned import (
    Oracle,
    Predictive,
    Scheduled,
    ScheduleEntry,
    forecast_error,
    seasonal_naive,
)
from simulator.autoscaling.ray_serve import RayServe, RayServeConfig
from simulator.autoscaling.signals import METRICS, Autoscaler, FleetSnapshot, TimeWindow
from simulator.autoscaling.skyserve import SkyServe, SkyServeConfig

__all__ = [
    "METRICS",
    "Autoscaler",
    "FleetSnapshot",
    "Hpa",
    "HpaConfig",
    "HpaMetric",
    "Keda",
    "KedaConfig",
    "KedaTrigger",
    "Kpa",
    "KpaConfig",
    "Oracle",
    "Oscillation",
    "Predictive",
    "RayServe",
    "RayServeConfig",
    "ScalingPolicy",
    "ScalingRules",
    "ScheduleEntry",
    "Scheduled",
    "SkyServe",
    "SkyServeConfig",
    "TargetTracking",
    "TargetTrackingConfig",
    "TimeWindow",
    "find_oscillation",
    "forecast_error",
    "seasonal_naive",
]
