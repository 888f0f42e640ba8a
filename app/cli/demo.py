"""`plan demo`: the whole main job on bundled data, offline."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from app.cli.output import format_option


@click.command()
@click.pass_context
@format_option
def demo(ctx: click.Context, form: str) -> None:
    """The main job on bundled data, offline: a trace in, the cheapest verified fleet out, in dollars.

    \b
    Example:
      plan demo
    """
    from app.cli.init import FILES, demo_file
    from app.cli.recommend import recommend
    from catalogs.files import write_text

    with TemporaryDirectory(prefix="plan-demo-") as folder:
        for name in FILES:
            write_text(Path(folder) / name, demo_file(name))
        if form == "table":
            click.echo("Demo: llama-3.1-8b under a bundled synthetic chat trace; TTFT p95 <= 1 s, TPOT p95 <= 50 ms.\n")
        ctx.invoke(recommend, config=Path(folder) / "plan.yaml", form=form)
    if form == "table":
        click.echo("\nNext: plan init myplan && plan recommend -c myplan/plan.yaml   (then put your own trace in it)")
