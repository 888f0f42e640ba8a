"""`plan simulate`: one fleet, one workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli.output import Table, emit, format_option, progress_bar
from app.cli.simulate_fleet import fleet_notes, fleet_tables

if TYPE_CHECKING:
    from simulator.scenario.spec import Scenario

BARS = "▁▂▃▄▅▆▇█"
KEPT_FILE_BYTES = 4 * 1024 * 1024  # larger traces are known by their hash, not copied into the run database


@click.command()
@click.argument("scenario", type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a value: --set fleet.0.count=2")
@click.option("--seed", type=click.IntRange(min=0), help="Replace the scenario's seed.")
@click.option("--requests-out", type=click.Path(), help="Write a CSV with one row a request.")
@click.option("--series-out", type=click.Path(), help="Write a CSV of batch, queue and KV use over time.")
@click.option("--series-interval", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
              help="Seconds between rows of the series.")  # fmt: skip
@click.option("--check", is_flag=True, help="Look for broken invariants of the engine at 64 instants (takes longer).")
@click.option("--picture-out", type=click.Path(), help="Write a live fleet's course as an SVG picture.")
@format_option
def simulate(
    scenario: str,
    overrides: tuple[str, ...],
    seed: int | None,
    requests_out: str | None,
    series_out: str | None,
    series_interval: float,
    picture_out: str | None,
    check: bool,
    form: str,
) -> None:
    """Play one workload on one fleet and say how fast it was.

    SCENARIO is a YAML file: model, workload, fleet, router, seed (`plan schema scenario` has every key). The exit code
    is 1 if the scenario has an `slo` section and misses it.

    \b
    Example:
      plan simulate examples/chat.yaml --requests-out requests.csv
    """
    from planner.money.fleet_cost import with_fleet_dollars
    from planner.money.fleet_price import fleet_usd_per_hour, with_dollars
    from simulator.run import simulate as run
    from simulator.run import write_requests, write_series
    from simulator.scenario.spec import read_scenario

    chosen = parse_overrides(overrides) | ({} if seed is None else {"seed": seed})
    read = read_scenario(scenario, chosen)
    usd_per_hour = None if read.is_live else fleet_usd_per_hour(read)
    with progress_bar("simulating"):
        result = run(read, series_interval_s=series_interval if series_out else None, check=check)
    if check:
        click.echo("no invariant is broken (docs/invariants.md)", err=True)
    document = with_dollars(result.document, usd_per_hour)
    if result.fleet is not None:
        document = with_fleet_dollars(document, read, result.fleet.ledger)
    if requests_out:
        refuse_windows(document)
        write_requests(requests_out, result.requests, result.records)
    if series_out:
        write_series(series_out, result.records)
    keep_run(scenario, read, chosen, document)
    if picture_out:
        draw_picture(picture_out, document)
    emit(form, document, run_tables(document), run_notes(document))
    if not result.slo_ok:
        import sys

        click.echo("the SLO is missed", err=True)
        sys.exit(1)


def refuse_windows(document: Mapping[str, Any]) -> None:
    """A run by windows has no row for each request.

    Raises:
        InputError: it was one.
    """
    from catalogs.errors import InputError

    if document.get("live_fleet", {}).get("windows"):
        raise InputError("a run by windows does not play every request", where="--requests-out",
                         remedy="leave out control.windows for a full run")  # fmt: skip


def draw_picture(path: str, document: Mapping[str, Any]) -> None:
    """Write the picture of a live fleet.

    Raises:
        InputError: the fleet is a fixed one, or the folder cannot be written.
    """
    from app.cli.output import plain
    from app.fleet_picture import fleet_picture
    from catalogs.errors import InputError
    from catalogs.files import write_text

    if "live_fleet" not in document:
        raise InputError(
            "a fixed fleet has no course to draw",
            where="--picture-out",
            remedy="a scenario with autoscaling, spot or another fleet section; or --series-out",
        )
    write_text(path, fleet_picture(plain(document)))


def parse_overrides(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``("fleet.0.count=2",)`` as ``{"fleet.0.count": 2}``; values are read as YAML.

    Raises:
        InputError: no ``=``, or a value that is not YAML.
    """
    from catalogs.errors import InputError
    from catalogs.yaml_source import parse_value

    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"{pair!r} is not KEY=VALUE", where="--set", remedy="--set fleet.0.count=2")
        found[key] = parse_value(value, "--set")
    return found


def keep_run(path: str, scenario: Scenario, overrides: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Keep the run for `plan runs`, `compare` and `explain`; a database that cannot be written is only a warning."""
    import hashlib

    from app.runs import kept_or_warned, save_run

    inputs: dict[str, Any] = {"scenario": scenario.model_dump(mode="json", exclude_unset=True)}
    inputs["overrides"] = dict(overrides)
    files = {"scenario": Path(path)}
    trace = scenario.workload.trace
    if trace is not None and trace.stat().st_size <= KEPT_FILE_BYTES:
        files["trace"] = trace
    elif trace is not None:
        with trace.open("rb") as file:
            inputs["trace_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    with kept_or_warned():
        save_run("simulate", inputs, answer, title=f"{answer['model']} on {_fleet_words(answer)}", files=files)


def _fleet_words(answer: Mapping[str, Any]) -> str:
    return " + ".join(
        f"{line['count']} x {line['gpu']}"
        + (f" TP{line['tensor_parallel_size']}" if line["tensor_parallel_size"] > 1 else "")
        for line in answer["fleet"]
    )


def run_tables(answer: Mapping[str, Any]) -> list[Table]:
    """The tables of a run; the first is the one that `--format csv` prints."""
    names = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E", "queue_s": "queue"}
    statistics = ("mean", "p50", "p90", "p95", "p99")
    rows = [[f"{label}, s", *[answer[key][s] for s in statistics]] for key, label in names.items()]
    for name, part in answer["by_class"].items():
        rows += [[f"{name}: {label}, s", *[part[key][s] for s in statistics]] for key, label in names.items()]
    tables = [Table(f"{answer['model']} on {_fleet_words(answer)}", ["latency", *statistics], rows)]
    counts, engine = answer["requests"], answer["engine"]
    shares = answer["time_breakdown"]
    figures: list[tuple[str, object]] = [
        (
            "requests completed / rejected / failed",
            " / ".join(f"{counts[k]:,}" for k in ("completed", "rejected", "failed")),
        ),
        ("requests/s", answer["requests_per_s"]),
        ("output tokens/s", answer["output_tokens_per_s"]),
        ("goodput, requests/s", answer["goodput_rps"] if answer["slo"] else None),
        ("duration, s", answer["duration_s"]),
        ("GPU-hours", answer["gpu_hours"]),
        ("USD", answer["usd"]),
        ("USD per million output tokens", answer["usd_per_million_output_tokens"]),
        ("KV blocks of a replica", engine["num_gpu_blocks"]),
        ("preemptions", engine["preemptions"]),
        ("prefix cache hit rate", engine["prefix_cache_hit_rate"]),
        *_course_rows(answer.get("over_time")),
        *(
            (f"{technique}: {what}".replace("_", " "), value)
            for technique in ("speculation", "swap", "kv_offload")
            for what, value in engine.get(technique, {}).items()
        ),
        (f"request time in {' / '.join(shares['request'])}".replace("_", " "), _percents(shares["request"])),
        ("engine time in steps / copies / overhead / idle", _percents(shares["engine"])),
    ]
    tables.append(Table("Run", ["what", "value"], figures))
    fleet: tuple[str, ...] = (
        "gpu",
        "count",
        "gpus_per_replica",
        "precision",
        "framework",
        "busy_share",
        "decodes_per_iteration",
        "mfu",
        "mbu",
    )
    if "kv_transfer" in answer:
        fleet = ("role", *fleet)
        tables.append(transfer_table(answer["kv_transfer"], statistics))
    tables.append(
        Table("Fleet", [f.replace("_", " ") for f in fleet], [[x[f] for f in fleet] for x in answer["fleet"]])
    )
    if answer["slo"]:
        verdicts = list(_verdicts(answer["slo"]))
        tables.append(Table("SLO", ["promise", "limit", "simulated", "ok"], verdicts))
    return tables + (fleet_tables(answer) if "live_fleet" in answer else [])


def transfer_table(moved: Mapping[str, Any], statistics: Sequence[str]) -> Table:
    """KV transfers of a disaggregated fleet."""
    rows: list[list[object]] = [
        ["waiting for blocks and link, s", *[moved["wait_s"][s] for s in statistics]],
        ["moving, s", *[moved["transfer_s"][s] for s in statistics]],
        ["waiting for a seat, s", *[moved["seat_wait_s"][s] for s in statistics]],
    ]
    title = f"KV transfers: {moved['transfers']:,}, {moved['bytes'] / 1e9:,.1f} GB"
    return Table(title, ["part", *statistics], rows)


def _percents(shares: Mapping[str, float]) -> str:
    return " / ".join(f"{share:.1%}" for share in shares.values())


def _verdicts(slo: Mapping[str, Any], prefix: str = "") -> list[list[object]]:
    rows: list[list[object]] = []
    for name, verdict in slo.items():
        if "ok" in verdict:
            rows.append([prefix + name, verdict["limit"], verdict["simulated"], verdict["ok"]])
        else:
            rows += _verdicts(verdict, f"{name}: ")
    return rows


def run_notes(answer: Mapping[str, Any]) -> list[str]:
    """Sentences that a reader of the tables needs."""
    notes = [
        f"{x['count']} x {x['gpu']}: bottleneck {x['bottleneck']} ({x['bottleneck_why']})."
        for x in answer["fleet"]
        if x.get("bottleneck")
    ]
    notes += [f"Step times: profile {p['name']} ({p['source']})" for p in _distinct(answer["profiles"])]
    notes += answer.get("techniques", [])
    notes += [f"{number:,} rejected: {reason}." for reason, number in answer["rejections"].items()]
    steady = answer["steady_state"]
    if answer["overload"]:
        offered, served = answer["overload"]["offered_rps"], answer["overload"]["served_rps"]
        notes.append(
            f"Overload: {offered:.4g} requests/s arrive and {served:.4g} are served; the queue grows to the end."
        )
    elif steady and "ttft_s" in steady and answer["requests"]["completed"]:
        found = [_with_interval(steady["ttft_s"], name) for name in ("mean", "p50", "p90", "p95", "p99")]
        warm_up = f"After a warm-up of {steady['warm_up_s']:.4g} s, with 95 % confidence (batch means)"
        notes.append(f"{warm_up}: TTFT in s: {', '.join(found)}.")
    notes += fleet_notes(answer) if "live_fleet" in answer else []
    if answer["usd"] is None:
        notes.append("No price: give a fleet line its `instance` (and the scenario a `region`), or `usd_per_hour`.")
    return notes


def _with_interval(part: Mapping[str, float | None], name: str) -> str:
    """A figure and half of its interval; without one, why."""
    width = part[f"{name}_half_width_95"]
    return f"{name} {part[name]:.4g} " + ("(too few requests for an interval)" if width is None else f"± {width:.2g}")


def _course_rows(course: Mapping[str, Any] | None) -> list[tuple[str, object]]:
    """Batch, queue and KV use over the run, a row of bars each."""
    if course is None:
        return []
    rows: list[tuple[str, object]] = []
    for name, values in course.items():
        if name not in ("t_s", "basis"):
            most = max(values)
            bars = "".join(BARS[round(v / most * (len(BARS) - 1)) if most > 0 else 0] for v in values)
            top = f"{most:.0%}" if name.endswith("kv_share") else f"{most:,.0f}"
            label = name.replace("num_", "").replace("kv_share", "KV use").replace("_", " ")
            rows.append((f"{label} over time, up to {top}", bars))
    return rows


def _distinct(profiles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({p["name"]: p for p in profiles}.values())
