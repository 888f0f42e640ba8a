"""One SQLite file, one transaction at a time: it survives a kill and two writers, and refuses a newer form in words."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from catalogs.errors import MissingError


def data_dir() -> Path:
    """Where runs, deliveries and fetched prices are kept: ``$PLAN_HOME``, else the XDG data directory."""
    home = os.environ.get("PLAN_HOME")
    if home:
        return Path(home)
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "gpu-capacity-planner"


@contextmanager
def transaction(path: Path, tables: str, schema_version: int, what: str) -> Iterator[sqlite3.Connection]:
    """A connection in one transaction: committed when the block ends well, rolled back otherwise.

    Args:
        path: the file; made, with its folder and ``tables``, when absent.
        tables: SQL that makes them.
        schema_version: of the tables, kept in the file.
        what: what the file is, for errors: ``"the run file"``.

    Raises:
        MissingError: the file cannot be made, is no such database, or has a newer form.
    """
    remedy = "set PLAN_HOME to a folder that you can write, or move the file away"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, timeout=30)
    except (OSError, sqlite3.Error) as error:
        raise MissingError(f"cannot open {what}: {error}", where=str(path), remedy=remedy) from error
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA foreign_keys = ON")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > schema_version:
            raise MissingError(
                f"{what} has form {version}, this program knows {schema_version}",
                where=str(path),
                remedy="update this program, or set PLAN_HOME to another folder",
            )
        if version < schema_version:
            db.executescript(tables)
            db.execute(f"PRAGMA user_version = {schema_version}")
        with db:
            yield db
    except sqlite3.DatabaseError as error:
        raise MissingError(f"{what} cannot be used: {error}", where=str(path), remedy=remedy) from error
    finally:
        db.close()
