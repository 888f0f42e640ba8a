"""The account's own costs from AWS Cost Explorer: rows by day, usage type and charge type.

AWS charges $0.01 for each request; one question over a month takes one to a few (a page each).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from catalogs.aws_prices import items
from catalogs.aws_session import Access, MalformedAnswerError, trouble
from catalogs.errors import InputError, MissingError

EXPLORER_REGION = "us-east-1"
ACTION = "ce:GetCostAndUsage"
METRICS = ("UnblendedCost", "AmortizedCost", "UsageQuantity")
SERVICES = ("Amazon Elastic Compute Cloud - Compute", "Savings Plans for AWS Compute usage")
NO_DATA = "DataUnavailableException"
# what a charge type may be asked as, one question each, when a tag takes the second place in the grouping
RECORD_TYPES = (
    "Usage", "DiscountedUsage", "SavingsPlanCoveredUsage", "SavingsPlanNegation", "SavingsPlanRecurringFee",
    "SavingsPlanUpfrontFee", "RIFee", "Upfront", "Recurring", "Fee", "Credit", "Refund", "Tax",
)  # fmt: skip


@dataclass(frozen=True)
class CostRow:
    """One day's cost of one usage type and charge type.

    Attributes:
        tag: the value of the tag asked for; ``""`` where the resource has none, ``None`` when no tag was asked for.
        billed, amortised: money in ``currency``.
        quantity: in ``unit``; machine-hours where the unit is ``Hrs``.
    """

    start: str
    end: str
    usage_type: str
    record_type: str
    tag: str | None
    billed: float
    amortised: float
    quantity: float
    unit: str
    currency: str


def cost_rows(access: Access, start: date, end: date, tag_key: str | None = None) -> list[CostRow]:
    """Costs by day from ``start`` up to, not including, ``end`` (``ce:GetCostAndUsage``).

    Args:
        tag_key: also by this cost allocation tag; Cost Explorer groups by two things at most, so each charge type
            is then a question of its own.

    Raises:
        InputError: the period is empty.
        MissingError: no credentials, denied, throttled, offline, malformed; the message names the permission.
    """
    if end <= start:
        raise InputError(f"the period from {start} to {end} is empty", where="--from, --to")
    period = {"Start": start.isoformat(), "End": end.isoformat()}
    service = {"Dimensions": {"Key": "SERVICE", "Values": list(SERVICES)}}
    if tag_key is None:
        groups = [{"Type": "DIMENSION", "Key": "USAGE_TYPE"}, {"Type": "DIMENSION", "Key": "RECORD_TYPE"}]
        return list(_rows(access, period, service, groups, None))
    groups = [{"Type": "DIMENSION", "Key": "USAGE_TYPE"}, {"Type": "TAG", "Key": tag_key}]
    rows: list[CostRow] = []
    for record_type in RECORD_TYPES:
        only = {"Dimensions": {"Key": "RECORD_TYPE", "Values": [record_type]}}
        rows += _rows(access, period, {"And": [service, only]}, groups, record_type)
    return rows


def _rows(
    access: Access,
    period: Mapping[str, str],
    filter_: Mapping[str, Any],
    groups: Sequence[Mapping[str, str]],
    record_type: str | None,
) -> Iterator[CostRow]:
    asked = {"TimePeriod": period, "Granularity": "DAILY", "Metrics": list(METRICS), "GroupBy": list(groups),
             "Filter": filter_}  # fmt: skip
    for page in _pages(access, asked):
        for day in _checked(page, "ResultsByTime"):
            span = day.get("TimePeriod") or {}
            for group in day.get("Groups") or []:
                yield _row(span, group, record_type)


def _row(span: Mapping[str, str], group: Mapping[str, Any], record_type: str | None) -> CostRow:
    try:
        first, second = group["Keys"]
        billed, amortised, used = (group["Metrics"][m] for m in METRICS)
        return CostRow(
            start=span["Start"],
            end=span["End"],
            usage_type=first,
            record_type=record_type or second,
            tag=None if record_type is None else second.split("$", 1)[-1],
            billed=float(billed["Amount"]),
            amortised=float(amortised["Amount"]),
            quantity=float(used["Amount"]),
            unit=str(used.get("Unit", "")),
            currency=str(billed.get("Unit", "USD")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MissingError(
            f"Cost Explorer's answer cannot be read ({type(error).__name__}: {error})", where=ACTION
        ) from None


def _pages(access: Access, asked: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Each page of an answer; none where the account has no data. Cost Explorer has no paginators in boto3."""
    client = access.client("ce", EXPLORER_REGION)
    token: str | None = None
    while True:
        try:
            page = client.get_cost_and_usage(**asked, **({"NextPageToken": token} if token else {}))
        except Exception as error:
            answer = getattr(error, "response", None) or {}
            if answer.get("Error", {}).get("Code") == NO_DATA:
                return
            raise trouble(error, ACTION) from None
        yield page
        last, token = token, page.get("NextPageToken")
        if not token or token == last:
            return


def _checked(page: Mapping[str, Any], key: str) -> list[Any]:
    try:
        return items(page, key)
    except MalformedAnswerError as error:
        raise MissingError(str(error), where=ACTION, remedy="try again later") from None
