"""`plan calibrate show`: one profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from app.cli.output import Table, emit, format_option

if TYPE_CHECKING:
    from calibrate.profiles import Profile


@click.command()
@click.argument("profile")
@format_option
def show(profile: str, form: str) -> None:
    """One PROFILE (a shipped name or a file): what it rests on, its range and its errors.

    \b
    Example:
      plan calibrate show h100-sxm
    """
    from calibrate.profiles import load_profile, profile_to_dict

    found = load_profile(profile, "PROFILE")
    about = [f"{found.name}: {found.gpu}, {found.kind}", f"source: {found.source} ({found.as_of})"]
    if found.method:
        about.append(f"method: {found.method}")
    emit(form, profile_to_dict(found), profile_tables(found), about)


def profile_tables(profile: Profile) -> list[Table]:
    """Errors and ranges by kernel family, and what physics found."""
    error_rows: list[list[Any]] = []
    fit_rows: list[list[Any]] = []
    for family, variants in profile.families.items():
        if not all(isinstance(fit, dict) for fit in variants.values()):
            continue  # not kernels: constants of another kind
        for variant, fit in variants.items():
            error = profile.error.get(family, {}).get(variant, {})
            figures = [error.get(k) for k in ("num_points", "median", "p90", "worst")]
            error_rows.append([family, variant, *figures, error.get("basis", "")])
            numbers = {k: v for k, v in fit.items() if isinstance(v, (int, float))}
            text = ", ".join(f"{k} {v:.3g}" for k, v in numbers.items() if not k.startswith("tile_"))
            fit_rows.append([family, variant, text, _correction(fit), _range(fit)])
    columns = ("family", "variant", "points", "median", "p90", "worst", "basis")
    return [
        Table("Error: |predicted / measured - 1|", columns, error_rows),
        Table("Parameters", ("family", "variant", "physics", "correction", "valid range"), fit_rows),
    ]


def _correction(fit: Mapping[str, Any]) -> str:
    return "trees" if "trees" in fit else "smooth" if fit.get("residual") else "no"


def _range(fit: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {low:g}..{high:g}" for k, (low, high) in fit.get("valid_range", {}).items())
