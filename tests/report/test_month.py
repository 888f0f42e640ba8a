"""A month of bill with planted faults: the report finds each and its dollars to the cent.

The bill is synthetic, in FOCUS columns; nothing in it was recorded from an account.
"""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from app.cli.report import report as command
from app.report.build import build
from app.report.render import RENDERERS, summary
from app.report.schema import Report
from app.report.sources import Sources
from app.runs import save_run
from catalogs.errors import InputError

DAYS = [f"2026-10-{day:02d}" for day in range(1, 32)]
NOW = datetime(2026, 10, 31, 12, tzinfo=UTC)
L40S, L4, A10G = 1.861, 0.8048, 1.006  # on-demand prices an hour of the synthetic bill
COMMITTED = 0.70


def row(day: str, kind: str, price: float, resource: str, **more: Any) -> dict[str, Any]:
    cost = round(24 * price, 6)
    return {
        "BilledCost": cost, "EffectiveCost": cost, "ListCost": cost, "BillingCurrency": "USD",
        "ChargeCategory": "Usage", "ChargePeriodStart": f"{day}T00:00:00Z", "ChargePeriodEnd": f"{day}T23:59:59Z",
        "PricingCategory": "Standard", "RegionId": "us-east-1", "ResourceId": resource, "CommitmentDiscountId": None,
        "CommitmentDiscountType": None, "CommitmentDiscountStatus": None, "x_UsageType": f"BoxUsage:{kind}",
        "ConsumedQuantity": 24, "ConsumedUnit": "Hours", "Tags": json.dumps({"plan-model": "llama"}), **more,
    }  # fmt: skip


def month() -> list[dict[str, Any]]:
    """Planted: an idle L4, an L40S price rise on the 16th, an A10G reservation ended on the 20th, growth of L40S."""
    rows = []
    for i, day in enumerate(DAYS):
        price = L40S if i < 15 else 2.0
        machines = 2 if i < 10 else 3
        rows += [row(day, "g6e.xlarge", price, f"i-serve{n}") for n in range(machines)]
        rows.append(row(day, "g6.xlarge", L4, "i-idle"))
        reserved = {
            "PricingCategory": "Committed", "CommitmentDiscountId": "ri-1", "CommitmentDiscountType": "Reserved",
            "CommitmentDiscountStatus": "Used", "EffectiveCost": 24 * COMMITTED, "BilledCost": 0.0,
        }  # fmt: skip
        rows.append(row(day, "g5.xlarge", A10G, "i-base", **(reserved if i < 20 else {})))
    return rows


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    monkeypatch.setenv("PLAN_HOME", str(tmp_path / "home"))
    pd.DataFrame(month()).to_csv(tmp_path / "bill.csv", index=False)
    busy = [("i-serve0", 0.71), ("i-serve1", 0.66), ("i-serve2", 0.59), ("i-idle", 0.004), ("i-base", 0.4)]
    pd.DataFrame(busy, columns=["resource_id", "busy_share"]).to_csv(tmp_path / "busy.csv", index=False)
    lines = [
        {"instance_type": "g6e.xlarge", "instances": [2], "usd_per_hour": 2 * L40S},
        {"instance_type": "g6.xlarge", "instances": [1], "usd_per_hour": L4},
        {"instance_type": "g5.xlarge", "instances": [1], "usd_per_hour": COMMITTED},
    ]
    usd = 2 * L40S + L4 + COMMITTED
    plan = {"plan": {"lines": lines, "usd_per_hour": usd, "usd_per_million_output_tokens": 1.5}, "verified": True}
    run = save_run("recommend", {"model": "llama-3.1-8b"}, plan)
    return Sources(
        bill=tmp_path / "bill.csv", busy=tmp_path / "busy.csv", run=run, budget_usd_per_month=4000.0,
        served_output_tokens=2e9, served_requests=1e7,
    )  # fmt: skip


def finding(report: Report, kind: str, subject: str) -> float:
    (found,) = [f for f in report.findings if f.kind == kind and f.subject.startswith(subject)]
    assert found.usd is not None
    return found.usd


def test_every_planted_fault_is_found_to_the_cent(sources: Sources) -> None:
    report = build(sources, NOW)
    assert finding(report, "idle", "i-idle") == pytest.approx(31 * 24 * L4, abs=0.005)
    assert finding(report, "lapsed_commitment", "g5.xlarge") == pytest.approx(11 * 24 * (A10G - COMMITTED), abs=0.005)
    assert finding(report, "price_change", "g6e.xlarge") == pytest.approx(16 * 3 * 24 * (2.0 - L40S), abs=0.005)
    hours = 24 * (10 * 2 + 21 * 3)
    spent = 24 * (10 * 2 * L40S + 5 * 3 * L40S + 16 * 3 * 2.0)
    grown = finding(report, "load_growth", "g6e.xlarge")
    assert grown == pytest.approx((hours - 2 * 24 * 31) * spent / hours, abs=0.005)
    total = sum(r["EffectiveCost"] for r in month())
    assert finding(report, "over_budget", "budget") == pytest.approx(total - 4000.0, abs=0.005)
    kinds = {"idle", "lapsed_commitment", "price_change", "load_growth", "over_budget"}
    assert {f.kind for f in report.findings} == kinds


def test_a_machine_without_the_plans_tag_is_counted_once(sources: Sources, tmp_path: Path) -> None:
    grown = finding(build(sources, NOW), "load_growth", "g6e.xlarge")
    strays = [row(day, "g6e.xlarge", L40S, "i-stray", Tags="{}") for day in DAYS]
    pd.DataFrame([*month(), *strays]).to_csv(tmp_path / "strays.csv", index=False)
    report = build(sources.model_copy(update={"bill": tmp_path / "strays.csv"}), NOW)
    assert finding(report, "untagged", "g6e.xlarge") == pytest.approx(31 * 24 * L40S, abs=0.005)
    assert finding(report, "load_growth", "g6e.xlarge") == pytest.approx(grown, abs=0.005)


def test_a_bill_without_tags_is_held_against_the_plan_as_a_whole(sources: Sources, tmp_path: Path) -> None:
    pd.DataFrame([{**r, "Tags": "{}"} for r in month()]).to_csv(tmp_path / "bare.csv", index=False)
    bare, claimed = build(sources.model_copy(update={"bill": tmp_path / "bare.csv"}), NOW), build(sources, NOW)
    assert bare.findings == claimed.findings


def test_the_sums_add_up(sources: Sources) -> None:
    report = build(sources, NOW)
    total = sum(r["EffectiveCost"] for r in month())
    assert report.spend.effective_usd == pytest.approx(total, abs=0.005)
    assert sum(d.usd for d in report.daily) == pytest.approx(total, abs=0.005)
    assert sum(t.effective for t in report.by_type) == pytest.approx(total, abs=0.005)
    assert report.spend.planned_usd == pytest.approx((2 * L40S + L4 + COMMITTED) * 24 * 31)
    assert report.spend.forecast.usd == pytest.approx(total)  # the month is over
    assert report.unit.usd_per_million_output_tokens == pytest.approx(total / 2000)
    assert report.savings.taken_usd["reserved"] == pytest.approx(20 * 24 * (A10G - COMMITTED), abs=0.005)


def test_half_a_month_is_forecast_with_a_range(sources: Sources, tmp_path: Path) -> None:
    pd.DataFrame([r for r in month() if r["ChargePeriodStart"] < "2026-10-15"]).to_csv(
        tmp_path / "half.csv", index=False
    )
    forecast = build(sources.model_copy(update={"bill": tmp_path / "half.csv"}), NOW).spend.forecast
    day = 24 * (3 * L40S + L4 + COMMITTED)
    spent = 24 * ((10 * 2 + 4 * 3) * L40S + 14 * (L4 + COMMITTED))
    assert forecast.low_usd is not None
    assert forecast.high_usd is not None
    assert forecast.low_usd <= forecast.usd <= forecast.high_usd
    assert forecast.usd == pytest.approx(spent + 17 * (4 * day + 3 * (day - 24 * L40S)) / 7)


def test_all_forms_say_the_same(sources: Sources) -> None:
    report = build(sources, NOW)
    page = RENDERERS["html"](report)
    spent = f"${report.spend.effective_usd:,.2f}"
    assert spent in page
    assert spent in RENDERERS["md"](report)
    assert spent in summary(report)
    assert Report.model_validate_json(RENDERERS["json"](report)) == report
    rows = list(csv.DictReader(io.StringIO(RENDERERS["csv"](report))))
    assert sum(float(r["EffectiveCost"]) for r in rows) == pytest.approx(report.spend.effective_usd, abs=0.01)
    for outside in ("http://", "https://", "<script", "@import", "url("):
        assert outside not in page.replace("http://www.w3.org/2000/svg", "")


def test_names_in_the_bill_cannot_inject_html(sources: Sources, tmp_path: Path) -> None:
    rows = month()
    for r in rows:
        if r["ResourceId"] == "i-idle":
            r["ResourceId"] = "<script>alert(1)</script>"
    pd.DataFrame(rows).to_csv(tmp_path / "evil.csv", index=False)
    busy = tmp_path / "evil-busy.csv"
    busy.write_text("resource_id,busy_share\n<script>alert(1)</script>,0.0\n")
    page = RENDERERS["html"](build(sources.model_copy(update={"bill": tmp_path / "evil.csv", "busy": busy}), NOW))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"month": "October"}, "not a month"),
        ({"month": "2031-01"}, "no GPU charges"),
        ({"run": "zzzz"}, "no run"),
        ({"busy": Path("absent.csv")}, "cannot read the GPU use"),
        ({"currency": "EUR"}, "EUR"),
    ],
)
def test_bad_sources_are_refused_with_words(sources: Sources, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(sources.model_copy(update=change), NOW)


def test_the_command_writes_every_form(sources: Sources, tmp_path: Path) -> None:
    outputs = [tmp_path / f"r.{form}" for form in ("html", "md", "json", "csv")]
    words = ["build", "--bill", str(sources.bill), "--run", str(sources.run), "--month", "2026-10", "--format", "json"]
    done = CliRunner().invoke(command, [*words, *[w for o in outputs for w in ("-o", str(o))]], catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["title"] == "GPU cost, October 2026"
    assert all(o.stat().st_size > 500 for o in outputs)


def test_a_schedule_sends_its_report_once(sources: Sources, tmp_path: Path) -> None:
    plan = tmp_path / "weekly.yaml"
    plan.write_text(
        "name: weekly\ncron: '0 8 * * MON'\nreport: {bill: bill.csv, month: 2026-10}\n"
        f"send:\n  - {{kind: file, path: '{tmp_path}/out/cost-{{period}}.html'}}\n"
    )
    run = CliRunner()
    dry = run.invoke(command, ["send", str(plan), "--dry-run", "--format", "json"], catch_exceptions=False)
    assert json.loads(dry.stdout)["would_send"][0]["to"].startswith("file: ")
    assert not (tmp_path / "out").exists()
    for expected in ("done: the period of", "nothing is due"):
        done = run.invoke(command, ["schedule", str(plan), "--once"], catch_exceptions=False)
        assert expected in done.stderr
    assert (tmp_path / "out" / "cost-2026-10.html").exists()
    again = run.invoke(command, ["send", str(plan), "--format", "json"], catch_exceptions=False)
    assert json.loads(again.stdout)["deliveries"][0]["state"] == "skipped"
