"""The validation page: its tables, pictures and the rows that the program ships."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from app.validation import Section, accuracy_rows, main, memory, render, static_batches
from calibrate.fitting.validate import Comparison
from catalogs.errors import MissingError
from tests.shared_data import shared_data

SECTION = Section(
    "A study",
    "What was compared.",
    [Comparison("ttft_s", "a", "one", 1.1, 1.0), Comparison("ttft_s", "b", "two", 0.5, 1.0)],
    "unseen",
    "a-study",
)


def test_page_has_a_table_and_a_picture_for_each_section(tmp_path: Path) -> None:
    page = render([SECTION], tmp_path)
    assert "| ttft_s | all | 2 | 30.0 % | 46.0 % | 50.0 % | -20.0 % | two |" in page
    assert "did not see" in page
    assert (tmp_path / "a-study.svg").read_text().startswith("<svg")


def test_shipped_rows_are_the_sections_in_short() -> None:
    row = accuracy_rows([SECTION])[0]
    assert (row["what"], row["points"], row["median"], row["fit"]) == ("A study", 2, 0.3, "unseen")


def test_without_measurements_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no measurements"):
        main(["--data", str(tmp_path)])


def test_shipped_accuracy_agrees_with_published_data() -> None:
    """The parts that are quick to compute again: static batches and memory."""
    data = shared_data("serving").parent
    shipped = {
        (r["what"], r["metric"]): r for r in json.loads((files("calibrate") / "accuracy.json").read_text())["rows"]
    }
    for row in accuracy_rows([*static_batches(data), *memory(data)]):
        assert shipped[row["what"], row["metric"]]["median"] == pytest.approx(row["median"], abs=0.01)
