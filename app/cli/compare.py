"""`plan compare`: two runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from app.cli.output import Table, emit, format_option

MODEL = "what_if"  # what `plan what-if` solves again: no figure of the answer


def leaves(value: Any, prefix: str = "") -> dict[str, object]:
    """A nested answer as ``{"slo.ttft_p95_s.limit": 1.0}``; lists are numbered from 1."""
    if isinstance(value, Mapping):
        items = [(str(k), v) for k, v in value.items() if prefix or k != MODEL]
    elif (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and any(isinstance(v, (Mapping, list)) for v in value)
    ):
        items = [(str(i), v) for i, v in enumerate(value, start=1)]
    else:
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        return {prefix: shown}
    found: dict[str, object] = {}
    for key, inner in items:
        found.update(leaves(inner, f"{prefix}.{key}" if prefix else key))
    return found


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, object]]:
    """Rows of what differs: figure, both values, and the relative change where both are numbers."""
    a, b = leaves(first), leaves(second)
    rows: list[dict[str, object]] = []
    for key in dict.fromkeys([*a, *b]):
        x, y = a.get(key), b.get(key)
        if x == y:
            continue
        change = None
        if isinstance(x, (int, float)) and isinstance(y, (int, float)) and not isinstance(x, bool) and x:
            change = y / x - 1
        rows.append({"figure": key, "a": x, "b": y, "change": change})
    return rows


@click.command()
@click.argument("run_a")
@click.argument("run_b")
@format_option
def compare(run_a: str, run_b: str, form: str) -> None:
    """Two runs side by side: what was asked differently, and what came out differently.

    \b
    Example:
      plan compare 3f2a last
    """
    from app.runs import load_run

    a, b = load_run(run_a), load_run(run_b)
    asked, answered = difference(a.inputs, b.inputs), difference(a.answer, b.answer)
    document = {
        "schema_version": 1, "a": a.run_id, "b": b.run_id, "kind": [a.kind, b.kind],
        "inputs": asked, "answer": answered,
    }  # fmt: skip
    columns = ("figure", a.run_id, b.run_id, "change")

    def table(title: str, rows: list[dict[str, object]]) -> Table:
        cells = [
            (r["figure"], r["a"], r["b"], f"{r['change']:+.1%}" if isinstance(r["change"], float) else None)
            for r in rows
        ]
        return Table(title, columns, cells)

    notes = [] if asked or answered else ["The two runs are the same."]
    if a.kind != b.kind:
        notes.append(f"The runs are of different kinds ({a.kind}, {b.kind}): most figures have no counterpart.")
    emit(
        form,
        document,
        [table("Asked differently", asked), table("Answered differently", answered)],
        notes,
        main_table=1,
    )
