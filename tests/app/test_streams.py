"""The command as a process among others: readers that stop early, closed and full streams, odd encodings, no home."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = (
    ["--help"],
    ["catalog", "gpus"],
    ["catalog", "instances", "--format", "json"],
    ["catalog", "models", "--format", "md"],
    ["doctor"],
    ["schema", "plan"],
    ["estimate", "llama-3.1-8b", "--gpu", "L4"],
)


def plan(words: list[str], redirect: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`plan` under a shell's redirection; the exit code is plan's own."""
    line = f'"$0" -m app.cli "$@" {redirect}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, *words], capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_reader_that_stops_early_ends_it_quietly(words: list[str]) -> None:
    done = plan(words, "| true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("redirect", [">&-", "2>&-", "<&-", ">/dev/null 2>/dev/full"])
def test_a_closed_stream_hinders_nothing(redirect: str) -> None:
    done = plan(["catalog", "gpus"], redirect)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_said_in_words() -> None:
    done = plan(["catalog", "gpus"], ">/dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the answer cannot be written to standard output: No space left")


def test_what_a_native_library_prints_does_not_follow_the_answer(tmp_path: Path) -> None:
    """HiGHS has such a line; here any command's JSON is followed by one from C."""
    code = (
        "import ctypes, atexit; libc = ctypes.CDLL(None); atexit.register(libc.puts, b'from C');"
        "from app.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "catalog", "gpus", "--format", "json"], capture_output=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert json.loads(done.stdout)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding_shows_what_it_can(encoding: str) -> None:
    done = plan(["catalog", "gpus"], PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")


def test_bytes_that_are_no_text_are_refused_in_words(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "explain", b"\xff"], capture_output=True, check=False,
        env={**os.environ, "PLAN_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert b"is not text in UTF-8" in done.stderr


def test_no_colour_codes_where_none_are_wanted_and_narrow_tables_fit() -> None:
    line = "stty cols 40; " + " ".join([sys.executable, "-m", "app.cli", "catalog", "gpus"])
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    done = subprocess.run(
        ["script", "-qec", line, "/dev/null"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**environment, "NO_COLOR": "1", "TERM": "xterm"},
    )  # fmt: skip
    assert done.returncode == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", done.stdout)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert max(len(row.rstrip("\r")) for row in plain.splitlines()) <= 40


def test_without_a_home_to_write_in_the_answer_comes_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # a folder cannot be made below a file, even by root
    scenario = tmp_path / "s.yaml"
    scenario.write_text(
        "model: llama-3.1-8b\nworkload:\n  arrivals: {process: constant, rate_rps: 1, num_requests: 3}\n"
        "  input_tokens: {distribution: fixed, value: 9}\n  output_tokens: {distribution: fixed, value: 2}\n"
        "fleet:\n  - {gpu: L4, count: 1}\n"
    )
    home = str(tmp_path / "file")
    for words in (["simulate", str(scenario), "--format", "json"], ["doctor"]):
        done = plan(words, PLAN_HOME=home, HOME=home)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert plan(["runs", "list"], PLAN_HOME=home).returncode == 3
