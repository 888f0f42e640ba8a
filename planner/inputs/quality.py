"""How much of the unquantized model's score a precision keeps: sourced evaluations, or the user's own; else unknown."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from calibrate.physics.precisions import precision as precision_named
from catalogs.errors import InputError
from catalogs.load import find_model
from catalogs.names import nearest, normalise
from catalogs.schema import Model
from planner.inputs.problem import Problem

CATALOGUE = Path(__file__).parents[2] / "catalogs" / "quality.csv"
EXACT = frozenset({"bf16", "fp16", "fp32"})  # the published weights' own width or wider


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: the share of the unquantized score that a precision keeps on a task."""

    model: str
    precision: str
    task: str
    retained: float
    source: str


def score_of(problem: Problem, model: Model, precision: str, kv_cache_dtype: str = "auto") -> float | None:
    """Share of the unquantized model's score that is kept; None: nobody measured it for this model.

    The user's own results come first. Of several tasks the lowest counts, unless ``quality.task`` names one. Scores do
    not carry over from one model to another.
    """
    if kv_cache_dtype not in ("auto", *EXACT):
        return _measured(problem, model, f"{precision}+kv-{kv_cache_dtype}")
    if precision in EXACT or precision == model.quantization:
        known = _measured(problem, model, precision)  # of a distilled model: against its teacher
        return 1.0 if known is None else known
    return _measured(problem, model, precision)


def check_task(problem: Problem) -> None:
    """Whether anybody evaluated the task that is asked for.

    Raises:
        InputError: nobody did, for any model; the nearest that somebody did.
    """
    task = problem.quality.task
    known = sorted({e.task for e in (*_own(problem), *catalogue())})
    if task is None or normalise(task) in {normalise(t) for t in known}:
        return
    raise InputError(
        f"no evaluation is of the task {task!r}",
        where="quality.task",
        why="without one every quality would count as unknown",
        remedy=f"one of {', '.join(nearest(task, known, num=1) or known)}; or your own in quality.results",
    )


def _own(problem: Problem) -> tuple[Evaluation, ...]:
    return own_results(problem.quality.results) if problem.quality.results else ()


def _measured(problem: Problem, model: Model, precision: str) -> float | None:
    found = evaluation_of(problem, model, precision)
    return None if found is None else found.retained


def evaluation_of(problem: Problem, model: Model, precision: str) -> Evaluation | None:
    """The evaluation whose score counts, the lowest of those at hand; None: nobody evaluated it for this model."""
    for table in (_own(problem), catalogue()):
        found = [
            e
            for e in table
            if e.model == model.name
            and e.precision == precision
            and (problem.quality.task is None or normalise(e.task) == normalise(problem.quality.task))
        ]
        if found:
            return min(found, key=lambda e: e.retained)
    return None


@cache
def catalogue() -> tuple[Evaluation, ...]:
    """Every sourced evaluation."""
    with CATALOGUE.open(newline="", encoding="utf-8") as source:
        return tuple(
            Evaluation(r["model"], r["precision"], r["task"], float(r["retained"]), r["source"])
            for r in csv.DictReader(source)
        )


@cache
def own_results(path: Path) -> tuple[Evaluation, ...]:
    """A user's evaluations: ``model,precision,task,score,baseline_score``.

    Raises:
        InputError: unreadable, a missing column, an unknown model or precision, scores that make no share.
    """
    found = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as source:
            reader = csv.DictReader(source, restval="")
            for column in ("model", "precision", "task", "score", "baseline_score"):
                if column not in (reader.fieldnames or ()):
                    raise InputError(
                        f"has no column {column!r}",
                        where=f"{path}:1",
                        remedy="model,precision,task,score,baseline_score",
                    )
            for row in reader:
                where = f"{path}:{reader.line_num}"
                model = find_model(row["model"].strip(), where).name
                name = precision_named(row["precision"].strip(), where).name
                found.append(Evaluation(model, name, row["task"].strip(), _share(row, where), str(path)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from error
    return tuple(found)


def _share(row: Mapping[str, str], where: str) -> float:
    try:
        score, baseline = float(row["score"]), float(row["baseline_score"])
    except ValueError:
        score = baseline = math.nan
    if not (math.isfinite(score) and math.isfinite(baseline) and score >= 0 and baseline > 0):
        raise InputError(
            f"score {row['score']!r} of baseline {row['baseline_score']!r} makes no share",
            where=where,
            remedy="two numbers on one scale, the baseline above 0",
        )
    return score / baseline
