"""Every reader, on anything: it answers, or refuses with words. Never a crash, a hang or a foreign exception.

Seeds are real forms of each file, which hypothesis then damages: bytes dropped, doubled, replaced, cut off, spliced.
Of structured files every value is also replaced by values of other kinds and sizes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrate.device.profilers import read_trace as read_profiler_trace
from catalogs.errors import PlanError
from tests.readers import READERS


@st.composite
def damaged(draw: st.DrawFn, seed: bytes) -> bytes:
    """A seed with up to five wounds."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(0, 5))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(("drop", "insert", "replace", "cut", "double", "token")))
        if kind == "drop":
            del data[at : at + draw(st.integers(1, 12))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=8))
        elif kind == "replace" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at:]
        elif kind == "double":
            data[at:at] = data[max(0, at - 40) : at]
        else:
            words = (
                b"-1",
                b"nan",
                b"1e999",
                b"null",
                b"[]",
                b"{}",
                b'"',
                b"99999999999999999999",
                b"\n",
                b",",
                b": ",
                b"\x00",
            )
            data[at:at] = draw(st.sampled_from(words))
    return bytes(data)


@pytest.mark.parametrize("name", READERS)
@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(data=st.data())
def test_a_reader_answers_or_refuses_with_words(name: str, data: st.DataObject, tmp_path: Path) -> None:
    reader = READERS[name]
    reader.prepare(tmp_path)
    path = tmp_path / reader.file
    path.write_bytes(data.draw(st.sampled_from(reader.seeds).flatmap(damaged)))
    try:
        reader.read(path)
    except PlanError as refusal:
        assert str(refusal).strip()


def _document(name: str, seed: bytes) -> list[Any]:
    """What a seed holds, if it is one JSON or YAML document."""
    try:
        found = yaml.safe_load(seed) if name.endswith(".yaml") else json.loads(seed)
    except ValueError:
        return []
    return [found] if isinstance(found, dict | list) else []


WRONG: tuple[Any, ...] = (None, [], {}, "x", -1, 0, 1e308, float("nan"), True, [[1]], {"a": 1}, 10**400, "1e999999999")
STRUCTURED = {
    name: documents
    for name, reader in READERS.items()
    if (documents := [d for seed in reader.seeds for d in _document(name, seed)])
}


def places(document: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something may be replaced in a document: every value, and of a list the first two."""
    yield place
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*place, key))
    elif isinstance(document, list):
        for i, value in enumerate(document[:2]):
            yield from places(value, (*place, i))


def replaced(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[place[0]] = replaced(document[place[0]], place[1:], value)
    return copy


@pytest.mark.parametrize("name", STRUCTURED)
def test_a_value_of_a_wrong_kind_anywhere_is_read_or_refused_with_words(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    reader.prepare(tmp_path)
    path = tmp_path / reader.file
    for document in STRUCTURED[name]:
        for place in places(document):
            for wrong in WRONG:
                path.write_text(json.dumps(replaced(document, place, wrong)))
                try:
                    reader.read(path)
                except PlanError as refusal:
                    assert str(refusal).strip()


@pytest.mark.parametrize("name", READERS)
def test_a_reader_refuses_what_is_no_file(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    if name in ("metrics", "dcgm"):
        pytest.skip("reads text, not files")
    path = tmp_path / reader.file
    with pytest.raises(PlanError):
        reader.read(path)
    reader.prepare(tmp_path)
    path.mkdir()
    with pytest.raises(PlanError):
        reader.read(path)


def test_a_database_is_not_a_profiler_trace_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(PlanError):
        read_profiler_trace(path)
