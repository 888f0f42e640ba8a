"""The documentation is current: its commands run and print what it shows; the reference is the commands' own help."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cli.reference import reference
from tests.docs_blocks import ROOT, matches, pages, prepare, run, steps

WITH_COMMANDS = [page for page in pages() if steps(page.read_text())]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_a_pages_commands_print_what_it_shows(page: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    for step in steps(page.read_text()):
        printed = run(step.command, tmp_path)
        assert matches(step.shown, printed), f"{page.name}: `{step.command}` prints otherwise: `make docs`"


def test_the_reference_is_the_commands_own_help() -> None:
    assert (ROOT / "docs" / "reference.md").read_text() == reference(), "`make docs` writes it"


def test_links_between_pages_lead_somewhere() -> None:
    import re

    for page in pages():
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
