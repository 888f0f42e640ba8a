"""A file is written whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from catalogs.errors import InputError
from catalogs.files import replacing, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f.txt"]


def test_a_new_file_is_as_readable_as_others_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    path, other = tmp_path / "f.txt", tmp_path / "g.txt"
    write_text(path, "x")
    other.write_text("x")
    assert path.stat().st_mode == other.stat().st_mode
    path.chmod(0o600)
    write_text(path, "y")
    assert path.stat().st_mode & 0o777 == 0o600


def test_places_that_cannot_be_written_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mkdir"):
        write_text(tmp_path / "no" / "f.txt", "x")
    with pytest.raises(InputError, match="folder"):
        write_text(tmp_path, "x")


def test_a_killed_program_leaves_no_half_written_file(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom catalogs.files import replacing\n"
        "with replacing(sys.argv[1]) as t:\n    t.write_text('half')\n"
        "    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    path = tmp_path / "f.txt"
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not path.exists()
