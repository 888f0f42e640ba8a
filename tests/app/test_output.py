"""Tables on narrow terminals: columns give way, words stay whole, and what does not fit is told line by line."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.output import GAP, LONG_WORD, column_widths

WORDS = st.text("abcxyz0123", max_size=12)
CELLS = st.lists(WORDS, max_size=6).map(" ".join)


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1, max_size=5)),
       st.integers(5, 100))  # fmt: skip
def test_a_line_fits_and_no_word_is_broken(lines: list[list[str]], room: int) -> None:
    least = [max(len(w) for line in lines for w in (line[i].split() or [""])) for i in range(len(lines[0]))]
    widths = column_widths(lines, room)
    if widths is None:
        assert sum(least) + GAP * len(least) > room
    else:
        assert sum(widths) + GAP * len(widths) <= room
        assert all(width >= low for width, low in zip(widths, least, strict=True))


def test_columns_take_no_more_than_they_need_and_a_path_may_be_broken() -> None:
    assert column_widths([["gpu", "USD/h"], ["RTX-PRO-6000", "3.363"]], 80) == [12, 5]
    path = "/" + "x" * 100
    assert column_widths([["file"], [path]], 60) == [60 - GAP]
    assert column_widths([["file"], [path]], LONG_WORD) is None


def on_terminal(words: list[str], columns: int) -> list[str]:
    """What `plan` writes to a terminal of so many columns, without the escape sequences."""
    reader, writer = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    child = subprocess.Popen([sys.executable, "-m", "app.cli", *words], stdout=writer, stderr=writer, stdin=writer,
                             env=environment, cwd=Path(__file__).parents[2])  # fmt: skip
    os.close(writer)
    said = b""
    try:
        while piece := os.read(reader, 65536):
            said += piece
    except OSError:  # Linux ends a terminal so
        pass
    os.close(reader)
    assert child.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode()).splitlines()


@pytest.mark.parametrize("columns", [200, 80, 50])
def test_a_gpu_is_named_in_one_piece_whatever_the_terminal(columns: int) -> None:
    lines = on_terminal(["catalog", "gpus"], columns)
    assert max(map(len, lines)) <= columns
    assert sum(bool(re.search(r"(^|\s)RTX-PRO-6000(\s|$)", line)) for line in lines) == 1


def test_in_a_pipe_a_row_is_one_line_however_wide() -> None:
    done = subprocess.run([sys.executable, "-m", "app.cli", "prices", "show"], capture_output=True, text=True,
                          check=True, cwd=Path(__file__).parents[2])  # fmt: skip
    assert any(
        "p5.48xlarge" in line and "capacity_block" in line and "us-east-1" in line for line in done.stdout.splitlines()
    )
