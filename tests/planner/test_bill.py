"""Bills in CUR 2.0 and FOCUS: the same machines cost the same; upfront fees are spread; bad bills are refused.

The rows are written from AWS's column dictionaries and the FOCUS specification, not recorded from an account.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from catalogs.errors import InputError
from planner.spend.bill import commitments, spend, tag_of, total
from planner.spend.bill_readers import read_bill
from planner.spend.spend_findings import lapsed_commitments

DAY, NEXT = "2026-10-01T00:00:00Z", "2026-10-02T00:00:00Z"


def cur(
    kind: str = "Usage", usage: str = "BoxUsage:g6e.xlarge", hours: float = 24, cost: float = 44.66, **more: Any
) -> Any:
    return {
        "line_item_usage_start_date": DAY, "line_item_usage_end_date": NEXT, "line_item_line_item_type": kind,
        "line_item_usage_type": usage, "line_item_usage_amount": hours, "line_item_unblended_cost": cost,
        "line_item_currency_code": "USD", "pricing_public_on_demand_cost": 44.66, "product_region_code": "us-east-1",
        "resource_tags": json.dumps({"user_plan_model": "llama-3-1-8b"}), **more,
    }  # fmt: skip


def focus(**more: Any) -> Any:
    return {
        "BilledCost": 44.66, "EffectiveCost": 44.66, "ListCost": 44.66, "BillingCurrency": "USD",
        "ChargeCategory": "Usage", "ChargePeriodStart": DAY, "ChargePeriodEnd": NEXT, "PricingCategory": "Standard",
        "RegionId": "us-east-1", "x_UsageType": "BoxUsage:g6e.xlarge", "ConsumedQuantity": 24, "ConsumedUnit": "Hours",
        "Tags": json.dumps({"plan-model": "llama-3-1-8b"}), **more,
    }  # fmt: skip


def write(folder: Path, rows: list[Any], form: str = "csv") -> Path:
    path = folder / f"bill.{form}"
    frame = pd.DataFrame(rows)
    frame.to_parquet(path) if form == "parquet" else frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet"])
@pytest.mark.parametrize("row", [cur, focus])
def test_both_forms_and_all_files_give_the_same_spend(tmp_path: Path, row: Any, form: str) -> None:
    bill = read_bill(write(tmp_path, [row(), row()], form))
    found = spend(bill).iloc[0]
    assert (found["instance_type"], found["purchase"]) == ("g6e.xlarge", "on_demand")
    assert found["effective"] == pytest.approx(89.32)
    assert found["hours"] == 48
    assert {tag_of(tags, "plan-model") for tags in bill.usage["tags"]} == {"llama-3-1-8b"}


def test_machines_without_gpus_are_left_out(tmp_path: Path) -> None:
    bill = read_bill(write(tmp_path, [cur(), cur(usage="BoxUsage:m5.large"), cur(usage="EBS:VolumeUsage.gp3")]))
    assert bill.num_rows == 3
    assert len(bill.charges) == 1


def test_savings_plans_are_amortised_and_their_unused_part_found(tmp_path: Path) -> None:
    arn = {"savings_plan_savings_plan_a_r_n": "arn:sp/1"}
    rows = [
        cur("SavingsPlanCoveredUsage", savings_plan_savings_plan_effective_cost=20.0, **arn),
        cur("SavingsPlanNegation", cost=-44.66, hours=24, **arn),
        cur("SavingsPlanRecurringFee", usage="ComputeSP:1yrNoUpfront", cost=30.0, hours=24,
            savings_plan_total_commitment_to_date=30.0, savings_plan_used_commitment=20.0, **arn),
        cur(),
    ]  # fmt: skip
    bill = read_bill(write(tmp_path, rows))
    found = commitments(bill)
    assert (found.used, found.unused) == (20.0, 10.0)
    assert found.utilisation == pytest.approx(2 / 3)
    assert found.coverage == pytest.approx(0.5)
    assert found.saved == pytest.approx(44.66 - 30.0)
    assert total(bill)["effective"] == pytest.approx(20 + 10 + 44.66)
    assert total(bill)["billed"] == pytest.approx(44.66 - 44.66 + 30.0 + 44.66)


def test_reservations_use_their_effective_cost(tmp_path: Path) -> None:
    arn = {"reservation_reservation_a_r_n": "arn:ri/1"}
    rows = [
        cur("DiscountedUsage", cost=0.0, reservation_effective_cost=17.0, **arn),
        cur("RIFee", usage="HeavyUsage:g6e.xlarge", cost=31.0, reservation_unused_recurring_fee=2.0,
            reservation_unused_amortized_upfront_fee_for_billing_period=1.5, **arn),
        cur("Fee", usage="HeavyUsage:g6e.xlarge", cost=5000.0, **arn),
    ]  # fmt: skip
    bill = read_bill(write(tmp_path, rows))
    assert commitments(bill).used == 17.0
    assert commitments(bill).unused == pytest.approx(3.5)
    assert total(bill)["effective"] == pytest.approx(20.5)


def test_a_capacity_block_fee_is_spread_over_its_hours(tmp_path: Path) -> None:
    def usage(day: str) -> Any:
        return cur(usage="CapacityBlockUsage:p5.48xlarge", cost=0.0, line_item_usage_start_date=day)

    rows = [
        cur("Fee", usage="CapacityBlock:p5.48xlarge", hours=1, cost=900.0),
        usage("2026-10-01T12:00:00Z"), usage("2026-10-02T00:00:00Z"), usage("2026-10-03T00:00:00Z"),
    ]  # fmt: skip
    bill = read_bill(write(tmp_path, rows))
    by_day = spend(bill, ("day",))
    assert by_day["billed"].tolist() == [900.0, 0.0, 0.0]
    assert by_day["effective"].tolist() == [300.0, 300.0, 300.0]


def test_credits_refunds_and_tax_stand_apart(tmp_path: Path) -> None:
    apart = {"Credit": -10, "Tax": 3, "Adjustment": -4.66}
    rows = [focus()] + [
        focus(ChargeCategory=kind, BilledCost=cost, EffectiveCost=cost, ConsumedQuantity=None)
        for kind, cost in apart.items()
    ]
    found = total(read_bill(write(tmp_path, rows)))
    assert found == pytest.approx({"billed": 33.0, "effective": 33.0, "credit": -10, "refund": -4.66, "tax": 3})


def test_focus_spot_and_unused_commitments_are_recognised(tmp_path: Path) -> None:
    committed = {"PricingCategory": "Committed", "CommitmentDiscountType": "Savings Plan", "CommitmentDiscountId": "a"}
    rows = [
        focus(PricingCategory="Dynamic", x_UsageType="SpotUsage:g6e.xlarge"),
        focus(**committed, CommitmentDiscountStatus="Used", EffectiveCost=20.0),
        focus(
            **committed, CommitmentDiscountStatus="Unused", EffectiveCost=5.0, x_UsageType="ComputeSP", ListCost=None
        ),
    ]
    bill = read_bill(write(tmp_path, rows))
    assert sorted(bill.charges["purchase"]) == ["savings_plan", "spot", "unused_commitment"]
    assert commitments(bill).unused == 5.0


def test_two_currencies_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, [focus(), focus(BillingCurrency="EUR")])
    with pytest.raises(InputError, match="mixes currencies"):
        read_bill(path)
    assert len(read_bill(path, currency="EUR").charges) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [("a,b\n1,2\n", "neither a CUR"), ("", "cannot read"), (",".join(focus()) + "\n", "empty")],
)
def test_what_is_not_a_bill_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "bill.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        read_bill(path)


@pytest.mark.parametrize("change", [{"BilledCost": "lots"}, {"ChargePeriodStart": "yesterday"}])
def test_a_value_that_cannot_be_read_is_named(tmp_path: Path, change: Any) -> None:
    with pytest.raises(InputError, match=r"lots|yesterday"):
        read_bill(write(tmp_path, [focus(**change)]))
    with pytest.raises(InputError, match="cannot read"):
        read_bill(tmp_path / "absent.csv")


def test_the_unused_part_of_a_plan_shared_with_other_machines_counts_by_the_gpus_share(tmp_path: Path) -> None:
    arn = {"savings_plan_savings_plan_a_r_n": "arn:sp/1"}
    rows = [
        cur("SavingsPlanCoveredUsage", savings_plan_savings_plan_effective_cost=20.0, **arn),
        cur("SavingsPlanCoveredUsage", "BoxUsage:m7i.large", savings_plan_savings_plan_effective_cost=60.0, **arn),
        cur("SavingsPlanRecurringFee", usage="ComputeSP:1yrNoUpfront", cost=100.0, hours=24,
            savings_plan_total_commitment_to_date=100.0, savings_plan_used_commitment=80.0, **arn),
    ]  # fmt: skip
    bill = read_bill(write(tmp_path, rows))
    assert commitments(bill).unused == pytest.approx(5.0)  # a quarter of 20
    assert any("25.0% of commitment arn:sp/1" in note for note in bill.notes)


def test_a_capacity_block_that_outlasts_the_bill_counts_its_days_within(tmp_path: Path) -> None:
    fee = cur("Fee", usage="CapacityBlock:p5.48xlarge", hours=0, cost=8000.0)
    fee |= {"line_item_usage_end_date": "2026-10-09T00:00:00Z"}  # eight days, of which the bill has two
    days = [
        cur("Usage", usage="CapacityBlock:p5.48xlarge", hours=24, cost=0.0)
        | {"line_item_usage_start_date": f"2026-10-0{d}T00:00:00Z"}
        | {"line_item_usage_end_date": f"2026-10-0{d + 1}T00:00:00Z"}
        for d in (1, 2)
    ]
    bill = read_bill(write(tmp_path, [*days, fee]))
    assert total(bill)["billed"] == pytest.approx(8000.0)
    assert total(bill)["effective"] == pytest.approx(2000.0)
    assert any("75% of the Capacity Block fee" in note for note in bill.notes)


@pytest.mark.parametrize(
    ("row", "more", "says"),
    [
        (cur, {"line_item_usage_start_date": ""}, "row 3 has no start"),
        (focus, {"ChargePeriodStart": "", "ChargeDescription": "capacity block"}, "row 3 has no start"),
        (focus, {"BilledCost": "inf"}, "BilledCost is 'inf' in row 3, not a number"),
        (cur, {"line_item_usage_amount": "1e999"}, "line_item_usage_amount is '1e999' in row 3, not a number"),
    ],
)
def test_money_of_no_day_or_without_end_is_refused_by_its_row(tmp_path: Path, row: Any, more: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_bill(write(tmp_path, [row(), row(**more)]))
    elsewhere = {"x_UsageType": "BoxUsage:m5.large", "ChargePeriodStart": ""}
    assert len(read_bill(write(tmp_path, [focus(), focus(**elsewhere)])).charges) == 1  # no machine with GPUs


def test_a_commitment_that_covered_no_hour_has_not_lapsed(tmp_path: Path) -> None:
    reserved = focus(PricingCategory="Committed", CommitmentDiscountType="Reserved", ConsumedQuantity=0)
    later = focus(ChargePeriodStart=NEXT, ChargePeriodEnd=NEXT)
    assert lapsed_commitments(read_bill(write(tmp_path, [reserved, later]))) == []
