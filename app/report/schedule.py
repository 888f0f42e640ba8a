"""Reports on a cron schedule, in the foreground: missed periods caught up once, one run at a time, graceful stop."""

from __future__ import annotations

import contextlib
import fcntl
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from app.report.ledger import Ledger
from app.report.sources import Sources
from catalogs.errors import InputError
from catalogs.yaml_source import Strict

LOOK_BACK = timedelta(days=366)
MAX_WAIT_S = 30.0  # the clock is looked at again at least this often: it may be set, or the machine may sleep


class Schedule(Strict):
    """A schedule file: when, what to report, where to send it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="names the ledger's entries")
    cron: str = Field(description="five fields, as in crontab")
    timezone: str = Field(default="UTC", description="an IANA name, such as Europe/Berlin")
    report: Sources = Field(description="what `plan report build` takes")
    send: list[dict[str, Any]] = Field(min_length=1, description="destinations")

    @field_validator("cron")
    @classmethod
    def _cron_parses(cls, text: str) -> str:
        from cronsim import CronSim, CronSimError

        try:
            next(CronSim(text, datetime(2026, 1, 1, tzinfo=UTC)))
        except CronSimError as error:
            raise ValueError(f"not a cron expression: {error}; five fields, such as '0 8 * * MON'") from error
        except StopIteration as error:
            raise ValueError("this cron expression never comes due") from error
        return text

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("no such time zone; an IANA name, such as Europe/Berlin") from error
        return name


def last_due(schedule: Schedule, now: datetime) -> datetime | None:
    """The latest instant (UTC) at or before ``now`` at which the schedule was due; None within a year."""
    from cronsim import CronSim

    local = now.astimezone(ZoneInfo(schedule.timezone)).replace(microsecond=0)
    due = next(CronSim(schedule.cron, local + timedelta(seconds=1), reverse=True), None)
    if due is None or now - due.astimezone(UTC) > LOOK_BACK:
        return None
    return due.astimezone(UTC)


def next_due(schedule: Schedule, now: datetime) -> datetime:
    """The first instant (UTC) after ``now`` at which the schedule is due.

    Clock changes follow Debian's cron: a time that is skipped runs right after, one that comes twice runs once.
    """
    from cronsim import CronSim

    return next(CronSim(schedule.cron, now.astimezone(ZoneInfo(schedule.timezone)))).astimezone(UTC)


def run_pending(
    schedule: Schedule, ledger: Ledger, now: datetime, work: Callable[[datetime], object], *, started: datetime
) -> datetime | None:
    """Do the latest due period if it is not done yet, and return its instant.

    Periods missed before it are not done one by one: a report covers all that happened until its instant. A schedule
    that never ran does not reach back before ``started``.
    """
    due = last_due(schedule, now)
    if due is None:
        return None
    done = ledger.last_finished(schedule.name)
    if due <= (datetime.fromisoformat(done) if done else started):
        return None
    work(due)
    ledger.finish(schedule.name, instant(due), instant(datetime.now(UTC)))
    return due


def instant(moment: datetime) -> str:
    """An instant in UTC, to the second, in ISO form: what the ledger sorts by."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def serve(
    schedule: Schedule,
    ledger: Ledger,
    work: Callable[[datetime], object],
    say: Callable[[str], object],
    stop: threading.Event,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Run until ``stop`` is set; a run in progress is finished first.

    Args:
        schedule: when.
        ledger: what was done before.
        work: builds and sends the report of one period; it reports its own failures.
        say: told what happens, a line at a time.
        stop: set by a signal.
        clock: the time now, with its zone.
    """
    started = clock()
    say(f"{schedule.name}: next due {next_due(schedule, started).isoformat()}")
    while not stop.is_set():
        due = run_pending(schedule, ledger, clock(), work, started=started)
        if due is not None:
            say(
                f"{schedule.name}: period of {due.isoformat()} done; next due {next_due(schedule, clock()).isoformat()}"
            )
        remaining_s = (next_due(schedule, clock()) - clock()).total_seconds()
        stop.wait(min(MAX_WAIT_S, max(0.05, remaining_s)))
    say(f"{schedule.name}: stopped")


@contextlib.contextmanager
def only_one(folder: Path, name: str) -> Iterator[None]:
    """Hold the schedule's lock, which the system releases even when the process is killed.

    Raises:
        InputError: another process runs this schedule.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"the schedule {name} runs already", why="two schedulers would race for the same period",
                remedy="stop the other one, or give this one another name",
            ) from error  # fmt: skip
        yield


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, in place of ending the process at once."""
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def crontab(schedule: Schedule, path: str) -> str:
    """A crontab line; cron knows one time zone a file, so it is set above."""
    return f"CRON_TZ={schedule.timezone}\n{schedule.cron} {_program()} report schedule {_absolute(path)} --once\n"


def systemd(schedule: Schedule, path: str) -> str:
    """A service unit that runs the foreground scheduler and restarts it."""
    return f"""# /etc/systemd/system/{schedule.name}.service
[Unit]
Description=GPU cost report {schedule.name} ({schedule.cron}, {schedule.timezone})
After=network-online.target
Wants=network-online.target

[Service]
ExecStart={_program()} report schedule {_absolute(path)}
Restart=on-failure
RestartSec=30

[Install]
WantedBy=multi-user.target
"""


def kubernetes(schedule: Schedule, path: str) -> str:
    """A CronJob that runs one period; the schedule file is a ConfigMap, the ledger a volume claim."""
    import yaml

    name = re.sub(r"[^a-z0-9]+", "-", schedule.name.lower()).strip("-")[:52]
    container = {
        "name": "report",
        "image": "gpu-capacity-planner:latest",
        "command": ["plan", "report", "schedule", f"/config/{Path(path).name}", "--once"],
        "env": [{"name": "PLAN_HOME", "value": "/state"}],
        "volumeMounts": [
            {"name": "config", "mountPath": "/config", "readOnly": True},
            {"name": "state", "mountPath": "/state"},
        ],
    }
    volumes = [
        {"name": "config", "configMap": {"name": name}},
        {"name": "state", "persistentVolumeClaim": {"claimName": name}},
    ]
    pod = {"restartPolicy": "OnFailure", "containers": [container], "volumes": volumes}
    job = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name},
        "spec": {
            "schedule": schedule.cron,
            "timeZone": schedule.timezone,
            "concurrencyPolicy": "Forbid",
            "jobTemplate": {"spec": {"template": {"spec": pod}}},
        },
    }
    note = "# The image is one that you build with this project installed in it.\n"
    return note + yaml.safe_dump(job, sort_keys=False)


def github(schedule: Schedule, path: str) -> str:
    """A GitHub Actions workflow; GitHub's cron runs in UTC, and the ledger is kept as a cache."""
    import yaml

    note = "# pip finds the planner if your index holds it; else name its repository or wheel there.\n"
    if schedule.timezone != "UTC":
        note += f"# GitHub's cron is UTC: {schedule.cron} was meant in {schedule.timezone}.\n"
    steps = [
        {"uses": "actions/checkout@v4"},
        {"uses": "actions/setup-python@v5", "with": {"python-version": "3.12"}},
        {
            "uses": "actions/cache@v4",
            "with": {
                "path": ".plan",
                "key": f"{schedule.name}-${{{{ github.run_id }}}}",
                "restore-keys": f"{schedule.name}-",
            },
        },
        {"run": "pip install gpu-capacity-planner"},
        {"run": f"plan report schedule {shlex.quote(path)} --once", "env": {"PLAN_HOME": ".plan"}},
    ]
    workflow = {
        "name": schedule.name,
        "on": {"schedule": [{"cron": schedule.cron}], "workflow_dispatch": {}},
        "concurrency": schedule.name,
        "jobs": {"report": {"runs-on": "ubuntu-latest", "steps": steps}},
    }
    return note + yaml.safe_dump(workflow, sort_keys=False)


def _program() -> str:
    """`plan` with its folder: neither cron nor systemd knows a virtual environment's."""
    beside = Path(sys.prefix) / "bin" / "plan"
    return shlex.quote(str(beside)) if beside.exists() else "plan"


def _absolute(path: str) -> str:
    return shlex.quote(str(Path(path).resolve()))


FORMS: dict[str, Callable[[Schedule, str], str]] = {
    "crontab": crontab, "systemd": systemd, "kubernetes": kubernetes, "github": github,
}  # fmt: skip
