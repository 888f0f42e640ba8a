"""A Prometheus server asked over HTTP: instant and range queries, and what its failures mean.

API: prometheus.io/docs/prometheus/latest/querying/api. A bearer token is taken from ``$PLAN_PROMETHEUS_TOKEN``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from catalogs.errors import InputError, MissingError
from catalogs.files import parse_json

MAX_POINTS = 10_000  # Prometheus refuses range queries of more than 11,000 points a series
MAX_ANSWER_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Series:
    """One series of an answer: its labels, and (instant, value) pairs; NaN and infinities are left out."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def value(self) -> float | None:
        """The last value."""
        return self.points[-1][1] if self.points else None


@dataclass(frozen=True)
class Prometheus:
    """A server's address.

    Raises:
        InputError: the address is no http(s) one.
    """

    url: str
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        try:
            found = urlsplit(self.url)
            known = found.scheme in ("http", "https") and bool(found.hostname) and found.port != 0
        except ValueError:  # brackets that hold no address, a port that is no number
            known = False
        if not known:
            raise InputError(f"{self.url!r} is no http address", where="--prometheus", remedy="http://host:9090")

    def instant(self, query: str, at_s: float) -> list[Series]:
        """The query's value at one instant (Unix seconds).

        Raises:
            InputError: Prometheus does not understand the query.
            MissingError: it cannot be reached, refuses the token, or answers what it never would.
        """
        return _series(self._get("query", {"query": query, "time": f"{at_s:.3f}"}))

    def range(self, query: str, start_s: float, end_s: float, step_s: float) -> list[Series]:
        """The query's values from start to end, both included, every ``step_s``, or more where that is too many.

        Raises:
            as ``instant``.
        """
        step = max(step_s, (end_s - start_s) / MAX_POINTS)
        asked = {"query": query, "start": f"{start_s:.3f}", "end": f"{end_s:.3f}", "step": f"{step:.3f}"}
        return _series(self._get("query_range", asked))

    def scalar(self, query: str, at_s: float) -> float | None:
        """The sum of an instant answer's values; ``None`` when there is none."""
        values = [s.value for s in self.instant(query, at_s) if s.value is not None]
        return math.fsum(values) if values else None

    def _get(self, path: str, asked: Mapping[str, str]) -> Mapping[str, Any]:
        url = f"{self.url.rstrip('/')}/api/v1/{path}"
        request = Request(url, data=urlencode(asked).encode(), headers=_headers())
        try:
            refused, body = self._send(request)
        except (OSError, HTTPException) as error:  # the latter of what speaks no HTTP, or breaks off
            reason = getattr(error, "reason", error)
            raise MissingError(
                f"Prometheus cannot be reached: {reason}", where=self.url,
                why="without it the report knows what was spent, not what was served",
                remedy="check the address, or leave --prometheus out",
            ) from None  # fmt: skip
        return self._data(body) if refused is None else self._refused(refused, body, asked["query"])

    def _send(self, request: Request) -> tuple[int | None, bytes]:
        """The status of an answer that refuses, and the answer."""
        try:
            with urlopen(request, timeout=self.timeout_s) as answer:
                return None, answer.read(MAX_ANSWER_BYTES)
        except HTTPError as error:
            with error:
                return error.code, error.read(100_000)

    def _data(self, body: bytes) -> Mapping[str, Any]:
        try:
            found = parse_json(body)
            if found["status"] == "success":
                return dict(found["data"])
        except (ValueError, KeyError, TypeError):
            pass
        raise MissingError("what answered is not Prometheus", where=self.url, remedy="give the server's root address")

    def _refused(self, status: int, body: bytes, query: str) -> Mapping[str, Any]:
        if status in (401, 403):
            raise MissingError(
                f"Prometheus refuses us ({status})", where=self.url, remedy="set PLAN_PROMETHEUS_TOKEN to a token"
            )
        try:
            said = parse_json(body)
            kind, text = str(said["errorType"]), str(said["error"])
        except (ValueError, KeyError, TypeError):
            raise MissingError(f"what answered is not Prometheus (HTTP {status})", where=self.url) from None
        if kind == "bad_data":
            raise InputError(f"Prometheus does not understand {query!r}: {text}", where="--selector")
        raise MissingError(f"Prometheus could not answer ({kind}: {text})", where=self.url, remedy="a shorter period")


def _headers() -> dict[str, str]:
    token = os.environ.get("PLAN_PROMETHEUS_TOKEN", "").strip()  # a secret's file ends in a line break
    if not token.isprintable():
        raise InputError("PLAN_PROMETHEUS_TOKEN is no token", why="it holds line breaks or control characters")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    return form | ({"Authorization": f"Bearer {token}"} if token else {})


def _series(data: Mapping[str, Any]) -> list[Series]:
    try:
        kind, result = data["resultType"], data["result"]
        if kind == "scalar":
            return [Series({}, _points([result]))]
        return [
            Series({str(k): str(v) for k, v in s["metric"].items()},
                   _points(s["values"] if kind == "matrix" else [s["value"]]))
            for s in result
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MissingError(f"Prometheus's answer cannot be read ({type(error).__name__}: {error})") from None


def _points(pairs: Sequence[Sequence[Any]]) -> tuple[tuple[float, float], ...]:
    found = ((float(at), float(value)) for at, value in pairs)
    return tuple((at, value) for at, value in found if math.isfinite(value))


def quantile(buckets: Mapping[float, float], q: float) -> float | None:
    """The q-quantile of a histogram, linear within a bucket (Prometheus's ``histogram_quantile``).

    Args:
        buckets: upper edge to cumulative count; the last edge is infinity.

    Returns:
        ``None`` when nothing was counted; the highest finite edge when the quantile lies beyond it.
    """
    edges = sorted(buckets)
    total = buckets[edges[-1]] if edges else 0.0
    if total <= 0:
        return None
    rank, below, low = q * total, 0.0, 0.0
    for edge in edges:
        count = buckets[edge]
        if count >= rank:
            if math.isinf(edge):
                return low
            return low + (edge - low) * ((rank - below) / (count - below) if count > below else 1.0)
        below, low = count, edge
    return low


def share_above(buckets: Mapping[float, float], limit: float) -> float | None:
    """The share of a histogram's observations above a limit, linear within a bucket; ``None`` when it is empty."""
    edges = sorted(buckets)
    total = buckets[edges[-1]] if edges else 0.0
    if total <= 0:
        return None
    below, low = 0.0, 0.0
    for edge in edges:
        count = buckets[edge]
        if edge >= limit:
            if math.isinf(edge):
                return (total - below) / total  # somewhere beyond the last edge: all of it counts as above
            part = (limit - low) / (edge - low) if edge > low else 1.0
            return max(0.0, total - below - part * (count - below)) / total
        below, low = count, edge
    return 0.0
