"""What a report takes from metrics and from today's prices: what was served, how busy GPUs were, what drifted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from catalogs.errors import MissingError
from planner.spend.bill import Bill
from planner.spend.spend_findings import Finding

if TYPE_CHECKING:
    import pandas as pd

    from app.report.sources import Sources


@dataclass(frozen=True)
class Gathered:
    """What was found; empty where no Prometheus was named or a plan is missing."""

    served: Mapping[str, float] = field(default_factory=dict)
    busy: pd.DataFrame | None = None
    drift: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    label: str = "none"


def gather(
    sources: Sources,
    period: tuple[datetime, datetime],
    moment: datetime,
    bill: Bill,
    plan: Mapping[str, Any] | None,
    alternative: Mapping[str, Any] | None,
) -> Gathered:
    """Metrics up to ``moment``, and findings against the plan, the bill and today's prices.

    A Prometheus that fails leaves the report without metrics, and is said; the money does not depend on it.

    Raises:
        InputError: an address or selector that is no such thing.
    """
    from catalogs.freshness import is_stale
    from planner.spend.drift import cheaper_plan, drift, repriced, spot_share

    found: list[Finding] = []
    notes: list[str] = []
    if plan is not None:
        region = str(plan.get("region") or "")
        found += [*spot_share(bill, plan, region), *repriced(plan, region)]
        if alternative is not None:
            found += cheaper_plan(plan, alternative)
        as_of = str(plan.get("prices_as_of") or "")
        if as_of and is_stale(as_of, moment.date()):
            notes.append(f"the plan's oldest price is of {as_of}: `plan prices refresh`, then plan again")
    if sources.prometheus is None:
        return Gathered(drift=tuple(found), notes=tuple(notes))
    try:
        observed = _observe(sources, period, moment)
    except MissingError as error:
        return Gathered(
            drift=tuple(found), notes=(*notes, f"no metrics: {error.what} ({error.where})"), label="missing"
        )
    if plan is not None:
        found += drift(observed, plan, sources.model)
    return Gathered(
        served={k: v for k, v in observed.counts.items() if k in ("requests", "input_tokens", "output_tokens")},
        busy=observed.busy if len(observed.busy) else None,
        drift=tuple(found),
        notes=(*notes, *observed.notes),
        label=f"Prometheus, {observed.framework}",
    )


def _observe(sources: Sources, period: tuple[datetime, datetime], moment: datetime) -> Any:
    from planner.spend.observed import observe
    from planner.spend.prometheus import Prometheus

    start, end = period
    until = min(end, moment)
    if until <= start:
        raise MissingError("the period has not begun", where=sources.prometheus or "")
    return observe(Prometheus(sources.prometheus or ""), start, until, selector=sources.selector,
                   framework=sources.framework, step_s=300.0)  # fmt: skip
