"""One flow in a real browser in every run: the others, and every view, have their own target (`make test-browser`)."""

from __future__ import annotations

from tests.web.conftest import ONE_KIND, Visit


def test_first_visit_to_first_plan_and_its_deployment(visit: Visit) -> None:
    run = visit.ask(f"{ONE_KIND}&ttft=0.5")
    assert visit.page.get_by_label("TTFT p95 (s)").input_value() == "0.50"
    visit.examine("recommend-answer")
    page = visit.open(f"export?run={run}&target=vllm")
    page.get_by_text("vllm serve").first.wait_for(timeout=30_000)
    visit.examine("export-answer")
