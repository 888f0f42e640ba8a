"""Kept capacities, step tables and simulations: an SQLite file, keyed by content; losing it costs time only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
from pathlib import Path
from types import ModuleType
from typing import Literal

COMMIT_EVERY = 16  # writes that a killed process may lose
Kind = Literal["step_table", "simulated"]
MOST: dict[Kind, int] = {"step_table": 400, "simulated": 60}  # of about 0.3 MB each, and of at most 1 MB


def cache_dir() -> Path:
    """``$PLAN_CACHE``, else the XDG cache directory."""
    own = os.environ.get("PLAN_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gpu-capacity-planner"


class CapacityStore:
    """Numbers by key; works in memory alone where the folder cannot be written.

    Args:
        path: the file; None: in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self._known: dict[str, float] = {}
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._pending = 0
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=10, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS capacity (key TEXT PRIMARY KEY, rps REAL NOT NULL)")
            for kind in MOST:
                self._db.execute(f"CREATE TABLE IF NOT EXISTS {kind} (key TEXT PRIMARY KEY, body BLOB NOT NULL)")
            self._db.commit()
        except (OSError, sqlite3.Error):
            self._db = None

    def get(self, key: str) -> float | None:
        """The number, or None."""
        if key in self._known:
            return self._known[key]
        if self._db is None:
            return None
        try:
            with self._lock:
                row = self._db.execute("SELECT rps FROM capacity WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error:
            return None
        if row is not None:
            self._known[key] = float(row[0])
        return None if row is None else float(row[0])

    def put(self, key: str, value: float) -> None:
        """Keep a number."""
        self._known[key] = value
        if self._db is None:
            return
        try:
            with self._lock:
                self._db.execute("INSERT OR REPLACE INTO capacity VALUES (?, ?)", (key, value))
                self._pending += 1
                if self._pending >= COMMIT_EVERY:
                    self._commit()
        except sqlite3.Error:
            self._db = None

    def get_body(self, kind: Kind, key: str) -> bytes | None:
        """A step table or simulation as bytes, or None."""
        if self._db is None:
            return None
        try:
            with self._lock:
                row = self._db.execute(f"SELECT body FROM {kind} WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error:
            return None
        return None if row is None else bytes(row[0])

    def put_body(self, kind: Kind, key: str, body: bytes) -> None:
        """Keep a step table or simulation; the oldest beyond ``MOST`` of its kind go."""
        if self._db is None:
            return
        try:
            with self._lock:
                self._db.execute(f"INSERT OR REPLACE INTO {kind} VALUES (?, ?)", (key, body))
                oldest = f"SELECT rowid FROM {kind} ORDER BY rowid DESC LIMIT -1 OFFSET ?"
                self._db.execute(f"DELETE FROM {kind} WHERE rowid IN ({oldest})", (MOST[kind],))
                self._pending += 1
        except sqlite3.Error:
            self._db = None

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            with self._lock, contextlib.suppress(sqlite3.Error):
                self._commit()
            self._db.close()
            self._db = None

    def _commit(self) -> None:
        if self._db is not None:
            self._db.commit()
            self._pending = 0


def default_store() -> CapacityStore:
    """The store of this user."""
    return CapacityStore(cache_dir() / "capacity.sqlite3")


def state_of(*packages: ModuleType) -> str:
    """The state of the code of packages: a hash of their files' names, sizes and times of writing."""
    files = [f for package in packages for f in Path(package.__path__[0]).rglob("*")
             if f.is_file() and "__pycache__" not in f.parts]  # fmt: skip
    found = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()
