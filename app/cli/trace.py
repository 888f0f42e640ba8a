"""`plan trace`: import, synthesise, describe and forecast workloads."""

from __future__ import annotations

from typing import Any

import click

from app.cli.output import Table, emit, format_option

TRACE = click.argument("trace", type=click.Path())
SORT = click.option("--sort", is_flag=True, help="Put arrivals in order instead of refusing a trace that is not.")


@click.group()
def trace() -> None:
    """Import, synthesise, describe and forecast workloads.

    \b
    Example:
      plan trace stats azure_llm_2023_conv.csv
    """


@trace.command("import")
@TRACE
@click.option("-o", "--output", required=True, type=click.Path(), help="A .csv, .csv.gz or .parquet to write.")
@SORT
@click.option("--scale", type=float, default=1.0, show_default=True, help="Rate factor; the burst shape stays.")
@click.option("--limit", type=click.IntRange(min=1), help="Take this many requests at most.")
@format_option
def import_(trace: str, output: str, sort: bool, scale: float, limit: int | None, form: str) -> None:
    """Turn a trace into the contract's columns.

    TRACE is Azure's, BurstGPT's or the contract's CSV, Mooncake's JSON lines, or the same columns as Parquet; plain or
    gzipped. The format is recognised by its columns.

    \b
    Example:
      plan trace import mooncake_trace.jsonl -o requests.csv
    """
    from simulator.trace_stats import describe
    from simulator.traces import read_trace, write_trace

    requests = read_trace(trace, sort=sort, limit=limit)
    if scale != 1.0:
        from simulator.scaling import scale_requests

        requests = scale_requests(requests, scale)
    write_trace(requests, output)
    emit_description({"written": output, **describe(requests)}, form)


@trace.command()
@TRACE
@SORT
@format_option
def stats(trace: str, sort: bool, form: str) -> None:
    """Describe a trace: counts, rate, lengths, burstiness, prefix sharing, classes.

    The file is read in pieces, so its size does not matter. Index of dispersion is the variance over the mean of the
    number of arrivals in a window: 1 for a Poisson process, more for bursts.

    \b
    Example:
      plan trace stats azure_llm_2023_conv.csv --format json
    """
    from simulator.trace_stats import describe_file

    emit_description(describe_file(trace, sort=sort), form)


def emit_description(document: dict[str, Any], form: str) -> None:
    """Print a workload's description."""
    emit(form, document, description_tables(document))


def description_tables(document: dict[str, Any]) -> list[Table]:
    """The tables of a workload's description."""
    burstiness = document["burstiness"]
    rows: list[tuple[str, object]] = [
        ("requests", document["num_requests"]),
        ("duration, s", document["duration_s"]),
        ("rate, requests/s", document["rate_rps"]),
        ("input tokens/s", document.get("input_tokens_per_s")),
        ("output tokens/s", document.get("output_tokens_per_s")),
        ("CV of interarrival times", burstiness["interarrival_cv"]),
    ]
    if document["prefix_sharing"] is not None:
        rows.append(("prefix blocks hit in an infinite cache", document["prefix_sharing"]["infinite_cache_hit_rate"]))
    if document["num_sessions"] is not None:
        rows.append(("sessions", document["num_sessions"]))
    head = ["tokens", *document["input_tokens"]]
    lengths = [[name, *document[f"{name}_tokens"].values()] for name in ("input", "output")]
    for name, part in document["by_class"].items():
        lengths += [[f"{name}: {side}", *part[f"{side}_tokens"].values()] for side in ("input", "output")]
    tables = [Table("Trace", ["what", "value"], rows), Table("Lengths", head, lengths)]
    if burstiness["windows"]:
        cells = [list(w.values()) for w in burstiness["windows"]]
        tables.append(Table("Burstiness", ["window, s", "index of dispersion", "peak / mean"], cells))
    if document["by_class"]:
        classes = [[name, part["num_requests"], part["rate_rps"]] for name, part in document["by_class"].items()]
        tables.append(Table("Classes", ["class", "requests", "requests/s"], classes))
    return tables
