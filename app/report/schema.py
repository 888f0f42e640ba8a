"""The form of `plan report build --format json`; `plan schema report` publishes it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """A part of the report; unknown keys are a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Period(Part):
    """What the report covers; instants in ISO form, UTC."""

    start: str
    end: str
    data_until: str = Field(description="the bill's last day ends here")


class Forecast(Part):
    """Spend to the period's end."""

    usd: float
    low_usd: float | None
    high_usd: float | None
    method: str


class Spend(Part):
    """Money of the period; amortised (effective) unless the name says billed."""

    effective_usd: float
    billed_usd: float
    credits_usd: float
    refunds_usd: float
    tax_usd: float
    planned_usd: float | None = Field(
        description="the plan's cost over the hours that have passed; None: no plan given"
    )
    budget_usd: float | None = Field(description="of the whole month")
    forecast: Forecast


class Unit(Part):
    """What one unit of service cost."""

    usd_per_million_output_tokens: float | None
    usd_per_thousand_requests: float | None
    planned_usd_per_million_output_tokens: float | None
    source: str


class Savings(Part):
    """Against the list price, and what was missed."""

    taken_usd: dict[str, float]
    missed_usd: float
    list_known_share: float | None


class Commitments(Part):
    """How Savings Plans and reservations were used."""

    used: float
    unused: float
    utilisation: float | None
    coverage: float | None
    saved: float | None


class TypeSpend(Part):
    """Spend of one instance type bought one way."""

    instance_type: str | None
    purchase: str
    billed: float
    effective: float
    list: float | None
    hours: float | None
    effective_per_hour: float | None


class DaySpend(Part):
    """Effective spend of one day and purchase form."""

    day: str
    purchase: str
    usd: float


class Finding(Part):
    """One thing to know, with its dollars."""

    kind: str
    subject: str
    usd: float | None
    text: str
    action: str


class Report(Part):
    """A cost report."""

    schema_version: int = 1
    title: str
    built_at: str
    period: Period
    spend: Spend
    unit: Unit
    savings: Savings
    commitments: Commitments
    by_type: list[TypeSpend]
    daily: list[DaySpend]
    findings: list[Finding]
    recommendation: str
    confidence: str
    notes: list[str]
    sources: dict[str, str]
