"""Each report to each destination: retried with backoff, never sent twice for the same period."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from app.report.ledger import DONE, FAILED, STARTED, UNCERTAIN, Ledger
from app.report.send import REPEATABLE, Destination, Message, TransientError, describe, kind_of, send
from catalogs.errors import PlanError

MAX_ATTEMPTS = 4
FIRST_WAIT_S = 2.0


@dataclass(frozen=True)
class Outcome:
    """What became of one delivery: ``done``, ``failed``, ``uncertain``, or ``skipped`` since it was done before."""

    destination: str
    state: str
    detail: str


def deliver(
    message: Message,
    destinations: Sequence[Destination],
    ledger: Ledger,
    *,
    again: bool = False,
    wait: Callable[[float], object] = time.sleep,
) -> list[Outcome]:
    """Send a message to every destination, one failing destination not stopping the others.

    Args:
        message: what to send; its key names schedule and period.
        destinations: where to; all are checked before the first is sent.
        ledger: what was sent before.
        again: send even where the ledger says that it was sent or is uncertain.
        wait: called with the seconds between attempts.

    Raises:
        InputError: a destination is not well formed.
    """
    for destination in destinations:
        kind_of(destination)
    return [_deliver_one(message, d, ledger, again, wait) for d in destinations]


def _deliver_one(
    message: Message, destination: Destination, ledger: Ledger, again: bool, wait: Callable[[float], object]
) -> Outcome:
    where = describe(destination)
    key = f"{message.key}.{_digest(where)}"
    before = ledger.delivery(key)
    if before and not again:
        if before.state == DONE:
            return Outcome(where, "skipped", f"sent already at {before.changed_at}")
        if before.state == UNCERTAIN or (before.state == STARTED and kind_of(destination) not in REPEATABLE):
            detail = "an earlier process ended while sending; look whether it arrived, else `plan report send --again`"
            ledger.write(key, where, UNCERTAIN, _now(), detail)
            return Outcome(where, UNCERTAIN, detail)
    detail = ""
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            wait(FIRST_WAIT_S * 2 ** (attempt - 1))
        ledger.write(key, where, STARTED, _now())
        try:
            detail = send(destination, replace(message, key=key))
        except TransientError as error:
            detail = str(error)
            continue
        except PlanError as error:
            detail = str(error)
            break
        ledger.write(key, where, DONE, _now(), detail)
        return Outcome(where, DONE, detail)
    ledger.write(key, where, FAILED, _now(), detail)
    return Outcome(where, FAILED, detail)


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
