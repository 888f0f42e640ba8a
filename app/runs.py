"""Past runs, kept with their inputs in one SQLite file, so that any answer can be reproduced.

A run's id is the hash of what was asked (kind, settings and the content of the input files): the same question
asked twice is one run. Files up to ``MAX_FILE_BYTES`` are kept compressed, each content once; of larger ones only
the path and the hash. The file lies in ``$PLAN_HOME``, else ``$XDG_DATA_HOME/gpu-capacity-planner``.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from catalogs.database import data_dir, transaction
from catalogs.errors import InputError, MissingError

SCHEMA_VERSION = 1
MAX_FILE_BYTES = 64 * 1024 * 1024

_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY, kind TEXT NOT NULL, created_at TEXT NOT NULL, title TEXT NOT NULL,
    inputs TEXT NOT NULL, answer TEXT NOT NULL, version TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS contents (sha256 TEXT PRIMARY KEY, data BLOB);
CREATE TABLE IF NOT EXISTS files (
    run_id TEXT NOT NULL REFERENCES runs ON DELETE CASCADE, name TEXT NOT NULL, path TEXT NOT NULL,
    sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (run_id, name));
"""


@dataclass(frozen=True)
class Run:
    """One question and its answer; ``files`` maps a file's role to its path and hash."""

    run_id: str
    kind: str
    created_at: str
    title: str
    inputs: dict[str, Any]
    answer: dict[str, Any]
    version: str
    files: dict[str, dict[str, Any]]


def save_run(
    kind: str,
    inputs: Mapping[str, Any],
    answer: Mapping[str, Any],
    *,
    title: str = "",
    files: Mapping[str, Path] | None = None,
) -> str:
    """Keep an answer with what was asked, and return the run's id.

    Args:
        kind: the command: ``recommend``, ``simulate``, ...
        inputs: JSON-ready settings, complete enough to ask again.
        answer: the JSON answer.
        title: a few words for the list.
        files: input files by role (``{"trace": path}``).

    Raises:
        MissingError: the run file cannot be written.
    """
    described = {role: _describe(path) for role, path in (files or {}).items()}
    run_id = _identity(kind, inputs, files or {}, described)
    with _database() as db:
        db.execute(
            "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)",
            (run_id, kind, datetime.now(UTC).isoformat(timespec="seconds"), title, json.dumps(inputs, default=str),
             json.dumps(answer), _version()),
        )  # fmt: skip
        for role, described_file in described.items():
            _keep_file(db, run_id, role, described_file)
    return run_id


@contextmanager
def kept_or_warned() -> Iterator[None]:
    """Around ``save_run``: a place that cannot be written is only a warning; the answer is worth more."""
    try:
        yield
    except (MissingError, OSError) as error:
        click.echo(f"warning: the run is not kept: {error}", err=True)


def list_runs(kind: str | None = None) -> list[Run]:
    """All runs, newest first."""
    with _database() as db:
        rows = db.execute(
            "SELECT run_id FROM runs WHERE ?1 IS NULL OR kind = ?1 ORDER BY created_at DESC, run_id", (kind,)
        ).fetchall()
        return [_read(db, row[0]) for row in rows]


def load_run(run_id: str) -> Run:
    """The run of this id, or of the only id that begins so; ``last`` is the newest.

    Raises:
        InputError: no such run, or several begin so.
    """
    with _database() as db:
        return _read(db, _resolve(db, run_id))


def full_id(run_id: str) -> str:
    """The whole id of a run, also of one whose answer is damaged; see ``load_run``."""
    with _database() as db:
        return _resolve(db, run_id)


def remove_run(run_id: str) -> str:
    """Forget a run and the file contents that no other run holds; returns its full id."""
    with _database() as db:
        full = _resolve(db, run_id)
        db.execute("DELETE FROM files WHERE run_id = ?", (full,))
        db.execute("DELETE FROM runs WHERE run_id = ?", (full,))
        db.execute("DELETE FROM contents WHERE sha256 NOT IN (SELECT sha256 FROM files)")
        return full


def file_content(sha256: str) -> bytes:
    """The kept content of an input file.

    Raises:
        MissingError: it was too large to keep.
    """
    with _database() as db:
        row = db.execute("SELECT data FROM contents WHERE sha256 = ?", (sha256,)).fetchone()
    if row is None:
        raise MissingError("this input file was too large to keep", remedy="use the file at its original path")
    try:
        return zlib.decompress(row[0])
    except (zlib.error, TypeError) as error:
        raise MissingError("the kept content is damaged", remedy="use the file at its original path") from error


def _identity(
    kind: str, inputs: Mapping[str, Any], files: Mapping[str, Path], described: Mapping[str, Mapping[str, Any]]
) -> str:
    """The hash of what was asked; of its files the content counts, not the place."""
    text = json.dumps({"kind": kind, "inputs": inputs}, sort_keys=True, default=str)
    for role, path in files.items():
        for place in {str(path), described[role]["path"]}:
            text = text.replace(json.dumps(place), json.dumps(f"file:{described[role]['sha256']}"))
    contents = sorted((role, d["sha256"]) for role, d in described.items())
    return hashlib.sha256((text + json.dumps(contents)).encode()).hexdigest()[:10]


def _describe(path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as source:
        while piece := source.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    return {"path": str(path.resolve()), "sha256": digest.hexdigest(), "bytes": size}


def _keep_file(db: sqlite3.Connection, run_id: str, role: str, described: Mapping[str, Any]) -> None:
    db.execute(
        "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
        (run_id, role, described["path"], described["sha256"], described["bytes"]),
    )
    known = db.execute("SELECT 1 FROM contents WHERE sha256 = ?", (described["sha256"],)).fetchone()
    if known is None and described["bytes"] <= MAX_FILE_BYTES:
        data = zlib.compress(Path(described["path"]).read_bytes(), level=3)
        db.execute("INSERT OR IGNORE INTO contents VALUES (?, ?)", (described["sha256"], data))


def _resolve(db: sqlite3.Connection, run_id: str) -> str:
    if run_id == "last":
        row = db.execute("SELECT run_id FROM runs ORDER BY created_at DESC LIMIT 1").fetchone()
        if row is None:
            raise InputError("there are no runs yet", remedy="`plan demo` makes one")
        return str(row[0])
    pattern = run_id.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    rows = db.execute("SELECT run_id FROM runs WHERE run_id LIKE ? ESCAPE '\\'", (pattern,)).fetchall()
    if len(rows) == 1 and run_id:
        return str(rows[0][0])
    if rows and run_id:
        names = ", ".join(sorted(str(r[0]) for r in rows)[:5])
        raise InputError(f"several runs begin with {run_id!r}", where="RUN", remedy=f"one of: {names}")
    raise InputError(f"no run {run_id!r}", where="RUN", remedy="`plan runs list` shows what is kept")


def _read(db: sqlite3.Connection, run_id: str) -> Run:
    row = db.execute(
        "SELECT run_id, kind, created_at, title, inputs, answer, version FROM runs WHERE run_id = ?", (run_id,)
    ).fetchone()
    files = {
        name: {"path": path, "sha256": sha256, "bytes": size}
        for name, path, sha256, size in db.execute(
            "SELECT name, path, sha256, bytes FROM files WHERE run_id = ?", (run_id,)
        )
    }
    try:
        return Run(row[0], row[1], row[2], row[3], json.loads(row[4]), json.loads(row[5]), row[6], files)
    except ValueError as error:
        raise MissingError(
            "this run is damaged", where=run_id, remedy=f"`plan runs rm {run_id}`, and run it again"
        ) from error


def _database() -> AbstractContextManager[sqlite3.Connection]:
    return transaction(data_dir() / "runs.sqlite3", _TABLES, SCHEMA_VERSION, "the run file")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gpu-capacity-planner")
    except PackageNotFoundError:
        return "unknown"
