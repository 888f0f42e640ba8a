"""Every view in a real browser, light and dark, desktop and phone: its looks, axe's rules, contrast, the keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.runs import save_run
from app.web.style import THEME
from tests.web.conftest import Visit
from tests.web.examine import OVERFLOW
from tests.web.test_pages import ANSWER

pytestmark = [pytest.mark.browser]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# brightness of the page's ground, 0 to 255
GROUND = """() => getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor
    .match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b) / 3"""
# a name for the picture and an address; RUN and OTHER stand for kept runs
VIEWS = {
    "start": "", "workload": "workload", "workload-make": "workload?tab=Make+a+load",
    "workload-forecast": "workload?tab=Forecast", "recommend": "recommend",
    **{f"recommend-{name}": f"recommend?run=RUN&tab={tab}" for name, tab in (
        ("others", "Why not the others"), ("safety", "How safe it is"), ("changes", "What would change it"),
        ("time", "Over time"), ("grounds", "What it rests on"))},
    "simulate": "simulate?speculation=ngram&zones=us-east-1", "spend": "spend?commit=8",
    "spend-bill": "spend?tab=The+bill",
    "calibration": "calibration", "calibration-profiles": "calibration?tab=Profiles",
    "calibration-accuracy": "calibration?tab=Predicted+against+measured", "advise": "advise",
    "runs": "runs?a=RUN&b=OTHER", "export": "export?run=RUN", "export-report": "export?tab=Report",
    "export-schedule": "export?tab=Schedule",
    "export-schedule-wrong": "export?tab=Schedule&cron=x&timezone=Mars&name=-",
    "recommend-out-of-range": "recommend?ttft=-5&precision=bf9", "recommend-lost": "recommend?run=feedfeed",
}  # fmt: skip
# what Tab must reach: links, buttons, fields; of a group in which arrows move, the one with a tabindex
REACHABLE = """() => [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex]')]
    .filter(e => e.tabIndex >= 0 && !e.disabled && e.getClientRects().length && !e.closest('[inert]')
        && e.checkVisibility({visibilityProperty: true}))
    .map((e, i) => {
      e.dataset.reach = i;
      return (e.getAttribute('aria-label') || e.innerText || e.outerHTML).slice(0, 80);
    })"""
# which of them has the focus, and whether it has a ring of 2 px in a colour that the theme's tests hold to 4.5:1
FOCUSED = """ring => { const e = document.activeElement;
    if (!e || e === document.body) return null;
    const s = getComputedStyle(e), ringed = s.outlineStyle === 'solid' && parseFloat(s.outlineWidth) >= 2;
    return [Number(e.dataset.reach ?? -1), ringed && s.outlineColor === ring]; }"""
RING = "rgb({}, {}, {})".format(*bytes.fromhex(THEME["light"]["primary"][1:]))


@pytest.fixture
def addresses(home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The views, with runs that are kept where the server keeps its own."""
    monkeypatch.setenv("PLAN_HOME", str(home))
    inputs = {"model": "llama-3.1-8b", "slo": {"ttft_p95_s": 1.0}}
    run = save_run("recommend", inputs, ANSWER, title="llama-3.1-8b on L40S")
    dearer = {**ANSWER, "plan": {**ANSWER["plan"], "usd_per_hour": 9.0}}
    other = save_run("recommend", {**inputs, "slo": {"ttft_p95_s": 0.2}}, dearer, title="the same, tighter")
    return {name: path.replace("RUN", run).replace("OTHER", other) for name, path in VIEWS.items()}


@pytest.mark.parametrize("look", ["light", "dark"])
def test_every_view_is_clean_readable_and_fits(browser: Any, server: str, addresses: dict[str, str], look: str) -> None:
    visitor = Visit(browser, server, color_scheme=look)
    for name, path in addresses.items():
        page = visitor.open(path)
        assert page.locator("[data-testid='stException']").count() == 0, path
        assert (page.evaluate(GROUND) < 80) == (look == "dark"), path
        visitor.examine(f"{name}-{look}")
        page.set_viewport_size(PHONE)
        visitor.settle()
        page.wait_for_function(f"({OVERFLOW})() <= 0", timeout=20_000)  # once tables have taken the new width
        visitor.shot(f"{name}-{look}-phone")
        page.set_viewport_size(DESKTOP)
    visitor.close()


def test_tab_reaches_every_control_shows_where_it_is_and_leaves_again(visit: Visit, addresses: dict[str, str]) -> None:
    wrong = []
    for name, path in addresses.items():
        page = visit.open(path)
        names: list[str] = page.evaluate(REACHABLE)
        seen: dict[int, bool] = {}
        for _ in range(2 * len(names) + 20):
            page.keyboard.press("Tab")
            at = page.evaluate(FOCUSED, RING)
            if at is None and seen:
                break  # out of the page again, at the browser's own controls
            if at is not None:
                seen[at[0]] = seen.get(at[0], True) and at[1]
        else:
            wrong.append(f"{name}: Tab does not leave the page")
        wrong += [f"{name}: not reached: {what}" for i, what in enumerate(names) if i not in seen]
        wrong += [f"{name}: no ring: {names[i]}" for i, ring in seen.items() if i >= 0 and not ring]
    assert wrong == []
