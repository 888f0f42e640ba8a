"""`plan explain`: why a run came out as it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from app.cli.output import Table, emit, format_option

if TYPE_CHECKING:
    from app.runs import Run


@click.command()
@click.argument("run")
@format_option
def explain(run: str, form: str) -> None:
    """Why RUN (an id, or `last`) came out as it did: the bottleneck of each replica, and what the figures rest on.

    \b
    Example:
      plan explain last
    """
    from app.runs import load_run

    found = load_run(run)
    document, tables, notes = (_plan if "plan" in found.answer else _simulation)(found)
    head = {"schema_version": 1, "run": found.run_id, "kind": found.kind, "created_at": found.created_at}
    emit(form, {**head, **document}, tables, notes)


def _plan(found: Run) -> tuple[dict[str, Any], list[Table], list[str]]:
    from catalogs.errors import PlanError
    from planner.explain import explain_lines

    answer = found.answer
    notes = []
    try:
        lines = explain_lines(answer, str(found.inputs.get("model")))
    except PlanError as error:
        lines = []
        notes.append(f"The bottleneck cannot be told: {error.what}.")
    columns = ("line", "sequences at once", "step (ms)", "bottleneck", "why", "MFU", "MBU")
    rows = [
        (r["line"], r["sequences_at_once"], 1e3 * r["step_s"], r["bottleneck"], r["why"], r["mfu"], r["mbu"])
        for r in lines
    ]
    others = [(a["label"], a["usd_per_hour"], a["why_not"]) for a in answer.get("alternatives", [])]
    profiles = [(p["name"], p["source"], p.get("as_of"), _worst(p.get("error"))) for p in answer.get("profiles", [])]
    tables = [
        Table(f"What bounds the plan of ${answer['plan']['usd_per_hour']:,.2f} an hour", columns, rows),
        Table("Why not the others", ("alternative", "USD/h", "why not"), others),
        Table("Step times rest on", ("profile", "source", "as of", "held-out median error"), profiles),
    ]
    notes.append(("Verified: " if answer.get("verified") else "Not verified: ") + str(answer.get("verified_why", "")))
    notes.append(f"Lower bound ${answer['lower_bound_usd_per_hour']:,.2f} an hour, gap {answer['mip_gap']:.2%}.")
    notes += [f"Assumed: {text}." for text in answer.get("assumptions", [])]
    document = {"lines": lines, "alternatives": answer.get("alternatives"), "profiles": answer.get("profiles")}
    return document, tables, notes


def _simulation(found: Run) -> tuple[dict[str, Any], list[Table], list[str]]:
    answer = found.answer
    went = answer.get("time_breakdown", {})
    rows = [(whose, part, share) for whose, parts in went.items() for part, share in parts.items()]
    fleet = [
        (f"{g['count']} x {g['gpu']} {g['precision']}", g["busy_share"], g.get("decodes_per_iteration"), g.get("mfu"),
         g.get("mbu"), g.get("preemptions")) for g in answer.get("fleet", [])
    ]  # fmt: skip
    columns = ("replicas", "busy share", "decodes per iteration", "MFU", "MBU", "preemptions")
    tables = [
        Table("Where time went", ("of", "part", "share"), rows),
        Table("What the replicas did", columns, fleet),
    ]
    return {"time_breakdown": went, "fleet": answer.get("fleet"), "bottleneck": _where(went)}, tables, [_where(went)]


def _where(went: dict[str, dict[str, float]]) -> str:
    """The largest part of a request's time, in words."""
    parts = went.get("request") or {}
    if not parts:
        return "This run kept no breakdown of its time."
    name, share = max(parts.items(), key=lambda item: item[1])
    words = {
        "queue": "waiting for a seat: more replicas, or fewer tokens a request",
        "prefill": "computing prompts: more compute, prefix caching, or shorter prompts",
        "decode": "producing tokens one step at a time: memory bandwidth, or a smaller batch",
    }
    return f"Requests spent {share:.0%} of their time in {name}: {words.get(name, name)}."


def _worst(error: Any) -> str | None:
    """The largest held-out median error of a profile's families."""
    medians: list[tuple[float, str]] = []
    for family, variants in (error or {}).items():
        for variant, figures in variants.items() if isinstance(variants, dict) else ():
            if isinstance(figures, dict) and isinstance(figures.get("median"), (int, float)):
                medians.append((float(figures["median"]), f"{family} {variant}"))
    if not medians:
        return None
    worst, name = max(medians)
    return f"{worst:.1%} ({name})"
