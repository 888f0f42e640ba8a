"""The ledger adds up: every second of every machine is in one state, billed as EC2 bills."""

from __future__ import annotations

import pytest

from simulator.fleet.accounting import Ledger


def test_states_add_up_and_pending_time_is_free() -> None:
    ledger = Ledger()
    lease = ledger.open("g6e.xlarge", "spot", "us-east-1a", 100.0)
    for state, at in (("booting", 120.0), ("ready", 300.0), ("draining", 1300.0)):
        lease.enter(state, at)  # type: ignore[arg-type]
    lease.busy_s = 400.0
    lease.end(1420.5, "scale in")
    (usage,) = ledger.usage()
    assert (usage.booting_s, usage.serving_s, usage.idle_s, usage.draining_s) == (180.0, 400.0, 600.0, 120.5)
    assert lease.held_s == 1300.5 and usage.billed_s == 1301.0 and usage.rounding_s == pytest.approx(0.5)
    assert usage.gpu_hours == pytest.approx(1301 / 3600)
    assert sum(ledger.waste().values()) == pytest.approx((1301 - 400) / 3600)


def test_the_minimum_charge_is_a_minute_and_what_never_ran_is_free() -> None:
    ledger = Ledger()
    short = ledger.open("g6e.xlarge", "spot", "us-east-1a", 0.0)
    short.enter("booting", 10.0)
    short.end(30.0, "spot loss")
    ledger.open("g6e.xlarge", "spot", "us-east-1a", 0.0).end(10.0, "no capacity")
    (usage,) = ledger.usage()
    assert usage.billed_s == 60.0 and usage.lost_boot_s == 20.0 and usage.rounding_s == 40.0


def test_busy_time_beyond_ready_is_counted_while_draining() -> None:
    ledger = Ledger()
    lease = ledger.open("p5.48xlarge", "on_demand", "us-east-1a", 0.0, num_gpus=8)
    lease.enter("booting", 0.0)
    lease.enter("ready", 0.0)
    lease.enter("draining", 100.0)
    lease.busy_s = 130.0
    ledger.close_all(200.0)
    (usage,) = ledger.usage()
    assert (usage.serving_s, usage.idle_s, usage.draining_s) == (130.0, 0.0, 70.0)
    assert usage.gpu_hours == pytest.approx(8 * 200 / 3600)
    assert not ledger.live


def test_a_lease_neither_rises_again_nor_runs_backwards() -> None:
    lease = Ledger().open("g6e.xlarge", "spot", "a", 0.0)
    lease.enter("booting", 5.0)
    with pytest.raises(ValueError, match="before"):
        lease.enter("ready", 4.0)
    lease.end(6.0, "x")
    with pytest.raises(ValueError, match="has ended"):
        lease.enter("ready", 7.0)
