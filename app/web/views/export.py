"""Export and reports: a plan turned into what deploys it, the report of a bill, and the schedule that repeats it."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import Any

import streamlit as st
import streamlit.components.v1 as components

from app.cli.export import TARGETS
from app.runs import list_runs
from app.web.parts import command, heading, tabs, words
from app.web.reports import ask, downloads

LANGUAGES = {"skypilot": "yaml", "karpenter": "yaml", "keda": "yaml", "hpa": "yaml", "terraform": "hcl"}
SCHEDULE_LANGUAGES = {"crontab": "bash", "systemd": "ini", "kubernetes": "yaml", "github": "yaml"}
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
        return
    by_id = {r.run_id: r for r in runs}
    wanted = st.query_params.get("run")
    ids = list(by_id)
    left, right = st.columns(2)
    if wanted and wanted not in ids:
        st.warning("The plan that the address names is gone; this is the newest.")
    run_id = str(
        left.selectbox(
            "Plan", ids, index=ids.index(wanted) if wanted in ids else 0, format_func=lambda i: label(i, by_id)
        )
    )
    asked = st.query_params.get("target", "")
    target = str(right.selectbox("Form", TARGETS, index=TARGETS.index(asked) if asked in TARGETS else 0))
    st.query_params.update({"run": run_id, "target": target})
    found = by_id[run_id]
    text = EXPORTERS[target](deployment_of(found.inputs, found.answer))
    st.code(text, language=LANGUAGES.get(target, "bash"))
    suffix = {"yaml": "yaml", "hcl": "tf"}.get(LANGUAGES.get(target, ""), "sh")
    st.download_button("Download", text, f"{run_id}-{target}.{suffix}")
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
    form = str(st.segmented_control("Preview", [AS_SENT, *PREVIEWS], default=AS_SENT) or AS_SENT)
    if form == AS_SENT:
        components.html(RENDERERS["html"](built.report), height=640, scrolling=True)
    else:
        st.code(RENDERERS[form](built.report), language=PREVIEWS[form], wrap_lines=True, height=420)
    command(built.command)


def schedule() -> None:
    """A schedule file from a form, what is wrong with it beside the field, and what runs it."""
    import yaml

    from app.report.schedule import FORMS, next_due

    a, b, c = st.columns(3)
    name = field(a, "Name", "name", "weekly-gpu-cost")
    cron = field(b, "When (cron, five fields)", "cron", "0 8 * * MON")
    timezone = field(c, "Time zone", "timezone", "UTC")
    d, e, f = st.columns(3)
    bill = d.text_input("Bill (a file beside the schedule)", "focus.csv")
    budget = e.number_input("Budget (USD a month; 0: none)", 0.0, 1e9, 0.0, step=1000.0)
    target = f.text_input("Write the report to", "reports/{period}.html")
    sources: dict[str, Any] = {"bill": bill, "run": "last", **({"budget_usd_per_month": budget} if budget else {})}
    document = {"name": name, "cron": cron, "timezone": timezone, "report": sources,
                "send": [{"kind": "file", "path": target}]}  # fmt: skip
    found = checked(document, {"name": a, "cron": b, "timezone": c, "report": d})
    if found is None:
        return
    text = yaml.safe_dump(document, sort_keys=False)
    st.caption("Next: " + "; ".join(f"{moment:%a %d %b %Y %H:%M} UTC" for moment in coming(found, next_due)))
    form = str(st.selectbox("Runs by", list(FORMS)))
    left, right = st.columns(2)
    path = f"{name}.yaml"
    left.code(text, language="yaml")
    left.download_button("Download the schedule", text, path, "text/yaml")
    ready = FORMS[form](found, path)
    right.code(ready, language=SCHEDULE_LANGUAGES[form], wrap_lines=True)
    right.download_button("Download the " + form + " form", ready, f"{name}.{form}.txt", key="ready-made")
    command(f"plan report schedule {shlex.quote(path)} --print {form}")


def field(column: Any, title: str, key: str, fallback: str) -> str:
    """A text that the URL restores."""
    return str(column.text_input(title, st.query_params.get(key, fallback)))


def checked(document: dict[str, Any], beside: dict[str, Any]) -> Any | None:
    """The schedule; None where it is wrong, and each mistake stands under its field."""
    from pydantic import ValidationError

    from app.report.schedule import Schedule

    try:
        return Schedule.model_validate(document)
    except ValidationError as problem:
        for mistake in problem.errors():
            key = str(mistake["loc"][0]) if mistake["loc"] else ""
            beside.get(key, st).error(str(mistake["msg"]).removeprefix("Value error, "))
        return None


def coming(found: Any, next_due: Any) -> list[datetime]:
    """The next three instants at which it is due."""
    moments = [datetime.now(UTC)]
    for _ in range(3):
        moments.append(next_due(found, moments[-1]))
    return moments[1:]


tabs({"Deploy a plan": deploy, "Report": report, "Schedule": schedule}, "tabs-export")
