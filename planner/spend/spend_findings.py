"""What a bill tells against a plan: each finding with its dollars, computed from the charges alone or with metrics.

Every finding is a pure function of charges; dollars are amortised (effective) cost unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from planner.spend.bill import Bill, commitments, tag_of

PRICE_STEP = 0.005  # an hour's price that moves by more than this share has changed
IDLE_SHARE = 0.05  # a GPU busy for less of the time does no work
COMMITTED = ("savings_plan", "reserved")


@dataclass(frozen=True)
class Finding:
    """One thing to know, with its dollars over the report's period and what to do.

    Attributes:
        kind: idle, lapsed_commitment, price_change, load_growth, unused_commitment, untagged, over_budget, drift,
            cheaper_plan.
        subject: the machine, type or commitment that it is about.
        usd: what it cost more (negative: less) than it would have; None where that cannot be told.
        text: what happened.
        action: what to do.
    """

    kind: str
    subject: str
    usd: float | None
    text: str
    action: str


def over_budget(forecast_usd: float, budget_usd: float | None) -> list[Finding]:
    """The month ends above its budget; dollars: the forecast to month end less the budget."""
    if budget_usd is None or forecast_usd <= budget_usd:
        return []
    text = f"${forecast_usd:,.2f} by month end where the budget is ${budget_usd:,.2f}"
    action = "`plan advise` names the steps that save most from the fleet that runs"
    return [Finding("over_budget", "budget", forecast_usd - budget_usd, text, action)]


def lapsed_commitments(bill: Bill) -> list[Finding]:
    """Types whose commitment ended while their machines ran on at the on-demand price.

    Dollars: on-demand hours after the last covered day, times the difference of the two hourly prices.
    """
    found = []
    usage = bill.usage.assign(day=bill.usage["start"].dt.floor("D"))
    last_day = usage["day"].max()
    for kind, rows in usage.groupby("instance_type"):
        covered = rows[rows["purchase"].isin(COMMITTED) & (rows["hours"] > 0)]
        if covered.empty or covered["day"].max() >= last_day:
            continue
        ended = covered["day"].max()
        after = rows[(rows["purchase"] == "on_demand") & (rows["day"] > ended)]
        hours = float(after["hours"].sum())
        if hours <= 0:
            continue
        committed_price = float(covered["effective"].sum() / covered["hours"].sum())
        extra = float(after["effective"].sum()) - committed_price * hours
        found.append(
            Finding(
                "lapsed_commitment",
                str(kind),
                extra,
                f"the commitment for {kind} covered nothing after {ended:%Y-%m-%d}; {hours:,.0f} hours ran on demand "
                f"at ${after['effective'].sum() / hours:,.4f} in place of ${committed_price:,.4f}",
                "renew it, if the load will stay: `plan recommend` with purchase reserved_1yr, reserved_3yr",
            )
        )
    return found


def price_changes(bill: Bill) -> list[Finding]:
    """On-demand and spot prices that moved within the period; dollars against the price before."""
    found = []
    usage = bill.usage[bill.usage["purchase"].isin(["on_demand", "spot"]) & (bill.usage["hours"] > 0)]
    usage = usage.assign(day=usage["start"].dt.floor("D"))
    for names, rows in usage.groupby(["instance_type", "region", "purchase"]):
        kind, region, purchase = (str(name) for name in names)
        days = rows.groupby("day")[["effective", "hours"]].sum()
        price = days["effective"] / days["hours"]
        first = float(price.iloc[0])
        moved = price[(price / first - 1).abs() > PRICE_STEP]
        if first <= 0 or moved.empty:
            continue
        extra = float((days["effective"] - first * days["hours"])[moved.index].sum())
        if purchase == "spot" and len(moved) > len(price) / 2 and price.std() > PRICE_STEP * first:
            text = (
                f"the spot price of {kind} in {region} ranged from ${price.min():,.4f} to ${price.max():,.4f} an hour"
            )
        else:
            text = (f"the {purchase.replace('_', '-')} price of {kind} in {region} went from ${first:,.4f} to "
                    f"${price.iloc[-1]:,.4f} an hour on {moved.index[0]:%Y-%m-%d}")  # fmt: skip
        found.append(
            Finding("price_change", f"{kind} {purchase}", extra, text, "`plan prices refresh`, then recommend")
        )
    return found


def load_growth(bill: Bill, planned_hours: Mapping[str, float]) -> list[Finding]:
    """Machine-hours beyond the plan (or short of it), by instance type, at the period's own price.

    Args:
        bill: the charges.
        planned_hours: machine-hours that the plan buys over the same period, by instance type.
    """
    found = []
    by_type = bill.usage.groupby("instance_type")[["effective", "hours"]].sum()
    for kind in sorted({*by_type.index, *planned_hours}):
        hours = float(by_type["hours"].get(kind, 0.0))
        planned = planned_hours.get(kind, 0.0)
        if abs(hours - planned) <= 0.02 * max(planned, 1.0):
            continue
        price = float(by_type["effective"].get(kind, 0.0)) / hours if hours else None
        usd = None if price is None else (hours - planned) * price
        word = "more" if hours > planned else "less"
        found.append(
            Finding(
                "load_growth",
                kind,
                usd,
                f"{kind} ran {hours:,.0f} hours where the plan has {planned:,.0f}: "
                f"{abs(hours / planned - 1):.0%} {word}"
                if planned
                else f"{kind} ran {hours:,.0f} hours and is not in the plan",
                "if it lasts, plan again on a recent trace" if hours > planned else "let the autoscaler go lower",
            )
        )
    return found


def idle_machines(bill: Bill, busy: pd.DataFrame) -> list[Finding]:
    """Machines whose GPUs did no work; dollars are what they cost.

    Args:
        bill: the charges, with resource ids.
        busy: a row a machine: resource_id, busy_share (mean GPU busy share over the period, 0 to 1).
    """
    found = []
    by_machine = bill.usage.groupby("resource_id").agg({"effective": "sum", "hours": "sum", "instance_type": "first"})
    cost: dict[str, dict[str, Any]] = {str(k): dict(v) for k, v in by_machine.iterrows()}
    for resource, share in zip(busy["resource_id"].astype(str), busy["busy_share"].astype(float), strict=True):
        if share >= IDLE_SHARE or resource not in cost:
            continue
        spent = cost[resource]
        found.append(
            Finding(
                "idle",
                resource,
                float(spent["effective"]),
                f"{resource} ({spent['instance_type']}) ran {spent['hours']:,.0f} hours with its GPUs busy "
                f"{share:.1%} of the time",
                "stop it, or find out what keeps it",
            )
        )
    return found


def unused_commitments(bill: Bill) -> list[Finding]:
    """What was committed and not used."""
    found = commitments(bill)
    if found.unused <= 0.005:
        return []
    share = "" if found.utilisation is None else f"; utilisation was {found.utilisation:.1%}"
    text = f"commitments worth ${found.unused:,.2f} went unused{share}"
    return [Finding("unused_commitment", "commitments", found.unused, text, "move load onto them, or sell the rest")]


def tagged(bill: Bill, key: str) -> Bill:
    """The machines that a plan's tag claims; all of them where the bill shows the tag on none."""
    usage = bill.usage
    claimed = usage["tags"].map(lambda tags: tag_of(tags, key) is not None)
    return replace(bill, charges=usage[claimed]) if claimed.any() else bill


def untagged(bill: Bill, key: str) -> list[Finding]:
    """Spend that no plan's tag claims, where some machines have the tag."""
    apart = bill.usage.drop(tagged(bill, key).usage.index)
    usd = float(apart["effective"].sum())
    if usd <= 0.005:
        return []
    kinds = ", ".join(sorted(apart["instance_type"].unique())[:4])
    return [Finding("untagged", kinds, usd, f"${usd:,.2f} ran without the tag {key} ({kinds})", f"tag it with {key}")]


def by_dollars(findings: Sequence[Finding]) -> list[Finding]:
    """The dearest first; those without dollars last."""
    return sorted(findings, key=lambda f: -abs(f.usd) if f.usd is not None else 1.0)
