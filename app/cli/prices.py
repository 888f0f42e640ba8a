"""`plan prices`: what instances cost, how old each price is, today's from AWS, and what changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from app.cli.commitment import commitment
from app.cli.output import F, Table, emit, format_option
from catalogs.schema import Purchase

if TYPE_CHECKING:
    from catalogs.schema import Price

SUPPLY = ("instance_type", "zone_offering", "quota", "placement_score", "spot_advisor")


@click.group()
def prices() -> None:
    """Show, refresh and compare prices.

    \b
    Example:
      plan prices show --gpu L40S --region us-east-1
    """


@prices.command()
@click.option("--region", help="Only this region.")
@click.option("--gpu", help="Only instances with this GPU.")
@click.option("--instance", help="Only this instance type.")
@click.option("--purchase", type=click.Choice(get_args(Purchase)), help="Only this purchase form.")
@click.option("--stale-after-days", type=click.IntRange(min=0), default=30, show_default=True)
@click.option("--zones", is_flag=True, help="What was fetched, by zone and payment form, in place of the best price.")
@format_option
def show(
    region: str | None,
    gpu: str | None,
    instance: str | None,
    purchase: str | None,
    stale_after_days: int,
    zones: bool,
    form: str,
) -> None:
    """The best known prices, with source, date and a flag on those that are old.

    \b
    Example:
      plan prices show --instance g6e.xlarge
    """
    from catalogs import load
    from catalogs.errors import MissingError
    from catalogs.freshness import is_stale, stale_note, today
    from catalogs.price_store import FETCHED

    wanted_gpu = load.find_gpu(gpu, "--gpu").name if gpu else None
    wanted_instance = load.find_instance(instance, "--instance").name if instance else None
    wanted_region = load.find_region(region, "--region") if region else None
    known = load.instances()
    found = [
        p
        for p in (_fetched_in_full() if zones else load.prices())
        if p.instance in known
        if wanted_region in (None, p.region) or p.region == load.ANY_REGION
        if wanted_gpu in (None, known[p.instance].gpu)
        if wanted_instance in (None, p.instance)
        if purchase in (None, p.purchase)
    ]
    if not found:
        raise MissingError(
            "no such price is known",
            why="a price that is not known is left out, never guessed",
            remedy="`plan prices refresh` asks AWS; or loosen the filters",
        )
    on = today()
    columns = ("instance", "GPU", "GPUs", "region", "purchase", "usd/h", "usd/GPU h", "as of", "stale", "from",
               "confidence", "notes", "source")  # fmt: skip
    rows = [
        (p.instance, known[p.instance].gpu, known[p.instance].num_gpus, p.region, p.purchase, p.usd_per_hour,
         p.usd_per_hour / (known[p.instance].num_gpus * known[p.instance].gpu_fraction), p.as_of,
         is_stale(p.as_of, on, stale_after_days), "AWS" if FETCHED in p.source else "catalogue", p.confidence, p.notes,
         p.source)
        for p in found
    ]  # fmt: skip
    document = {
        "schema_version": 1,
        "today": on.isoformat(),
        "prices": [
            {"instance": p.instance, "gpu": known[p.instance].gpu, "num_gpus": known[p.instance].num_gpus,
             "region": p.region, "purchase": p.purchase, "usd_per_hour": p.usd_per_hour, "as_of": p.as_of,
             "stale": is_stale(p.as_of, on, stale_after_days), "confidence": p.confidence, "notes": p.notes,
             "source": p.source}
            for p in found
        ],
    }  # fmt: skip
    note = stale_note(found, on, stale_after_days)
    if note:
        click.echo(note, err=True)
    shown = len(columns) - (0 if form == "csv" else 1 if zones else 3)
    emit(form, document, [Table("Prices", columns[:shown], [r[:shown] for r in rows])])


def _fetched_in_full() -> list[Price]:
    """Every fetched quote as a price of its own, zone and payment form in the notes."""
    from catalogs.price_store import PriceStore, as_prices

    return [
        replace(p, notes=", ".join(n for n in (q.zone, q.terms) if n))
        for q in PriceStore().quotes()
        for p in as_prices([q])
    ]


def _aws_options(command: F) -> F:
    """How AWS is reached, and where prices are kept."""
    for option in (
        click.option("--prices-db", type=click.Path(dir_okay=False, path_type=Path), help="File of fetched prices."),
        click.option("--timeout-s", type=click.FloatRange(min=0.1), default=20.0, show_default=True),
        click.option("--endpoint-url", help="Another address than AWS's own, for every service."),
        click.option("--profile", help="AWS profile; otherwise boto3's ordinary credential chain."),
    ):
        command = option(command)
    return command


@prices.command()
@click.option("--region", "regions", multiple=True, default=("us-east-1",), show_default=True, help="May be repeated.")
@click.option("--instance", "instances", multiple=True, help="Only these types; otherwise all of the catalogue.")
@click.option("--only", help="Families, by comma: on_demand,savings_plans,spot,capacity_blocks,instance_types,"
              "zone_offerings,quotas,placement_scores.")  # fmt: skip
@click.option("--spot-advisor", help="The Spot Advisor's JSON: a file or an http(s) address.")
@click.option("--spot-days", type=click.FloatRange(0, 90), default=1.0, show_default=True, help="Spot history to keep.")
@click.option("--placement-capacity", type=click.IntRange(min=1), default=1, show_default=True)
@_aws_options
@format_option
def refresh(
    regions: tuple[str, ...],
    instances: tuple[str, ...],
    only: str | None,
    spot_advisor: str | None,
    spot_days: float,
    placement_capacity: int,
    prices_db: Path | None,
    timeout_s: float,
    endpoint_url: str | None,
    profile: str | None,
    form: str,
) -> None:
    """Fetch today's prices and supply from AWS into the local store. Exit code 3 when anything asked for is missing.

    \b
    Example:
      plan prices refresh --region us-east-1 --only on_demand,spot
    """
    from app.cli.output import progress_bar
    from catalogs.aws import Request
    from catalogs.aws import refresh as fetch
    from catalogs.aws_session import Access
    from catalogs.errors import MissingError
    from catalogs.price_store import PriceStore

    families = [f.strip() for f in (only or "").split(",") if f.strip()]
    request = Request(regions, families, instances, spot_advisor, spot_days, placement_capacity)
    store = PriceStore(prices_db)
    with progress_bar("prices") as bar:
        result = fetch(request, Access(profile, endpoint_url, timeout_s), store, bar)
    document = {
        "schema_version": 1,
        "store": str(store.path),
        "fetched": result.fetched,
        "missing": result.missing,
        "notes": result.notes,
    }
    tables = [Table("Fetched", ("what", "rows"), list(result.fetched.items()))]
    if result.missing:
        rows = [(m["what"], m["region"], m["kind"], m["why"], m["remedy"]) for m in result.missing]
        tables.append(Table("Missing", ("what", "region", "kind", "why", "remedy"), rows))
    emit(form, document, tables, [*result.notes, f"Kept in {store.path}. `plan prices diff` shows what changed."])
    if result.missing:
        names = ", ".join(f"{m['what']} {m['region']}" for m in result.missing)
        raise MissingError(f"not fetched: {names}", why="the catalogue's own prices stand in where it has any",
                           remedy=result.missing[0]["remedy"])  # fmt: skip


@prices.command()
@click.option("--since", help="A date, or `last` (before the last refresh); otherwise the shipped snapshot.")
@click.option("--prices-db", type=click.Path(dir_okay=False, path_type=Path), help="File of fetched prices.")
@format_option
def diff(since: str | None, prices_db: Path | None, form: str) -> None:
    """What changed since the shipped snapshot, or since a date.

    \b
    Example:
      plan prices diff --since 2026-11-01
    """
    from catalogs.aws import differences
    from catalogs.errors import InputError, MissingError
    from catalogs.price_store import PriceStore
    from catalogs.tables import first_day

    store = PriceStore(prices_db)
    past = store.refreshes()
    if not past:
        raise MissingError("nothing was fetched yet", where=str(store.path), remedy="plan prices refresh")
    moment: str | None = None
    if since == "last":
        moment = str(past[0]["started_at"])
    elif since is not None:
        day = first_day(since)
        if day is None:
            raise InputError(f"{since!r} is not a date", where="--since", remedy="write it as 2026-11-01, or `last`")
        moment = day.isoformat()
    changes = differences(store, moment)
    rows = [
        (c.instance, c.region, c.purchase, c.before_usd_per_hour, c.after_usd_per_hour,
         None if c.ratio is None else f"{c.ratio:+.1%}", c.before, c.after)
        for c in changes
    ]  # fmt: skip
    columns = ("instance", "region", "purchase", "before usd/h", "now usd/h", "change", "before", "now")
    shown = len(columns) if form == "csv" else len(columns) - 2
    document = {
        "schema_version": 1,
        "since": moment or "catalogue",
        "changes": [
            {"instance": c.instance, "region": c.region, "purchase": c.purchase,
             "before_usd_per_hour": c.before_usd_per_hour, "after_usd_per_hour": c.after_usd_per_hour,
             "change": c.ratio, "before": c.before, "after": c.after}
            for c in changes
        ],
    }  # fmt: skip
    notes = [] if changes else ["No price moved."]
    emit(form, document, [Table("Changes", columns[:shown], [r[:shown] for r in rows])], notes)


@prices.command()
@click.option("--kind", type=click.Choice(SUPPLY), help="Only these.")
@click.option("--prices-db", type=click.Path(dir_okay=False, path_type=Path), help="File of fetched prices.")
@format_option
def supply(kind: str | None, prices_db: Path | None, form: str) -> None:
    """What the refreshes found beside prices: zones, quotas, placement scores, interruption buckets, types.

    \b
    Example:
      plan prices supply --kind quota
    """
    from catalogs.errors import MissingError
    from catalogs.price_store import PriceStore

    store = PriceStore(prices_db)
    found = sorted(store.facts(kind), key=lambda f: (f.kind, f.region, f.name, f.zone))
    if not found:
        raise MissingError("nothing was fetched yet", where=str(store.path), remedy="plan prices refresh")
    rows = [
        (f.kind, f.region, f.zone, f.name, ", ".join(f"{k} {v}" for k, v in f.value.items()), f.fetched_at[:16])
        for f in found
    ]
    document = {
        "schema_version": 1,
        "facts": [
            {"kind": f.kind, "region": f.region, "zone": f.zone, "name": f.name, "value": dict(f.value),
             "source": f.source, "fetched_at": f.fetched_at}
            for f in found
        ],
    }  # fmt: skip
    emit(form, document, [Table("Supply", ("what", "region", "zone", "name", "value", "fetched"), rows)])


prices.add_command(commitment)
