"""A real server and a real browser; the browser's own failures and any outside request fail the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.web.examine import complaints

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ONE_KIND = "recommend?gpus=L40S&precision=fp8&scale=0.1"  # the question that is answered soonest
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--force-color-profile=srgb",
)  # fmt: skip
# no placeholder is left, every chart has its axes, every picture its pixels
DRAWN = """() => !document.querySelector('[data-testid=stSkeleton]')
    && [...document.querySelectorAll('[data-testid=stPlotlyChart]')].every(c => c.querySelector('.main-svg'))
    && [...document.querySelectorAll('[data-testid=stMarkdownContainer] img')]
        .every(i => i.complete && i.naturalWidth > 0)"""
SHOTS = Path(os.environ.get("PLAN_SCREENSHOTS", "out/screenshots"))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clean_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No password, and a run store of this test's own, not yet there."""
    monkeypatch.setenv("PLAN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PLAN_WEB_PASSWORD", raising=False)
    return tmp_path / "home"


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps its runs."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[str]:
    """The address of `plan web`, with a run store of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PLAN_HOME": str(home), "PYTHONPATH": str(ROOT)}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "web", "--port", str(port)],
            stdout=log, stderr=log, env=environment, cwd=home,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1):
                    break
            except OSError:
                assert process.poll() is None, (home / "log").read_text()
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real Chromium, where one is installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        found.close()


class Visit:
    """One visitor's page, which notes console errors and outside requests."""

    def __init__(self, browser: Any, server: str, **settings: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        self.page = self.context.new_page()
        self.server, self.problems = server, list[str]()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        self.page.on("request", self._request)

    def _console(self, message: Any) -> None:
        probing = "/_stcore/" in str(message.location.get("url"))  # Streamlit looks for its base path by trial
        if message.type == "error" and not probing:
            self.problems.append(f"console: {message.text} {message.location}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.server, self.server.replace("http", "ws"), "data:", "blob:")):
            self.problems.append(f"outside request: {request.url}")

    def ask(self, address: str) -> str:
        """Ask for a plan and wait for it; the run that the export link names."""
        page = self.open(address)
        page.get_by_role("button", name="Find the cheapest fleet").click()
        page.get_by_text("Verified:").wait_for(timeout=240_000)
        self.settle()
        page.get_by_text("What it rests on").click()
        text = page.get_by_text("plan explain").inner_text(timeout=30_000)
        return str(text.split()[-1])

    def open(self, path: str = "") -> Any:
        """Open a page and wait until Streamlit has run its script."""
        self.page.goto(f"{self.server}/{path}")
        self.settle()
        return self.page

    def examine(self, name: str) -> None:
        """Note what is wrong with the view that is shown, and keep its picture."""
        self.problems += [f"{name}: {one}" for one in complaints(self.page)]
        self.shot(name)

    def settle(self) -> None:
        """Wait until the script has run and all that it sent is drawn."""
        self.page.wait_for_selector("h1", timeout=60_000)
        self.page.wait_for_selector("[data-testid='stApp'][data-test-script-state='notRunning']", timeout=60_000)
        self.page.wait_for_function(DRAWN, timeout=60_000)

    def shot(self, name: str) -> None:
        """Keep a picture of the whole page."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        size = self.page.viewport_size
        inner = self.page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
        self.page.set_viewport_size({"width": size["width"], "height": min(6000, max(size["height"], inner))})
        self.settle()
        self.page.screenshot(path=SHOTS / f"{name}.png")
        self.page.set_viewport_size(size)

    def close(self) -> None:
        """End the visit; fails on what the browser complained of."""
        self.context.close()
        assert sorted(set(self.problems)) == []


@pytest.fixture
def visit(browser: Any, server: str) -> Iterator[Visit]:
    found = Visit(browser, server)
    yield found
    found.close()
