"""A report from its sources: the bill, the plan's run, and the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from app.report.metrics import gather
from app.report.schema import Report
from app.report.sources import COST_EXPLORER, Sources
from catalogs.errors import InputError
from planner.spend.bill import Bill
from planner.spend.cost_report import Evidence, figures, month_of, within


def build(sources: Sources, moment: datetime) -> Report:
    """Build the report of the month that holds ``moment`` (or of ``sources.month``).

    Raises:
        InputError: a source that cannot be read, or nothing to report.
    """
    start, end = _month(sources.month) if sources.month else month_of(moment)
    plan, run_id = _plan(sources.run)
    bill = _bill(sources, start, min(end, moment))
    alternative = _plan(sources.alternative)[0]
    gathered = gather(sources, (start, end), moment, within(bill, start, end), plan, alternative)
    given = {"requests": sources.served_requests, "output_tokens": sources.served_output_tokens}
    served = {**gathered.served, **{k: v for k, v in given.items() if v}}
    evidence = Evidence(
        bill=replace(bill, notes=(*bill.notes, *gathered.notes)),
        plan=plan,
        budget_usd_per_month=sources.budget_usd_per_month,
        served=served or None,
        busy=gathered.busy if sources.busy is None else _busy(sources.busy),
        drift=gathered.drift,
        tag=sources.tag,
    )
    found = figures(evidence, start, end)
    return Report(
        title=f"{sources.title}, {start:%B %Y}",
        built_at=moment.astimezone(UTC).isoformat(timespec="seconds"),
        recommendation=_recommendation(found),
        confidence=_confidence(evidence, found),
        sources={
            "bill": sources.bill.name,
            "plan run": run_id or "none",
            "metrics": "given" if any(given.values()) else gathered.label,
        },
        **found,
    )


def _bill(sources: Sources, start: datetime, end: datetime) -> Bill:
    """The bill from its file, or from Cost Explorer for whole days up to ``end``."""
    if str(sources.bill) == COST_EXPLORER:
        from planner.spend.bill_cost_explorer import read_cost_explorer

        until = max(end, start + timedelta(days=1)).date()
        return read_cost_explorer(start.date(), until, tag_key=sources.tag, currency=sources.currency)
    from planner.spend.bill_readers import read_bill

    return read_bill(sources.bill, currency=sources.currency)


def message_forms(report: Report) -> dict[str, str]:
    """The report in every form."""
    from app.report.render import RENDERERS

    return {form: render(report) for form, render in RENDERERS.items()}


def _month(text: str) -> tuple[datetime, datetime]:
    try:
        return month_of(datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC))
    except ValueError as error:
        raise InputError(f"{text!r} is not a month", where="--month", remedy="YYYY-MM, such as 2026-11") from error


def _plan(run: str | None) -> tuple[Mapping[str, Any] | None, str | None]:
    if run is None:
        return None, None
    from app.runs import list_runs, load_run

    if run == "last":
        plans = list_runs("recommend")
        if not plans:
            raise InputError("there is no plan yet", where="--run", remedy="`plan recommend` makes one")
        return plans[0].answer, plans[0].run_id
    found = load_run(run)
    if "plan" not in found.answer:
        raise InputError(f"run {found.run_id} is no plan", where="--run", remedy="`plan runs list --kind recommend`")
    return found.answer, found.run_id


def _busy(path: Path | None) -> Any:
    if path is None:
        return None
    import pandas as pd

    try:
        frame = pd.read_csv(path)
        frame["busy_share"] = frame["busy_share"].astype(float)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"cannot read the GPU use: {error}", where=str(path), remedy="columns resource_id,busy_share (0 to 1)"
        ) from error
    if "resource_id" not in frame:
        raise InputError("no column resource_id", where=str(path), remedy="columns resource_id,busy_share (0 to 1)")
    return frame


def _recommendation(found: Mapping[str, Any]) -> str:
    """The dearest finding's action, or that there is none."""
    costly = [f for f in found["findings"] if f["usd"] and f["usd"] > 0]
    if not costly:
        compared = found["spend"]["planned_usd"] is not None
        return "Nothing stands out: " + ("keep the plan." if compared else "--run holds the bill against a plan.")
    worst = costly[0]
    kind = worst["kind"].replace("_", " ").capitalize()
    return f"{kind}: {worst['text']} (${worst['usd']:,.2f}). Do: {worst['action']}."


def _confidence(evidence: Evidence, found: Mapping[str, Any]) -> str:
    parts = ["Money is from the bill, exact to the cent"]
    if evidence.plan is None:
        parts.append("no plan was given to compare with")
    else:
        parts.append(f"the plan {'is' if evidence.plan.get('verified') else 'was not'} verified by simulation")
    parts.append(
        "service figures are measured" if evidence.served else "cost per unit served is unknown without metrics"
    )
    share = found["savings"]["list_known_share"]
    if share is not None and share < 1:
        parts.append(f"list prices are known for {share:.0%} of charges")
    return "; ".join(parts) + "."
