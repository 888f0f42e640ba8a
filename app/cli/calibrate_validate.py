"""`plan calibrate validate`: predicted against measured, by metric and group, with a gate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.cli.output import Table, emit, format_option
from catalogs.errors import InputError

if TYPE_CHECKING:
    from calibrate.fitting.validate import Comparison
    from calibrate.profiles import Profile

CLOSED_LOOP_COLUMN = "silicon_ttft_ms"


@click.command()
@click.argument("profile")
@click.argument("measured", type=click.Path(path_type=Path))
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write predicted against measured as SVG."
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="[METRIC=]PERCENT",
    help="Largest median error, for one metric or all; exit code 1 when a median is above. Default: 20.",
)
@click.option("--points/--no-points", default=False, help="Show every point.")
@format_option
def validate(profile: str, measured: Path, plot: Path | None, limits: tuple[str, ...], points: bool, form: str) -> None:
    """Hold PROFILE (a file, a shipped name, or `best`) against MEASURED figures.

    MEASURED is what `plan calibrate run` wrote (.jsonl), a tidy table of serving points (gpu, tp, model, precision,
    framework, isl, osl, concurrency_or_rate, metric, value, unit, notes), or a closed-loop table (system, model_path,
    backend, isl, osl, concurrency, tp_size, silicon_ttft_ms, silicon_tpot_ms ...).

    \b
    Example:
      plan calibrate validate best serving.csv --limit ttft_s=20 --limit tpot_s=6 --plot errors.svg
    """
    from calibrate.fitting.validate import gate, summarise
    from calibrate.profiles import load_profile
    from catalogs.files import write_text

    bounds = _limits(limits)
    chosen = None if profile == "best" else load_profile(profile, "PROFILE")
    compared, notes = compare(chosen, measured)
    if not compared:
        raise InputError("no point that can be predicted", where=str(measured), why="; ".join(notes[:3]))
    by_group, overall = summarise(compared), summarise(compared, by_group=False)
    if plot:
        write_text(plot, _picture(compared, measured.name))
    columns = ["metric", "group", "points", "median", "p90", "worst", "bias", "worst point"]
    rows = [
        [s.metric, s.group, s.num_points, s.median, s.p90, s.worst, s.bias, s.worst_name] for s in [*overall, *by_group]
    ]
    tables = [Table("Relative errors, predicted over measured less one", columns, rows)]
    if points:
        each = [[c.metric, c.group, c.name, c.predicted, c.measured, c.error] for c in compared]
        tables.append(Table("Points", ["metric", "group", "point", "predicted", "measured", "error"], each))
    document = {
        "schema_version": 1,
        "profile": chosen.name if chosen else "best",
        "measured": str(measured),
        "summary": [vars(s) for s in overall],
        "groups": [vars(s) for s in by_group],
        "points": [vars(c) | {"error": c.error} for c in compared] if points else [],
        "limits": bounds,
        "notes": notes,
    }
    emit(form, document, tables, notes)
    gate(overall, bounds)


def _limits(given: tuple[str, ...]) -> dict[str, float]:
    if not given:
        return {"default": 0.20}
    bounds = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            share = float(value.rstrip("%")) / 100.0
        except ValueError:
            share = -1.0
        if not 0.0 <= share < float("inf"):
            raise InputError(f"{text!r} is not a limit", where="--limit", remedy="ttft_s=20 or 20 (percent)")
        bounds[name or "default"] = share
    return bounds


def compare(profile: Profile | None, measured: Path) -> tuple[list[Comparison], list[str]]:
    """Measured figures beside what a profile (None: the best shipped one) says, and notes.

    Raises:
        InputError: a file that cannot be read, or is no table of measurements.
    """
    if not measured.is_file():
        raise InputError("no such file", where=str(measured), remedy="a .csv of serving points or a .jsonl of kernels")
    if measured.suffix == ".jsonl":
        return _compare_kernels(profile, measured)
    from calibrate.fitting.serving import read_closed_loop, read_tidy
    from simulator.serving_points import Predictor, compare_points

    try:
        with measured.open(encoding="utf-8") as file:
            head = file.readline()
    except UnicodeDecodeError as error:
        raise InputError("not a text file", where=str(measured), remedy="a CSV with a header line") from error
    points = read_closed_loop(measured) if CLOSED_LOOP_COLUMN in head else read_tidy(measured)
    return compare_points(points, Predictor(profile)), [f"{len(points)} loads, each simulated on one replica"]


def _compare_kernels(profile: Profile | None, measured: Path) -> tuple[list[Comparison], list[str]]:
    from calibrate.device.measurements import read_measurements
    from calibrate.device.probe import measured_gpu
    from calibrate.fitting.kernel_comparisons import compare_kernels
    from calibrate.profiles import best_profile
    from catalogs.load import find_model, known_gpu
    from catalogs.schema import Replica

    held = read_measurements(measured)
    gpu = known_gpu(str(held.header.get("name", ""))) or measured_gpu(held.header, held.path)
    chosen = profile or best_profile(Replica(find_model("llama-3.1-8b"), gpu))
    return compare_kernels(chosen, gpu, held.points)


def _picture(compared: list[Comparison], title: str) -> str:
    from app.charts import Axis, Series, svg

    metrics = list(dict.fromkeys(c.metric for c in compared))
    series = []
    for metric in metrics:
        mine = [c for c in compared if c.metric == metric]
        top = max(c.measured for c in mine)  # one scale for all metrics: share of the metric's largest figure
        series.append(Series(metric, [c.measured / top for c in mine], [c.predicted / top for c in mine], "points"))
    low = min(min(s.x) for s in series)
    series.append(Series("equal", [low, 1.0], [low, 1.0], colour="#999999"))
    x = Axis("measured, share of the metric's largest", True)
    return svg(f"Predicted against measured: {title}", series, x, Axis("predicted", True), size=(720, 420))
