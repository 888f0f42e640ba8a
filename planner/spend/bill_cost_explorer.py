"""The bill from AWS Cost Explorer in place of a file: the same charges, by day and without resource ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date

import numpy as np
import pandas as pd

from catalogs.aws_bill import CostRow, cost_rows
from catalogs.aws_session import Access
from catalogs.errors import InputError
from planner.spend.bill import COLUMNS, Bill, amortise_capacity_blocks
from planner.spend.bill_readers import gpu_families, gpu_machine

# the prefix of a usage type; none is us-east-1 (AWS "Understanding your usage reports", region codes)
REGIONS = {
    "USE1": "us-east-1", "USE2": "us-east-2", "USW1": "us-west-1", "USW2": "us-west-2", "CAN1": "ca-central-1",
    "EU": "eu-west-1", "EUW1": "eu-west-1", "EUW2": "eu-west-2", "EUW3": "eu-west-3", "EUC1": "eu-central-1",
    "EUN1": "eu-north-1", "EUS1": "eu-south-1", "APN1": "ap-northeast-1", "APN2": "ap-northeast-2",
    "APN3": "ap-northeast-3", "APS1": "ap-southeast-1", "APS2": "ap-southeast-2", "APS3": "ap-south-1",
    "APE1": "ap-east-1", "SAE1": "sa-east-1", "MES1": "me-south-1", "AFS1": "af-south-1", "UGW1": "us-gov-west-1",
}  # fmt: skip
PURCHASE_OF = {
    "usage": "on_demand", "discountedusage": "reserved", "savingsplancoveredusage": "savings_plan",
    "savingsplanrecurringfee": "unused_commitment", "rifee": "unused_commitment", "recurring": "unused_commitment",
    "recurringreservationfee": "unused_commitment", "savingsplanupfrontfee": "upfront_fee", "upfront": "upfront_fee",
    "upfrontreservationfee": "upfront_fee", "savingsplannegation": "upfront_fee", "fee": "upfront_fee",
    "otheroutofcyclecharges": "upfront_fee", "credit": "credit", "refund": "refund", "tax": "tax",
    "enterprisediscountprogramdiscount": "credit", "bundleddiscount": "credit",
}  # fmt: skip
FAMILY_PLAN = re.compile(r"EC2SP:([a-z0-9-]+)\.")


def read_cost_explorer(
    start: date, end: date, access: Access | None = None, tag_key: str | None = None, currency: str | None = None
) -> Bill:
    """The GPU charges from ``start`` up to, not including, ``end``.

    Args:
        tag_key: a cost allocation tag that tells a plan's machines.
        currency: take only charges in this currency.

    Raises:
        InputError: an empty period, or two currencies.
        MissingError: no credentials, denied (the permission is named), throttled, offline.
    """
    rows = cost_rows(access or Access(), start, end, tag_key)
    currencies = sorted({row.currency for row in rows})
    if len(currencies) > 1 and currency is None:
        raise InputError(
            f"the account is billed in {' and '.join(currencies)}", where="ce:GetCostAndUsage",
            why="their sums would mean nothing", remedy=f"--currency {currencies[0]} takes that one alone",
        )  # fmt: skip
    chosen = currency or next(iter(currencies), "USD")
    bill = charges_of([row for row in rows if row.currency == chosen], tag_key)
    return amortise_capacity_blocks(Bill(bill.charges, chosen, len(rows), bill.notes))


def charges_of(rows: Sequence[CostRow], tag_key: str | None = None) -> Bill:
    """Cost Explorer's rows as a bill's charges; rows that concern no GPU machine are left out, and said."""
    families = gpu_families()
    kept: list[dict[str, object]] = []
    shared_plans = 0.0
    for row in rows:
        machine = gpu_machine(row.usage_type, families)
        plan = FAMILY_PLAN.search(row.usage_type)
        if machine is None and not (plan and plan.group(1) in families):
            if "ComputeSP" in row.usage_type:
                shared_plans += row.amortised
            continue
        kept.append(_charge(row, machine, plan.group(1) if plan else "", tag_key))
    notes = ["Cost Explorer has no list prices: savings of commitments are not known"] if kept else []
    if not kept:
        notes.append("the bill holds no GPU machines")
    if abs(shared_plans) > 0.005:
        notes.append(f"{shared_plans:,.2f} of Compute Savings Plans went unused; they are shared with other machines")
    charges = pd.DataFrame(kept, columns=list(COLUMNS))
    for column in ("start", "end"):
        charges[column] = pd.to_datetime(charges[column], utc=True)
    for column in ("billed", "effective", "list", "hours"):
        charges[column] = charges[column].astype(float)
    return Bill(charges, notes=tuple(notes))


def _charge(row: CostRow, machine: str | None, plan_family: str, tag_key: str | None) -> dict[str, object]:
    kind = PURCHASE_OF.get(re.sub(r"[^a-z]", "", row.record_type.lower()), "upfront_fee")
    if "capacityblock" in row.usage_type.lower().replace("-", ""):
        kind = "capacity_block"
    elif kind == "on_demand" and "SpotUsage" in row.usage_type:
        kind = "spot"
    timed = kind in ("on_demand", "spot", "reserved", "savings_plan") or (kind == "capacity_block" and row.billed == 0)
    fee_only = kind == "upfront_fee"
    prefix = row.usage_type.split("-", 1)[0] if "-" in row.usage_type.split(":", 1)[0] else ""
    return {
        "start": row.start,
        "end": row.end,
        "instance_type": machine,
        "region": REGIONS.get(prefix, prefix if prefix else "us-east-1"),
        "purchase": kind,
        "billed": row.billed,
        "effective": 0.0 if fee_only else row.billed if kind == "capacity_block" else row.amortised,
        "list": np.nan,
        "hours": row.quantity if timed and row.unit.lower().startswith("h") else np.nan,
        "resource_id": "",
        "commitment_id": f"EC2 Instance Savings Plan {plan_family}" if plan_family else "",
        "tags": {tag_key: row.tag} if tag_key and row.tag else {},
    }
