"""The control plane: fleets follow their load, survive what breaks them, and account for every second and request."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from simulator.engine.records import COMPLETED, FAILED, REJECTED
from simulator.fleet.accounting import Usage
from simulator.fleet.admission import AdmissionPolicy, ClassPolicy, RetryPolicy
from simulator.fleet.autoscaling import (
    Hpa,
    HpaConfig,
    HpaMetric,
    Keda,
    KedaConfig,
    KedaTrigger,
    Oracle,
    SkyServe,
    SkyServeConfig,
)
from simulator.fleet.caches import Caches, ResultCacheConfig
from simulator.fleet.cold_start import ColdStart, LogNormal
from simulator.fleet.config import CapacityRules, FleetConfig, Group
from simulator.fleet.failures import FailureRates
from simulator.fleet.simulate import Fleet
from simulator.fleet.spot import Availability, SpotPolicy, Zone, find_zones, synthesise
from simulator.fleet.state import FleetResult
from simulator.workload.requests import Requests
from tests.simulator.seat_plane import SeatPlane, SeatSpec

SPEC = SeatSpec(prefill_tokens_per_s=20000.0, step_s=0.02, step_per_seq_s=0.0002, max_num_seqs=32)
BOOT = ColdStart(total=LogNormal(60.0))
GROUP = Group("chat", 0, "g6e.xlarge", 2, cold_start=BOOT)


Burst = tuple[float, float, float]


def load(duration_s: float, rate_rps: float, seed: int = 0, burst: Burst | None = None) -> Requests:
    """Poisson arrivals; ``burst``: (from, to, factor)."""
    rng = np.random.default_rng([seed, 1])
    most = rate_rps * (burst[2] if burst else 1.0)
    arrival = np.cumsum(rng.exponential(1 / most, int(duration_s * most * 1.2) + 50))
    arrival = arrival[arrival < duration_s]
    if burst:
        inside = (arrival >= burst[0]) & (arrival < burst[1])
        arrival = arrival[inside | (rng.uniform(size=len(arrival)) < 1 / burst[2])]
    n = len(arrival)
    return Requests(arrival, rng.integers(100, 800, n), rng.integers(20, 200, n))


def play(
    requests: Requests, config: FleetConfig, seed: int = 0, caches: Caches | None = None, spec: SeatSpec = SPEC
) -> FleetResult:
    fleet = Fleet(requests, SeatPlane(requests, [spec], seed=seed), config, seed, caches, seats=(spec.max_num_seqs,))
    return fleet.run()


def ttft(requests: Requests, result: FleetResult) -> np.ndarray:
    done = result.outcome.status == COMPLETED
    return (result.outcome.first_token_s - requests.arrival_s)[done]


def check_conserved(requests: Requests, result: FleetResult) -> None:
    """Every request ends once, in order of time; every machine second is in one state and billed once."""
    outcome = result.outcome
    assert np.isin(outcome.status, (COMPLETED, REJECTED, FAILED)).all()
    done = outcome.status == COMPLETED
    assert (requests.arrival_s[done] <= outcome.scheduled_s[done] + 1e-9).all()
    assert (outcome.scheduled_s[done] <= outcome.first_token_s[done]).all()
    assert (outcome.first_token_s[done] <= outcome.finish_s[done]).all()
    assert np.isnan(outcome.finish_s[~done]).all()
    assert not result.ledger.live
    for lease in result.ledger.leases:
        spans = lease.spans
        assert all(a.end_s == b.start_s for a, b in itertools.pairwise(spans))
        assert lease.busy_s <= lease.seconds(("ready", "draining")) + 1e-6
    for usage in result.ledger.usage():
        parts = usage.serving_s + usage.idle_s + usage.booting_s + usage.draining_s + usage.hung_s + usage.standby_s
        assert parts + usage.rounding_s == pytest.approx(usage.billed_s, abs=1e-6)


def only(usages: list[Usage], purchase: str) -> Usage:
    return next(u for u in usages if u.purchase == purchase)


def test_a_fixed_fleet_serves_everything_and_costs_its_time() -> None:
    requests = load(600.0, 5.0)
    result = play(requests, FleetConfig((GROUP,)))
    check_conserved(requests, result)
    assert (result.outcome.status == COMPLETED).all()
    (usage,) = result.ledger.usage()
    assert usage.num_leases == 2 and usage.billed_s == pytest.approx(2 * result.end_s, abs=2.0)
    assert 0 < usage.utilisation < 1


def test_the_same_seed_gives_the_same_run() -> None:
    requests = load(600.0, 5.0)
    config = FleetConfig((replace(GROUP, scaler=hpa),), failures=FailureRates(crash_mtbf_h=0.1))
    a, b = play(requests, config, 3), play(requests, config, 3)
    assert np.array_equal(a.outcome.finish_s, b.outcome.finish_s, equal_nan=True) and a.events == b.events


def hpa() -> Hpa:
    return Hpa(HpaConfig((HpaMetric("running_requests", 16.0),), min_replicas=1, max_replicas=12))


def keda() -> Keda:
    return Keda(KedaConfig((KedaTrigger("ongoing_requests", 16.0),), min_replica_count=1, max_replica_count=12))


@pytest.mark.parametrize("scaler", [hpa, keda])
def test_controllers_follow_a_flash_crowd_and_come_back(scaler: object) -> None:
    requests = load(3000.0, 6.0, burst=(600.0, 1200.0, 5.0))
    config = FleetConfig((replace(GROUP, scaler=scaler),))  # type: ignore[arg-type]
    result = play(requests, config)
    check_conserved(requests, result)
    targets = result.targets["chat"]
    assert max(n for _, n in targets) > 3 and targets[-1][1] <= 2
    fixed = play(requests, FleetConfig((replace(GROUP, count=1),)))
    assert np.quantile(ttft(requests, result), 0.9) < np.quantile(ttft(requests, fixed), 0.9)


def test_the_oracle_is_never_caught_by_a_cold_start() -> None:
    requests = load(3000.0, 4.0, burst=(600.0, 1200.0, 5.0))

    def oracle() -> Oracle:
        return Oracle(requests.arrival_s, 6.0, lead_s=120.0)

    clairvoyant = play(requests, FleetConfig((replace(GROUP, scaler=oracle),)))
    reactive = play(requests, FleetConfig((replace(GROUP, scaler=keda),)))
    assert np.quantile(ttft(requests, clairvoyant), 0.99) < np.quantile(ttft(requests, reactive), 0.99)


def test_scale_to_zero_and_back_loses_nothing() -> None:
    requests = load(600.0, 2.0)
    late = replace(requests, arrival_s=requests.arrival_s + 700.0)

    def to_zero() -> Keda:
        return Keda(KedaConfig((KedaTrigger("ongoing_requests", 16.0),), cooldown_period=60.0))

    result = play(late, FleetConfig((replace(GROUP, count=1, scaler=to_zero),)))
    check_conserved(late, result)
    assert (result.outcome.status == COMPLETED).all()
    assert 0 in [n for _, n in result.targets["chat"]]
    assert ttft(late, result).max() > 60.0  # the first requests waited for the boot


ZONES = (Zone("za", "east", 0.7), Zone("zb", "east", 0.7), Zone("wa", "west", 0.8))


def spot_config(policy: SpotPolicy) -> FleetConfig:
    """za is gone from 1000 to 4000 s and again from 5000 s, zb from 2500 to 5500 s."""
    up = np.ones((3, 80), bool)
    up[0, 10:40] = up[1, 25:55] = up[0, 50:] = False
    path = Availability(ZONES, 0.0, 100.0, up)
    return FleetConfig((replace(GROUP, count=3, spot=policy),), availability=path)


def test_spot_losses_are_announced_replaced_and_paid_for() -> None:
    requests = load(8000.0, 3.0)
    result = play(requests, spot_config(SpotPolicy(1, 0, True)))
    check_conserved(requests, result)
    assert any("spot notice" in what for _, what in result.events)
    assert (result.outcome.status == COMPLETED).all()
    usage = {u.purchase: u for u in result.ledger.usage()}
    assert usage["spot"].billed_s > 0 and usage["on_demand"].billed_s > 0
    assert {lease.cause for lease in result.ledger.leases} >= {"spot loss", "scaled in"}
    assert result.series["ready_spot"].max() == 4


def test_draining_at_the_notice_saves_work_that_serving_on_loses() -> None:
    requests = load(8000.0, 6.0)
    failing = replace(spot_config(SpotPolicy()), admission=AdmissionPolicy(on_loss="fail"))
    drained = play(requests, failing)
    served_on = play(requests, replace(failing, capacity=CapacityRules(drain_on_notice=False, notice_s=120.0)))
    check_conserved(requests, served_on)
    assert drained.reasons["replica lost"] == 0 < served_on.reasons["replica lost"]


def test_a_rebalance_signal_starts_the_replacement_early() -> None:
    requests = load(8000.0, 6.0)
    plain = play(requests, spot_config(SpotPolicy()))
    rules = CapacityRules(rebalance_lead_s=300.0)
    early = play(requests, replace(spot_config(SpotPolicy()), capacity=rules))
    check_conserved(requests, early)
    short = [np.mean(r.series["ready_spot"] < 3) for r in (plain, early)]
    assert short[1] < short[0]


def test_a_hang_is_seen_after_the_probes_and_its_requests_are_sent_again() -> None:
    requests = load(3600.0, 5.0)
    config = FleetConfig((GROUP,), failures=FailureRates(hang_mtbf_h=0.3, restart_s=30.0))
    result = play(requests, config)
    check_conserved(requests, result)
    assert (result.outcome.status == COMPLETED).all()
    (usage,) = result.ledger.usage()
    hangs = sum("hang" in what for _, what in result.events)
    assert hangs >= 2 and 20.0 * hangs <= usage.hung_s <= 30.0 * hangs + 1e-6
    assert usage.booting_s == pytest.approx(30.0 * hangs, abs=31.0)


def test_a_replica_that_starts_again_does_not_look_busier_than_it_is() -> None:
    requests = load(3600.0, 0.2)
    result = play(requests, FleetConfig((GROUP,), failures=FailureRates(hang_mtbf_h=0.3, restart_s=30.0)))
    assert result.series["gpu_use"].max() < 0.7


def test_on_loss_fail_counts_what_was_lost() -> None:
    requests = load(3600.0, 5.0)
    failures = FailureRates(crash_mtbf_h=0.3, restart_s=30.0)
    config = FleetConfig((GROUP,), admission=AdmissionPolicy(on_loss="fail"), failures=failures)
    result = play(requests, config)
    check_conserved(requests, result)
    assert (result.outcome.status == FAILED).sum() == result.reasons["replica lost"] > 0


def test_a_capacity_block_serves_within_its_bounds_only() -> None:
    requests = load(9000.0, 5.0)
    block = replace(GROUP, name="block", purchase="capacity_block", block=(1000.0, 7000.0))
    result = play(requests, FleetConfig((replace(GROUP, count=1), block)))
    check_conserved(requests, result)
    leases = [x for x in result.ledger.leases if x.purchase == "capacity_block"]
    assert len(leases) == 2
    for lease in leases:
        assert lease.spans[0].start_s >= 1000.0 and 5200.0 <= lease.spans[-1].end_s <= 5200.0 + 120.0


def test_on_demand_may_be_out_of_stock() -> None:
    requests = load(3000.0, 6.0, burst=(600.0, 1200.0, 5.0))
    rules = CapacityRules(insufficient_capacity_probability=0.8)
    result = play(requests, FleetConfig((replace(GROUP, scaler=hpa),), capacity=rules))
    check_conserved(requests, result)
    assert any("insufficient capacity" in what for _, what in result.events)


def test_a_warm_pool_shortens_the_wait() -> None:
    cold = ColdStart(parts={"instance_boot": LogNormal(200.0), "image_pull": LogNormal(200.0)})
    requests = load(3000.0, 6.0, burst=(600.0, 1200.0, 5.0))
    without = play(requests, FleetConfig((replace(GROUP, scaler=hpa, cold_start=cold),)))
    with_pool = play(requests, FleetConfig((replace(GROUP, scaler=hpa, cold_start=cold, warm_pool=4),)))
    check_conserved(requests, with_pool)
    assert np.quantile(ttft(requests, with_pool), 0.95) < np.quantile(ttft(requests, without), 0.95)
    assert only(with_pool.ledger.usage(), "on_demand").standby_s > 0


# The gateway


def classes(requests: Requests, share_low: float = 0.5) -> Requests:
    rng = np.random.default_rng(9)
    low = (rng.uniform(size=len(requests)) < share_low).astype(np.int64)
    return replace(requests, request_class=low, class_names=("chat", "batch"))


CLASSES = {"chat": ClassPolicy(priority=0), "batch": ClassPolicy(priority=5)}


def by_class(requests: Requests, result: FleetResult, which: int, q: float = 0.95) -> float:
    mine = (requests.request_class == which) & (result.outcome.status == COMPLETED)
    return float(np.quantile((result.outcome.first_token_s - requests.arrival_s)[mine], q))


def test_priorities_ageing_and_preemption_shift_the_wait_between_classes() -> None:
    requests = classes(load(1200.0, 9.0, burst=(300.0, 500.0, 3.0)))
    group = replace(GROUP, count=1)
    plain = play(requests, FleetConfig((group,), admission=AdmissionPolicy(queue="central")))
    first = play(requests, FleetConfig((group,), admission=AdmissionPolicy(queue="central", classes=CLASSES)))
    aged = AdmissionPolicy(queue="central", classes=CLASSES, ageing_s=10.0)
    ageing = play(requests, FleetConfig((group,), admission=aged))
    hard = AdmissionPolicy(queue="central", classes=CLASSES, preempt_lower=True)
    preempting = play(requests, FleetConfig((group,), admission=hard))
    for result in (plain, first, ageing, preempting):
        check_conserved(requests, result)
        assert (result.outcome.status == COMPLETED).all()
    chat = [by_class(requests, r, 0) for r in (plain, ageing, first, preempting)]
    assert chat[0] > chat[1] > chat[2] > chat[3]
    assert by_class(requests, first, 1) > by_class(requests, ageing, 1)
    assert preempting.reasons["preempted by a higher class"] > 0


def test_deadlines_time_outs_and_bounds_refuse_what_cannot_be_served() -> None:
    requests = load(600.0, 40.0)
    group = replace(GROUP, count=1)
    promise = {"default": ClassPolicy(deadline_s=5.0)}
    dead = play(requests, FleetConfig((group,), admission=AdmissionPolicy(queue="central", classes=promise)))
    check_conserved(requests, dead)
    waits = (dead.outcome.scheduled_s - requests.arrival_s)[dead.outcome.status == COMPLETED]
    assert dead.reasons["deadline"] > 0 and waits.max() <= 5.5
    client = {"default": ClassPolicy(timeout_s=20.0)}
    impatient = play(requests, FleetConfig((group,), admission=AdmissionPolicy(classes=client)))
    check_conserved(requests, impatient)
    took = (impatient.outcome.finish_s - requests.arrival_s)[impatient.outcome.status == COMPLETED]
    assert impatient.reasons["client time-out"] > 0 and took.max() <= 20.5
    bounded = play(requests, FleetConfig((group,), admission=AdmissionPolicy(queue="central", max_queue=20)))
    check_conserved(requests, bounded)
    assert bounded.reasons["queue full"] > 0 and bounded.series["queue_length"].max() <= 20 + 32


def test_the_rate_limit_holds_and_retries_come_back() -> None:
    requests = load(600.0, 10.0)
    limit = AdmissionPolicy(rate_rps=5.0, burst=10.0)
    result = play(requests, FleetConfig((GROUP,), admission=limit))
    check_conserved(requests, result)
    assert (result.outcome.status == COMPLETED).sum() == pytest.approx(5.0 * 600.0, rel=0.02)
    stubborn = replace(limit, retry=RetryPolicy(max_retries=8))
    again = play(requests, FleetConfig((GROUP,), admission=stubborn))
    check_conserved(requests, again)
    assert again.num_retries > 0
    assert (again.outcome.status == COMPLETED).sum() > (result.outcome.status == COMPLETED).sum()


def test_shedding_refuses_the_unimportant_first() -> None:
    requests = classes(load(600.0, 40.0))
    policy = AdmissionPolicy(queue="central", classes=CLASSES, max_queue=50)
    result = play(requests, FleetConfig((replace(GROUP, count=1),), admission=policy))
    check_conserved(requests, result)
    refused = [(result.outcome.status == REJECTED)[requests.request_class == c].mean() for c in (0, 1)]
    assert refused[0] < refused[1] and result.reasons["shed"] > 0


def test_a_greedy_tenant_does_not_starve_the_others() -> None:
    requests = load(900.0, 14.0)
    rng = np.random.default_rng(4)
    tenant = np.where(rng.uniform(size=len(requests)) < 0.8, 0, rng.integers(1, 5, len(requests)))
    requests = replace(requests, session=tenant.astype(np.int64))
    group = replace(GROUP, count=1)

    def small(result: FleetResult) -> float:
        mine = (tenant > 0) & (result.outcome.status == COMPLETED)
        return float(np.quantile((result.outcome.first_token_s - requests.arrival_s)[mine], 0.95))

    fifo = play(requests, FleetConfig((group,), admission=AdmissionPolicy(queue="central")))
    fair = play(requests, FleetConfig((group,), admission=AdmissionPolicy(queue="central", fairness="tenant")))
    check_conserved(requests, fair)
    assert small(fair) < 0.5 * small(fifo)


def test_a_result_cache_saves_what_it_answers() -> None:
    requests = load(900.0, 5.0)
    caches = Caches(requests, 0, result=ResultCacheConfig(lookup_s=0.002), num_prompts=200)
    result = play(requests, FleetConfig((GROUP,)), caches=caches)
    check_conserved(requests, result)
    count = result.caches["result"]
    assert count.lookups == len(requests) and 0.5 < count.hit_rate < 1.0
    assert result.reasons["answered by a cache"] == count.hits
    assert (result.outcome.replica == -1).sum() == count.hits


def test_controllers_that_oscillate_are_reported() -> None:
    requests = load(6000.0, 10.0)

    class Nervous:
        interval_s = 30.0

        def target_replicas(self, now_s: float, fleet: object) -> int:
            return 2 if int(now_s / 30) % 2 else 6

    result = play(requests, FleetConfig((replace(GROUP, scaler=Nervous),)))  # type: ignore[arg-type]
    assert result.oscillations["chat"].num_turns >= 6
    steady = play(requests, FleetConfig((replace(GROUP, scaler=lambda: SkyServe(SkyServeConfig(5.0, 1, 5))),)))
    assert not steady.oscillations


@pytest.mark.slow
@pytest.mark.parametrize(
    ("regions", "policy", "cost", "short"),
    [
        (("us-east-1", "us-east-2", "us-west-2"), SpotPolicy(), 0.291, 0.060),
        (("us-east-1", "us-east-2", "us-west-2"), SpotPolicy(1, 0, True), 0.403, 0.0058),
        (("us-east-1",), SpotPolicy(1, 0, True), 0.695, 0.018),
    ],
)
def test_the_whole_control_plane_replays_spothedge(
    regions: tuple[str, ...], policy: SpotPolicy, cost: float, short: float
) -> None:
    """Cost over all on-demand and time short of 4 replicas, spot at 0.3 x on-demand, against the replay's figures."""
    duration_s = 45.5 * 86400.0
    few = np.full(100, 10, np.int64)
    requests = Requests(np.linspace(0, duration_s, 100), few, few)
    found = []
    for seed in range(4):
        group = replace(GROUP, count=4, spot=policy, cold_start=ColdStart(total=LogNormal(195.0)))
        rules = CapacityRules(notice_s=0.0, drain_on_notice=False)
        path = synthesise(find_zones(regions), duration_s + 3600, seed)
        config = FleetConfig((group,), capacity=rules, availability=path, sample_interval_s=120.0)
        result = play(requests, config, seed)
        billed = {u.purchase: u.billed_s for u in result.ledger.usage()}
        ready = result.series["ready_spot"] + result.series["ready_on_demand"]
        held = 0.3 * billed["spot"] + billed.get("on_demand", 0.0)
        found.append((held / (4 * result.end_s), float((ready < 4).mean())))
    print(f"{regions} {policy}: cost {np.mean(found, axis=0)[0]:.3f}, short {np.mean(found, axis=0)[1]:.4f}")
    assert np.mean(found, axis=0)[0] == pytest.approx(cost, abs=0.08)
    assert np.mean(found, axis=0)[1] == pytest.approx(short, abs=0.02)
