"""A report as HTML (self-contained, for mail and print), Markdown, JSON and CSV in FOCUS columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from datetime import datetime
from html import escape

from app.charts import MEANING_COLOURS, PURCHASE_COLOURS, Axis, Limit, Series, svg
from app.report.schema import Period, Report

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d1d1f; background: #fff;
  margin: 0 auto; max-width: 780px; padding: 20px; }
h1 { font-size: 24px; margin: 0 0 2px; } h2 { font-size: 17px; margin: 26px 0 6px; }
p.lead { margin: 0 0 14px; color: #555; }
.cards { display: flex; flex-wrap: wrap; gap: 10px; }
.card { flex: 1 1 160px; border: 1px solid #d6d6db; border-radius: 8px; padding: 10px 12px; }
.card b { display: block; font-size: 21px; } .card span { color: #555; font-size: 13px; }
.over b { color: #b23c00; }
.do { border-left: 4px solid #0072b2; background: #f1f6fa; padding: 10px 14px; margin: 16px 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 5px 8px; border-bottom: 1px solid #e3e3e8; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll { overflow-x: auto; } svg { max-width: 100%; height: auto; }
footer { margin-top: 26px; color: #555; font-size: 13px; }
@media (max-width: 560px) { body { padding: 12px; } table { font-size: 12px; } th, td { padding: 4px 5px; } }
@media print { body { max-width: none; padding: 0; } h2, .card, tr, svg { break-inside: avoid; }
  h2 { break-after: avoid; } }
"""


def usd(value: float | None, digits: int = 2) -> str:
    """Dollars as people read them; a dash for what is not known."""
    if value is None:
        return "–"
    return f"-${-value:,.{digits}f}" if value < 0 else f"${value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share in percent; a dash for what is not known."""
    return "–" if value is None else f"{value:.1%}"


def cards(report: Report) -> list[tuple[str, str, bool]]:
    """The figures that a manager reads: value, what it is, whether it is over its limit."""
    spend, unit = report.spend, report.unit
    forecast = spend.forecast
    found = [(usd(spend.effective_usd), f"spent until {report.period.data_until[:10]} (amortised)", False)]
    if spend.planned_usd is not None:
        over = spend.effective_usd > 1.02 * spend.planned_usd
        found.append((usd(spend.planned_usd), "planned for the same time", over))
    over_by_now = report.period.data_until >= report.period.end
    spread = (
        ""
        if forecast.low_usd is None or over_by_now
        else f", {usd(forecast.low_usd, 0)} to {usd(forecast.high_usd, 0)}"
    )
    over = spend.budget_usd is not None and forecast.usd > spend.budget_usd
    found.append((usd(forecast.usd), f"forecast to month end{spread}", over))
    if spend.budget_usd is not None:
        found.append((usd(spend.budget_usd), "budget of the month", False))
    if unit.usd_per_million_output_tokens is not None:
        found.append((usd(unit.usd_per_million_output_tokens, 3), "per million output tokens", False))
    if unit.usd_per_thousand_requests is not None:
        found.append((usd(unit.usd_per_thousand_requests, 3), "per thousand requests", False))
    found.append((usd(report.savings.missed_usd), "missed: idle, lapsed and unused", report.savings.missed_usd > 0))
    return found


def summary(report: Report) -> str:
    """A few lines of plain text, for mail and chat."""
    lines = [f"{value} {what}" for value, what, _ in cards(report)]
    return "\n".join([*lines, "", report.recommendation])


def daily_chart(report: Report) -> str:
    """Spend a day, stacked by purchase form, with the budget's daily share."""
    days = sorted({d.day for d in report.daily})
    forms = sorted({d.purchase for d in report.daily})
    at = {(d.day, d.purchase): d.usd for d in report.daily}
    x = [float(day[8:]) for day in days]
    series = [
        Series(form.replace("_", " "), x, [max(0.0, at.get((day, form), 0.0)) for day in days], "area",
               PURCHASE_COLOURS.get(form)) for form in forms
    ]  # fmt: skip
    spend = report.spend
    limits = [Limit("budget a day", spend.budget_usd / _num_days(report.period))] if spend.budget_usd else []
    if len(x) == 1:
        series = [Series(s.name, x, s.y, "bar", s.colour) for s in series]
    return svg("Spend a day by purchase form", series, Axis("day of the month"), Axis("USD", low=0.0), limits=limits)


def _num_days(period: Period) -> int:
    return (datetime.fromisoformat(period.end) - datetime.fromisoformat(period.start)).days


def findings_chart(report: Report) -> str:
    """The findings' dollars."""
    known = [f for f in report.findings if f.usd is not None][:8]
    names = [_words(f.kind) for f in known]
    values = [f.usd or 0.0 for f in known]
    bars = [Series("USD", range(1, len(known) + 1), values, "bar", MEANING_COLOURS["bad"], labels=names)]
    return svg("What the findings cost", bars, Axis(""), Axis("USD"))


def html(report: Report) -> str:
    """One self-contained page: no script, no outside file."""
    boxes = "".join(
        f'<div class="card{" over" if over else ""}"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        for value, what, over in cards(report)
    )
    period = report.period
    parts = [
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="lead">{period.start[:10]} to {period.end[:10]}, data until {period.data_until[:10]}</p>',
        f'<div class="cards">{boxes}</div>',
        f'<p class="do"><strong>Recommendation.</strong> {escape(report.recommendation)}</p>',
        "<h2>Spend</h2>", daily_chart(report),
        _table(("instance", "bought", "hours", "spent", "an hour"), [
            (t.instance_type or "commitment", _words(t.purchase), _count(t.hours), usd(t.effective),
             usd(t.effective_per_hour, 4)) for t in report.by_type
        ], (2, 3, 4)),
    ]  # fmt: skip
    if report.findings:
        parts.append("<h2>Findings</h2>")
        if any(f.usd for f in report.findings):
            parts.append(findings_chart(report))
        rows = [(_words(f.kind), usd(f.usd), f.text, f.action) for f in report.findings]
        parts.append(_table(("what", "USD", "what happened", "do"), rows, (1,)))
    c = report.commitments
    parts += [
        "<h2>Commitments</h2>",
        _table(("used", "unused", "utilisation", "coverage", "saved against list"),
               [(usd(c.used), usd(c.unused), percent(c.utilisation), percent(c.coverage), usd(c.saved))], range(5)),
        f"<footer><p>{escape(report.confidence)}</p><p>Forecast: {escape(report.spend.forecast.method)}. "
        f"Sources: {escape(', '.join(f'{k}: {v}' for k, v in report.sources.items()))}. "
        f"Built {escape(report.built_at)}.</p>"
        + "".join(f"<p>{escape(note)}</p>" for note in report.notes) + "</footer>",
    ]  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def markdown(report: Report) -> str:
    """The same page as Markdown, without pictures."""
    lines = [f"# {report.title}", "", f"{report.period.start[:10]} to {report.period.end[:10]}, data until "
             f"{report.period.data_until[:10]}", ""]  # fmt: skip
    lines += [f"- **{value}** {what}" for value, what, _ in cards(report)]
    lines += ["", f"**Recommendation.** {report.recommendation}", "", "## Spend", ""]
    lines += ["| instance | bought | hours | spent | an hour |", "|---|---|---:|---:|---:|"]
    for t in report.by_type:
        money = f"{usd(t.effective)} | {usd(t.effective_per_hour, 4)}"
        lines.append(f"| {t.instance_type or 'commitment'} | {_words(t.purchase)} | {_count(t.hours)} | {money} |")
    if report.findings:
        lines += ["", "## Findings", "", "| what | what happened | do | USD |", "|---|---|---|---:|"]
        lines += [f"| {_words(f.kind)} | {_cell(f.text)} | {_cell(f.action)} | {usd(f.usd)} |" for f in report.findings]
    c = report.commitments
    lines += ["", "## Commitments", ""]
    lines.append(
        f"Used {usd(c.used)}, unused {usd(c.unused)}, utilisation {percent(c.utilisation)}, "
        f"coverage {percent(c.coverage)}, saved against list {usd(c.saved)}."
    )
    lines += ["", report.confidence, ""]
    return "\n".join([*lines, *[f"- {n}" for n in report.notes]]) + "\n"


def focus_csv(report: Report) -> str:
    """Spend a day and purchase form in FOCUS columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("ChargePeriodStart", "ChargeCategory", "PricingCategory", "EffectiveCost", "BillingCurrency",
                     "ServiceName", "ChargeDescription"))  # fmt: skip
    pricing = {"on_demand": "Standard", "spot": "Dynamic"}
    category = {"tax": "Tax", "credit": "Credit", "refund": "Adjustment", "upfront_fee": "Purchase"}
    for d in report.daily:
        writer.writerow((f"{d.day}T00:00:00Z", category.get(d.purchase, "Usage"), pricing.get(d.purchase, "Committed"),
                         f"{d.usd:.6f}", "USD", "GPU machines", d.purchase))  # fmt: skip
    return out.getvalue()


def as_json(report: Report) -> str:
    """The published form: `plan schema report`."""
    return report.model_dump_json(indent=1) + "\n"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers: Sequence[int]) -> str:
    """A table whose columns ``numbers`` are aligned as numbers."""

    def line(cells: tuple[str, ...], tag: str) -> str:
        marks = [' class="n"' if i in numbers else "" for i in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{m}>{escape(c)}</{tag}>" for m, c in zip(marks, cells, strict=True)) + "</tr>"

    return f'<div class="scroll"><table>{line(head, "th")}{"".join(line(r, "td") for r in rows)}</table></div>'


def _words(name: str) -> str:
    return name.replace("_", " ")


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


RENDERERS: dict[str, Callable[[Report], str]] = {"html": html, "md": markdown, "json": as_json, "csv": focus_csv}
