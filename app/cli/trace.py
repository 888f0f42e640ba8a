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
    from simulator.workload.trace_stats import describe
    from simulator.workload.trace_writing import write_trace
    from simulator.workload.traces import read_trace

    requests = read_trace(trace, sort=sort, limit=limit)
    if scale != 1.0:
        from simulator.workload.scaling import scale_requests

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
    from simulator.workload.trace_stats import describe_file

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


@trace.command()
@click.argument("spec", type=click.Path(), required=False)
@click.option("-o", "--output", required=True, type=click.Path(), help="A .csv, .csv.gz or .parquet to write.")
@click.option("--arrivals", metavar="PROCESS,KEY=VALUE,...", help="poisson,rate_rps=20,num_requests=1000")
@click.option("--input-tokens", metavar="DISTRIBUTION,...", help="lognormal,mean=1000,cv=0.9")
@click.option("--output-tokens", metavar="DISTRIBUTION,...", help="fixed,value=256")
@click.option("--sessions", metavar="KEY=VALUE,...", help="mean_turns=4,think_time_s=30")
@click.option("--system-prompts", metavar="KEY=VALUE,...", help="tokens=1000,num=5")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same trace.")
@format_option
def synth(
    spec: str | None,
    output: str,
    arrivals: str | None,
    input_tokens: str | None,
    output_tokens: str | None,
    sessions: str | None,
    system_prompts: str | None,
    seed: int,
    form: str,
) -> None:
    """Make a synthetic trace from a workload section, or from flags.

    SPEC is a YAML file with a `workload` section (a scenario or a plan), or with that section alone. Processes:
    poisson, gamma, constant, mmpp, diurnal. Lengths: fixed, uniform, lognormal, empirical.

    \b
    Example:
      plan trace synth --arrivals gamma,rate_rps=20,cv=2,num_requests=5000 \\
        --input-tokens lognormal,mean=1000,cv=0.9 --output-tokens uniform,low=50,high=400 -o requests.csv
    """
    from simulator.workload.load import load_workload
    from simulator.workload.trace_stats import describe
    from simulator.workload.trace_writing import write_trace

    flags = {
        "arrivals": _section(arrivals, "--arrivals", "process"),
        "input_tokens": _section(input_tokens, "--input-tokens", "distribution"),
        "output_tokens": _section(output_tokens, "--output-tokens", "distribution"),
        "sessions": _section(sessions, "--sessions"),
        "system_prompts": _section(system_prompts, "--system-prompts"),
    }
    workload = _workload(spec, {name: value for name, value in flags.items() if value is not None})
    requests = load_workload(workload, seed)
    write_trace(requests, output)
    emit_description({"written": output, "seed": seed, **describe(requests)}, form)


def _section(text: str | None, flag: str, first: str | None = None) -> dict[str, Any] | None:
    """``poisson,rate_rps=20`` as ``{"process": "poisson", "rate_rps": 20}``."""
    from catalogs.errors import InputError
    from catalogs.yaml_source import parse_value

    if text is None:
        return None
    parts = text.split(",")
    found: dict[str, Any] = {} if first is None else {first: parts.pop(0)}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{part!r} is not KEY=VALUE", where=flag)
        found[key.strip()] = parse_value(value, flag)
    return found


def _workload(spec: str | None, flags: dict[str, Any]) -> Any:
    from pathlib import Path

    from catalogs.errors import InputError
    from catalogs.yaml_source import Located, check, read_yaml
    from simulator.workload.spec import WorkloadSpec

    if spec is None:
        if not flags:
            raise InputError("nothing says what to make", remedy="a SPEC file, or --arrivals with lengths")
        return check(Located(Path("flags"), flags, {}), WorkloadSpec)
    located = read_yaml(spec)
    at = ("workload",) if isinstance(located.data, dict) and "workload" in located.data else ()
    section = located.data["workload"] if at else located.data
    if flags and isinstance(section, dict):
        section.update(flags)
    return check(located, WorkloadSpec, at).resolved(Path(spec).parent)


@trace.command()
@TRACE
@SORT
@click.option("--bin", "bin_s", type=click.FloatRange(min=0, min_open=True), default=3600.0, show_default=True,
              help="Width of a bin, s.")  # fmt: skip
@click.option("--season", "season_s", type=click.FloatRange(min=0, min_open=True), default=604_800.0,
              show_default="a week", help="How long until demand repeats, s.")  # fmt: skip
@click.option("--horizon", "horizon_s", type=click.FloatRange(min=0, min_open=True), default=604_800.0,
              show_default="a week", help="How far to look, s.")  # fmt: skip
@click.option("--method", type=click.Choice(["auto", "mean", "seasonal_naive", "holt_winters"]), default="auto",
              show_default=True, help="auto: the smallest backtest error.")  # fmt: skip
@format_option
def forecast(trace: str, sort: bool, bin_s: float, season_s: float, horizon_s: float, method: str, form: str) -> None:
    """Forecast demand by hour of the week, with the error that a backtest gives.

    The end of the trace is held out, forecast and compared (up to four times); the method with the smallest weighted
    absolute percentage error is used. A trace of less than two seasons allows only its mean, and the answer says so.

    \b
    Example:
      plan trace forecast requests.csv --season 86400 --horizon 86400
    """
    from simulator.workload.forecast import forecast as look_ahead
    from simulator.workload.forecast import forecast_document
    from simulator.workload.traces import read_trace

    found = look_ahead(read_trace(trace, sort=sort).arrival_s, bin_s, season_s, horizon_s, method)
    document = {"trace": trace, **forecast_document(found)}
    bins = [[b["start_s"], b["rate_rps"], b["p10_rps"], b["p90_rps"]] for b in document["bins"]]
    errors = [[name, error] for name, error in document["backtest_wape"].items()]
    tables = [Table(f"Demand, by {found.method}", ["from, s", "requests/s", "p10", "p90"], bins)]
    if errors:
        tables.append(Table("Backtest", ["method", "weighted absolute percentage error"], errors))
    notes = [] if found.season_bins else ["The trace is shorter than two seasons: the forecast is its mean."]
    emit(form, document, tables, notes)
