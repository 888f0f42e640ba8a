"""A cloud bill as charges: what GPU machines cost, as billed and amortised, and how well commitments were used.

Amortised (effective) cost spreads upfront fees over the hours they pay for: AWS's own rules for Savings Plans and
Reserved Instances (Cost and Usage Report user guide, "Understanding your amortized reservation/Savings Plans data"),
FOCUS's ``EffectiveCost``, and for Capacity Blocks, whose whole fee is booked on the first day, the block's hours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

# one row a charge; money in the bill's currency
COLUMNS = (
    "start", "end", "instance_type", "region", "purchase", "billed", "effective", "list", "hours", "resource_id",
    "commitment_id", "tags",
)  # fmt: skip
USAGE = ("on_demand", "spot", "savings_plan", "reserved", "capacity_block")
OTHER = ("unused_commitment", "upfront_fee", "credit", "refund", "tax")


@dataclass(frozen=True)
class Bill:
    """GPU charges of a period.

    Attributes:
        charges: a row a charge, ``COLUMNS``; ``start`` and ``end`` are UTC; ``purchase`` is one of ``USAGE`` (hours of
            machines) or ``OTHER``; ``hours`` are machine-hours, NaN where a charge has none.
        currency: of all money.
        num_rows: rows read, with those that are not GPU machines.
        notes: what was left out, assumed or odd.
    """

    charges: pd.DataFrame
    currency: str = "USD"
    num_rows: int = 0
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def usage(self) -> pd.DataFrame:
        """The charges for hours of machines."""
        return self.charges[self.charges["purchase"].isin(USAGE)]


def amortise_capacity_blocks(bill: Bill) -> Bill:
    """Spread each Capacity Block's fee over the machine-hours that ran in it.

    A fee is a charge of purchase ``capacity_block`` with money and no hours; the block's hours are those of the same
    instance type and region from then on until the next fee. A fee without hours stays on its day, and is said. Of a
    fee whose period ends after the bill does, only the part within the bill counts.
    """
    charges = bill.charges.reset_index(drop=True).copy()
    block = charges["purchase"] == "capacity_block"
    fees = charges[block & charges["hours"].isna() & (charges["billed"] != 0)].sort_values("start")
    notes, last = list(bill.notes), charges.loc[charges["hours"] > 0, "end"].max()
    for (kind, region), group in fees.groupby(["instance_type", "region"]):
        starts = [*group["start"], pd.Timestamp.max.tz_localize("UTC")]
        for fee, until in zip(group.index, starts[1:], strict=True):
            at = charges.loc[fee, "start"]
            share = _share_within(at, charges.loc[fee, "end"], last)
            due = float(charges.loc[fee, "billed"]) * share
            if share < 1:
                notes.append(
                    f"{1 - share:.0%} of the Capacity Block fee of {at:%Y-%m-%d} for {kind} is for days after this bill"
                )
            same = block & (charges["instance_type"] == kind) & (charges["region"] == region)
            inside = same & charges["hours"].gt(0) & (charges["start"] >= at.floor("D")) & (charges["start"] < until)
            hours = charges.loc[inside, "hours"].sum()
            if hours > 0:
                charges.loc[inside, "effective"] += due * charges.loc[inside, "hours"] / hours
                charges.loc[fee, "effective"] = 0.0
            else:
                charges.loc[fee, "effective"] = due
                notes.append(f"the Capacity Block fee of {at:%Y-%m-%d} for {kind} has no hours in this bill")
    return replace(bill, charges=charges, notes=tuple(notes))


def _share_within(start: pd.Timestamp, end: pd.Timestamp, bill_end: pd.Timestamp) -> float:
    """The share of a block that lies in the bill; all of it where the fee's own period is a day or less."""
    length, until = (end - start).total_seconds(), (bill_end - start).total_seconds()  # NaN where no machine ran
    return until / length if length > 86_400 and 0 < until < length else 1.0


def spend(bill: Bill, by: Sequence[str] = ("instance_type", "purchase")) -> pd.DataFrame:
    """Money and hours by the given columns (``day`` is one too), dearest first.

    Returns:
        Columns ``by``, then billed, effective, list, hours, effective_per_hour.
    """
    charges = bill.charges.assign(day=bill.charges["start"].dt.floor("D"))
    found = charges.groupby(list(by), dropna=False)[["billed", "effective", "list", "hours"]].sum().reset_index()
    found["effective_per_hour"] = found["effective"] / found["hours"].where(found["hours"] > 0)
    order = ["day", "effective"] if "day" in by else ["effective"]
    return found.sort_values(order, ascending=[True, False][-len(order) :]).reset_index(drop=True)


@dataclass(frozen=True)
class Commitments:
    """How commitments were used.

    Attributes:
        used: effective cost of usage that commitments covered.
        unused: amortised cost of what was committed and not used.
        utilisation: used / (used + unused); None without commitments.
        coverage: covered machine-hours / all machine-hours that could be covered (not spot, not Capacity Blocks).
        saved: list price minus effective cost of covered usage, less what went unused; None where the list is unknown.
    """

    used: float
    unused: float
    utilisation: float | None
    coverage: float | None
    saved: float | None


def commitments(bill: Bill) -> Commitments:
    """How Savings Plans and reservations were used over the bill."""
    charges = bill.charges
    covered = charges[charges["purchase"].isin(["savings_plan", "reserved"])]
    unused = float(charges.loc[charges["purchase"] == "unused_commitment", "effective"].sum())
    used = float(covered["effective"].sum())
    hours = float(covered["hours"].sum())
    eligible = hours + float(charges.loc[charges["purchase"] == "on_demand", "hours"].sum())
    known = bool(len(covered)) and bool(covered["list"].notna().all())
    return Commitments(
        used=used,
        unused=unused,
        utilisation=used / (used + unused) if used + unused > 0 else None,
        coverage=hours / eligible if eligible > 0 else None,
        saved=float(covered["list"].sum()) - used - unused if known else None,
    )


def total(bill: Bill) -> dict[str, float]:
    """Billed, effective, and credits, refunds and tax apart."""
    charges = bill.charges
    apart = {
        kind: float(charges.loc[charges["purchase"] == kind, "billed"].sum()) for kind in ("credit", "refund", "tax")
    }
    return {"billed": float(charges["billed"].sum()), "effective": float(charges["effective"].sum()), **apart}


def tag_of(tags: Mapping[str, Any] | None, key: str) -> str | None:
    """A tag's value, whatever prefix the provider put before its key (``user:``, ``user_``)."""
    wanted = key.replace("-", "_")
    for name, value in (tags or {}).items():
        bare = str(name).removeprefix("resourceTags/").removeprefix("user:").removeprefix("user_")
        if bare.replace("-", "_") == wanted:
            return str(value)
    return None
