"""The run file under fire: writers killed in the middle of a write, and several at once, as real processes."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli.main import cli
from app.runs import list_runs, load_run, save_run
from catalogs.errors import MissingError

WRITER = """
import sys
from app.runs import save_run
for number in range(int(sys.argv[2])):
    name = f"{sys.argv[1]}-{number}"
    save_run("simulate", {"name": name}, {"name": name, "rows": [number] * 20000}, title=name)
    print(name, flush=True)
"""


def writer(home: Path, name: str, number: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PLAN_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, name, str(number)], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_a_kill_in_the_middle_of_a_write_loses_no_run_that_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAN_HOME", str(tmp_path))
    rng = random.Random(7)
    kept: set[str] = set()
    for round_ in range(4):
        process = writer(tmp_path, f"w{round_}", 100000)
        assert process.stdout is not None
        kept.add(process.stdout.readline().strip())
        time.sleep(rng.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        kept |= {line.strip() for line in process.communicate()[0].splitlines(keepends=True) if line.endswith("\n")}
    found = {run.title: run for run in list_runs()}
    assert kept <= set(found)
    assert all(run.answer["name"] == title and len(run.answer["rows"]) == 20000 for title, run in found.items())
    with sqlite3.connect(tmp_path / "runs.sqlite3") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_writers_at_once_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN_HOME", str(tmp_path))
    processes = [writer(tmp_path, name, 40) for name in ("a", "b", "c")]
    assert [p.wait(timeout=120) for p in processes] == [0, 0, 0]
    for process in processes:
        process.communicate()
    assert len(list_runs()) == 120


def test_a_run_whose_text_was_damaged_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN_HOME", str(tmp_path))
    run = save_run("simulate", {"a": 1}, {"b": 2})
    with sqlite3.connect(tmp_path / "runs.sqlite3") as db:
        db.execute("UPDATE runs SET answer = '{'")
    db.close()
    with pytest.raises(MissingError, match="damaged"):
        load_run(run)
    removed = CliRunner().invoke(cli, ["runs", "rm", run])  # what the error says to do
    assert removed.exit_code == 0 and list_runs() == []


def test_a_file_without_a_form_of_ours_is_taken_over_only_if_its_tables_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAN_HOME", str(tmp_path))
    with sqlite3.connect(tmp_path / "runs.sqlite3") as db:
        db.execute("CREATE TABLE runs (something TEXT)")
    db.close()
    with pytest.raises(MissingError, match="cannot be used"):
        save_run("simulate", {"a": 1}, {"b": 2})
