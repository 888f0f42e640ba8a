"""Export and reports: a plan turned into what deploys it, the report of a bill, and the schedule that repeats it."""

from __future__ import annotations

import base64
import shlex
from datetime import UTC, datetime
from typing import Any

import streamlit as st

from app.cli.export import TARGETS
from app.runs import list_runs
from app.web.fields import choice, keep, number, text
from app.web.parts import command, heading, tabs, words
from app.web.reports import ask, downloads

LANGUAGES = {"skypilot": "yaml", "karpenter": "yaml", "keda": "yaml", "hpa": "yaml", "terraform": "hcl"}
SCHEDULE_LANGUAGES = {"crontab": "bash", "systemd": "ini", "kubernetes": "yaml", "github": "yaml"}
NAME_RULE = "Letters, digits, dots, dashes and underscores, a letter or digit first, at most 64."
AS_SENT = "as it is sent"
PREVIEWS = {"md": "markdown", "csv": "csv", "json": "json"}

heading("Export and reports", "Launch commands and manifests for a plan; the report of a bill, once or on a schedule.")


def deploy() -> None:
    """A plan in the form that a tool deploys."""
    from planner.export import EXPORTERS, deployment_of

    runs = list_runs("recommend")
    if not runs:
        st.info("No plan yet. The Recommend page makes one.")
        st.page_link("views/recommend.py", label="Find the cheapest fleet", icon=":material/shopping_cart:")
        command("plan export vllm last")
        return
    by_id = {r.run_id: r for r in runs}
    left, right = st.columns(2)
    run_id = choice(left, "Plan", list(by_id), "run", runs[0].run_id, format_func=lambda i: label(i, by_id))
    target = choice(right, "Form", TARGETS, "target", TARGETS[0])
    keep({"run": run_id, "target": target})
    found = by_id[run_id]
    manifest = EXPORTERS[target](deployment_of(found.inputs, found.answer))
    st.code(manifest, language=LANGUAGES.get(target, "bash"))
    suffix = {"yaml": "yaml", "hcl": "tf"}.get(LANGUAGES.get(target, ""), "sh")
    st.download_button("Download", manifest, f"{run_id}-{target}.{suffix}")
    command(f"plan export {target} {run_id}")


def label(run_id: str, by_id: dict[str, Any]) -> str:
    """A run as the box shows it; one that has gone since shows its id."""
    run = by_id.get(run_id)
    return run_id if run is None else f"{run_id} · {run.title or run.created_at}"


def report() -> None:
    """The report of a bill as it will be sent, and its downloads."""
    from app.report.render import RENDERERS, cards

    built = ask()
    if built is None:
        return
    for column, (value, what, _) in zip(st.columns(3) * 3, cards(built.report), strict=False):
        column.metric(what, value)
    st.info(words(built.report.recommendation))
    downloads(built)
    wanted = st.query_params.get("preview")
    start = wanted if wanted in PREVIEWS else AS_SENT
    form = str(st.segmented_control("Preview", [AS_SENT, *PREVIEWS], default=start) or AS_SENT)
    keep({"preview": form})
    if form == AS_SENT:
        content = base64.b64encode(RENDERERS["html"](built.report).encode()).decode()
        # as an address of its own, so that nothing in it could reach this page
        st.iframe(f"data:text/html;charset=utf-8;base64,{content}", height=640, alt="The report as it is sent")
    else:
        st.code(RENDERERS[form](built.report), language=PREVIEWS[form], wrap_lines=True, height=420)
    command(built.command)


def schedule() -> None:
    """A schedule file from a form, what is wrong with it beside the field, and what runs it."""
    import yaml

    from app.report.schedule import FORMS, next_due

    a, b, c = st.columns(3)
    name = text(a, "Name", "name", "weekly-gpu-cost")
    cron = text(b, "When (cron, five fields)", "cron", "0 8 * * MON")
    timezone = text(c, "Time zone", "timezone", "UTC")
    d, e, f = st.columns(3)
    bill = text(d, "Bill (a file beside the schedule)", "bill", "focus.csv")
    budget = number(e, "Budget (USD a month; 0: none)", "budget", 0.0, (0.0, 1e9), step=1000.0)
    target = text(f, "Write the report to", "write_to", "reports/{period}.html")
    keep({"name": name, "cron": cron, "timezone": timezone, "bill": bill, "budget": budget, "write_to": target})
    sources: dict[str, Any] = {"bill": bill, "run": "last", **({"budget_usd_per_month": budget} if budget else {})}
    document = {"name": name, "cron": cron, "timezone": timezone, "report": sources,
                "send": [{"kind": "file", "path": target}]}  # fmt: skip
    found = checked(document, {"name": a, "cron": b, "timezone": c, "report": d, "send": f})
    if found is None:
        command("plan report schedule schedule.yaml --print crontab")
        return
    written = yaml.safe_dump(document, sort_keys=False)
    st.caption("Next: " + "; ".join(f"{moment:%a %d %b %Y %H:%M} UTC" for moment in coming(found, next_due)))
    form = choice(st, "Runs by", list(FORMS), "by", "crontab")
    keep({"by": form})
    left, right = st.columns(2)
    path = f"{name}.yaml"
    left.code(written, language="yaml")
    left.download_button("Download the schedule", written, path, "text/yaml")
    ready = FORMS[form](found, path)
    right.code(ready, language=SCHEDULE_LANGUAGES[form], wrap_lines=True)
    right.download_button("Download the " + form + " form", ready, f"{name}.{form}.txt", key="ready-made")
    command(f"plan report schedule {shlex.quote(path)} --print {form}")


def checked(document: dict[str, Any], beside: dict[str, Any]) -> Any | None:
    """The schedule; None where it is wrong, and each mistake stands under its field."""
    from pydantic import ValidationError

    from app.report.schedule import Schedule

    mistakes: list[tuple[str, str]] = []
    if not document["report"]["bill"].strip():
        mistakes.append(("report", "A file's name is needed."))
    if not document["send"][0]["path"].strip():
        mistakes.append(("send", "A file's name is needed."))
    try:
        found = Schedule.model_validate(document)
    except ValidationError as problem:
        for mistake in problem.errors():
            key = str(mistake["loc"][0]) if mistake["loc"] else ""
            message = NAME_RULE if key == "name" else str(mistake["msg"]).removeprefix("Value error, ")
            mistakes.append((key, message))
    for key, message in mistakes:
        beside.get(key, st).error(words(message))
    return None if mistakes else found


def coming(found: Any, next_due: Any) -> list[datetime]:
    """The next three instants at which it is due."""
    moments = [datetime.now(UTC)]
    for _ in range(3):
        moments.append(next_due(found, moments[-1]))
    return moments[1:]


tabs({"Deploy a plan": deploy, "Report": report, "Schedule": schedule}, "tabs-export")
