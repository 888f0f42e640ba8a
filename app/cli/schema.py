"""`plan schema`: JSON Schema of the input and output forms."""

from __future__ import annotations

import importlib
import json

import click

# form: (module, pydantic model, what it is)
FORMS: dict[str, tuple[str, str, str]] = {
    "plan": ("planner.inputs.problem", "Problem", "the input of `plan recommend`"),
    "scenario": ("simulator.scenario.spec", "Scenario", "the input of `plan simulate`"),
    "profile": ("calibrate.profiles", "Profile", "what `plan calibrate` writes and `profile:` reads"),
    "report": ("app.report.schema", "Report", "the JSON of `plan report build`"),
}


@click.command()
@click.argument("form", type=click.Choice(list(FORMS)), required=False)
def schema(form: str | None) -> None:
    """JSON Schema of an input or output form; without FORM, all of them in one document.

    \b
    Example:
      plan schema plan > plan.schema.json
    """
    names = [form] if form else list(FORMS)
    schemas = {name: _schema(name) for name in names}
    click.echo(json.dumps(schemas[form] if form else schemas, indent=1))


def _schema(name: str) -> object:
    from pydantic import TypeAdapter

    module, model, what = FORMS[name]
    kind = getattr(importlib.import_module(module), model)
    found = TypeAdapter(kind).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "description": what, **found}
