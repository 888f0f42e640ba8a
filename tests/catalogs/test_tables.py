"""Bad rows are all named at once, with their lines."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from catalogs import load
from catalogs.errors import InputError, MissingError
from catalogs.freshness import age_days, is_stale, stale_note, today
from catalogs.tables import Row, first_day, read_table


def _build(row: Row) -> tuple[str, float, str]:
    return row.text("name"), row.number("usd", minimum=0.01), row.day("as_of")


def test_every_bad_row_is_named_in_one_error(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("name,usd,as_of\na,1,2026-07-20\n,2,2026-07\nb,x,2026\nc,nan,2026\nd,-1,soon\ne,1\na,1,2026\n")
    with pytest.raises(InputError) as caught:
        read_table(table, _build, lambda row: row[0])
    text = str(caught.value)
    for part in ("t.csv:3: name is empty", "t.csv:4: usd is 'x'", "t.csv:5: usd is nan", "t.csv:6: usd is -1",
                 "t.csv:6: as_of is 'soon'", "t.csv:7: the number of cells", "t.csv:8: a is already"):  # fmt: skip
        assert part in text
    assert "8 bad cells" in text


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        read_table(tmp_path / "none.csv", _build, lambda row: row[0])


def test_a_catalogue_that_names_an_unknown_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gpus.csv", "instances.csv"):
        text = (load.DATA / name).read_text()
        (tmp_path / name).write_text(text.replace(",aws,L40S,", ",aws,L50S,"))
    monkeypatch.setattr(load, "DATA", tmp_path)
    load.forget()
    try:
        with pytest.raises(InputError, match="unknown GPU"):
            load.instances()
    finally:
        monkeypatch.undo()
        load.forget()


@pytest.mark.parametrize(
    ("text", "day"),
    [("2026-07-20", date(2026, 7, 20)), ("2026-07", date(2026, 7, 1)), ("2026", date(2026, 1, 1)), ("soon", None)],
)
def test_a_date_may_be_a_day_a_month_or_a_year(text: str, day: date | None) -> None:
    assert first_day(text) == day


def test_a_price_turns_stale_after_thirty_days() -> None:
    assert not is_stale("2026-07-20", date(2026, 8, 19))
    assert is_stale("2026-07-20", date(2026, 8, 20))
    assert is_stale("", date(2026, 8, 20))
    assert age_days("2026-07-20T10:00:00+00:00", date(2026, 7, 21)) == 1


def test_an_answer_on_old_prices_says_so_and_one_on_fresh_prices_does_not() -> None:
    used = [p for p in load.catalogue_prices() if p.as_of == "2026-07-20"]
    assert stale_note(used, date(2026, 7, 21)) is None
    assert "plan prices refresh" in (stale_note(used, date(2026, 11, 1)) or "")


def test_today_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN_TODAY", "2026-08-01")
    assert today() == date(2026, 8, 1)
    monkeypatch.setenv("PLAN_TODAY", "now")
    with pytest.raises(InputError, match="PLAN_TODAY"):
        today()
