"""`plan sweep`: many simulations, on this machine or a Ray cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from app.cli.output import Table, emit, format_option, progress_bar

FIGURES = (
    "ttft_p95_s", "tpot_p95_s", "e2e_p95_s", "requests_per_s", "output_tokens_per_s", "gpu_hours", "usd",
    "usd_per_million_output_tokens", "slo_ok",
)  # fmt: skip
SHOWN_ROWS = 100
LABELS = {
    "ttft_p95_s": "TTFT p95, s", "tpot_p95_s": "TPOT p95, s", "requests_per_s": "requests/s", "usd": "USD",
    "usd_per_million_output_tokens": "USD/Mtok out", "slo_ok": "SLO",
}  # fmt: skip


@click.command()
@click.argument("sweep", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="Parquet to write.  [default: the sweep's name]")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Where to run.")
@click.option("--address", default="auto", show_default=True, help="Of a running Ray cluster (host:port).")
@click.option("--workers", type=click.IntRange(min=1), help="Simulations at a time.  [default: one a core]")
@click.option("--restart", is_flag=True, help="Forget earlier results instead of going on from them.")
@click.option("--retry-failed", is_flag=True, help="Play points again that failed earlier.")
@format_option
def sweep(
    sweep: str,
    output: str | None,
    engine: str,
    address: str,
    workers: int | None,
    restart: bool,
    retry_failed: bool,
    form: str,
) -> None:
    """Play a scenario many times with values replaced: a grid, or a list of points.

    SWEEP is a YAML file: `scenario` (a file), `grid` (lists by dotted place) and `points`. Results stream into Parquet
    while it runs; a sweep that was stopped goes on where it was, one that grew runs only what is new, and a point that
    fails is a row that says why. The output does not depend on the number of workers.

    \b
    Example:
      plan sweep examples/sweep.yaml -o sweep.parquet
    """
    import sys
    from pathlib import Path

    from planner.money.fleet_price import play_priced_point
    from simulator.sweep import read_sweep, run_sweep

    points = read_sweep(sweep)
    written = output or str(Path(sweep).with_suffix(".parquet").name)
    with progress_bar(f"{len(points)} points") as progress:
        rows, num_before = run_sweep(
            points,
            written,
            function=play_priced_point,
            workers=workers,
            ray_address=address if engine == "ray" else None,
            restart=restart,
            retry_failed=retry_failed,
            progress=progress,
        )
    failures = [row for row in rows if row["status"] == "failed"]
    document = {
        "schema_version": 1,
        "output": written,
        "points": len(rows),
        "played_before": num_before,
        "failed": len(failures),
        "failures": [{"point": r["point"], "overrides": _overrides(r), "error": r["error"]} for r in failures],
        "results": [{"point": r["point"], "overrides": _overrides(r), **{f: r[f] for f in FIGURES}} for r in rows],
    }
    emit(form, document, _tables(rows, failures, form), _notes(rows, failures, written))
    if failures and len(failures) == len(rows):
        click.echo("every point failed", err=True)
        sys.exit(1)


def _overrides(row: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(row["overrides"]))


def _tables(rows: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]], form: str) -> list[Table]:
    """People see the main figures under short names, CSV has all of them under their own."""
    whole = form == "csv"
    shown = rows if whole else rows[:SHOWN_ROWS]
    replaced = [_overrides(row) for row in shown]
    names = list(dict.fromkeys(name for values in replaced for name in values))
    figures = FIGURES if whole else tuple(LABELS)
    cells = [
        [row["point"], *[_cell(values.get(name)) for name in names], *[row[f] for f in figures]]
        for row, values in zip(shown, replaced, strict=True)
    ]
    heads = [*names, *figures] if whole else [*_short(names), *LABELS.values()]
    tables = [Table("Sweep", ["point", *heads], cells)]
    if failures:
        said = [[r["point"], str(r["error"]).splitlines()[0]] for r in failures[:SHOWN_ROWS]]
        tables.append(Table("Failed", ["point", "why"], said))
    return tables


def _short(names: Sequence[str]) -> list[str]:
    """``fleet.0.count`` as ``count``, where no other place ends so."""
    ends = [name.rpartition(".")[2] for name in names]
    return [end if ends.count(end) == 1 else name for name, end in zip(names, ends, strict=True)]


def _cell(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool)) or value is None else json.dumps(value)


def _notes(rows: Sequence[Any], failures: Sequence[Any], written: str) -> list[str]:
    more = f" (the first {SHOWN_ROWS} are shown)" if len(rows) > SHOWN_ROWS else ""
    return [f"{len(rows)} points, {len(failures)} failed{more}; every figure is in {written}."]
