"""The pages' long work: functions of plain data that a worker process runs by name (``app.web.worker``)."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.output import plain
from catalogs.errors import InputError, PlanError
from catalogs.yaml_source import Located, check

if TYPE_CHECKING:
    from app.report.schema import Report

Progress = Callable[[str, float], None]
MAX_REQUESTS = 2_000_000  # that the app reads of a trace, or plays
MOST_SAMPLES = 300
METRICS = ("ttft", "tpot", "e2e")


@dataclass(frozen=True)
class Shown:
    """What the Simulate page draws of a run."""

    answer: dict[str, Any]
    latencies: dict[str, Any]
    series: dict[str, Any]
    scenario: dict[str, Any]


@dataclass(frozen=True)
class Built:
    """A report, its month and the command that builds it."""

    report: Report
    month: str
    command: str


def recommend(progress: Progress, settings: dict[str, Any]) -> dict[str, Any]:
    """Plan, keep the run, and return the answer; one that cannot be kept is shown all the same."""
    from app.cli.recommend import save
    from planner.inputs.problem import problem_from
    from planner.recommend import recommend as answer_problem

    problem = problem_from(settings)
    answer = answer_problem(problem, progress)
    try:
        answer["run"] = save(problem, answer)
    except PlanError as problem_of_ours:
        answer["not_kept"] = f"{problem_of_ours.what}; {problem_of_ours.remedy}"
    return dict(plain(answer))


def simulate(progress: Progress, scenario: dict[str, Any]) -> Shown:
    """Play the scenario and price it, as `plan simulate` does."""
    from planner.money.fleet_cost import with_fleet_dollars
    from planner.money.fleet_price import fleet_usd_per_hour, with_dollars
    from simulator.run import simulate as play
    from simulator.scenario.spec import Scenario
    from simulator.workload.load import load_workload

    progress("reading the workload", 0.05)
    read = check(Located(Path("the form"), scenario, {}), Scenario)
    usd_per_hour = None if read.is_live else fleet_usd_per_hour(read)
    requests = load_workload(read.workload, read.seed)
    if len(requests) > MAX_REQUESTS:
        raise InputError(
            f"the load has {len(requests):,} requests", where="Repeat the load for",
            why=f"the app plays at most {MAX_REQUESTS:,}", remedy="fewer hours, or the command below in a terminal",
        )  # fmt: skip
    span_s = float(requests.arrival_s[-1]) if len(requests) else 1.0
    progress(f"simulating {len(requests):,} requests", 0.2)
    result = play(read, requests, series_interval_s=max(span_s / MOST_SAMPLES, 0.5))
    progress("drawing", 0.9)
    document = with_dollars(result.document, usd_per_hour)
    if result.fleet is not None:
        document = with_fleet_dollars(document, read, result.fleet.ledger)
    latencies = {name: result.latencies.of_metric(name) for name in METRICS}
    return Shown(dict(plain(document)), latencies, dict(result.records.series), scenario)


def advise(progress: Progress, settings: dict[str, Any]) -> dict[str, Any]:
    """Walk the steps from today's fleet."""
    from planner.advise import advise as walk
    from planner.inputs.problem import problem_from

    return dict(plain(walk(problem_from(settings), progress)))


def validate(progress: Progress, data: bytes, suffix: str) -> tuple[list[Any], list[str]]:
    """The visitor's measured figures beside what the shipped profiles say."""
    from app.cli.calibrate_validate import compare

    progress("simulating each load", 0.2)
    with tempfile.TemporaryDirectory(prefix="plan-web-") as folder:
        path = Path(folder) / f"measured{suffix}"
        path.write_bytes(data)
        return compare(None, path)


def report(progress: Progress, data: bytes, suffix: str, run: str, month: str) -> Built:
    """The report of the visitor's bill; ``run``: the plan to compare with, empty for none."""
    from app.report.build import build
    from app.report.sources import Sources

    progress("adding up what it says", 0.2)
    with tempfile.TemporaryDirectory(prefix="plan-web-") as folder:
        path = Path(folder) / f"bill{suffix}"
        path.write_bytes(data)
        found = build(Sources.model_validate({"bill": path, "run": run or None, "month": month}), datetime.now(UTC))
    chosen = f"--run {run} " if run else ""
    text = f"plan report build --bill bill{suffix} {chosen}--month {shlex.quote(month)} -o report.html"
    return Built(found, month, text)


WORK: Mapping[str, Callable[..., Any]] = {
    "recommend": recommend, "simulate": simulate, "advise": advise, "validate": validate, "report": report,
}  # fmt: skip
