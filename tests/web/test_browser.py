"""The app in a real browser: every page, light and dark, desktop and phone, without complaint or outside request."""

from __future__ import annotations

from typing import Any

import pytest

from tests.web.conftest import Visit

pytestmark = [pytest.mark.browser]
PAGES = ("", "workload", "recommend", "calibration", "runs", "export")
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
