"""`plan advise`: the steps that save most, from the fleet you run today."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from app.cli.output import Table, emit, format_option, progress_bar


@click.command()
@click.option(
    "-c", "--config", type=click.Path(dir_okay=False, path_type=Path), required=True,
    help="A plan file with a `today:` section.",
)  # fmt: skip
@format_option
def advise(config: Path, form: str) -> None:
    """From today's fleet, step by step to the cheapest one: each step simulated, with its saving and its price.

    \b
    Example:
      plan advise -c plan.yaml     # with, say: today: [{instance_type: g6e.xlarge, count: 4, purchase: on_demand}]
    """
    from planner.advise import advise as walk
    from planner.inputs.problem import read_problem

    problem = read_problem(config)
    with progress_bar("advising") as progress:
        answer = walk(problem, progress)
    names = [s.name for s in problem.slos]
    rows = [
        [s["step"], s["what"], s["usd_per_hour"], s["saving_usd_per_hour"], *[s["slo"].get(n) for n in names],
         s["quality"], " ".join(filter(None, (s["plan"], s["setting"]))) or s["why_not"]]
        for s in answer["steps"]
    ]  # fmt: skip
    columns = ["step", "what may change", "USD/h", "saves", *names, "quality kept", "fleet"]
    title = _title(answer)
    notes = [
        "Each step keeps what came before, and one that saves nothing changes nothing (a dash).",
        "A dash for the quality of a step's fleet means that nobody measured it.",
    ]
    now = answer["steps"][0]
    if now["bottleneck"]:
        notes.insert(
            0, f"Today the replicas are in a step {now['busy_share']:.0%} of the time. Bottleneck: {now['bottleneck']}."
        )
    if now["why_not"]:
        notes.insert(0, f"Today's fleet {now['why_not']}.")
    notes += [f"No price is known for {name}: it is left out of today's cost." for name in answer["unpriced"]]
    emit(form, answer, [Table(title, columns, rows)], notes)


def _title(answer: Mapping[str, Any]) -> str:
    """Today's cost, and what the steps lead to: less money, or the price of keeping the promise at all."""
    today, best = answer["today_usd_per_hour"], answer["best_usd_per_hour"]
    share = abs(answer["saving_share"] or 0.0)
    if answer["today_keeps_the_promise"] is False:
        change = "less" if best < today else "more"
        return (
            f"${today:,.2f} an hour today, which misses the promise; the cheapest fleet found that keeps it costs "
            f"${best:,.2f} ({share:.0%} {change})"
        )
    if best < today:
        return f"${today:,.2f} an hour today, ${best:,.2f} after these steps ({share:.0%} less)"
    return f"${today:,.2f} an hour today, and no step makes it cheaper"
