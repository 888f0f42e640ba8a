"""`plan calibrate fit`: a profile from this machine's measurements."""

from __future__ import annotations

from pathlib import Path

import click

from app.cli.output import emit, format_option
from catalogs.errors import InputError


@click.command()
@click.argument("measurements", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Profile to write (JSON).")
@click.option("--name", help="Name of the profile; left out: the measurements file's.")
@format_option
def fit(measurements: Path, output: Path, name: str | None, form: str) -> None:
    """Turn MEASUREMENTS (from `plan calibrate run`) into a profile.

    \b
    Example:
      plan calibrate fit measurements.jsonl -o my-gpu.json
    """
    from app.cli.calibrate_show import profile_tables
    from calibrate.device.measurements import read_measurements
    from calibrate.fitting.assembly import fit_measurements
    from calibrate.profile_text import dump
    from calibrate.profiles import profile_from_dict
    from catalogs.files import write_text

    if not output.resolve().parent.is_dir():
        raise InputError(f"no folder {output.resolve().parent}", where="--output")
    file = read_measurements(measurements)
    document = fit_measurements(file, name or measurements.stem)
    profile = profile_from_dict(document, str(measurements))
    write_text(output, dump(document))
    answer = {"profile": str(output), "name": profile.name, "gpu": profile.gpu, "error": profile.error}
    notes = [f"written: {output}; use it with `profile: {output}`", *file.remarks]
    emit(form, answer, profile_tables(profile), notes)
