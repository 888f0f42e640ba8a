"""`plan runs`: list, show and remove past runs."""

from __future__ import annotations

from pathlib import Path

import click

from app.cli.output import Table, emit, format_option
from catalogs.errors import InputError


@click.group()
def runs() -> None:
    """List, show and remove past runs.

    \b
    Example:
      plan runs list
    """


@runs.command("list")
@click.option("--kind", help="Only runs of this command, such as recommend.")
@format_option
def list_(kind: str | None, form: str) -> None:
    """All runs, newest first.

    \b
    Example:
      plan runs list --kind recommend
    """
    from app.runs import list_runs

    found = list_runs(kind)
    rows = [(r.run_id, r.kind, r.created_at, r.title) for r in found]
    document = {
        "schema_version": 1,
        "runs": [{"run": r.run_id, "kind": r.kind, "created_at": r.created_at, "title": r.title} for r in found],
    }
    notes = [] if found else ["No runs yet: `plan demo` makes one."]
    emit(form, document, [Table("Runs", ("run", "kind", "created", "title"), rows)], notes)


@runs.command("show")
@click.argument("run")
@click.option("--inputs-to", type=click.Path(file_okay=False, path_type=Path), help="Write the run's input files here.")
@format_option
def show(run: str, inputs_to: Path | None, form: str) -> None:
    """One run: what was asked and what was answered. RUN may be `last` or the beginning of an id.

    \b
    Example:
      plan runs show last --inputs-to again/
    """
    from app.cli.compare import leaves
    from app.runs import file_content, load_run
    from catalogs.files import replacing

    found = load_run(run)
    if inputs_to is not None:
        try:
            inputs_to.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder: {error.strerror}", where="--inputs-to") from error
        for role, file in found.files.items():
            target = inputs_to / f"{role}-{Path(file['path']).name}"
            with replacing(target) as temporary:
                temporary.write_bytes(file_content(file["sha256"]))
            click.echo(f"wrote {target}", err=True)
    document = {
        "schema_version": 1, "run": found.run_id, "kind": found.kind, "created_at": found.created_at,
        "version": found.version, "inputs": found.inputs, "files": found.files, "answer": found.answer,
    }  # fmt: skip
    asked = [*leaves(found.inputs).items(), *[(f"file: {k}", v["path"]) for k, v in found.files.items()]]
    tables = [
        Table(f"Run {found.run_id}: {found.kind}, {found.created_at}", ("asked", "value"), asked),
        Table("Answer", ("figure", "value"), list(leaves(found.answer).items())),
    ]
    emit(form, document, tables, main_table=1)


@runs.command("rm")
@click.argument("run", nargs=-1, required=True)
def rm(run: tuple[str, ...]) -> None:
    """Forget runs and the input files that no other run holds.

    \b
    Example:
      plan runs rm 3f2a
    """
    from app.runs import full_id, remove_run

    full = [full_id(name) for name in run]  # all must exist before any is removed
    for run_id in dict.fromkeys(full):
        click.echo(f"removed {remove_run(run_id)}")
