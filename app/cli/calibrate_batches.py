"""`plan calibrate batches`: whole measured steps against a fitted profile."""

from __future__ import annotations

import click

from app.cli.output import Table, emit, format_option


@click.command()
@click.argument("measurements", type=click.Path())
@click.argument("profile", type=click.Path())
@click.option("--max-error", type=click.FloatRange(min=0), help="Exit with 1 if the median error is above this share.")
@format_option
def batches(measurements: str, profile: str, max_error: float | None, form: str) -> None:
    """Say how well a profile predicts the whole steps in MEASUREMENTS, on which it was not fitted.

    \b
    Example:
      plan calibrate run -o measured.jsonl
      plan calibrate fit measured.jsonl -o mine.json
      plan calibrate batches measured.jsonl mine.json
    """
    from calibrate.device.batch_check import check_steps, summarise_errors
    from calibrate.device.measurements import read_measurements
    from calibrate.profiles import load_profile
    from catalogs.errors import GateError

    rows = check_steps(read_measurements(measurements), load_profile(profile))
    errors = summarise_errors(rows)
    cells = [[*list(row.values())[:-1], f"{row['error']:+.1%}"] for row in rows]
    said = f"error {errors['median']:.1%} in the median, {errors['p90']:.1%} at p90, {errors['worst']:.1%} at worst"
    emit(form, {"schema_version": 1, "steps": rows, "error": errors}, [Table(profile, list(rows[0]), cells)], [said])
    if max_error is not None and errors["median"] > max_error:
        raise GateError(f"the median error {errors['median']:.1%} is above {max_error:.1%}", where="--max-error")
