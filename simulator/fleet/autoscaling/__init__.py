"""The real autoscalers as state machines, under their own parameter names and defaults."""

from simulator.fleet.autoscaling.aws_target_tracking import TargetTracking, TargetTrackingConfig
from simulator.fleet.autoscaling.hpa import Hpa, HpaConfig, HpaMetric, ScalingPolicy, ScalingRules
from simulator.fleet.autoscaling.keda import Keda, KedaConfig, KedaTrigger
from simulator.fleet.autoscaling.kpa import Kpa, KpaConfig
from simulator.fleet.autoscaling.oscillation import Oscillation, find_oscillation
from simulator.fleet.autoscaling.planned import (
    Oracle,
    Predictive,
    Scheduled,
    ScheduleEntry,
    forecast_error,
    seasonal_naive,
)
from simulator.fleet.autoscaling.ray_serve import RayServe, RayServeConfig
from simulator.fleet.autoscaling.signals import METRICS, Autoscaler, FleetSnapshot, TimeWindow
from simulator.fleet.autoscaling.skyserve import SkyServe, SkyServeConfig

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
