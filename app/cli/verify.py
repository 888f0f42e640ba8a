"""`plan verify`: check a plan's certificate in exact arithmetic."""

from __future__ import annotations

from pathlib import Path

import click

from app.cli.output import Table, emit, format_option


@click.command()
@click.argument("certificate", type=click.Path(dir_okay=False, path_type=Path))
@format_option
def verify(certificate: Path, form: str) -> None:
    """Check in exact fractions, without the solver, that no plan of the certificate's model is cheaper than it says.

    \b
    Example:
      plan recommend -c plan.yaml --certificate proof.json && plan verify proof.json
    """
    from planner.optimizer.certificate import verify_certificate

    found = verify_certificate(certificate)
    rows = [[found["usd_per_hour"], found["proven_usd_per_hour"], found["gap"], found["leaves"]]]
    columns = ["plan (USD/h)", "proven lower bound (USD/h)", "gap", "leaves"]
    note = "The proof holds. It proves the model's optimum; the simulation in `plan recommend` proves the model."
    emit(form, {"schema_version": 1, "holds": True, **found}, [Table("Certificate", columns, rows)], [note])
