"""`plan report`: build, schedule and send cost reports."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli.output import Table, emit, format_option

if TYPE_CHECKING:
    from app.report.deliver import Outcome
    from app.report.schedule import Schedule
    from app.report.schema import Report

FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def report() -> None:
    """Build, schedule and send cost reports.

    \b
    Example:
      plan report build --bill focus.csv --run last -o report.html
    """


@report.command()
@click.option("--bill", type=FILE, required=True, help="CUR 2.0 or FOCUS: .csv, .csv.gz, .parquet; or cost-explorer.")
@click.option("--run", help="The plan to compare with: a run id, or last.")
@click.option("--month", help="YYYY-MM; left out: this month.")
@click.option("--budget", "budget_usd_per_month", type=float, help="USD a month.")
@click.option("--busy", type=FILE, help="CSV of resource_id,busy_share: finds idle machines.")
@click.option("--served-requests", type=float, help="Requests served in the month, for the cost of one.")
@click.option("--served-output-tokens", type=float, help="Output tokens served in the month.")
@click.option("--prometheus", help="Address of a Prometheus server: what was served, how busy GPUs were, drift.")
@click.option("--selector", default="", help='PromQL label matchers of the service: namespace="prod".')
@click.option("--framework", help="Whose metrics: vllm, sglang, tgi, tensorrt-llm; left out: those that are there.")
@click.option("--alternative", help="A newer run of `plan recommend`: is it cheaper?")
@click.option("--currency", help="Take only charges in this currency.")
@click.option("-o", "--output", type=FILE, multiple=True, help="Write .html, .md, .json or .csv; may be repeated.")
@format_option
def build(output: tuple[Path, ...], form: str, **flags: Any) -> None:
    """One page: spend against plan and budget, unit costs, savings, forecast, findings, the recommendation.

    \b
    Example:
      plan report build --bill focus.csv --run last --budget 20000 -o report.html -o report.csv
    """
    from app.report.build import build as build_report
    from app.report.render import RENDERERS
    from app.report.sources import Sources
    from catalogs.errors import InputError
    from catalogs.files import write_text

    for path in output:
        if path.suffix.lstrip(".") not in RENDERERS:
            raise InputError(f"unknown form {path.suffix!r}", where="-o", remedy=".html, .md, .json or .csv")
    found = build_report(Sources(**flags), datetime.now(UTC))
    for path in output:
        write_text(path, RENDERERS[path.suffix.lstrip(".")](found))
        click.echo(f"wrote {path}", err=True)
    if form in ("md", "csv"):
        click.echo(RENDERERS[form](found), nl=False)
    else:
        emit(form, found.model_dump(), _tables(found), [found.recommendation, found.confidence, *found.notes])


@report.command()
@click.argument("schedule_file", type=FILE)
@click.option("--once", is_flag=True, help="Do the period that is due, if it is not done, and end.")
@click.option("--print", "ready_made", type=click.Choice(["crontab", "systemd", "kubernetes", "github"]),
              help="Print the schedule in this form and end.")  # fmt: skip
def schedule(schedule_file: Path, once: bool, ready_made: str | None) -> None:
    """Run reports on a cron schedule, in the foreground; stop it with SIGTERM or Ctrl-C.

    A missed period is caught up once; each destination gets each period once.

    \b
    Example:
      plan report schedule weekly.yaml --print systemd
    """
    from app.report import schedule as timing

    plan = _read(schedule_file)
    if ready_made:
        click.echo(timing.FORMS[ready_made](plan, str(schedule_file)), nl=False)
        return
    ledger = _ledger()

    def work(due: datetime) -> None:
        _say(_deliver(plan, due, again=False))

    with timing.only_one(ledger.path.parent, plan.name), timing.stopping_on_signals() as stop:
        if not once:
            timing.serve(plan, ledger, work, lambda line: click.echo(line, err=True), stop)
            return
        due = timing.run_pending(plan, ledger, datetime.now(UTC), work, started=datetime.min.replace(tzinfo=UTC))
    click.echo("nothing is due" if due is None else f"done: the period of {due.isoformat()}", err=True)


@report.command()
@click.argument("schedule_file", type=FILE)
@click.option("--dry-run", is_flag=True, help="Show what would go where; send nothing.")
@click.option("--again", is_flag=True, help="Send even what was sent or is uncertain.")
@format_option
def send(schedule_file: Path, dry_run: bool, again: bool, form: str) -> None:
    """Send the report of the latest due period now; never twice for the same period unless --again.

    \b
    Example:
      plan report send weekly.yaml --dry-run
    """
    from app.report.schedule import last_due
    from app.report.send import describe, kind_of
    from catalogs.errors import GateError

    plan = _read(schedule_file)
    due = last_due(plan, datetime.now(UTC)) or datetime.now(UTC)
    if dry_run:
        for destination in plan.send:
            kind_of(destination)
        rows = [(describe(d), d.get("form", "html"), due.isoformat()) for d in plan.send]
        columns = ("to", "form", "period")
        would_send = [dict(zip(columns, row, strict=True)) for row in rows]
        document = {"schema_version": 1, "dry_run": True, "would_send": would_send}
        emit(form, document, [Table("Would send", columns, rows)])
        return
    outcomes = _deliver(plan, due, again)
    rows = [(o.destination, o.state, o.detail) for o in outcomes]
    document = {"schema_version": 1, "period": due.isoformat(), "deliveries": [vars(o) for o in outcomes]}
    emit(form, document, [Table(f"Period of {due:%Y-%m-%d %H:%M} UTC", ("to", "state", "detail"), rows)])
    bad = [o for o in outcomes if o.state not in ("done", "skipped")]
    if bad:
        raise GateError(f"{len(bad)} of {len(outcomes)} deliveries did not arrive", remedy="see the table's details")


def _deliver(plan: Schedule, due: datetime, again: bool) -> list[Outcome]:
    from app.report.build import build as build_report
    from app.report.build import message_forms
    from app.report.deliver import deliver
    from app.report.render import summary
    from app.report.schedule import instant
    from app.report.send import Message

    found = build_report(plan.report, due)
    message = Message(
        key=f"{plan.name}.{instant(due)}".replace(":", "").replace("+0000", "Z"),
        title=found.title,
        summary=summary(found),
        forms=message_forms(found),
        period=found.period.start[:7],
    )
    return deliver(message, plan.send, _ledger(), again=again)


def _say(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        click.echo(f"{outcome.destination}: {outcome.state}: {outcome.detail}", err=True)


def _ledger() -> Any:
    from app.report.ledger import Ledger
    from catalogs.database import data_dir

    return Ledger(data_dir() / "reports.sqlite3")


def _read(path: Path) -> Schedule:
    from app.report.schedule import Schedule
    from app.report.sources import COST_EXPLORER
    from catalogs.yaml_source import read_model

    found, _ = read_model(path, Schedule)
    folder = path.resolve().parent
    sources = found.report
    asked = str(sources.bill) == COST_EXPLORER
    beside = {
        "bill": sources.bill if asked else folder / sources.bill,
        "busy": None if sources.busy is None else folder / sources.busy,
    }
    send = [{**d, "path": str(folder / d["path"])} if d.get("kind") == "file" else d for d in found.send]
    return found.model_copy(update={"report": sources.model_copy(update=beside), "send": send})


def _tables(found: Report) -> list[Table]:
    from app.report.render import cards

    kinds = ("instance", "bought", "hours", "USD", "USD an hour")
    rows = [(t.instance_type, t.purchase, t.hours, t.effective, t.effective_per_hour) for t in found.by_type]
    findings = [(f.kind, f.text, f.action, f.usd) for f in found.findings]
    return [
        Table(found.title, ("figure", "what"), [(value, what) for value, what, _ in cards(found)]),
        Table("Spend", kinds, rows),
        Table("Findings", ("what", "what happened", "do", "USD"), findings),
    ]
