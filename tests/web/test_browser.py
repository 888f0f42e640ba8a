"""The app in a real browser: every page, light and dark, desktop and phone, without complaint or outside request."""

from __future__ import annotations

from typing import Any

import pytest

from tests.web.conftest import Visit

pytestmark = [pytest.mark.browser]
PAGES = ("", "workload", "recommend", "simulate", "spend", "calibration", "runs", "export")
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}},
}


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_opens_clean(browser: Any, server: str, look: str) -> None:
    visitor = Visit(browser, server, **LOOKS[look])
    for path in PAGES:
        page = visitor.open(path)
        assert page.locator("[data-testid='stException']").count() == 0, path
        visitor.shot(f"{path or 'start'}-{look}")
    visitor.close()


def test_first_visit_to_first_plan(visit: Visit) -> None:
    page = visit.open("recommend?gpus=L4,L40S")
    page.get_by_role("button", name="Find the cheapest fleet").click()
    page.get_by_text("Verified:").wait_for(timeout=120_000)
    page.get_by_text("USD an hour").first.wait_for()
    visit.settle()
    visit.shot("recommend-answer")
    page.get_by_role("link", name="Deploy it").click()
    page.get_by_text("vllm serve").first.wait_for(timeout=30_000)
    visit.shot("export-answer")


def test_the_url_restores_the_view_and_a_simulation_draws_its_charts(visit: Visit) -> None:
    page = visit.open("simulate?gpu=L4&count=3&precision=fp8")
    assert page.get_by_label("Replicas").input_value() == "3"
    page.get_by_role("button", name="Simulate", exact=True).click()
    page.get_by_text("The promise is").first.wait_for(timeout=60_000)
    visit.settle()
    visit.shot("simulate-answer")


def test_a_broken_upload_is_said_in_words(visit: Visit) -> None:
    page = visit.open()
    for name, content, said in (
        ("photo.png", b"\x89PNG", "this is not a trace"),
        ("bad.csv", b"a,b\n1,2\n", "column"),
    ):
        file = {"name": name, "mimeType": "text/csv", "buffer": content}
        page.locator("input[type=file]").first.set_input_files(file)
        page.locator("[data-testid='stAlert']").filter(has_text=said).wait_for(timeout=30_000)
    visit.shot("start-broken-upload")


def test_two_visitors_do_not_disturb_each_other(browser: Any, server: str) -> None:
    first, second = Visit(browser, server), Visit(browser, server)
    first.open()
    content = b"arrival_s,input_tokens,output_tokens\n0,10,5\n1,20,5\n"
    first.page.locator("input[type=file]").first.set_input_files(
        {"name": "mine.csv", "mimeType": "text/csv", "buffer": content}
    )
    first.page.get_by_text("mine.csv: 2 requests").wait_for(timeout=30_000)
    second.open()
    assert second.page.get_by_text("mine.csv").count() == 0
    first.close()
    second.close()
