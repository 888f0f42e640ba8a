"""`plan prices`: what instances cost, how old each price is, today's from AWS, and what changed."""

from __future__ import annotations

import click

from app.cli.output import Table, emit, format_option

PURCHASES = ("on_demand", "spot", "reserved_1yr", "reserved_3yr", "capacity_block")


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
@click.option("--purchase", type=click.Choice(PURCHASES), help="Only this purchase form.")
@click.option("--stale-after-days", type=click.IntRange(min=0), default=30, show_default=True)
@format_option
def show(
    region: str | None, gpu: str | None, instance: str | None, purchase: str | None, stale_after_days: int, form: str
) -> None:
    """The best known prices, with source, date and a flag on those that are old.

    \b
    Example:
      plan prices show --instance g6e.xlarge
    """
    from catalogs import load
    from catalogs.errors import MissingError
    from catalogs.freshness import is_stale, stale_note, today

    wanted_gpu = load.find_gpu(gpu, "--gpu").name if gpu else None
    wanted_instance = load.find_instance(instance, "--instance").name if instance else None
    wanted_region = load.find_region(region, "--region") if region else None
    known = load.instances()
    found = [
        p
        for p in load.prices()
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
    columns = ("instance", "GPU", "GPUs", "region", "purchase", "usd/h", "usd/GPU h", "as of", "stale", "confidence",
               "notes", "source")  # fmt: skip
    rows = [
        (p.instance, known[p.instance].gpu, known[p.instance].num_gpus, p.region, p.purchase, p.usd_per_hour,
         p.usd_per_hour / (known[p.instance].num_gpus * known[p.instance].gpu_fraction), p.as_of,
         is_stale(p.as_of, on, stale_after_days), p.confidence, p.notes, p.source)
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
    shown = len(columns) if form == "csv" else len(columns) - 3
    emit(form, document, [Table("Prices", columns[:shown], [r[:shown] for r in rows])])
