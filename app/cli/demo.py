"""`plan demo`: the whole main job on bundled data, offline."""

from __future__ import annotations

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
    from importlib.resources import as_file, files

    from app.cli.recommend import recommend

    if form == "table":
        click.echo("A bundled synthetic chat trace, llama-3.1-8b, TTFT p95 <= 1 s, TPOT p95 <= 50 ms.\n")
    with as_file(files("app") / "demo") as folder:
        ctx.invoke(recommend, config=folder / "plan.yaml", form=form, slos=())
    if form == "table":
        click.echo("\nNext: plan init myplan && plan recommend -c myplan/plan.yaml   (then put your own trace in it)")
