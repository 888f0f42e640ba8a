"""The run store: same question, same run; files kept once; a newer or broken file refused with words."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from app import runs
from catalogs.errors import InputError, MissingError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLAN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_run_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,1,1\n")
    run_id = runs.save_run("simulate", {"seed": 0}, {"usd": 1.5}, title="one", files={"trace": trace})
    found = runs.load_run(run_id)
    assert (found.kind, found.inputs, found.answer, found.title) == ("simulate", {"seed": 0}, {"usd": 1.5}, "one")
    assert runs.file_content(found.files["trace"]["sha256"]) == trace.read_bytes()


def test_the_same_question_is_one_run_and_another_file_is_another(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("a")
    first = runs.save_run("simulate", {"seed": 0}, {"x": 1}, files={"trace": trace})
    assert runs.save_run("simulate", {"seed": 0}, {"x": 1}, files={"trace": trace}) == first
    trace.write_text("b")
    assert runs.save_run("simulate", {"seed": 0}, {"x": 1}, files={"trace": trace}) != first
    assert len(runs.list_runs()) == 2
    assert len(runs.list_runs("recommend")) == 0


def test_the_place_of_a_file_does_not_count(tmp_path: Path) -> None:
    ids = set()
    for folder in ("here", "there"):
        trace = tmp_path / folder / "t.csv"
        trace.parent.mkdir()
        trace.write_text("same")
        ids.add(runs.save_run("recommend", {"workload": {"trace": str(trace)}}, {}, files={"trace": trace}))
    assert len(ids) == 1


def test_removing_a_run_drops_only_contents_that_no_other_run_holds(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("shared")
    a = runs.save_run("simulate", {"seed": 0}, {}, files={"trace": trace})
    b = runs.save_run("simulate", {"seed": 1}, {}, files={"trace": trace})
    sha256 = runs.load_run(b).files["trace"]["sha256"]
    runs.remove_run(a)
    assert runs.file_content(sha256) == b"shared"
    runs.remove_run(b)
    with pytest.raises(MissingError):
        runs.file_content(sha256)


def test_ids_may_be_shortened_but_not_to_nothing_or_a_pattern() -> None:
    run_id = runs.save_run("simulate", {"seed": 0}, {})
    assert runs.load_run(run_id[:4]).run_id == run_id
    assert runs.load_run("last").run_id == run_id
    for bad in ("", "%", "__", "zzzz"):
        with pytest.raises(InputError):
            runs.load_run(bad)


def _write(home: str, seeds: range) -> None:
    import os

    os.environ["PLAN_HOME"] = home
    for seed in seeds:
        runs.save_run("simulate", {"seed": seed}, {})


def test_two_writers_lose_nothing(home: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write, args=(str(home), range(k, k + 25))) for k in (0, 25)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(r.inputs["seed"] for r in runs.list_runs()) == list(range(50))


def test_a_file_of_a_newer_form_and_a_broken_file_are_refused(home: Path) -> None:
    runs.save_run("simulate", {}, {})
    with sqlite3.connect(home / "runs.sqlite3") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(MissingError, match="form 99"):
        runs.list_runs()
    for name in ("runs.sqlite3", "runs.sqlite3-wal", "runs.sqlite3-shm"):
        (home / name).unlink(missing_ok=True)
    (home / "runs.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(MissingError, match="cannot be used"):
        runs.list_runs()
