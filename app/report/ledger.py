"""What was sent where, kept in SQLite, so that no period is lost and none is sent twice.

A delivery is written down as ``started`` before it leaves and as ``done`` after it arrived. A process killed in
between leaves ``started``: whether the message arrived is then unknown. Destinations that recognise a repeated key
(a file, an S3 object, a webhook with its Idempotency-Key, a mail with its Message-ID) are simply repeated under the
same key; the others (SNS, Slack, SES) are not, and the delivery is reported as uncertain.
"""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from catalogs.database import transaction

SCHEMA_VERSION = 1
STARTED, DONE, FAILED, UNCERTAIN = "started", "done", "failed", "uncertain"

_TABLES = """
CREATE TABLE IF NOT EXISTS periods (
    schedule TEXT NOT NULL, due_at TEXT NOT NULL, finished_at TEXT, PRIMARY KEY (schedule, due_at));
CREATE TABLE IF NOT EXISTS deliveries (
    key TEXT PRIMARY KEY, destination TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL,
    changed_at TEXT NOT NULL, detail TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Delivery:
    """One report to one destination."""

    key: str
    destination: str
    state: str
    attempts: int
    changed_at: str
    detail: str


class Ledger:
    """The deliveries and finished periods in one SQLite file.

    Args:
        path: the file; made when absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def delivery(self, key: str) -> Delivery | None:
        """The delivery of this key, if any was begun."""
        with self._database() as db:
            row = db.execute("SELECT * FROM deliveries WHERE key = ?", (key,)).fetchone()
        return Delivery(*row) if row else None

    def deliveries(self) -> list[Delivery]:
        """All deliveries, newest first."""
        with self._database() as db:
            rows = db.execute("SELECT * FROM deliveries ORDER BY changed_at DESC, key").fetchall()
        return [Delivery(*row) for row in rows]

    def write(self, key: str, destination: str, state: str, changed_at: str, detail: str = "") -> None:
        """Write a delivery's state down; a ``started`` counts one attempt more."""
        with self._database() as db:
            db.execute(
                "INSERT INTO deliveries VALUES (?1, ?2, ?3, 1, ?4, ?5) ON CONFLICT (key) DO UPDATE SET"
                " state = ?3, changed_at = ?4, detail = ?5, attempts = attempts + (?3 = 'started')",
                (key, destination, state, changed_at, detail),
            )

    def last_finished(self, schedule: str) -> str | None:
        """The latest period (ISO instant) of a schedule that is finished."""
        with self._database() as db:
            row = db.execute(
                "SELECT max(due_at) FROM periods WHERE schedule = ? AND finished_at IS NOT NULL", (schedule,)
            ).fetchone()
        return row[0] if row else None

    def finish(self, schedule: str, due_at: str, finished_at: str) -> None:
        """A period is done: every destination has it, or is written down as failed or uncertain."""
        with self._database() as db:
            db.execute("INSERT OR REPLACE INTO periods VALUES (?, ?, ?)", (schedule, due_at, finished_at))

    def _database(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self.path, _TABLES, SCHEMA_VERSION, "the ledger")
