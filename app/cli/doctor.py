"""`plan doctor`: what is installed, which profiles and prices are fresh, what is missing and how to get it."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from app.cli.output import Table, emit, format_option
from catalogs.extras import how_to_install, required

EXTRAS = {
    "calibrate": "measure this machine's kernels (`plan calibrate run`)",
    "onnx": "time ONNX Runtime sessions (`plan calibrate onnx`)",
    "web": "serve the web app (`plan web`)",
    "ray": "sweep on a Ray cluster (`plan sweep --engine ray`)",
}


@click.command()
@format_option
def doctor(form: str) -> None:
    """What is installed, fresh or missing, and how to get it.

    \b
    Example:
      plan doctor
    """
    from calibrate.profile_error import measured_accuracy

    packages = _packages()
    document: dict[str, Any] = {
        "schema_version": 1,
        "python": sys.version.split()[0],
        "packages": packages,
        "gpu": _gpu(),
        "profiles": _profiles(),
        "prices": _prices(),
        "runs": _runs(),
        "accuracy": measured_accuracy(),
    }
    emit(form, document, _tables(document), _notes(document))


def _packages() -> list[dict[str, Any]]:
    def found(name: str, extra: str | None) -> dict[str, Any]:
        try:
            installed: str | None = version(name)
        except PackageNotFoundError:
            installed = None
        get = None if installed else how_to_install(extra) if extra else f"pip install {name}"
        return {"package": name, "version": installed, "extra": extra, "get": get}

    return [found(_name(needed), extra) for extra in (None, *EXTRAS) for needed in required(extra)]


def _name(needed: str) -> str:
    """``numpy>=1.26`` without its version."""
    found = re.match(r"[A-Za-z0-9._-]+", needed)
    return found[0] if found else needed


def _gpu() -> str | None:
    """The GPU that the driver names, if any."""
    from calibrate.device.probe import nvidia_smi_query

    row = nvidia_smi_query(("name", "memory.total"))
    return f"{row[0]}, {row[1]} MiB" if row else None


def _profiles() -> list[dict[str, Any]]:
    from calibrate.profiles import shipped_profiles

    return [
        {"profile": p.name, "gpu": p.gpu, "source": p.source, "as_of": p.as_of} for p in shipped_profiles().values()
    ]


def _prices() -> list[dict[str, Any]]:
    """Newest and oldest date of the prices by purchase form."""
    from catalogs.load import prices

    dates: dict[str, list[str]] = {}
    for price in prices():
        dates.setdefault(price.purchase, []).append(price.as_of)
    return [
        {"purchase": form, "prices": len(d), "oldest": min(d), "newest": max(d)} for form, d in sorted(dates.items())
    ]


def _runs() -> dict[str, Any]:
    from app.runs import list_runs
    from catalogs.database import data_dir
    from catalogs.errors import MissingError

    try:
        return {"folder": str(data_dir()), "runs": len(list_runs()), "fault": None}
    except MissingError as error:
        return {"folder": str(data_dir()), "runs": None, "fault": str(error)}


def _tables(document: dict[str, Any]) -> list[Table]:
    def table(title: str, rows: list[dict[str, Any]]) -> Table:
        columns = [c for c in rows[0] if c != "get"] if rows else ["nothing"]  # how to get it stands in the notes
        return Table(title, columns, [[row.get(c) for c in columns] for row in rows])

    titles = {"packages": "Packages", "profiles": "Profiles", "prices": "Prices", "accuracy": "Measured accuracy"}
    return [table(title, document[key]) for key, title in titles.items() if document[key]]


def _notes(document: dict[str, Any]) -> list[str]:
    missing = {p["extra"] for p in document["packages"] if p["version"] is None and p["extra"]}
    notes = [f"Not installed: {extra}, to {EXTRAS[extra]}: {how_to_install(extra)}" for extra in sorted(missing)]
    notes.append(
        f"GPU: {document['gpu']}. `plan calibrate run` measures it."
        if document["gpu"]
        else "No GPU here: plans rest on the shipped profiles; `plan calibrate run` measures a GPU where there is one."
    )
    runs = document["runs"]
    notes.append(
        f"Runs are not kept: {runs['fault']}" if runs["fault"] else f"Runs: {runs['runs']} in {runs['folder']}."
    )
    return notes
