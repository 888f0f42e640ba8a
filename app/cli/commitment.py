"""`plan prices commitment`: what committing to machines of one type saves."""

from __future__ import annotations

from pathlib import Path

import click

from app.cli.output import Table, emit, format_option


@click.command("commitment")
@click.option("--trace", required=True, type=click.Path(path_type=Path), help="The shape of the demand.")
@click.option("--instance", required=True, help="The instance type.")
@click.option("--region", default="us-east-1", show_default=True)
@click.option("--purchase", type=click.Choice(("reserved_1yr", "reserved_3yr")), default="reserved_3yr",
              show_default=True)  # fmt: skip
@click.option("--peak", required=True, type=click.IntRange(1, 100_000), help="Machines needed at the busiest time.")
@click.option("--commit", type=click.IntRange(0, 100_000), help="Machines to commit; left out: the cheapest number.")
@format_option
def commitment(
    trace: Path, instance: str, region: str, purchase: str, peak: int, commit: int | None, form: str
) -> None:
    """How many machines to commit to when the demand has a trace's shape, and what it saves a year.

    The trace stands for the year: each of its windows is an equal part of it.

    \b
    Example:
      plan prices commitment --trace requests.csv --instance g6e.xlarge --peak 12
    """
    from planner.money.commitment import WINDOWS, machines_of, priced
    from planner.money.commitment import commitment as weigh
    from simulator.workload.trace_stats import arrivals_per_window
    from simulator.workload.traces import read_trace

    on_demand, committed = priced(instance, region, purchase, "--")
    _, rate = arrivals_per_window(read_trace(trace, sort=True), num_windows=WINDOWS)
    found = weigh(machines_of(rate, peak), committed.usd_per_hour, on_demand.usd_per_hour, commit)
    document = {
        "schema_version": 1, "instance_type": on_demand.instance, "region": on_demand.region, "purchase": purchase,
        "usd_per_hour": {"on_demand": on_demand.usd_per_hour, "committed": committed.usd_per_hour}, **found,
        "price_sources": {p.purchase: f"{p.source} ({p.as_of})" for p in (on_demand, committed)},
    }  # fmt: skip
    usd = found["usd_per_year"]
    rows = [
        ("this commitment", found["chosen"], usd["chosen"]), ("the cheapest", found["cheapest"], usd["cheapest"]),
        ("all on demand", 0, usd["on_demand"]),
    ]  # fmt: skip
    title = f"{on_demand.instance}, {purchase}, {found['peak']} machines at the peak"
    notes = [
        f"A committed machine pays when it is needed {found['break_even_utilisation']:.0%} of the time.",
        f"Prices: ${on_demand.usd_per_hour:,.4f} on demand, ${committed.usd_per_hour:,.4f} committed "
        f"({committed.source}, {committed.as_of}).",
        "Assumed: the year has the trace's shape.",
    ]
    emit(form, document, [Table(title, ["", "machines committed", "USD a year"], rows)], notes)
