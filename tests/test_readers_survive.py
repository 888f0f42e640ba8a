"""Every reader, on anything: it answers, or refuses with words. Never a crash, a hang or a foreign exception.

Seeds are real forms of each file, which hypothesis then damages: bytes dropped, doubled, replaced, cut off, spliced.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrate.profilers import read_trace as read_profiler_trace
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
