"""A visitor of the app by Streamlit's own test driver: opens pages, uploads, waits for jobs, reads what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

testing = pytest.importorskip("streamlit.testing.v1", reason="the web app's packages are not installed")

from app.web import parts  # noqa: E402

MAIN = Path(parts.__file__).parent / "main.py"
TRACE = b"arrival_s,input_tokens,output_tokens\n" + b"".join(b"%d,100,20\n" % i for i in range(300))


def visit(name: str = "start", /, **query: str) -> Any:
    """A visitor whose first page is this one, with these settings in the address."""
    found = testing.AppTest.from_file(str(MAIN), default_timeout=60)
    if name != "start":
        found.switch_page(f"views/{name}.py")
    found.query_params.update(query)
    return found.run()


def go(found: Any, name: str, /, **query: str) -> Any:
    """The same visitor on another page, as by the menu: with a bare address, or with these settings in it."""
    found.switch_page(f"views/{name}.py")
    found.query_params.clear()
    found.query_params.update(query)
    found.run()
    return found


def said(found: Any) -> str:
    """All that a page says in its notices; it must not have broken."""
    assert not found.exception, [e.value for e in found.exception]
    notices = [*found.error, *found.warning, *found.info, *found.success]
    return "\n".join(str(n.value) for n in notices).replace("\\", "")


def captions(found: Any) -> str:
    """All the small print of a page."""
    return "\n".join(str(c.value) for c in found.caption).replace("\\", "")


def press(found: Any, label: str) -> Any:
    """Push the button of this label."""
    next(b for b in found.button if b.label == label).click()
    return found.run()


def upload(found: Any, name: str, content: bytes) -> Any:
    """Give the page's first field a file."""
    found.file_uploader[0].upload(name, content)
    return found.run()


def finish(found: Any, slot: str) -> Any:
    """Wait for the visitor's job and show its outcome."""
    job = parts.jobs().find(slot, found.session_state[f"job-{slot}"])
    assert job is not None and job.future is not None
    job.future.exception(timeout=240)
    return found.run()


def answered(found: Any, slot: str, answer: Any) -> Any:
    """Show an answer as if the visitor's job had given it."""
    found.session_state[f"job-{slot}"] = parts.jobs().start(slot, "Working", lambda _: answer).job_id
    return finish(found, slot)


def pictures(found: Any) -> list[str]:
    """The pictures that a page shows, as Markdown."""
    return [str(m.value) for m in found.markdown if "](data:image/svg+xml;base64," in str(m.value)]


def tables(found: Any) -> list[Any]:
    """The tables that a page shows, as data frames of what is read in them."""
    shown = [t.value.map(_as_read).rename(columns=_as_read) for t in found.table]
    return [*(d.value for d in found.dataframe), *shown]


def _as_read(value: object) -> object:
    return value.replace("\\", "") if isinstance(value, str) else value


def commands(found: Any) -> str:
    """The equivalent commands that a page shows."""
    return "\n".join([*(c.value for c in found.code), *(str(h.proto.body) for h in found.get("html"))])
