"""`plan export`: a plan as launch commands and manifests."""

from __future__ import annotations

from pathlib import Path

import click

TARGETS = ("vllm", "sglang", "trtllm", "tgi", "triton", "skypilot", "karpenter", "terraform", "keda", "hpa")


@click.command()
@click.argument("target", type=click.Choice(TARGETS))
@click.argument("run")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write here, not to stdout.")
def export(target: str, run: str, output: Path | None) -> None:
    """Turn the plan of RUN (an id from `plan runs list`, or `last`) into what deploys it.

    \b
    Example:
      plan export karpenter last -o nodepools.yaml
    """
    from app.runs import load_run
    from catalogs.files import write_text
    from planner.export import EXPORTERS, deployment_of

    found = load_run(run)
    text = EXPORTERS[target](deployment_of(found.inputs, found.answer))
    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(output, text)
        click.echo(f"wrote {output}", err=True)
