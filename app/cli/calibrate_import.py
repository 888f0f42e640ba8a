"""`plan calibrate import`: a profile from published kernel tables."""

from __future__ import annotations

from pathlib import Path

import click

from app.cli.output import FORMATS, emit
from catalogs.errors import InputError

TABLES = ("aiconfigurator", "llmservingsim", "vidur")


@click.command(name="import")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "forms",
    type=click.Choice((*TABLES, *FORMATS)),
    multiple=True,
    required=True,
    help="Whose tables they are; once more for the form of the answer.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Profile to write (JSON).")
@click.option("--gpu", help="The measured GPU, where the tables do not tell it.")
@click.option("--name", help="Name of the profile; left out: the GPU's and the folder's.")
def import_(folder: Path, forms: tuple[str, ...], output: Path, gpu: str | None, name: str | None) -> None:
    """Make a profile from published kernel tables in FOLDER.

    \b
    Example:
      plan calibrate import --format aiconfigurator h100_sxm/vllm-0.24.0 -o h100.json
    """
    from app.cli.calibrate_show import profile_tables
    from calibrate.fitting.importers import import_tables
    from calibrate.profile_text import dump
    from calibrate.profiles import profile_from_dict
    from catalogs.files import write_text
    from catalogs.load import find_gpu

    whose = [f for f in forms if f in TABLES]
    if len(whose) != 1:
        raise InputError(
            "say once whose tables they are",
            where="--format",
            remedy=f"--format {TABLES[0]}, or {', '.join(TABLES[1:])}",
        )
    if not output.resolve().parent.is_dir():
        raise InputError(f"no folder {output.resolve().parent}", where="--output")
    document = import_tables(whose[0], folder, find_gpu(gpu, "--gpu") if gpu else None)
    if name:
        document["name"] = name
    profile = profile_from_dict(document, str(folder))
    write_text(output, dump(document))
    answer = {"profile": str(output), "name": profile.name, "gpu": profile.gpu, "error": profile.error}
    form = next((f for f in forms if f in FORMATS), "table")
    emit(form, answer, profile_tables(profile), [f"written: {output}; use it with `profile: {output}`"])
