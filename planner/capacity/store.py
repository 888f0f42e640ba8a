"""Kept capacities and step tables: an SQLite file in the cache folder, keyed by content; losing it costs time only."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from pathlib import Path

COMMIT_EVERY = 16  # writes that a killed process may lose
MOST_TABLES = 400  # step tables, of about 0.3 MB each


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
            self._db.execute("CREATE TABLE IF NOT EXISTS step_table (key TEXT PRIMARY KEY, body BLOB NOT NULL)")
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

    def get_table(self, key: str) -> bytes | None:
        """A step table as bytes, or None."""
        if self._db is None:
            return None
        try:
            with self._lock:
                row = self._db.execute("SELECT body FROM step_table WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error:
            return None
        return None if row is None else bytes(row[0])

    def put_table(self, key: str, body: bytes) -> None:
        """Keep a step table; the oldest beyond ``MOST_TABLES`` go."""
        if self._db is None:
            return
        try:
            with self._lock:
                self._db.execute("INSERT OR REPLACE INTO step_table VALUES (?, ?)", (key, body))
                oldest = "SELECT rowid FROM step_table ORDER BY rowid DESC LIMIT -1 OFFSET ?"
                self._db.execute(f"DELETE FROM step_table WHERE rowid IN ({oldest})", (MOST_TABLES,))
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
