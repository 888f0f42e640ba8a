"""The app in a real browser: every page, light and dark, desktop and phone, without complaint or outside request."""

from __future__ import annotations

import gzip
import os
import statistics
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from app.runs import remove_run, save_run
from tests.report.test_month import month
from tests.shared_data import shared_data
from tests.web.conftest import ONE_KIND, Visit
from tests.web.test_pages import ANSWER

pytestmark = [pytest.mark.browser]
FIRST_PICTURE = (
    "() => [...document.querySelectorAll('[data-testid=stMarkdownContainer] img')].some(i => i.naturalWidth > 0)"
)


# the cost that the sliders under a plan come to
CHANGED = """() => [...document.querySelectorAll('[data-testid=stMetric]')]
    .find(m => m.innerText.includes('With these'))
    .querySelector('[data-testid=stMetricValue]').innerText"""


def test_sliders_answer_and_what_they_say_is_verified_when_asked(visit: Visit) -> None:
    visit.ask(f"{ONE_KIND}&ttft=0.5")
    page = visit.page
    handle = page.get_by_role("slider", name="Load, times this plan's")
    handle.focus()
    page.keyboard.press("End")
    page.get_by_text("Not verified: solved again").wait_for(timeout=60_000)
    visit.settle()
    assert "if_load=4" in page.url
    visit.examine("recommend-what-if")
    page.get_by_role("button", name="Ask this anew and verify it").click()
    page.get_by_text("Not verified: solved again").wait_for(state="detached", timeout=60_000)
    page.get_by_text("Verified:").wait_for(timeout=240_000)
    visit.settle()
    assert page.get_by_label("Load, times the trace").input_value() == "0.40"


def test_a_stop_ends_the_work_and_says_so(visit: Visit) -> None:
    page = visit.open("workload?tab=Make+a+load&num_requests=200000&rate_rps=200")
    page.get_by_role("button", name="Use this load on every page").click()
    page.get_by_text("Showing the synthetic load").wait_for(timeout=60_000)
    trace = page.url.partition("trace=")[2].partition("&")[0]
    page = visit.open(f"simulate?trace={trace}&gpu=L4&count=1")
    page.get_by_role("button", name="Simulate", exact=True).click()
    page.get_by_role("button", name="Stop").dispatch_event("click", timeout=60_000)  # it is drawn anew each second
    page.get_by_text("Stopped. Nothing was kept.").wait_for(timeout=30_000)
    visit.settle()


def test_a_tighter_promise_is_asked_for_and_stands_in_the_url(visit: Visit) -> None:
    page = visit.open(f"{ONE_KIND}&ttft=0.9")
    field = page.get_by_label("TTFT p95 (s)")
    assert field.input_value() == "0.90"
    field.fill("0.60")
    field.press("Tab")
    page.get_by_role("button", name="Find the cheapest fleet").click()
    page.get_by_text("Verified:").wait_for(timeout=240_000)
    page.get_by_role("tab", name="How safe it is").click()
    page.get_by_role("cell", name="0.6", exact=True).wait_for(timeout=30_000)
    assert "ttft=0.6&" in page.url
    address = page.url
    page.goto("about:blank")
    page.goto(address)  # the answer is there again, without asking
    page.get_by_text("Verified:").wait_for(timeout=60_000)
    assert page.get_by_label("TTFT p95 (s)").input_value() == "0.60"


def test_two_gigabytes_are_refused_by_their_size_and_never_sent(visit: Visit, tmp_path: Path) -> None:
    page = visit.open()
    large = tmp_path / "large.csv"
    with large.open("wb") as file:
        file.truncate(2 << 30)  # a hole: no byte of it is on the disk
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if "upload_file" in request.url else None)
    page.locator("input[type=file]").first.set_input_files(str(large))
    page.get_by_text("MB or smaller").first.wait_for(timeout=30_000)
    assert sent == []


def test_a_fleet_that_lives_is_made_played_and_drawn(visit: Visit) -> None:
    page = visit.open("workload?tab=Make+a+load&process=diurnal&period_s=3600&num_requests=3000&rate_rps=2")
    page.get_by_role("button", name="Use this load on every page").click()
    page.get_by_text("Showing the synthetic load").wait_for(timeout=30_000)
    visit.settle()
    visit.examine("workload-made")
    page.get_by_role("link", name="Simulate").click()
    page.get_by_text("Workload: the synthetic load").wait_for(timeout=30_000)
    trace = page.url.partition("trace=")[2].partition("&")[0]
    page = visit.open(f"simulate?trace={trace}&gpu=L40S&precision=fp8&zones=us-east-1,us-west-2&hours=6&scaling=hpa")
    page.get_by_role("button", name="Simulate", exact=True).click()
    page.get_by_text("Replicas by purchase form over time").wait_for(timeout=240_000)
    visit.settle()
    visit.examine("simulate-lives")


def test_two_runs_are_compared(visit: Visit, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN_HOME", str(home))
    first = save_run("recommend", {"slo": {"ttft_p95_s": 1.0}}, {"plan": {"usd_per_hour": 2.0}}, title="before")
    second = save_run("recommend", {"slo": {"ttft_p95_s": 0.2}}, {"plan": {"usd_per_hour": 3.0}}, title="after")
    page = visit.open(f"runs?a={first}&b={second}")
    page.get_by_text("Asked differently").wait_for(timeout=30_000)
    page.get_by_text(f"plan compare {first} {second}").wait_for(state="attached", timeout=30_000)
    visit.settle()
    visit.shot("runs-compared")


def test_a_bill_becomes_a_report_that_can_be_downloaded(visit: Visit, tmp_path: Path) -> None:
    page = visit.open("export")
    page.get_by_role("tab", name="Report").click()
    page.get_by_role("textbox", name="Month").fill("2026-10")
    page.get_by_role("textbox", name="Month").press("Enter")
    page.wait_for_url("**month=2026-10**", timeout=60_000)
    visit.settle()  # the uploader is drawn anew with the month: a file given before is lost
    content = pd.DataFrame(month()).to_csv(index=False).encode()
    page.locator("input[type=file]").set_input_files({"name": "bill.csv", "mimeType": "text/csv", "buffer": content})
    button = page.get_by_role("button", name="Report (HTML)")
    button.wait_for(timeout=60_000)
    visit.settle()
    visit.examine("export-report")
    with page.expect_download(timeout=30_000) as started:
        button.click()
    started.value.save_as(tmp_path / "report.html")
    assert "GPU cost, October 2026" in (tmp_path / "report.html").read_text()


def test_a_schedule_is_written_from_a_form_and_its_mistake_stands_at_the_field(visit: Visit) -> None:
    page = visit.open("export?cron=every+monday")
    page.get_by_role("tab", name="Schedule").click()
    page.get_by_text("not a cron expression").wait_for(timeout=30_000)
    visit.shot("export-schedule-wrong")
    page.get_by_label("When (cron, five fields)").fill("0 8 * * MON")
    page.get_by_label("When (cron, five fields)").press("Enter")
    page.get_by_text("CRON_TZ=UTC").wait_for(timeout=30_000)
    visit.settle()
    visit.examine("export-schedule")


def test_the_url_restores_the_view_and_a_simulation_draws_its_charts(visit: Visit) -> None:
    page = visit.open("simulate?gpu=L4&count=3&precision=fp8")
    assert page.get_by_label("Replicas", exact=True).input_value() == "3"
    page.get_by_role("button", name="Simulate", exact=True).click()
    page.get_by_text("The promise is").first.wait_for(timeout=240_000)
    visit.settle()
    visit.examine("simulate-answer")


def test_a_broken_upload_is_said_in_words(visit: Visit) -> None:
    page = visit.open()
    for name, content, said in (
        ("photo.png", b"\x89PNG", "this is not a trace"),
        ("bad.csv", b"a,b\n1,2\n", "column"),
    ):
        file = {"name": name, "mimeType": "text/csv", "buffer": content}
        page.locator("input[type=file]").first.set_input_files(file)
        page.locator("[data-testid='stAlert']").filter(has_text=said).wait_for(timeout=30_000)
    visit.examine("start-broken-upload")


def test_a_zip_bomb_is_refused_and_the_page_goes_on(visit: Visit, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.csv.gz"
    rows = b"1,100,20\n" * 1_000_000
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(b"arrival_s,input_tokens,output_tokens\n")
        for _ in range(125):  # 1.1 GB, 5 MB packed
            file.write(rows)
    page = visit.open("workload")
    page.get_by_text("Another trace").click()
    page.locator("input[type=file]").first.set_input_files(str(bomb))
    page.get_by_text("unpacks to more than a trace can be").wait_for(timeout=120_000)
    visit.settle()
    assert page.get_by_text("Showing the demo trace").count() == 1


def test_a_number_out_of_range_is_said_beside_its_field_and_nothing_is_asked(visit: Visit) -> None:
    page = visit.open(ONE_KIND)
    field = page.get_by_label("TTFT p95 (s)")
    field.fill("9999")
    field.press("Tab")
    said = page.get_by_text("enter a value between 0.01 and 600")
    said.wait_for(timeout=30_000)
    below = said.bounding_box()["y"] - field.bounding_box()["y"]
    assert 0 < below < 80  # seen, and under its field
    visit.examine("recommend-number-out-of-range")
    page.get_by_role("button", name="Find the cheapest fleet").click()
    field.fill("0.90")
    field.press("Tab")
    said.wait_for(state="detached", timeout=30_000)
    assert page.get_by_text("Planning:").count() == 0
    assert "job=" not in page.url


def test_a_lost_run_database_and_a_plan_that_vanished_are_said(
    visit: Visit, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAN_HOME", str(home))
    run = save_run("recommend", {"model": "llama-3.1-8b"}, ANSWER, title="to vanish")
    page = visit.open(f"export?run={run}&target=vllm")
    page.get_by_text("vllm serve").first.wait_for(timeout=30_000)
    remove_run(run)
    page.get_by_label("Form").click()
    page.get_by_role("option", name="keda").click()
    page.get_by_text(run).first.wait_for(state="detached", timeout=30_000)
    visit.settle()
    assert page.get_by_text("fault of ours").count() == 0
    database = home / "runs.sqlite3"
    kept = database.read_bytes()
    try:
        database.write_bytes(b"this is no database" * 500)
        visit.open("runs")
        page.locator("[data-testid='stAlert']").filter(has_text="PLAN_HOME").wait_for(timeout=30_000)
        visit.examine("runs-lost")
    finally:
        database.write_bytes(kept)


def test_a_fleet_is_simulated_without_a_mouse(visit: Visit) -> None:
    page = visit.open("simulate?gpu=L40S&precision=fp8&count=1")
    page.get_by_role("combobox", name="Model").focus()
    page.keyboard.type("qwen3-8b")  # a box narrows its list to what is typed
    page.keyboard.press("Enter")
    visit.settle()
    page.get_by_label("Replicas", exact=True).focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    page.get_by_label("Tokens guessed a step").wait_for(timeout=30_000)
    button = page.get_by_role("button", name="Simulate", exact=True)
    button.focus()
    page.keyboard.press("Space")
    page.get_by_text("The promise is").first.wait_for(timeout=240_000)
    visit.settle()
    assert page.get_by_label("Replicas", exact=True).input_value() == "2"
    assert "model=qwen3-8b" in page.url
    page.goto(f"{visit.server}/workload")
    visit.settle()
    page.get_by_role("tab", name="The requests").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_text("Input lengths").first.wait_for(timeout=30_000)


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


@pytest.mark.slow
def test_an_uploaded_azure_trace_comes_to_a_recommendation(visit: Visit) -> None:
    page = visit.open()
    page.locator("input[type=file]").first.set_input_files(str(shared_data("traces/azure_llm_2023_conv.csv")))
    page.get_by_text("19,366 requests").wait_for(timeout=60_000)
    page.get_by_role("link", name="Find the cheapest fleet").click()
    page.get_by_role("button", name="Find the cheapest fleet").click()
    page.get_by_text("Verified:").wait_for(timeout=600_000)
    visit.settle()
    visit.shot("recommend-azure")


@pytest.mark.bench
def test_time_to_the_first_chart_and_to_a_sliders_answer(browser: Any, server: str) -> None:
    first = []
    for _ in range(12):
        visitor = Visit(browser, server)
        began = time.perf_counter()
        visitor.page.goto(server)
        visitor.page.wait_for_function(FIRST_PICTURE, timeout=60_000)
        first.append(time.perf_counter() - began)
        visitor.close()
    visitor = Visit(browser, server)
    visitor.open("spend")
    cost = "() => document.querySelector('[data-testid=stMetricValue]').innerText"
    commit = answers(visitor, "Machines to commit", cost, ["Home", "End"] * 6)
    run = visitor.ask(ONE_KIND.replace("scale=0.1", "scale=1"))
    visitor.open(f"recommend?run={run}&if_load=0.5")
    what_if = answers(visitor, "Load, times this plan's", CHANGED, ["End", "Home"] * 6)
    visitor.close()
    for what, times in (("first chart", first), ("commitment's slider", commit), ("what-if's slider", what_if)):
        print(f"\n{what}: median {statistics.median(times):.2f} s, {min(times):.2f} to {max(times):.2f} s "
              f"({len(times)} times, load average {os.getloadavg()[0]:.1f})")  # fmt: skip


def answers(visitor: Visit, name: str, shown: str, keys: list[str]) -> list[float]:
    """Seconds from each key pressed on a slider until what is shown has changed."""
    found = []
    for key in keys:
        visitor.page.get_by_role("slider", name=name).focus()
        before = visitor.page.evaluate(shown)
        began = time.perf_counter()
        visitor.page.keyboard.press(key)
        visitor.page.wait_for_function(f"old => ({shown})() !== old", arg=before)
        found.append(time.perf_counter() - began)
        visitor.settle()
    return found
