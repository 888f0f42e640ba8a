"""The bill from Cost Explorer, against a loopback server whose payloads are written from botocore's model of `ce`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from catalogs.aws_bill import RECORD_TYPES
from catalogs.aws_session import Access
from catalogs.errors import InputError, MissingError
from planner.spend.bill import commitments, tag_of, total
from planner.spend.bill_cost_explorer import read_cost_explorer
from tests.catalogs.fake_aws import FakeAws
from tests.loopback import loopback_only

__all__ = ["loopback_only"]
FROM, TO = date(2026, 11, 1), date(2026, 11, 3)


def group(
    keys: tuple[str, str], billed: float, amortised: float, hours: float, currency: str = "USD"
) -> dict[str, Any]:
    def amount(value: float, unit: str) -> dict[str, str]:
        return {"Amount": f"{value:.6f}", "Unit": unit}

    return {
        "Keys": list(keys),
        "Metrics": {"UnblendedCost": amount(billed, currency), "AmortizedCost": amount(amortised, currency),
                    "UsageQuantity": amount(hours, "Hrs")},
    }  # fmt: skip


def day(start: str, end: str, groups: list[dict[str, Any]]) -> dict[str, Any]:
    return {"TimePeriod": {"Start": start, "End": end}, "Groups": groups, "Estimated": False, "Total": {}}


GROUPS = [
    group(("USW2-BoxUsage:g6e.xlarge", "Usage"), 44.66, 44.66, 24),
    group(("USW2-SpotUsage:g6e.xlarge", "Usage"), 10.00, 10.00, 20),
    group(("BoxUsage:p5.48xlarge", "DiscountedUsage"), 0.0, 496.68, 24),
    group(("HeavyUsage:p5.48xlarge", "RIFee"), 100.0, 20.0, 24),
    group(("BoxUsage:g6e.xlarge", "SavingsPlanCoveredUsage"), 44.66, 16.79, 24),
    group(("BoxUsage:g6e.xlarge", "SavingsPlanNegation"), -44.66, 0.0, 0),
    group(("USE1-EC2SP:g6e.3yrAllUpfront", "SavingsPlanRecurringFee"), 0.0, 3.21, 24),
    group(("ComputeSP:1yrNoUpfront", "SavingsPlanRecurringFee"), 50.0, 7.0, 24),
    group(("BoxUsage:g6e.xlarge", "Credit"), -5.0, -5.0, 0),
    group(("BoxUsage:g6e.xlarge", "Refund"), -1.0, -1.0, 0),
    group(("CapacityBlock:p5.48xlarge", "Fee"), 960.0, 960.0, 0),
    group(("BoxUsage:m7i.large", "Usage"), 99.0, 99.0, 24),
]
SECOND_DAY = [group(("CapacityBlock:p5.48xlarge", "Usage"), 0.0, 0.0, 12)]


@pytest.fixture
def explorer(monkeypatch: pytest.MonkeyPatch, loopback_only: list[str], tmp_path: Path) -> Iterator[FakeAws]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-real-one")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    fake = FakeAws()

    def costs(asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["TimePeriod"] == {"Start": "2026-11-01", "End": "2026-11-03"}
        if not asked.get("NextPageToken"):
            return {"ResultsByTime": [day("2026-11-01", "2026-11-02", GROUPS)], "NextPageToken": "2"}
        return {"ResultsByTime": [day("2026-11-02", "2026-11-03", SECOND_DAY)]}

    fake.answers["GetCostAndUsage"] = costs
    yield fake
    fake.close()
    assert loopback_only == []


def read(fake: FakeAws, **more: Any) -> Any:
    return read_cost_explorer(FROM, TO, Access(None, fake.url, 2.0, 2), **more)


def test_every_charge_lands_under_its_purchase_form_to_the_cent(explorer: FakeAws) -> None:
    bill = read(explorer)
    effective = bill.charges.groupby("purchase")["effective"].sum().round(2).to_dict()
    assert effective == {
        "on_demand": 44.66, "spot": 10.0, "reserved": 496.68, "savings_plan": 16.79, "unused_commitment": 23.21,
        "upfront_fee": 0.0, "credit": -5.0, "refund": -1.0, "capacity_block": 960.0,
    }  # fmt: skip
    assert round(total(bill)["billed"], 2) == 1108.66
    assert round(total(bill)["effective"], 2) == 1545.34
    assert set(bill.charges["region"]) == {"us-west-2", "us-east-1"}
    assert any("7.00 of Compute Savings Plans" in note for note in bill.notes)


def test_utilisation_and_coverage_follow(explorer: FakeAws) -> None:
    used = commitments(read(explorer))
    assert used.utilisation == pytest.approx((496.68 + 16.79) / (496.68 + 16.79 + 23.21))
    assert used.coverage == pytest.approx(48 / 72)
    assert used.saved is None  # no list prices


def test_a_capacity_blocks_fee_moves_from_its_first_day_to_its_hours(explorer: FakeAws) -> None:
    block = read(explorer).charges.query("purchase == 'capacity_block'").sort_values("start")
    assert list(block["billed"]) == [960.0, 0.0]
    assert list(block["effective"]) == [0.0, 960.0]


def test_a_tag_tells_a_plans_machines(explorer: FakeAws) -> None:
    def tagged(asked: dict[str, Any]) -> dict[str, Any]:
        (record,) = asked["Filter"]["And"][1]["Dimensions"]["Values"]
        groups = [group(("BoxUsage:g6e.xlarge", "plan-model$llama-3.1-8b"), 10.0, 10.0, 5),
                  group(("BoxUsage:g6e.xlarge", "plan-model$"), 3.0, 3.0, 2)]  # fmt: skip
        return {"ResultsByTime": [day("2026-11-01", "2026-11-02", groups if record == "Usage" else [])]}

    explorer.answers["GetCostAndUsage"] = tagged
    found = read(explorer, tag_key="plan-model").usage
    tagged_usd = {tag_of(row.tags, "plan-model"): row.effective for row in found.itertuples()}
    assert tagged_usd == {"llama-3.1-8b": 10.0, None: 3.0}
    assert len(explorer.calls) == len(RECORD_TYPES)


def test_two_currencies_are_refused_or_one_is_chosen(explorer: FakeAws) -> None:
    mixed = [group(("BoxUsage:g6e.xlarge", "Usage"), 1.0, 1.0, 1, c) for c in ("USD", "EUR")]
    explorer.answers["GetCostAndUsage"] = lambda _: {"ResultsByTime": [day("2026-11-01", "2026-11-02", mixed)]}
    with pytest.raises(InputError, match="EUR and USD"):
        read(explorer)
    assert read(explorer, currency="EUR").currency == "EUR"


@pytest.mark.parametrize(
    ("fault", "message"),
    [("denied", "ce:GetCostAndUsage"), ("expired", "expired"), ("malformed", "no ResultsByTime"), ("close", "reached")],
)
def test_a_failure_says_what_is_missing(explorer: FakeAws, fault: str, message: str) -> None:
    explorer.faults["GetCostAndUsage"] = [fault] * 5
    with pytest.raises(MissingError, match=message):
        read(explorer)


def test_throttling_is_waited_out(explorer: FakeAws) -> None:
    explorer.faults["GetCostAndUsage"] = ["throttle"]
    assert len(read(explorer).charges)


def test_an_empty_period_is_refused_before_any_call(explorer: FakeAws) -> None:
    with pytest.raises(InputError, match="empty"):
        read_cost_explorer(TO, FROM, Access(None, explorer.url))
    assert explorer.calls == []


def test_an_account_without_gpus_is_said_to_have_none(explorer: FakeAws) -> None:
    explorer.answers["GetCostAndUsage"] = lambda _: {"ResultsByTime": [day("2026-11-01", "2026-11-02", [])]}
    bill = read(explorer)
    assert bill.charges.empty
    assert "the bill holds no GPU machines" in bill.notes
