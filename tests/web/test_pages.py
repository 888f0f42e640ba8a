"""Every page's logic by Streamlit's own test driver: what is shown, and what bad input comes to."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from app.report.render import RENDERERS
from app.runs import remove_run, save_run
from tests.report.test_month import month
from tests.web.visitor import (
    MAIN,
    TRACE,
    answered,
    captions,
    commands,
    finish,
    go,
    pictures,
    press,
    said,
    tables,
    testing,
    upload,
    visit,
)

from app.web import parts, reports, workload_state  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
PAGES = sorted(p.stem for p in (MAIN.parent / "views").glob("*.py") if p.stem != "__init__")
ANSWER: dict[str, Any] = {
    "plan": {
        "lines": [
            {"instance_type": "g6e.xlarge", "gpu": "L40S", "tensor_parallel_size": 1, "precision": "fp8",
             "framework": "vllm", "purchase": purchase, "instances": counts, "requests_per_s": [2.0, 3.0],
             "usd_per_hour": 3.7}
            for purchase, counts in (("reserved_3yr", [2, 2]), ("spot", [0, 3]))
        ],
        "usd_per_hour": 7.4, "usd_per_month": 5402.0, "usd_per_million_output_tokens": 0.9,
    },
    "slo": {"ttft_p95_s": {"limit": 1.0, "simulated": 0.5, "ok": True, "interval_95": [0.45, 0.6]}},
    "confidence": {"draws": 5, "kept": 5, "spread": {"ttft_p95_s": [0.4, 0.7]}},
    "verified": True, "lower_bound_usd_per_hour": 7.3, "mip_gap": 0.01, "periods": ["0:00", "1:00"],
    "alternatives": [
        {"label": "runner-up: 1 x g6.xlarge (L4, fp8)", "usd_per_hour": 8.0, "why_not": "dearer"},
        {"label": "H100-SXM only: 1 x p5.4xlarge", "usd_per_hour": 9.0, "why_not": "dearer", "bound": True},
        {"label": "T4 only", "usd_per_hour": None, "why_not": "too slow"},
    ],
    "assumptions": [], "profiles": [], "prices_as_of": None,
    "pareto": {"cost_against_latency": [
        {"slo_factor": 0.5, "usd_per_hour": None, "plan": "no plan keeps it"},
        {"slo_factor": 1.0, "usd_per_hour": 7.4, "plan": "this"},
        {"slo_factor": 2.0, "usd_per_hour": 6.0, "plan": "less"},
    ], "cost_against_quality": [{"min_score": 1.0, "usd_per_hour": 9.0, "plan": "wide"},
                                {"min_score": 0.98, "usd_per_hour": 7.4, "plan": "this"}]},
    "cost_range": {"step_time_error": 0.1, "cheap": 7.0, "dear": None},
    "tornado": [{"what": "load", "change": "-20% to +20%", "low_usd_per_hour": 6.0, "high_usd_per_hour": None}],
}  # fmt: skip

ANSWERS_TABLES = ("Why not the others", "Latency promise", "What to run when")


@pytest.fixture(autouse=True)
def home(clean_home: Path) -> Path:
    return clean_home


@pytest.mark.parametrize("name", PAGES)
def test_every_page_opens_with_words_or_a_chart(name: str) -> None:
    found = visit(name)
    assert not found.error
    assert found.get("plotly_chart") or pictures(found) or found.info, said(found)
    assert "plan " in commands(found)


def test_an_upload_is_the_workload_of_every_page_and_of_this_visitor_only() -> None:
    mine, other = visit(), visit()
    upload(mine, "mine.csv", TRACE)
    assert any("mine.csv: 300 requests" in c.value for c in mine.caption)
    assert go(mine, "workload").metric[0].value == "300"
    assert go(other, "workload").metric[0].value != "300"


def test_a_trace_is_taken_on_the_workload_page_too_and_an_error_names_it_as_the_visitor_does() -> None:
    found = upload(visit("workload"), "mine.csv", TRACE)
    assert "Showing mine.csv" in captions(found)
    told = said(upload(visit("workload"), "my trace<b>.csv", TRACE + b"1,nan,2\n"))
    assert "my_trace_b_.csv:302" in told
    assert "plan-web-" not in told
    assert "Showing the demo trace" in captions(press(found, "Back to the demo trace"))


def test_a_name_is_shown_as_it_is_and_not_read_as_markup() -> None:
    found = upload(visit(), "![x](http:evil)<b>.csv", TRACE)
    shown = [c.value for c in found.caption if "evil" in c.value]
    assert shown
    assert not any("![x](" in text or "<b>" in text.replace("\\<", "") for text in shown)
    assert go(found, "recommend").caption


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("trace.csv", TRACE)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("photo.png", b"\x89PNG", "not a trace"),
        ("trace.zip", zipped(), "not a trace"),
        ("trace.csv", zipped(), "zip archive"),
        ("trace.csv", b"", "empty"),
        ("trace.csv", b"a,b\n1,2\n", "column"),
        ("trace.csv", TRACE + b"1,nan,2\n", "302"),
        ("trace.csv", b"\0\1\2" * 100, "binary"),
        ("trace.csv.gz", gzip.compress(TRACE)[:-20], "gzip"),
        ("../../etc/passwd", b"root", "not a trace"),
    ],
    ids=["png", "zip", "zip-as-csv", "empty", "columns", "nan", "binary", "cut-gzip", "path"],
)  # fmt: skip
def test_a_broken_upload_is_said_in_words(name: str, content: bytes, words: str) -> None:
    assert words in said(upload(visit(), name, content))


def test_a_broken_trace_leaves_a_way_back_to_the_demo() -> None:
    found = upload(visit(), "trace.csv", b"a,b\n1,2\n")
    found.button[0].click().run()
    assert any("the demo trace" in c.value for c in found.caption)


def test_an_upload_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload_state, "MAX_UPLOAD_BYTES", 1000)
    found = upload(visit(), "trace.csv", TRACE)
    assert "larger than" in said(found)
    assert "trace" not in found.session_state


@pytest.mark.parametrize("tail", [b"1,100,20\n" * 1_000_000, b"1" * 9_000_000], ids=["rows", "one-line"])
def test_a_gzip_bomb_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch, tail: bytes) -> None:
    monkeypatch.setattr(workload_state, "MAX_UNPACKED_BYTES", 4 << 20 if tail[1:2] == b"," else 1 << 30)
    bomb = gzip.compress(TRACE + tail, compresslevel=1)
    assert len(bomb) < 100_000
    found = upload(visit(), "trace.csv.gz", bomb)
    assert "unpacks to more" in said(found)
    assert "trace" not in found.session_state


def test_a_million_rows_are_drawn_and_a_longer_trace_says_that_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pd.DataFrame({"arrival_s": range(1_000_000), "input_tokens": 100, "output_tokens": 20})
    found = upload(visit(), "long.csv.gz", gzip.compress(rows.to_csv(index=False).encode(), compresslevel=1))
    assert any("1,000,000 requests" in c.value for c in found.caption)
    monkeypatch.setattr(workload_state, "MAX_REQUESTS", 200)
    assert "first 200 requests" in said(upload(visit(), "trace.csv", TRACE + b"300,1,1\n"))


def test_a_trace_that_vanished_between_two_clicks_is_said_and_the_demo_takes_its_place() -> None:
    found = upload(visit(), "mine.csv", TRACE)
    Path(found.session_state["trace"]["path"]).unlink()
    go(found, "workload")
    assert "no longer on this machine" in said(found)
    assert found.metric[0].value != "300"


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("recommend", {"ttft": "-5", "tpot_ms": "nan", "scale": "1e99", "precision": "bf9", "purchase": "x"}),
        ("recommend", {"model": "<script>", "region": "../..", "gpus": "L40S,no-such"}),
        ("simulate", {"count": "-3", "gpu": "no-such", "tp": "3", "router": "<b>"}),
        ("simulate", {"count": "9" * 5000}),
        ("simulate", {"count": "²"}),
        ("calibration", {"model": "no-such", "precision": "int2", "tp": "x"}),
        ("spend", {"instance": "no-such"}),
        ("advise", {"model": "no-such", "today": "a:b,:::,g6e.xlarge:99999999:x:y"}),
        ("export", {"target": "no-such", "run": "no-such", "cron": "* *", "timezone": "Mars"}),
    ],
)  # fmt: skip
def test_an_address_with_nonsense_opens_the_page_within_its_ranges(name: str, query: dict[str, str]) -> None:
    found = visit(name, **query)
    said(found)
    for field in found.number_input:
        assert field.min <= field.value <= field.max


def test_no_precision_and_no_purchase_form_is_said() -> None:
    found = visit("recommend", precision="", purchase="")
    found.button[0].click().run()
    assert "at least one precision" in said(found)


def test_a_simulation_runs_outside_the_page_and_shows_its_verdict() -> None:
    found = upload(visit(), "mine.csv", TRACE)
    go(found, "simulate", gpu="L40S", count="1", precision="fp8")
    assert found.number_input[0].value == 1
    press(found, "Simulate")
    finish(found, "simulate")
    assert "The promise is kept." in said(found)
    assert len(found.get("plotly_chart")) == 4


def test_a_fleet_that_cannot_hold_the_model_is_said_with_a_way_out() -> None:
    found = upload(visit(), "mine.csv", TRACE)
    go(found, "simulate", model="llama-3.1-405b", gpu="L4")
    press(found, "Simulate")
    assert "Try:" in said(finish(found, "simulate"))


def test_work_survives_a_page_change_and_stops_when_asked() -> None:
    import threading

    begun, go_on = threading.Event(), threading.Event()

    def work(progress: Any) -> dict[str, Any]:
        begun.set()
        go_on.wait(30)
        progress("half", 0.5)
        return ANSWER

    found = visit("recommend")
    job = parts.jobs().start("recommend", "Planning", work)
    found.session_state["job-recommend"] = job.job_id
    go(found, "workload")
    go(found, "recommend")
    assert begun.wait(30) and not job.done
    next(b for b in found.button if b.label == "Stop").click().run()
    go_on.set()
    assert "Stopped. Nothing was kept." in said(finish(found, "recommend"))


def test_advice_is_a_waterfall_from_today_to_the_best() -> None:
    def step(name: str, usd: float | None, saves: float) -> dict[str, Any]:
        return {"step": name, "what": name, "usd_per_hour": usd, "saving_usd_per_hour": saves, "slo": {},
                "quality": None, "plan": "", "why_not": "" if usd else "nothing fits"}  # fmt: skip

    steps = [
        step("today", 8.0, 0.0),
        step("right-size", 6.0, 2.0),
        step("memory", None, 0.0),
        step("purchase", 5.0, 1.0),
    ]
    answer = {
        "steps": steps, "today_usd_per_hour": 8.0, "best_usd_per_hour": 5.0, "saving_share": 0.375, "unpriced": ["x"],
    }  # fmt: skip
    found = visit("advise", today="nonsense,g6e.xlarge:0:bf16:spot,g6.xlarge:7:fp8:spot")
    answered(found, "advise", answer)
    assert "No price is known" in said(found)
    assert [m.value for m in found.metric] == ["8.00", "5.00", "38%"]
    assert len(found.get("plotly_chart")) == 1


def test_an_answer_shows_costs_bounds_intervals_and_machines_by_period() -> None:
    drawn = {
        "Why not the others": ["What the other roads cost", "Why not the others"],
        "How safe it is": ["How safe the promise is", "Latency promise"],
        "What would change it": ["What a tighter promise costs", "What quality costs", "What moves the price most"],
        "Over time": ["Machines by period", "What to run when"],
        "What it rests on": [],
    }
    for tab, titles in drawn.items():
        found = answered(visit("recommend", tab=tab), "recommend", ANSWER)
        assert "Verified" in said(found)
        assert [h.value for h in found.header] == ["Purchase list", *titles]
        assert len(found.get("plotly_chart")) == len([t for t in titles if t not in ANSWERS_TABLES])


def test_an_answer_that_could_not_be_kept_is_shown_all_the_same() -> None:
    found = answered(visit("recommend"), "recommend", {**ANSWER, "not_kept": "the disk is full; free some"})
    assert "could not be kept" in said(found)
    assert found.metric[0].value == "7.40"


@pytest.mark.parametrize("name", ["runs", "export", "spend"])
@pytest.mark.parametrize("lost", ["corrupt", "not a folder"])
def test_a_lost_run_database_is_said_in_words(name: str, lost: str, home: Path) -> None:
    if lost == "corrupt":
        home.mkdir()
        (home / "runs.sqlite3").write_bytes(b"this is no database" * 500)
    else:
        home.write_text("")
    found = visit(name, **({"tab": "The bill"} if name == "spend" else {}))
    assert "run file" in said(found)
    assert "PLAN_HOME" in said(found)


def test_two_runs_are_compared_and_one_that_vanishes_is_said() -> None:
    first = save_run("recommend", {"scale": 1}, {"plan": {"usd_per_hour": 2.0}}, title="<b>one</b>")
    second = save_run("recommend", {"scale": 2}, {"plan": {"usd_per_hour": 3.0}}, title="=two()")
    found = visit("runs", a=first, b=second)
    assert any("+50.0%" in str(t) for t in tables(found))
    remove_run(second)
    found.run()
    said(found)
    remove_run(first)
    found.run()
    assert "No runs yet" in said(found)


def test_a_profile_that_vanished_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from calibrate import profiles
    from catalogs.errors import MissingError

    def gone(_replica: Any) -> Any:
        raise MissingError("no profile h100-sxm", remedy="plan calibrate list")

    found = visit("calibration")
    monkeypatch.setattr(profiles, "best_profile", gone)
    found.run()
    assert "no profile h100-sxm" in said(found)


def test_a_bill_becomes_a_report_on_both_pages() -> None:
    content = pd.DataFrame(month()).to_csv(index=False).encode()
    for name in ("export", "spend"):
        found = visit(name, tab="Report" if name == "export" else "The bill")
        found.text_input(key="field-month").set_value("2026-10")
        finish(upload(found, "bill.csv", content), "report")
        assert "USD" in said(found) or "$" in said(found)
        assert len([d for d in found.get("download_button") if d.label.startswith("Report (")]) == len(RENDERERS)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("bill.pdf", b"%PDF", "not a bill"), ("bill.csv", b"a,b\n1,2\n", "neither"), ("bill.csv.gz", b"no", "cannot")],
)
def test_a_broken_bill_is_said_in_words(name: str, content: bytes, words: str) -> None:
    found = upload(visit("export", tab="Report"), name, content)
    if "job-report" in found.session_state:
        finish(found, "report")
    assert words in said(found)
    assert "plan-web-" not in said(found)


def test_a_bill_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MAX_BILL_BYTES", 10)
    assert "larger than" in said(upload(visit("spend", tab="The bill"), "bill.csv", TRACE))


def test_a_schedule_is_previewed_in_every_form_and_its_mistakes_stand_at_their_fields() -> None:
    found = visit("export", tab="Schedule", cron="0 8 * * MON", timezone="Europe/Berlin")
    runs_by = next(s for s in found.selectbox if s.label == "Runs by")
    shown = []
    for form in runs_by.options:
        next(s for s in found.selectbox if s.label == "Runs by").set_value(form)
        found.run()
        shown += [c.value for c in found.code]
    assert all(any(sign in text for text in shown) for sign in ("CRON_TZ=", "[Service]", "kind: CronJob", "checkout"))
    bad = said(visit("export", tab="Schedule", cron="every monday", timezone="Mars", name="../x", bill=" "))
    for words in ("not a cron expression", "no such time zone", "Letters, digits", "A file's name is needed"):
        assert words in bad


def test_the_address_keeps_a_schedules_fields() -> None:
    asked = {"tab": "Schedule", "name": "daily", "cron": "0 7 * * *", "timezone": "Asia/Tokyo", "bill": "cur.parquet",
             "budget": "5000", "write_to": "out/{period}.md", "by": "systemd"}  # fmt: skip
    found = visit("export", **asked)
    said(found)
    kept = {key: value[0] if isinstance(value, list) else value for key, value in found.query_params.items()}
    assert kept == asked
    assert any("budget_usd_per_month: 5000" in c.value for c in found.code)


def test_lines_of_one_purchase_form_are_told_apart_in_the_machines_by_period() -> None:
    lines = [{**line, "purchase": "spot"} for line in ANSWER["plan"]["lines"]]
    found = visit("recommend", tab="Over time")
    answered(found, "recommend", {**ANSWER, "plan": {**ANSWER["plan"], "lines": lines}})
    marks = [t["marker"] for t in json.loads(found.get("plotly_chart")[0].proto.spec)["data"]]
    assert len({m["color"] for m in marks}) == 1
    assert len({m["pattern"]["shape"] for m in marks}) == 2


def test_the_password_stands_before_every_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN_WEB_PASSWORD", "sesame")
    found = testing.AppTest.from_file(str(MAIN), default_timeout=60).run()
    assert not pictures(found)
    found.text_input[0].set_value("wrong").run()
    assert "not the password" in said(found)
    found.text_input[0].set_value("sesame").run()
    assert pictures(found)
