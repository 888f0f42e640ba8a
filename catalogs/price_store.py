"""Prices and supply facts fetched from AWS, kept with when and whence in one SQLite file; nothing is overwritten.

The file is ``$PLAN_PRICES_DB``, else ``prices.sqlite`` in ``$PLAN_HOME``, else in
``$XDG_DATA_HOME/gpu-capacity-planner``. It holds public prices and account limits, never a credential.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from catalogs.database import data_dir
from catalogs.errors import InputError, MissingError
from catalogs.schema import Price, Purchase
from catalogs.tables import first_day

SCHEMA_VERSION = 1
FETCHED = ", fetched "  # in a price's source: it is from here, not from the catalogue
_TABLES = """
CREATE TABLE IF NOT EXISTS refreshes (
    refresh_id INTEGER PRIMARY KEY, started_at TEXT NOT NULL, finished_at TEXT, regions TEXT NOT NULL,
    missing TEXT NOT NULL DEFAULT '[]');
CREATE TABLE IF NOT EXISTS prices (
    refresh_id INTEGER NOT NULL REFERENCES refreshes, instance TEXT NOT NULL, region TEXT NOT NULL,
    zone TEXT NOT NULL, purchase TEXT NOT NULL, terms TEXT NOT NULL, usd_per_hour REAL NOT NULL,
    upfront_usd REAL, source TEXT NOT NULL, as_of TEXT NOT NULL, fetched_at TEXT NOT NULL,
    UNIQUE (refresh_id, instance, region, zone, purchase, terms, as_of));
CREATE INDEX IF NOT EXISTS prices_key ON prices (instance, region, purchase);
CREATE TABLE IF NOT EXISTS facts (
    refresh_id INTEGER NOT NULL REFERENCES refreshes, kind TEXT NOT NULL, region TEXT NOT NULL, zone TEXT NOT NULL,
    name TEXT NOT NULL, value TEXT NOT NULL, source TEXT NOT NULL, fetched_at TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Quote:
    """One fetched price; ``zone`` and ``terms`` are empty where they do not apply."""

    instance: str
    region: str
    purchase: Purchase
    usd_per_hour: float
    source: str
    as_of: str  # when the price held, ISO
    zone: str = ""
    terms: str = ""  # "RI standard, All Upfront", "EC2 Instance Savings Plan, No Upfront", ...
    upfront_usd: float | None = None
    fetched_at: str = ""


@dataclass(frozen=True)
class Fact:
    """One fetched fact beside prices: an offering, a quota, a placement score, an interruption bucket."""

    kind: str
    region: str
    name: str
    value: Mapping[str, object]
    source: str
    zone: str = ""
    fetched_at: str = ""


def default_path() -> Path:
    """Where fetched prices are kept."""
    own = os.environ.get("PLAN_PRICES_DB")
    return Path(own) if own else data_dir() / "prices.sqlite"


class PriceStore:
    """The file of fetched prices.

    Raises:
        InputError: the file is not such a store, or is written by a newer version.
        MissingError: it cannot be made or opened.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            if write:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self.path, timeout=30)
        except (OSError, sqlite3.Error) as error:
            raise MissingError(
                f"cannot open the price store: {error}",
                where=str(self.path),
                remedy="set PLAN_PRICES_DB or PLAN_HOME to a place that you can write",
            ) from error
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise InputError("the price store is from a newer version", where=str(self.path))
            if write and version == 0:
                db.executescript(_TABLES)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            with db:
                yield db
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"not a price store: {error}",
                where=str(self.path),
                remedy="move the file away; `plan prices refresh` makes a new one",
            ) from None
        finally:
            db.close()

    def exists(self) -> bool:
        """Whether anything was ever fetched."""
        return self.path.is_file() and self.path.stat().st_size > 0

    def begin(self, regions: Sequence[str]) -> int:
        """Start a refresh and return its id."""
        with self._open(write=True) as db:
            row = db.execute(
                "INSERT INTO refreshes (started_at, regions) VALUES (?, ?)", (now(), json.dumps(list(regions)))
            )
            return int(row.lastrowid or 0)

    def finish(self, refresh_id: int, missing: Sequence[Mapping[str, str]]) -> None:
        """End a refresh, saying what is missing."""
        with self._open(write=True) as db:
            db.execute(
                "UPDATE refreshes SET finished_at = ?, missing = ? WHERE refresh_id = ?",
                (now(), json.dumps(list(missing)), refresh_id),
            )

    def add_quotes(self, refresh_id: int, quotes: Iterable[Quote]) -> int:
        """Keep prices as soon as they are fetched; returns how many."""
        stamp = now()
        rows = [
            (refresh_id, q.instance, q.region, q.zone, q.purchase, q.terms, q.usd_per_hour, q.upfront_usd, q.source,
             q.as_of, stamp)
            for q in quotes
        ]  # fmt: skip
        with self._open(write=True) as db:
            db.executemany("INSERT OR REPLACE INTO prices VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows)
        return len(rows)

    def add_facts(self, refresh_id: int, facts: Iterable[Fact]) -> int:
        """Keep facts as soon as they are fetched; returns how many."""
        stamp = now()
        rows = [(refresh_id, f.kind, f.region, f.zone, f.name, json.dumps(f.value), f.source, stamp) for f in facts]
        with self._open(write=True) as db:
            db.executemany("INSERT INTO facts VALUES (?,?,?,?,?,?,?,?)", rows)
        return len(rows)

    def quotes(self, before: str | None = None) -> list[Quote]:
        """The newest quote of each instance, region, zone, purchase form and terms.

        Args:
            before: only what was fetched before this instant (ISO), to see what was known then.
        """
        if not self.exists():
            return []
        query = (
            "SELECT instance, region, purchase, usd_per_hour, source, as_of, zone, terms, upfront_usd, fetched_at "
            "FROM prices WHERE (? IS NULL OR fetched_at < ?) ORDER BY as_of, fetched_at, refresh_id"
        )
        with self._open() as db:
            rows = [Quote(*row) for row in db.execute(query, (before, before))]
        newest = {(q.instance, q.region, q.zone, q.purchase, q.terms): q for q in rows}
        return list(newest.values())

    def facts(self, kind: str | None = None) -> list[Fact]:
        """The newest fact of each kind, region, zone and name."""
        if not self.exists():
            return []
        query = (
            "SELECT kind, region, name, value, source, zone, fetched_at FROM facts "
            "WHERE (? IS NULL OR kind = ?) ORDER BY fetched_at, refresh_id"
        )
        with self._open() as db:
            rows = [
                Fact(k, region, name, json.loads(value), source, zone, at)
                for k, region, name, value, source, zone, at in db.execute(query, (kind, kind))
            ]
        return list({(f.kind, f.region, f.zone, f.name): f for f in rows}.values())

    def refreshes(self) -> list[dict[str, object]]:
        """Every refresh, newest first: when, which regions, what was missing."""
        if not self.exists():
            return []
        query = (
            "SELECT refresh_id, started_at, finished_at, regions, missing FROM refreshes ORDER BY refresh_id DESC"
        )  # fmt: skip
        with self._open() as db:
            return [
                {"refresh_id": i, "started_at": s, "finished_at": f, "regions": json.loads(r), "missing": json.loads(m)}
                for i, s, f, r, m in db.execute(query)
            ]


def now() -> str:
    """This instant, ISO, UTC, to the microsecond."""
    return datetime.now(UTC).isoformat()


def as_prices(quotes: Iterable[Quote]) -> list[Price]:
    """Quotes as one price for each instance, region and purchase form.

    Spot is the median of the zones' newest prices; a commitment is the cheapest of its payment forms.
    """
    groups: dict[tuple[str, str, str], list[Quote]] = {}
    for q in quotes:
        groups.setdefault((q.instance, q.region, q.purchase), []).append(q)
    return [_one_price(group) for _, group in sorted(groups.items())]


def _one_price(group: Sequence[Quote]) -> Price:
    first = group[0]
    if first.purchase == "spot":
        usd = statistics.median(q.usd_per_hour for q in group)
        zones = len({q.zone for q in group})
        chosen, notes = min(group, key=lambda q: q.as_of), f"median of {zones} zone{'s' if zones != 1 else ''}"
    else:
        chosen = min(group, key=lambda q: q.usd_per_hour)
        usd, notes = chosen.usd_per_hour, chosen.terms
    return Price(
        first.instance, first.region, first.purchase, usd,
        source=f"{chosen.source}{FETCHED}{chosen.fetched_at[:10]}", as_of=chosen.as_of[:10], confidence="high",
        notes=notes,
    )  # fmt: skip


def merge(catalogue: Sequence[Price], fetched: Sequence[Price]) -> tuple[Price, ...]:
    """The catalogue with each price replaced by the fetched one where that is as new or newer."""
    best = {(p.instance, p.region, p.purchase): p for p in catalogue}
    for p in fetched:
        key = (p.instance, p.region, p.purchase)
        old, new = first_day(best[key].as_of) if key in best else None, first_day(p.as_of)
        if new is not None and (old is None or new >= old):
            best[key] = p
    return tuple(best.values())
