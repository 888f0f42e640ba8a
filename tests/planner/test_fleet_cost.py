"""Prices times seconds: by the second with a minimum, along price paths, blocks in full."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from catalogs.errors import InputError, MissingError
from planner.money.fleet_cost import PricePath, cents, fleet_cost, lease_usd, read_price_paths, saved_usd
from simulator.fleet.accounting import Ledger


def ledger(purchase: str = "spot", boots_at: float = 10.0, ends_at: float = 3610.0) -> Ledger:
    found = Ledger()
    lease = found.open("g6e.xlarge", purchase, "za", 0.0)
    lease.enter("booting", boots_at)
    lease.enter("ready", min(boots_at + 100.0, ends_at))
    lease.busy_s = 1000.0
    lease.end(ends_at, "x")
    return found


def test_an_hour_costs_its_price_and_ten_seconds_a_minute() -> None:
    assert cents(lease_usd(ledger().leases[0], 1.861)) == Decimal("1.86")
    assert lease_usd(ledger(ends_at=20.0).leases[0], 3.6) == Decimal("0.06")


def test_a_price_path_is_integrated_over_the_time_held() -> None:
    path = PricePath([0.0, 1810.0], [1.0, 3.0])
    assert float(lease_usd(ledger().leases[0], path)) == pytest.approx(0.5 * 1.0 + 0.5 * 3.0)
    lines = fleet_cost(ledger(), lambda _i, _p: None, {"za": path})
    assert lines is not None and float(lines[0].usd) == pytest.approx(2.0)
    assert fleet_cost(ledger(), lambda _i, _p: None) is None


def test_a_capacity_block_is_paid_in_full_and_its_idle_share_said() -> None:
    lines = fleet_cost(ledger("capacity_block"), lambda _i, _p: 2.0, block_hours=24.0)
    assert lines is not None and float(lines[0].usd) == 48.0 and lines[0].hours == 24.0
    assert float(lines[0].usd_idle) == pytest.approx(48.0 * (1 - 1000 / 86400))


def test_a_cache_saves_its_share() -> None:
    assert saved_usd(100.0, 1000.0, Decimal(10)) == pytest.approx(1.0)
    assert saved_usd(100.0, 0.0, Decimal(10)) == 0.0


def test_price_files_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("start_s,zone,usd_per_hour\n0,za,1.0\n0,zb,2.0\n60,za,1.5\n")
    assert read_price_paths(file)["za"].usd_per_hour == [1.0, 1.5]
    for text, words in (
        ("start_s,zone\n0,za\n", "its header is"),
        ("start_s,zone,usd_per_hour\n0,za,x\n", "not a number"),
        ("start_s,zone,usd_per_hour\n0,za,-1\n", "zone za"),
        ("start_s,zone,usd_per_hour\n60,za,1\n0,za,1\n", "zone za"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=words):
            read_price_paths(file)
    with pytest.raises(MissingError):
        read_price_paths(tmp_path / "none.csv")
