"""Chaos: whatever breaks, no request is lost or served twice, no machine leaks, and the bill adds up to the cent."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest

from planner.money.fleet_cost import cents, fleet_cost, lease_usd
from simulator.engine.records import COMPLETED, FAILED, REJECTED
from simulator.fleet.admission import AdmissionPolicy, ClassPolicy, RetryPolicy
from simulator.fleet.cold_start import ColdStart, LogNormal
from simulator.fleet.config import CapacityRules, FleetConfig, Group
from simulator.fleet.data_plane import DataPlane
from simulator.fleet.engine_plane import EnginePlane
from simulator.fleet.failures import FailureRates
from simulator.fleet.simulate import Fleet
from simulator.fleet.spot import SpotPolicy, Zone, synthesise
from simulator.fleet.state import FleetResult
from simulator.workload.requests import Requests
from tests.simulator.seat_plane import SeatPlane, SeatSpec
from tests.simulator.test_fleet import check_conserved, hpa, load
from tests.simulator.test_fleet_plane import SPEC

PRICES = {"on_demand": 1.861, "spot": 0.6417, "reserved_3yr": 0.8043, "capacity_block": 2.1}
DURATION_S = 2400.0


class Counting:
    """Wraps a data plane and counts how often each request ends."""

    def __init__(self, plane: DataPlane, n: int) -> None:
        self._plane, self.outcome = plane, plane.outcome
        self.ended = np.zeros(n, np.int64)
        self._was = np.zeros(n, bool)

    def advance(self, until_s: float) -> None:
        self._plane.advance(until_s)
        done = (self.outcome.status == COMPLETED) & (self.outcome.finish_s <= until_s)
        assert not (self._was & ~done).any(), "a served request was taken back"
        self.ended += done & ~self._was
        self._was = done

    def __getattr__(self, name: str) -> object:
        return getattr(self._plane, name)


def chaotic(seed: int) -> FleetConfig:
    """A random fleet with everything that can go wrong."""
    rng = np.random.default_rng([seed, 77])
    boot = ColdStart(total=LogNormal(float(rng.uniform(20, 120)), 0.4))
    zones = [Zone(f"z{i}", "r" if i % 2 else "q", float(rng.uniform(0.3, 0.9))) for i in range(3)]
    spot = SpotPolicy(int(rng.integers(0, 3)), int(rng.integers(0, 2)), bool(rng.integers(0, 2)))
    pause = float(rng.uniform(0, DURATION_S))
    return FleetConfig(
        groups=(
            Group("spot", 0, "g6e.xlarge", 3, scaler=hpa, spot=spot, cold_start=boot, zones=("z0", "z1")),
            Group("base", 0, "g6e.xlarge", 1, purchase="reserved_3yr", cold_start=boot, zones=("z2",)),
        ),
        admission=AdmissionPolicy(
            queue="central" if seed % 2 else "replica",
            max_queue=60,
            classes={"default": ClassPolicy(timeout_s=float(rng.uniform(20, 200)))} if seed % 3 == 0 else {},
            retry=RetryPolicy(int(rng.integers(0, 4))),
            on_loss="fail" if seed % 5 == 4 else "requeue",
            tick_s=1.0,
        ),
        failures=FailureRates(
            hang_mtbf_h=0.3,
            crash_mtbf_h=0.3,
            degrade_mtbf_h=0.2,
            zone_mtbf_h=0.5,
            zone_recover_s=200.0,
            reserved_mtbf_h=0.5,
        ),
        capacity=CapacityRules(
            insufficient_capacity_probability=0.3,
            drain_on_notice=bool(rng.integers(0, 2)),
            rebalance_lead_s=float(rng.choice([0.0, 120.0])),
            termination_grace_s=30.0,
        ),
        availability=synthesise(zones, DURATION_S, seed, step_s=30.0),
        metrics_delay_s=float(rng.choice([0.0, 30.0])),
        start_ready=bool(rng.integers(0, 2)),
        pauses=((pause, pause + 300.0),),
    )


def rampage(seed: int, requests: Requests, plane: DataPlane) -> tuple[FleetResult, Counting]:
    counting = Counting(plane, len(requests))
    fleet = Fleet(requests, counting, chaotic(seed), seed, seats=(32,))
    rng = np.random.default_rng([seed, 5])

    def killer() -> object:
        while True:
            yield fleet.env.timeout(float(rng.exponential(150.0)))
            machines = [m for g in fleet.groups for m in g.machines]
            if machines:
                victim = machines[int(rng.integers(len(machines)))]
                fleet.kill(victim, "chaos")
                fleet.reconcile(fleet.groups[victim.group])

    fleet.env.process(killer())  # type: ignore[arg-type]
    return fleet.run(), counting


def check_bill(result: FleetResult) -> None:
    lines = fleet_cost(result.ledger, lambda _kind, purchase: PRICES[purchase])
    assert lines is not None
    by_lease = sum((lease_usd(x, PRICES[x.purchase]) for x in result.ledger.leases), Decimal(0))
    assert cents(sum((line.usd for line in lines), Decimal(0))) == cents(by_lease)
    by_hand = sum(Decimal(str(x.billed_s)) * Decimal(str(PRICES[x.purchase])) for x in result.ledger.leases) / 3600
    assert cents(by_lease) == cents(by_hand)


def check(seed: int, requests: Requests, plane: DataPlane) -> None:
    result, counting = rampage(seed, requests, plane)
    check_conserved(requests, result)
    status = result.outcome.status
    assert (counting.ended <= 1).all() and (counting.ended[status != COMPLETED] == 0).all()
    assert (status == COMPLETED).sum() + (status == REJECTED).sum() + (status == FAILED).sum() == len(requests)
    policy = chaotic(seed).admission
    if policy.on_loss == "requeue" and not policy.classes:
        assert result.reasons["replica lost"] == 0 and (status == FAILED).sum() == result.reasons["end of run"]
    load_now = plane.load()
    assert load_now.running.sum() + load_now.waiting.sum() <= result.reasons["end of run"]
    check_bill(result)


@pytest.mark.parametrize("seed", range(8))
def test_chaos_on_seats(seed: int) -> None:
    requests = load(DURATION_S, 6.0, seed)
    check(seed, requests, SeatPlane(requests, [SeatSpec(step_s=0.02, max_num_seqs=32)], seed=seed))


@pytest.mark.parametrize("seed", range(4))
def test_chaos_on_the_engine(seed: int) -> None:
    requests = load(DURATION_S, 6.0, seed)
    check(seed, requests, EnginePlane(requests, [SPEC], seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 300))
def test_chaos_over_many_seeds(seed: int) -> None:
    requests = load(DURATION_S, 6.0, seed)
    check(seed, requests, SeatPlane(requests, [SeatSpec(step_s=0.02, max_num_seqs=32)], seed=seed))
    check(seed, requests, EnginePlane(requests, [SPEC], seed=seed))
