"""The scheduler: cron and time zones, missed periods once, kills lose and repeat nothing."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from app.report.ledger import Ledger
from app.report.schedule import FORMS, Schedule, instant, last_due, next_due, only_one, run_pending, serve
from catalogs.errors import InputError

DESTINATION = [{"kind": "file", "path": "x"}]


def schedule(cron: str = "0 8 * * MON", timezone: str = "Europe/Berlin") -> Schedule:
    return Schedule(name="weekly", cron=cron, timezone=timezone, report={"bill": "b.csv"}, send=DESTINATION)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type]


def test_cron_is_read_in_its_time_zone() -> None:
    assert next_due(schedule(), utc(2026, 11, 23, 6, 59)) == utc(2026, 11, 23, 7)
    assert last_due(schedule(), utc(2026, 11, 23, 7)) == utc(2026, 11, 23, 7)
    assert last_due(schedule(), utc(2026, 11, 23, 6, 59)) == utc(2026, 11, 16, 7)


def test_a_clock_change_neither_skips_nor_repeats_a_run() -> None:
    nightly = schedule("30 2 * * *")
    assert next_due(nightly, utc(2026, 3, 29, 0, 0)) == utc(2026, 3, 29, 1, 0)  # 02:30 does not exist: right after
    first = next_due(nightly, utc(2026, 10, 24, 23, 0))
    assert first == utc(2026, 10, 25, 0, 30)  # 02:30 comes twice: the first
    assert next_due(nightly, first) == utc(2026, 10, 26, 1, 30)


def test_missed_periods_are_caught_up_once(tmp_path: Path) -> None:
    ledger, done = Ledger(tmp_path / "l"), list[datetime]()
    hourly = schedule("0 * * * *", "UTC")
    run_pending(hourly, ledger, utc(2026, 11, 1, 10, 30), done.append, started=utc(2026, 11, 1, 9))
    run_pending(hourly, ledger, utc(2026, 11, 1, 10, 45), done.append, started=utc(2026, 11, 1, 9))
    run_pending(hourly, ledger, utc(2026, 11, 2, 4, 5), done.append, started=utc(2026, 11, 1, 9))  # down over night
    assert done == [utc(2026, 11, 1, 10), utc(2026, 11, 2, 4)]


def test_a_period_whose_work_fails_is_not_finished(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")

    def fail(_due: datetime) -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        run_pending(schedule("0 * * * *", "UTC"), ledger, utc(2026, 11, 1, 10, 30), fail, started=utc(2026, 11, 1, 9))
    done = list[datetime]()
    run_pending(
        schedule("0 * * * *", "UTC"), ledger, utc(2026, 11, 1, 10, 31), done.append, started=utc(2026, 11, 1, 9)
    )
    assert done == [utc(2026, 11, 1, 10)]


def test_the_loop_does_each_period_once_and_stops_when_asked(tmp_path: Path) -> None:
    now, stop, done = [utc(2026, 11, 1, 9, 59, 59)], threading.Event(), list[datetime]()

    def clock() -> datetime:
        now[0] += timedelta(minutes=7)
        if now[0] > utc(2026, 11, 1, 13, 30):
            stop.set()
        return now[0]

    class Instantly(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return stop.is_set()

        def is_set(self) -> bool:
            return stop.is_set()

    serve(schedule("0 * * * *", "UTC"), Ledger(tmp_path / "l"), done.append, lambda _: None, Instantly(), clock)
    assert done == [utc(2026, 11, 1, h) for h in (11, 12, 13)]


def test_one_process_a_schedule(tmp_path: Path) -> None:
    with only_one(tmp_path, "weekly"), pytest.raises(InputError, match="runs already"), only_one(tmp_path, "weekly"):
        pass
    with only_one(tmp_path, "weekly"):
        pass


WORKER = """
import sys, time
from datetime import datetime, timedelta, UTC
from pathlib import Path
from app.report.deliver import deliver
from app.report.ledger import Ledger
from app.report.schedule import Schedule, only_one, run_pending, instant
from app.report.send import Message

folder = Path(sys.argv[1])
schedule = Schedule(name="s", cron="* * * * *", report={"bill": "b.csv"}, send=[{"kind": "file", "path": "x"}])
ledger = Ledger(folder / "ledger")
start = datetime(2026, 11, 1, tzinfo=UTC)

def work(due):
    forms = dict.fromkeys(("html", "md", "json", "csv"), due.isoformat())
    message = Message("s." + instant(due), "t", "s", forms, due.strftime("%Y%m%dT%H%M"))
    deliver(message, [{"kind": "file", "path": str(folder / "out" / "{period}.txt")}], ledger)
    with (folder / "log").open("a") as log:
        log.write("worked\\n")

with only_one(folder, "s"):
    done = ledger.last_finished("s")
    step = 0 if done is None else round((datetime.fromisoformat(done) - start).total_seconds() / 60)
    print("ready", flush=True)
    while step < 60:
        step += 1
        run_pending(schedule, ledger, start + timedelta(minutes=step), work, started=start)
"""


def test_kills_at_random_moments_lose_and_repeat_no_period(tmp_path: Path) -> None:
    rng = random.Random(7)
    for _ in range(15):
        child = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.12))
        child.send_signal(signal.SIGKILL)
        child.stdout.close()
        if child.wait() == 0:
            break
    done = subprocess.run([sys.executable, "-c", WORKER, str(tmp_path)], check=True, capture_output=True)
    assert done.returncode == 0
    start = utc(2026, 11, 1)
    expected = {(start + timedelta(minutes=m)).strftime("%Y%m%dT%H%M") + ".txt" for m in range(1, 61)}
    written = {p.name for p in (tmp_path / "out").glob("2*")}  # a kill while writing leaves a hidden temporary file
    assert written == expected
    states = [d.state for d in Ledger(tmp_path / "ledger").deliveries()]
    assert states == ["done"] * 60
    assert Ledger(tmp_path / "ledger").last_finished("s") == instant(start + timedelta(minutes=60))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("cron", "61 * * * *", "not a cron"),
        ("cron", "0 0 31 2 *", "cron"),
        ("timezone", "Mars/Base", "no such time zone"),
        ("name", "../x", "pattern"),
        ("send", [], "at least 1"),
    ],
)
def test_bad_schedules_are_refused(field: str, value: object, said: str) -> None:
    good = {"name": "n", "cron": "0 8 * * *", "timezone": "UTC", "report": {"bill": "b.csv"}, "send": DESTINATION}
    with pytest.raises(ValidationError, match=said):
        Schedule.model_validate({**good, field: value})


def test_ready_made_forms_parse_and_carry_the_schedule() -> None:
    job = yaml.safe_load(FORMS["kubernetes"](schedule(), "weekly.yaml"))
    assert (job["spec"]["schedule"], job["spec"]["timeZone"]) == ("0 8 * * MON", "Europe/Berlin")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    workflow = yaml.safe_load(FORMS["github"](schedule(), "weekly.yaml"))
    assert workflow["on"]["schedule"] == [{"cron": "0 8 * * MON"}]
    line = FORMS["crontab"](schedule(), "weekly.yaml").splitlines()[-1].split()
    assert line[:5] == ["0", "8", "*", "*", "MON"] and line[6:] == [
        "report",
        "schedule",
        str(Path("weekly.yaml").resolve()),
        "--once",
    ]
    assert line[5] == "plan" or Path(line[5]).is_absolute()  # cron knows no virtual environment
    assert "Restart=on-failure" in FORMS["systemd"](schedule(), "weekly.yaml")
