"""`plan recommend`: the cheapest fleet that keeps the latency promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.cli.output import Table, emit, format_option, progress_bar
from catalogs.errors import GateError


@click.command()
@click.option("-c", "--config", type=click.Path(dir_okay=False, path_type=Path), help="The plan file.")
@click.option("--model", help="Catalogue name, Hugging Face id, or a config.json.")
@click.option("--trace", type=click.Path(path_type=Path), help="Requests to serve.")
@click.option("--scale", type=float, help="Factor on the request rate.")
@click.option("--slo", "slos", multiple=True, metavar="NAME=SECONDS", help="ttft_p95_s=1.0; may be repeated.")
@click.option("--region", help="Where to buy.")
@click.option("--gpus", help="Comma-separated GPU names, or all.")
@click.option("--precision", help="Comma-separated precisions.")
@click.option("--purchase", help="Comma-separated: on_demand,spot,reserved_1yr,reserved_3yr,capacity_block.")
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
    from planner.problem import problem_from, read_problem
    from planner.recommend import recommend as answer_problem

    settings = _settings(flags)
    problem = read_problem(config, settings) if config else problem_from(settings)
    with progress_bar("planning") as progress:
        answer = answer_problem(problem, progress, certificate is not None, workers)
    proof = answer.pop("_certificate", None)
    if certificate is not None:
        from planner.certificate import write_certificate

        write_certificate(proof, certificate)
    answer["run"] = None
    with kept_or_warned():
        answer["run"] = save(problem, answer)
    emit(form, answer, tables(answer), notes(answer))
    missed = [name for name, promise in answer["slo"].items() if promise.get("ok") is False]
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
        "prices": problem.prices, "demand": problem.time.demand, "quality_results": problem.quality.results,
    }  # fmt: skip
    files = {role: Path(path) for role, path in paths.items() if path is not None}
    title = f"{problem.model}: ${answer['plan']['usd_per_hour']:,.2f}/h"
    return save_run("recommend", inputs, answer, title=title, files=files)


def tables(answer: dict[str, Any]) -> list[Table]:
    """The answer as people read it; the purchase list comes first."""
    plan = answer["plan"]
    shown = []
    for line in plan["lines"]:
        low, high = min(line["instances"]), max(line["instances"])
        shown.append(
            [
                line["instance_type"],
                f"{low}" if low == high else f"{low}-{high}",
                line["gpu"],
                line["tensor_parallel_size"],
                line["precision"],
                line["framework"],
                line["purchase"],
                line.get("serves", "all"),
                sum(line["requests_per_s"]) / max(1, len(line["requests_per_s"])),
                line["usd_per_hour"],
            ]
        )
    columns = [
        "instance type",
        "instances",
        "GPU",
        "TP",
        "precision",
        "framework",
        "purchase",
        "serves",
        "requests/s",
        "USD/h",
    ]
    title = f"Plan: ${plan['usd_per_hour']:,.2f} an hour, ${plan['usd_per_month']:,.0f} a month"
    if plan["usd_per_million_output_tokens"]:
        title += f", ${plan['usd_per_million_output_tokens']:.3f} per million output tokens"
    out = [Table(title, columns, shown)]
    rows = [
        [name, s["limit"], s["simulated"], "–" if s["ok"] is None else "kept" if s["ok"] else "MISSED"]
        for name, s in answer["slo"].items()
    ]
    out.append(Table("Latency promise", ["metric", "limit (s)", "simulated (s)", ""], rows))
    others = [[a["label"], a["usd_per_hour"], a["why_not"]] for a in answer["alternatives"]]
    if others:
        out.append(Table("Why not the others", ["alternative", "USD/h", "why not"], others))
    if answer.get("tornado"):
        swings = [[r["what"], r["change"], r["low_usd_per_hour"], r["high_usd_per_hour"]] for r in answer["tornado"]]
        out.append(Table("What moves the cost", ["what", "change", "USD/h at best", "USD/h at worst"], swings))
    if answer.get("pareto"):
        front = answer["pareto"]["cost_against_latency"]
        shown = [[f"x {p['slo_factor']:g}", p["usd_per_hour"], p["plan"]] for p in front]
        out.append(Table("Cost against latency", ["every limit", "USD/h", "plan"], shown))
    return out + [Table(t["title"], t["columns"], t["rows"]) for t in answer.get("tables", [])]


ENDED_BY = {
    "work": " The search ended at its limits of nodes and rounds, which are the same on every machine.",
    "time": " The time limit ended the search: a faster machine or a larger solver.time_limit_s may find another plan.",
}


def notes(answer: dict[str, Any]) -> list[str]:
    """What the answer rests on, in sentences."""
    said = []
    if answer["verified"]:
        said.append("Verified: " + answer.get("verified_why", "the fleet was simulated on the whole workload."))
    else:
        said.append("Not verified: " + answer.get("verified_why", ""))
    said.append(
        f"Optimality: no plan of this model costs less than ${answer['lower_bound_usd_per_hour']:,.2f} an hour "
        f"(gap {answer['mip_gap']:.2%})." + ENDED_BY.get(answer.get("ended_by", "gap"), "")
    )
    if answer.get("cost_range"):
        ends = answer["cost_range"]
        cheap, dear = ends["cheap"], ends["dear"]
        said.append(
            f"Were step times {ends['step_time_error']:.0%} off, as the profiles may be: "
            + (f"${cheap:,.2f} to " if cheap is not None else "")
            + (f"${dear:,.2f} an hour." if dear is not None else "no plan of these machines at the dear end.")
        )
    if answer.get("today") and answer["today"]["saving_share"] is not None:
        today = answer["today"]
        said.append(f"Today's fleet costs ${today['usd_per_hour']:,.2f} an hour: {today['saving_share']:.0%} saved.")
    if answer.get("prices_as_of"):
        said.append(f"Prices as of {answer['prices_as_of']}{_age(answer['prices_as_of'])}.")
    said += [f"Assumed: {text}." for text in answer["assumptions"]]
    said += [f"Profile: {p['name']} ({p['source']})" for p in answer["profiles"]]
    if answer.get("run"):
        said.append(f"Run {answer['run']}: plan explain {answer['run']}")
    return said


def _age(as_of: str) -> str:
    """What to say of a plan whose oldest price is old; nothing where it is fresh."""
    from catalogs.freshness import STALE_AFTER_DAYS, is_stale, today

    if not is_stale(as_of, today()):
        return ""
    return f", older than {STALE_AFTER_DAYS} days: `plan prices refresh` fetches today's"
