"""The looks that need no browser: contrast of the theme and the charts, the bundled answer, the server's settings."""

from __future__ import annotations

import json
import re
import socket
from itertools import pairwise
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("streamlit", reason="the web app's packages are not installed")

from app.charts import MEANING_COLOURS, PALETTE, PURCHASE_COLOURS, bars
from app.cli.main import cli
from app.cli.web import server_flags
from app.web.serve import answer_at_once
from app.web.style import THEME
from app.web.workload_state import demo_answer
from catalogs.errors import InputError
from tests.docs_blocks import ROOT


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("look", THEME)
def test_every_text_of_the_theme_reads_on_its_ground(look: str) -> None:
    theme = THEME[look]
    for ground in ("background", "panel"):
        for text in ("text", "muted", "primary", "wrong"):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
    assert contrast(theme["on_primary"], theme["primary"]) >= 4.5


@pytest.mark.parametrize("look", THEME)
def test_every_colour_of_a_chart_stands_out_from_its_ground(look: str) -> None:
    for colour in {*PALETTE, *PURCHASE_COLOURS.values(), *MEANING_COLOURS.values()}:
        assert contrast(colour, THEME[look]["background"]) >= 3.0, colour


def test_a_purchase_form_has_one_colour_and_its_neighbours_another() -> None:
    assert len({PURCHASE_COLOURS[f] for f in ("on_demand", "spot", "reserved_1yr", "reserved_3yr")}) == 4
    assert len(set(PALETTE)) == len(PALETTE)


def test_the_bundled_answer_is_what_the_readme_shows_of_the_demo() -> None:
    """The documentation's tests run that command, so a stale answer fails here or there."""
    from app.cli.answer_tables import tables

    answer = json.loads(demo_answer().read_text())
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"```console\n\$ make demo\n(.*?)```", readme, re.DOTALL)
    assert shown is not None
    title, limits = tables(answer)[0].title, tables(answer)[1].rows
    assert title in shown[1], "`make docs` writes app/demo/answer.json"
    for name, _, simulated, kept in limits:
        assert re.search(rf"{name} .*{simulated:.4g} +{kept}", shown[1]), name
    line = answer["plan"]["lines"][0]
    assert re.search(rf"{line['instance_type']} +{line['instances'][0]} +{line['gpu']} .*{line['precision']}", shown[1])


def test_bars_stand_in_proportion_and_names_are_text() -> None:
    text = bars("<b>", [("<i>", 4.0, "#000000"), ("b", 2.0, "#000000")], "USD", mark=("bound", 1.0))
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', text)]
    assert [round(a / b, 2) for a, b in pairwise(widths)] == [2.0]
    assert "<b>" not in text
    assert "<i>" not in text


def test_the_server_keeps_to_itself() -> None:
    flags: dict[str, Any] = dict(f.removeprefix("--").split("=", 1) for f in server_flags("127.0.0.1", 8501))
    assert flags["server.address"] == "127.0.0.1"
    assert flags["browser.gatherUsageStats"] == "false"
    assert int(flags["server.maxUploadSize"]) <= 200  # 2 GB are refused by their size, before they are read


def test_the_servers_answers_do_not_wait_for_an_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "listen", socket.socket.listen)  # undone afterwards
    answer_at_once()
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_another_address_needs_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLAN_WEB_PASSWORD", raising=False)
    refused = CliRunner().invoke(cli, ["web", "--host", "0.0.0.0"])
    assert isinstance(refused.exception, InputError)
    assert "PLAN_WEB_PASSWORD" in (refused.exception.remedy or "")
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _path, words: started.append(words))
    monkeypatch.setenv("PLAN_WEB_PASSWORD", "sesame")
    served = CliRunner().invoke(cli, ["web", "--host", "0.0.0.0"])
    assert "unencrypted" in served.output
    assert "--server.address=0.0.0.0" in started[0]
    assert not any("sesame" in word for word in started[0])
