"""The figures of a cost report: spend against plan and budget, unit costs, savings, forecast, findings."""

from __future__ import annotations

import calendar
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from catalogs.errors import InputError
from planner.spend import spend_findings as find
from planner.spend.bill import Bill, commitments, spend, total
from planner.spend.spend_findings import Finding

WASTE = ("idle", "lapsed_commitment", "unused_commitment")
FORECAST_DAYS = 7  # the forecast goes on at the mean of so many last days


@dataclass(frozen=True)
class Evidence:
    """All that a report rests on; what is absent is None and said to be.

    Attributes:
        bill: the charges.
        plan: the answer of ``plan recommend``.
        budget_usd_per_month: of the GPU machines.
        served: what the metrics counted over the period: requests, output_tokens, input_tokens.
        busy: mean GPU busy share by machine: resource_id, busy_share.
        drift: findings of what really ran against the plan.
        tag: the tag key that links machines to plans.
    """

    bill: Bill
    plan: Mapping[str, Any] | None = None
    budget_usd_per_month: float | None = None
    served: Mapping[str, float] | None = None
    busy: pd.DataFrame | None = None
    drift: tuple[Finding, ...] = ()
    tag: str = "plan-model"


def month_of(moment: datetime) -> tuple[datetime, datetime]:
    """The calendar month (UTC) that holds a moment: its start and its end."""
    start = moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return start, start + timedelta(days=calendar.monthrange(start.year, start.month)[1])


def within(bill: Bill, start: datetime, end: datetime) -> Bill:
    """The charges that begin in [start, end)."""
    at = bill.charges["start"]
    return replace(bill, charges=bill.charges[(at >= start) & (at < end)])


def figures(evidence: Evidence, start: datetime, end: datetime) -> dict[str, Any]:
    """The report's numbers, JSON-ready; dollars are amortised unless the name says billed.

    Raises:
        InputError: no charge in the period, or money that is not dollars.
    """
    bill = within(evidence.bill, start, end)
    if evidence.bill.currency != "USD":
        raise InputError(
            f"the bill is in {evidence.bill.currency}", why="plans and prices are in US dollars",
            remedy="export the bill in USD",
        )  # fmt: skip
    if bill.usage.empty:
        raise InputError(
            f"no GPU charges from {start:%Y-%m-%d} to {end:%Y-%m-%d}", where="--bill",
            why="there is nothing to report", remedy="another --month, or a bill that covers it",
        )  # fmt: skip
    daily = spend(bill, ("day", "purchase"))
    days = daily.groupby("day")["effective"].sum()
    last = days.index.max().to_pydatetime() + timedelta(days=1)
    elapsed_h = (last - start).total_seconds() / 3600.0
    totals = total(bill)
    planned = _planned(evidence.plan, elapsed_h)
    forecast = _forecast(days, last, end)
    over = find.over_budget(forecast["usd"], evidence.budget_usd_per_month)
    findings = find.by_dollars([*_findings(evidence, bill, elapsed_h), *over])
    return {
        "period": {"start": start.isoformat(), "end": end.isoformat(), "data_until": last.isoformat()},
        "spend": {
            "effective_usd": totals["effective"],
            "billed_usd": totals["billed"],
            "credits_usd": totals["credit"],
            "refunds_usd": totals["refund"],
            "tax_usd": totals["tax"],
            "planned_usd": planned,
            "budget_usd": evidence.budget_usd_per_month,
            "forecast": forecast,
        },
        "unit": _unit_costs(evidence, totals["effective"]),
        "savings": _savings(bill, findings),
        "commitments": vars(commitments(bill)),
        "by_type": spend(bill).replace({np.nan: None}).to_dict("records"),
        "daily": [
            {"day": f"{day:%Y-%m-%d}", "purchase": str(purchase), "usd": float(usd)}
            for day, purchase, usd in zip(daily["day"], daily["purchase"], daily["effective"], strict=True)
        ],
        "findings": [vars(f) for f in findings],
        "notes": list(bill.notes),
    }


def _planned(plan: Mapping[str, Any] | None, hours: float) -> float | None:
    return None if plan is None else float(plan["plan"]["usd_per_hour"]) * hours


def _planned_hours(plan: Mapping[str, Any], hours: float) -> dict[str, float]:
    """Machine-hours of a plan over a period, by instance type: its mean count times the hours."""
    found: dict[str, float] = {}
    for line in plan["plan"]["lines"]:
        mean = sum(line["instances"]) / len(line["instances"])
        found[line["instance_type"]] = found.get(line["instance_type"], 0.0) + mean * hours
    return found


def _findings(evidence: Evidence, bill: Bill, hours: float) -> list[Finding]:
    found = [*find.lapsed_commitments(bill), *find.price_changes(bill), *find.unused_commitments(bill)]
    if evidence.plan is not None:
        found += find.load_growth(find.tagged(bill, evidence.tag), _planned_hours(evidence.plan, hours))
        found += find.untagged(bill, evidence.tag)
    if evidence.busy is not None:
        found += find.idle_machines(bill, evidence.busy)
    return [*found, *evidence.drift]


def _forecast(days: pd.Series[float], last: datetime, end: datetime) -> dict[str, Any]:
    """Spend to the period's end: what is spent, and the rest at the last days' mean.

    The range is two standard errors of a sum of independent days; None with fewer than three days.
    """
    remaining = max(0.0, (end - last).total_seconds() / 86400.0)
    recent = days.to_numpy()[-FORECAST_DAYS:]
    mean = float(recent.mean())
    usd = float(days.sum()) + mean * remaining
    if len(recent) < 3:
        return {"usd": usd, "low_usd": None, "high_usd": None, "method": f"mean of {len(recent)} days"}
    spread = float(recent.std(ddof=1)) * (remaining + remaining**2 / len(recent)) ** 0.5
    method = f"spent so far + {remaining:.0f} days at the mean of the last {len(recent)}; range: 2 standard errors"
    return {"usd": usd, "low_usd": usd - 2 * spread, "high_usd": usd + 2 * spread, "method": method}


def _unit_costs(evidence: Evidence, usd: float) -> dict[str, Any]:
    served = evidence.served or {}
    tokens, requests = served.get("output_tokens"), served.get("requests")
    plan = (evidence.plan or {}).get("plan", {})
    return {
        "usd_per_million_output_tokens": usd / tokens * 1e6 if tokens else None,
        "usd_per_thousand_requests": usd / requests * 1e3 if requests else None,
        "planned_usd_per_million_output_tokens": plan.get("usd_per_million_output_tokens"),
        "source": "metrics" if served else "no metrics were given: only the plan's figure is known",
    }


def _savings(bill: Bill, findings: list[Finding]) -> dict[str, Any]:
    """Taken: list price less effective cost of what ran below list. Missed: the findings that cost money."""
    usage = bill.usage
    known = usage[usage["list"].notna()]
    taken = known.assign(saved=known["list"] - known["effective"]).groupby("purchase")["saved"].sum()
    wasted = [f.usd for f in findings if f.kind in WASTE and f.usd is not None and f.usd > 0]
    return {
        "taken_usd": {str(k): float(v) for k, v in taken.items() if abs(v) > 0.005},
        "missed_usd": float(sum(wasted)),
        "list_known_share": float(len(known) / len(usage)) if len(usage) else None,
    }
