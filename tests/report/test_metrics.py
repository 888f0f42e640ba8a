"""A report that asks a real Prometheus: what was served, what drifted; and one whose Prometheus is gone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from app.report.build import build
from app.report.sources import Sources
from app.runs import save_run
from tests.planner.prometheus_server import needs_prometheus, prometheus

START = datetime(2026, 10, 1, tzinfo=UTC)
NOW = datetime(2026, 10, 3, tzinfo=UTC)
PRICE = 1.861


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    monkeypatch.setenv("PLAN_HOME", str(tmp_path / "home"))
    rows = [
        {"BilledCost": 24 * PRICE, "EffectiveCost": 24 * PRICE, "ListCost": 24 * PRICE, "BillingCurrency": "USD",
         "ChargeCategory": "Usage", "ChargePeriodStart": f"2026-10-0{d}T00:00:00Z",
         "ChargePeriodEnd": f"2026-10-0{d}T23:59:59Z", "PricingCategory": "Standard", "RegionId": "us-east-1",
         "ResourceId": machine, "x_UsageType": "BoxUsage:g6e.xlarge", "ConsumedQuantity": 24, "ConsumedUnit": "Hours",
         "Tags": '{"plan-model": "llama"}'}
        for d in (1, 2) for machine in ("i-busy", "i-idle")
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "bill.csv", index=False)
    line = {"instance_type": "g6e.xlarge", "gpu": "L40S", "tensor_parallel_size": 1, "precision": "bf16",
            "framework": "vllm", "purchase": "on_demand", "instances": [2], "usd_per_hour": 2 * PRICE}  # fmt: skip
    plan: dict[str, Any] = {
        "model": "llama-3.1-8b", "region": "us-east-1", "verified": True, "prices_as_of": "2026-07-20", "slo": {},
        "plan": {"lines": [line], "usd_per_hour": 2 * PRICE, "requests_per_s": 4.0, "output_tokens_per_s": 800.0,
                 "usd_per_million_output_tokens": 1.0},
    }  # fmt: skip
    cheaper = plan | {"plan": plan["plan"] | {"usd_per_hour": PRICE}}
    run, other = save_run("recommend", {"n": 1}, plan), save_run("recommend", {"n": 2}, cheaper)
    return Sources(bill=tmp_path / "bill.csv", run=run, alternative=other)


def metrics() -> str:
    """Two days of one vLLM replica at 5 requests a second, one busy GPU and one idle."""
    lines: dict[str, list[str]] = {}
    for i in range(2 * 24 * 12):
        at = (START + timedelta(minutes=5 * i)).timestamp()
        served = 5.0 * 300 * i
        values = {"request_success_total": served, "prompt_tokens_total": served * 900,
                  "generation_tokens_total": served * 200, "num_requests_running": 8.0}  # fmt: skip
        for short, value in values.items():
            name = f"vllm:{short}"
            lines.setdefault(name, []).append(f"{name} {value} {at:.0f}")
        for machine, busy in (("i-busy", 0.6), ("i-idle", 0.0)):
            name = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
            lines.setdefault(machine, []).append(f'{name}{{Hostname="{machine}",gpu="0"}} {busy} {at:.0f}')
    return "\n".join(x for family in lines.values() for x in family) + "\n# EOF\n"


@needs_prometheus
def test_metrics_give_unit_costs_idle_machines_and_drift(sources: Sources, tmp_path: Path) -> None:
    with prometheus(tmp_path, openmetrics=metrics()) as url:
        report = build(sources.model_copy(update={"prometheus": url}), NOW)
    found = {(f.kind, f.subject): f.usd for f in report.findings}
    spent = 4 * 24 * PRICE
    assert report.spend.effective_usd == pytest.approx(spent)
    assert report.unit.usd_per_thousand_requests == pytest.approx(spent / (5.0 * 48 * 3600) * 1000, rel=0.01)
    assert found["idle", "i-idle"] == pytest.approx(48 * PRICE)
    assert found["drift", "load"] == pytest.approx(0.25 * 2 * PRICE * 48, rel=0.02)
    assert found["cheaper_plan", "plan"] == pytest.approx(PRICE * 730)
    assert report.sources["metrics"] == "Prometheus, vllm"
    assert any("2026-07-20" in note for note in report.notes)


def test_a_report_without_its_prometheus_says_so_and_keeps_the_money(sources: Sources) -> None:
    report = build(sources.model_copy(update={"prometheus": "http://127.0.0.1:9"}), NOW)
    assert report.spend.effective_usd == pytest.approx(4 * 24 * PRICE)
    assert report.sources["metrics"] == "missing"
    assert any("Prometheus cannot be reached" in note for note in report.notes)
