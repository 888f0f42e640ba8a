"""`plan what-if`: a plan solved again under another load, other limits or other prices, without simulating."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli.output import Table, emit, format_option

if TYPE_CHECKING:
    from app.runs import Run
    from planner.what_if import Change


@click.command("what-if")
@click.argument("run")
@click.option("--load", default=1.0, show_default=True, help="Factor on the load.")
@click.option("--slo", default=1.0, show_default=True, help="Factor on every latency limit.")
@click.option("--price", "prices", multiple=True, metavar="NAME=FACTOR",
              help="Factor on a price: a purchase form, a GPU or an instance type; may be repeated.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the changed question as a plan file for `plan recommend -c`.")  # fmt: skip
@format_option
def what_if(run: str, load: float, slo: float, prices: Sequence[str], output: Path | None, form: str) -> None:
    """What RUN (an id, or `last`) would come to under another load, other limits or other prices.

    It solves the run's model again from the capacities that were simulated for it, in about a second. The fleet that
    it finds is not simulated: `plan recommend` with the changed settings verifies it.

    \b
    Example:
      plan what-if last --load 1.5 --price spot=1.2
    """
    from app.runs import load_run
    from catalogs.files import write_text
    from planner.what_if import Change, model_of, solve_again

    found = load_run(run)
    change = Change(load, slo, factors(prices))
    answer = {**solve_again(model_of(found.answer, run), change), "run": found.run_id}
    if output is not None:
        settings = question(found, change, output.with_name(f"{output.stem}-prices.csv"))
        write_text(output, json.dumps(settings, indent=1) + "\n")
    emit(form, answer, tables(answer), notes(answer))


def question(run: Run, change: Change, prices_at: Path) -> dict[str, Any]:
    """The changed question as settings of a plan file; changed prices are written to ``prices_at``."""
    from catalogs.files import write_text
    from planner.ask_anew import asked_anew, changed_prices, changed_rates
    from planner.inputs.problem import problem_from

    settings = asked_anew(run.inputs, change)
    for key, place in (("trace", settings["workload"]), ("prices", settings), ("savings_plans", settings),
                       ("capacity_table", settings)):  # fmt: skip
        if key in run.files:  # by its whole path: the plan file may lie elsewhere
            place[key] = run.files[key]["path"]
    if change.prices:
        write_text(prices_at, changed_prices(settings, change))
        if "savings_plan" in settings["candidates"]["purchase"]:
            rates_at = prices_at.with_name(f"{prices_at.stem}-savings-plans.csv")
            write_text(rates_at, changed_rates(problem_from(settings), change))
            settings["savings_plans"] = str(rates_at.resolve())
        settings["prices"] = str(prices_at.resolve())
    return settings


def factors(texts: Sequence[str]) -> dict[str, float]:
    """``spot=1.2`` as name and factor.

    Raises:
        InputError: not of that form.
    """
    from catalogs.errors import InputError

    found = {}
    for text in texts:
        name, _, factor = text.partition("=")
        try:
            found[name.strip()] = float(factor)
        except ValueError as error:
            raise InputError(f"{text!r} is not NAME=FACTOR", where="--price", remedy="--price spot=1.2") from error
    return found


def tables(answer: Mapping[str, Any]) -> list[Table]:
    """The purchase list."""
    plan = answer["plan"]
    rows = []
    for line in plan["lines"]:
        low, high = min(line["instances"]), max(line["instances"])
        count = f"{low}" if low == high else f"{low}-{high}"
        rows.append([line["instance_type"], count, line["gpu"], line["tensor_parallel_size"], line["precision"],
                     line["purchase"], line["usd_per_hour"]])  # fmt: skip
    title = f"Not verified: ${plan['usd_per_hour']:,.2f} an hour"
    return [Table(title, ["instance type", "instances", "GPU", "TP", "precision", "purchase", "USD/h"], rows)]


def notes(answer: Mapping[str, Any]) -> list[str]:
    """What the answer rests on, in sentences."""
    before, now = answer["usd_per_hour_before"], answer["plan"]["usd_per_hour"]
    said = [f"Not verified: {answer['verified_why']}."]
    if before:
        said.append(f"The plan as it was asked costs ${before:,.2f} an hour: {now / before - 1:+.1%}.")
    ends = answer["cost_range"]
    if ends and ends["dear"] is not None and ends["cheap"] is not None:
        said.append(
            f"With the capacities of the nearest simulated limits: ${ends['cheap']:,.2f} to ${ends['dear']:,.2f}."
        )
    return said + [f"Assumed: {text}." for text in answer["assumptions"]]
