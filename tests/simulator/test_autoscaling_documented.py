"""Each controller takes the decisions that its own documentation or unit tests work through, step by step."""

from __future__ import annotations

import itertools

import pytest

from simulator.fleet.autoscaling import (
    FleetSnapshot,
    Hpa,
    HpaConfig,
    HpaMetric,
    Keda,
    KedaConfig,
    KedaTrigger,
    Kpa,
    KpaConfig,
    RayServe,
    RayServeConfig,
    ScalingPolicy,
    ScalingRules,
    SkyServe,
    SkyServeConfig,
    TargetTracking,
    TargetTrackingConfig,
)
from simulator.fleet.autoscaling.aws_target_tracking import proportional_capacity
from simulator.fleet.autoscaling.hpa import (
    SCALE_DOWN_DEFAULT,
    SCALE_UP_DEFAULT,
    replicas_from_pods,
    replicas_from_total,
)

METRIC = (HpaMetric("running_requests", 100.0),)


def hpa(up: ScalingRules = SCALE_UP_DEFAULT, down: ScalingRules = SCALE_DOWN_DEFAULT, most: int = 1000) -> Hpa:
    return Hpa(HpaConfig(METRIC, max_replicas=most, scale_up=up, scale_down=down))


def follow(controller: Hpa, start: int, desired: list[int], every_s: float) -> list[int]:
    """The replica counts that result when the raw recommendation is ``desired[i]`` at loop i."""
    counts, now = [], start
    for i, want in enumerate(desired):
        now = controller.decide((i + 1) * every_s, now, want)
        counts.append(now)
    return counts


# Kubernetes HPA: kubernetes.io, "Algorithm details" and "Scaling policies"; KEP 853, user stories.


def test_hpa_doubles_at_200m_of_100m_halves_at_50m_and_rests_within_a_tenth() -> None:
    assert replicas_from_pods([200.0] * 4, 0, 4, 100.0) == 8
    assert replicas_from_pods([50.0] * 4, 0, 4, 100.0) == 2
    assert replicas_from_pods([110.0] * 4, 0, 4, 100.0) == 4
    assert replicas_from_pods([111.0] * 4, 0, 4, 100.0) == 5
    assert replicas_from_pods([90.0] * 4, 0, 4, 100.0) == 4


def test_hpa_assumes_the_target_for_missing_pods_when_shrinking_and_zero_when_growing() -> None:
    assert replicas_from_pods([50.0, 50.0, None, None], 0, 4, 100.0) == 3  # (50 + 50 + 100 + 100) / 4 = 75
    assert replicas_from_pods([300.0, 300.0, None, None], 0, 4, 100.0) == 6  # 600 / 4 = 150
    assert replicas_from_pods([150.0, 150.0, None, None], 0, 4, 100.0) == 4  # would turn round at 75: nothing


def test_hpa_counts_unready_pods_as_idle_when_growing() -> None:
    assert replicas_from_pods([400.0, 400.0], 2, 4, 100.0) == 8
    assert replicas_from_pods([150.0, 150.0], 2, 4, 100.0) == 4


def test_hpa_takes_the_largest_of_several_metrics() -> None:
    both = Hpa(HpaConfig((HpaMetric("running_requests", 100.0), HpaMetric("queue_length", 1.0)), max_replicas=50))
    seen = FleetSnapshot(4, 4, {"running_requests": [100.0] * 4, "queue_length": [3.0] * 4})
    assert both.target_replicas(0.0, seen) == 8  # queue asks 12, the default policy lets 4 more or double through


def test_hpa_removes_ten_percent_rounded_up_until_four_pods_are_more() -> None:
    down = ScalingRules(0.0, (ScalingPolicy("Pods", 4, 60), ScalingPolicy("Percent", 10, 60)))
    counts = follow(hpa(down=down), 80, [10] * 12, every_s=60.0)
    assert counts[:3] == [72, 64, 57]
    below = [c for c in counts if c < 40]
    assert all(a - b == 4 for a, b in itertools.pairwise(below))


def test_hpa_select_policy_min_takes_the_smaller_step_and_disabled_takes_none() -> None:
    policies = (ScalingPolicy("Percent", 10, 60), ScalingPolicy("Pods", 5, 60))
    assert follow(hpa(down=ScalingRules(0.0, policies, "Min")), 80, [10, 10], every_s=60.0) == [75, 70]
    assert follow(hpa(down=ScalingRules(0.0, policies, "Disabled")), 80, [10, 10], every_s=60.0) == [80, 80]


def test_hpa_story_1_grows_tenfold_a_minute() -> None:
    up = ScalingRules(0.0, (ScalingPolicy("Percent", 900, 60),))
    assert follow(hpa(up=up), 1, [1000] * 3, every_s=60.0) == [10, 100, 1000]


def test_hpa_story_2_sheds_one_pod_every_ten_minutes() -> None:
    down = ScalingRules(0.0, (ScalingPolicy("Pods", 1, 600),))
    counts = follow(hpa(down=down), 1000, [1] * 21, every_s=60.0)
    assert counts[0] == 999 and counts[9] == 999 and counts[10] == 998 and counts[20] == 997


def test_hpa_story_3_adds_one_pod_every_five_minutes() -> None:
    up = ScalingRules(0.0, (ScalingPolicy("Pods", 1, 300),))
    counts = follow(hpa(up=up), 1, [9] * 16, every_s=60.0)
    assert [counts[0], counts[4], counts[5], counts[10], counts[15]] == [2, 2, 3, 4, 5]


def test_hpa_story_5_follows_the_largest_recommendation_of_the_window() -> None:
    down = ScalingRules(600.0, (ScalingPolicy("Pods", 5, 60),))
    counts = follow(hpa(down=down), 10, [10, 9, 8, 9, 9, 8, 9, 8, 9, 8, 7], every_s=60.0)
    assert counts == [10] * 10 + [9]


def test_hpa_story_6_follows_the_smallest_recommendation_of_the_window() -> None:
    up = ScalingRules(300.0, (ScalingPolicy("Pods", 20, 60),))
    # the story counts six recommendations into five minutes, so its loop is a hair faster than one a minute
    assert follow(hpa(up=up), 2, [2, 3, 19, 10, 3, 4, 7], every_s=59.9) == [2] * 6 + [3]


def test_hpa_default_behaviour_adds_four_or_doubles_every_15_s_and_waits_300_s_to_shrink() -> None:
    controller = hpa()
    assert follow(controller, 1, [100] * 4, every_s=15.0) == [5, 10, 20, 40]
    counts = [controller.decide(60.0 + 15.0 * i, 40, 3) for i in range(1, 21)]
    assert counts[:19] == [40] * 19 and counts[19] == 3  # the last recommendation of 100 (t = 60) leaves at t = 360


# KEDA: keda.sh, ScaledObject specification.


def keda_at(controller: Keda, now_s: float, replicas: int, queue: float) -> int:
    per_replica = [queue / replicas] * replicas if replicas else []
    fleet = FleetSnapshot(replicas, replicas, {"queue_length": per_replica}, num_requests=queue)
    return controller.target_replicas(now_s, fleet)


def test_keda_wakes_at_the_activation_threshold_and_lets_the_hpa_do_the_rest() -> None:
    controller = Keda(KedaConfig((KedaTrigger("ongoing_requests", threshold=5.0, activation_threshold=10.0),)))
    assert keda_at(controller, 0.0, 0, queue=10.0) == 0  # greater than, not equal
    assert keda_at(controller, 15.0, 0, queue=40.0) == 0  # not polled before 30 s
    assert keda_at(controller, 30.0, 0, queue=40.0) == 1
    assert keda_at(controller, 45.0, 1, queue=40.0) == 5  # ceil(40 / 5) = 8, but 4 pods at most in 15 s
    assert keda_at(controller, 60.0, 5, queue=40.0) == 8


def test_keda_cools_down_for_300_s_before_zero_only() -> None:
    controller = Keda(KedaConfig((KedaTrigger("ongoing_requests", threshold=5.0),)))
    assert keda_at(controller, 0.0, 0, queue=1.0) == 1
    counts = {t: keda_at(controller, float(t), 1, queue=0.0) for t in range(15, 316, 15)}
    assert next(t for t, n in counts.items() if n == 0) == 300


def test_keda_initial_cooldown_is_none_and_idle_count_is_kept() -> None:
    fresh = Keda(KedaConfig((KedaTrigger("ongoing_requests", threshold=5.0),)))
    assert keda_at(fresh, 0.0, 1, queue=0.0) == 0
    idle = Keda(
        KedaConfig((KedaTrigger("ongoing_requests", threshold=5.0),), idle_replica_count=0, min_replica_count=2)
    )
    assert keda_at(idle, 0.0, 0, queue=1.0) == 2
    assert keda_at(idle, 300.0, 2, queue=0.0) == 0


def test_an_external_metric_is_shared_by_the_replicas() -> None:
    assert replicas_from_total(40.0, 2, 5.0) == 8
    assert replicas_from_total(10.5, 2, 5.0) == 2


# Knative: pkg/autoscaler/scaling/autoscaler_test.go (targets, rates and windows as set there).


def kpa(target: float, ready: int = 0, **settings: float) -> Kpa:
    config = KpaConfig(
        container_concurrency_target_default=target,
        container_concurrency_target_percentage=100.0,
        max_scale_up_rate=settings.get("up", 10.0),
        max_scale_down_rate=settings.get("down", 10.0),
        panic_threshold_percentage=settings.get("panic", 200.0),
        scale_down_delay_s=settings.get("delay_s", 0.0),
        activation_scale=int(settings.get("activation", 1)),
    )
    return Kpa(config, num_ready_at_start=ready)


@pytest.mark.parametrize(
    ("target", "ready", "stable", "panic", "want"),
    [
        (181, 1, 21, 26, 1),  # AutoscalerStableModeUnlimitedTBC
        (10, 1, 50, 49, 5),  # Autoscaler0TBC
        (10, 5, 50, 50, 5),  # StableModeNoChangeAlreadyScaled
        (10, 1, 50, 100, 10),  # PanicModeDoublePodCount
        (10, 1, 0, 0, 0),  # NoDataAtZero
        (10, 8, 100, 100, 10),  # StableModeDecrease, first step
        (10, 8, 50, 50, 5),  # StableModeDecrease, second step
        (10, 1, 1000, 1001, 10),  # RateLimitScaleUp
        (10, 10, 1000, 1001, 100),
        (10, 100, 1, 1, 10),  # RateLimitScaleDown
        (10, 0, 1000, 888, 10),  # UseOnePodAsMinimumIfEndpointsNotFound
    ],
)
def test_kpa_decides_as_knatives_table(target: float, ready: int, stable: float, panic: float, want: int) -> None:
    assert kpa(target).decide(0.0, ready, stable, panic) == want


def test_kpa_small_rates_still_move_by_one_pod() -> None:
    assert kpa(1, up=1.1).decide(0.0, 2, 3.0, 3.1) == 3
    assert kpa(10, down=1.1).decide(0.0, 100, 1.0, 1.0) == 90


def test_kpa_activation_scale() -> None:
    controller = kpa(10, activation=2)
    assert controller.decide(0.0, 1, 0.0, 0.0) == 0
    assert controller.decide(2.0, 1, 1.0, 0.0) == 2


def test_kpa_panics_tracks_and_never_shrinks_until_a_stable_window_has_passed() -> None:
    controller = kpa(10)
    assert controller.decide(0.0, 1, 100.0, 100.0) == 10
    assert controller.decide(10.0, 10, 100.0, 1000.0) == 100
    assert controller.decide(40.0, 10, 1.0, 1.0) == 100
    assert controller.decide(71.0, 10, 1.0, 1.0) == 1
    assert controller.panic_since_s is None


def test_kpa_exponential_panic_then_stable() -> None:
    controller = kpa(1)
    for i, (ready, load) in enumerate([(1, 6), (6, 36), (36, 216), (216, 1296), (1296, 1296)]):
        assert controller.decide(float(i), ready, load, load) == load


def test_kpa_unpanics_after_a_slow_increase() -> None:
    controller = kpa(1)
    assert controller.decide(0.0, 10, 11.0, 25.0) == 25
    assert controller.decide(30.0, 40, 30.0, 41.0) == 41
    assert controller.panic_since_s == 0.0
    assert controller.decide(62.0, 55, 50.0, 56.0) == 50
    assert controller.panic_since_s is None


def test_kpa_scale_down_delay_holds_the_maximum_of_its_window() -> None:
    controller = kpa(10, panic=10000.0, delay_s=300.0)
    steps = [(2, 40, 4), (300, 0, 4), (302, 0, 0), (540, 40, 4), (600, 30, 4), (660, 0, 4), (840, 0, 3), (900, 0, 0)]
    for now_s, load, want in steps:
        assert controller.decide(float(now_s), 0, load, load) == want


def test_kpa_starts_in_panic_above_one_pod_only() -> None:
    assert [kpa(100, ready=n).panic_since_s is None for n in (0, 1, 2)] == [True, True, False]
    assert kpa(100, ready=2).max_panic_pods == 2


def test_kpa_keeps_one_pod_through_the_grace_period() -> None:
    controller = Kpa(KpaConfig())
    idle = FleetSnapshot(1, 1)
    targets = [controller.target_replicas(2.0 * i, idle) for i in range(17)]
    assert targets[:15] == [1] * 15 and targets[15] == 0


# AWS target tracking: user guide (rounding), alarms of the service (3 points out, 15 in).


def test_aws_rounds_up_what_it_adds_and_down_what_it_removes() -> None:
    assert proportional_capacity(3, 75.0, 50.0) == 5  # 1.5 instances more: 2
    assert proportional_capacity(3, 25.0, 50.0) == 2  # 1.5 instances fewer: 1


def test_aws_scales_out_after_3_points_and_counts_what_warms_up() -> None:
    policy = TargetTracking(TargetTrackingConfig("gpu_use", 50.0, max_capacity=20))
    assert [policy.decide(60.0 * i, 4, 75.0) for i in range(3)] == [4, 4, 6]
    assert [policy.decide(60.0 * i, 6, 75.0) for i in range(3, 7)] == [6] * 4  # warming up until 420 s
    assert policy.decide(420.0, 6, 75.0) == 9


def test_aws_scales_in_after_15_points_below_nine_tenths_unless_told_not_to() -> None:
    policy = TargetTracking(TargetTrackingConfig("gpu_use", 50.0))
    assert [policy.decide(60.0 * i, 4, 46.0) for i in range(20)] == [4] * 20  # in the dead band
    counts = [policy.decide(1200.0 + 60.0 * i, 4, 20.0) for i in range(15)]
    assert counts == [4] * 14 + [2]
    never = TargetTracking(TargetTrackingConfig("gpu_use", 50.0, disable_scale_in=True))
    assert [never.decide(60.0 * i, 4, 20.0) for i in range(30)] == [4] * 30


# Ray Serve: python/ray/serve/tests/unit/test_autoscaling_policy.py, the up and down flow.


def test_ray_serve_waits_out_its_delays_and_starts_over_when_it_changes_its_mind() -> None:
    config = RayServeConfig(
        min_replicas=0, max_replicas=2, target_ongoing_requests=1, upscale_delay_s=30.0, downscale_delay_s=600.0
    )
    controller = RayServe(config)
    assert [controller.decide(100.0, 1) for _ in range(300)] == [1] * 300
    assert controller.decide(100.0, 1) == 2
    assert [controller.decide(0.0, 2) for _ in range(6000)] == [2] * 6000
    assert controller.decide(0.0, 2) == 1  # never from many to zero at once
    assert [controller.decide(0.0, 1) for _ in range(6000)] == [1] * 6000
    assert controller.decide(0.0, 1) == 0
    assert [controller.decide(100.0, 1) for _ in range(150)] == [1] * 150
    assert controller.decide(0.0, 1) == 1  # a decision the other way
    assert [controller.decide(100.0, 1) for _ in range(300)] == [1] * 300
    assert controller.decide(100.0, 1) == 2


def test_ray_serve_skips_the_delay_from_zero_and_applies_factors() -> None:
    assert RayServe(RayServeConfig(min_replicas=0, max_replicas=9)).decide(1.0, 0) == 1
    assert RayServe(RayServeConfig(min_replicas=0, max_replicas=9, upscaling_factor=2.5)).decide(1.0, 0) == 3
    quick = RayServeConfig(
        max_replicas=100, target_ongoing_requests=1, upscale_delay_s=0, downscale_delay_s=0, upscaling_factor=0.5
    )
    assert RayServe(quick).decide(20.0, 10) == 15
    slow_down = RayServeConfig(max_replicas=100, target_ongoing_requests=1, downscale_delay_s=0, downscaling_factor=0.2)
    assert RayServe(slow_down).decide(4.0, 5) == 4  # ceil(5 - 0.2) = 5 would be stuck


def test_ray_serve_averages_over_its_look_back_period() -> None:
    config = RayServeConfig(max_replicas=10, upscale_delay_s=0.0, target_ongoing_requests=2)
    controller = RayServe(config)
    seen = [
        controller.target_replicas(float(t), FleetSnapshot(1, 1, num_requests=8.0 if t >= 20 else 2.0))
        for t in range(31)
    ]
    assert seen[19] == 1 and seen[20] == 2 and seen[30] == 3  # (2+2+8)/3 = 4 -> 2; (2+8+8)/3 = 6 -> 3


# SkyServe: sky/serve/autoscalers.py, RequestRateAutoscaler.


def test_skyserve_scales_after_300_s_up_and_1200_s_down_and_at_once_from_zero() -> None:
    controller = SkyServe(SkyServeConfig(target_qps_per_replica=2.5, min_replicas=1, max_replicas=20))
    assert [controller.decide(25.0) for _ in range(14)] == [1] * 14
    assert controller.decide(25.0) == 10
    assert [controller.decide(2.0) for _ in range(59)] == [10] * 59
    assert controller.decide(2.0) == 1
    from_zero = SkyServe(SkyServeConfig(target_qps_per_replica=2.5, min_replicas=0, max_replicas=20))
    assert from_zero.interval_s == 5.0
    assert from_zero.decide(6.0) == 3 and from_zero.interval_s == 20.0


def test_skyserve_one_quiet_decision_resets_the_count() -> None:
    controller = SkyServe(SkyServeConfig(target_qps_per_replica=1.0, min_replicas=1, max_replicas=20))
    for _ in range(14):
        controller.decide(5.0)
    controller.decide(1.0)
    assert [controller.decide(5.0) for _ in range(14)] == [1] * 14 and controller.decide(5.0) == 5


def test_bounds_hold_whatever_is_asked() -> None:
    assert SkyServe(SkyServeConfig(1.0, 2, 4, upscale_delay_seconds=20)).decide(1e9) == 4
    assert Hpa(HpaConfig(METRIC, min_replicas=3, max_replicas=5)).decide(0.0, 9, 9) == 5
    assert Hpa(HpaConfig(METRIC, min_replicas=3, max_replicas=5)).decide(0.0, 1, 1) == 3
