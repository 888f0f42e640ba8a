"""`plan recommend`: the cheapest fleet that keeps the latency promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.cli.answer_tables import notes, tables
from app.cli.output import emit, format_option, progress_bar
from catalogs.errors import GateError

SPOT_REMEDY = "; a higher spot.availability, less spot (spot.max_share), spot.fallback: true"


@click.command()
@click.option("-c", "--config", type=click.Path(dir_okay=False, path_type=Path), help="The plan file.")
@click.option("--model", help="Catalogue name, Hugging Face id, or a config.json.")
@click.option("--trace", type=click.Path(path_type=Path), help="Requests to serve.")
@click.option("--scale", type=float, help="Factor on the request rate.")
@click.option("--slo", "slos", multiple=True, metavar="NAME=SECONDS", help="ttft_p95_s=1.0; may be repeated.")
@click.option("--region", help="Where to buy.")
@click.option("--gpus", help="Comma-separated GPU names, or all.")
@click.option("--precision", help="Comma-separated precisions.")
@click.option(
    "--purchase", help="Comma-separated: on_demand,spot,reserved_1yr,reserved_3yr,savings_plan,capacity_block."
)
@click.option("--min-score", type=float, help="Share of the unquantized model's score that must remain.")
@click.option("--budget", type=float, help="USD a month at most.")
@click.option("--seed", type=int, help="Same inputs and seed, same answer.")
@click.option("--workers", type=click.IntRange(min=1), help="Simulations at a time.  [default: one a core]")
@click.option("--certificate", type=click.Path(dir_okay=False, path_type=Path), help="Write a proof of the optimum.")
@format_option
def recommend(config: Path | None, certificate: Path | None, workers: int | None, form: str, **flags: Any) -> None:
    """The cheapest fleet that keeps the latency promise, verified by simulation.

    Settings come from a plan file, from flags, or both (flags win).

    \b
    Example:
      plan recommend --model llama-3.1-8b --trace requests.csv --slo ttft_p95_s=1 --slo tpot_p95_s=0.05
    """
    from app.runs import kept_or_warned
    from planner.inputs.problem import problem_from, read_problem
    from planner.recommend import recommend as answer_problem

    settings = _settings(flags)
    problem = read_problem(config, settings) if config else problem_from(settings)
    with progress_bar("planning") as progress:
        answer = answer_problem(problem, progress, certificate is not None, workers)
    proof = answer.pop("_certificate", None)
    if certificate is not None:
        from planner.optimizer.certificate import write_certificate

        write_certificate(proof, certificate)
    answer["run"] = None
    with kept_or_warned():
        answer["run"] = save(problem, answer)
    emit(form, answer, tables(answer), notes(answer))
    missed = [name for name, promise in answer["slo"].items() if promise.get("ok") is False]
    live = answer.get("live") or {}
    if not missed and live.get("ok") is False:
        raise GateError(
            f"played live, the plan shown keeps its promise in {live['kept']} of {live['draws']} draws",
            why=answer["verified_why"],
            remedy="more time.headroom, or a looser limit" + (SPOT_REMEDY if live["spot_zones"] else ""),
        )
    if missed:
        raise GateError(
            f"the plan shown misses {', '.join(missed)} in simulation",
            why=answer["verified_why"],
            remedy="a looser limit, other candidates, or more rounds (solver.max_rounds)",
        )


def _settings(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags as nested settings."""
    from catalogs.errors import InputError

    out: dict[str, Any] = {}
    for name, route in (
        ("model", ("model",)), ("trace", ("workload", "trace")), ("scale", ("workload", "scale")),
        ("region", ("region",)), ("min_score", ("quality", "min_score")), ("budget", ("budget_usd_per_month",)),
        ("seed", ("seed",)), ("gpus", ("candidates", "gpus")), ("precision", ("candidates", "precision")),
        ("purchase", ("candidates", "purchase")),
    ):  # fmt: skip
        value = flags.get(name)
        if value is None:
            continue
        if name in ("gpus", "precision", "purchase") and value != "all":
            value = [v.strip() for v in value.split(",") if v.strip()]
        at = out
        for key in route[:-1]:
            at = at.setdefault(key, {})
        at[route[-1]] = value
    for text in flags["slos"]:
        key, _, seconds = text.partition("=")
        try:
            out.setdefault("slo", {})[key.strip()] = float(seconds)
        except ValueError as error:
            raise InputError(f"{text!r} is not NAME=SECONDS", where="--slo", remedy="ttft_p95_s=1.0") from error
    return out


def save(problem: Any, answer: dict[str, Any]) -> str:
    """Keep the run; returns its id."""
    from app.runs import save_run

    inputs = problem.model_dump(mode="json")
    workload = problem.workload
    paths = {
        "trace": workload.trace, "buckets": workload.buckets, "capacity_table": problem.capacity_table,
        "prices": problem.prices, "savings_plans": problem.savings_plans, "demand": problem.time.demand,
        "quality_results": problem.quality.results,
    }  # fmt: skip
    files = {role: Path(path) for role, path in paths.items() if path is not None}
    title = f"{problem.model}: ${answer['plan']['usd_per_hour']:,.2f}/h"
    return save_run("recommend", inputs, answer, title=title, files=files)
