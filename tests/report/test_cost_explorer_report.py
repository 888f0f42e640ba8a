"""A report whose bill is asked of Cost Explorer (a loopback server; payloads written from botocore's model)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.cli.report import report as command
from app.report.build import build
from app.report.sources import Sources
from catalogs.errors import MissingError
from tests.catalogs.fake_aws import FakeAws
from tests.loopback import loopback_only
from tests.planner.test_bill_cost_explorer import day, group

__all__ = ["loopback_only"]
NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)


@pytest.fixture
def explorer(monkeypatch: pytest.MonkeyPatch, loopback_only: list[str], tmp_path: Path) -> Iterator[FakeAws]:
    fake = FakeAws()
    for name, value in (("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "no"),
                        ("AWS_EC2_METADATA_DISABLED", "true"), ("AWS_ENDPOINT_URL", fake.url),
                        ("AWS_CONFIG_FILE", str(tmp_path / "none")), ("PLAN_HOME", str(tmp_path))):  # fmt: skip
        monkeypatch.setenv(name, value)

    def costs(asked: dict[str, Any]) -> dict[str, Any]:
        (record,) = asked["Filter"]["And"][1]["Dimensions"]["Values"]
        kinds = {"Usage": [("BoxUsage:g6e.xlarge", 44.664)], "Credit": [("BoxUsage:g6e.xlarge", -4.664)]}
        days = [
            day(f"2026-11-0{d}", f"2026-11-0{d + 1}",
                [group((kind, "plan-model$llama"), usd, usd, 24) for kind, usd in kinds.get(record, [])])
            for d in (1, 2)
        ]  # fmt: skip
        return {"ResultsByTime": days}

    fake.answers["GetCostAndUsage"] = costs
    yield fake
    fake.close()
    assert loopback_only == []


def test_the_month_so_far_is_asked_and_reported_to_the_cent(explorer: FakeAws) -> None:
    report = build(Sources(bill=Path("cost-explorer")), NOW)
    assert report.spend.effective_usd == pytest.approx(80.0)
    assert report.spend.credits_usd == pytest.approx(-9.328)
    assert explorer.calls[0][1]["TimePeriod"] == {"Start": "2026-11-01", "End": "2026-11-03"}
    assert any("no list prices" in note for note in report.notes)


def test_a_denied_bill_names_the_permission(explorer: FakeAws) -> None:
    explorer.faults["GetCostAndUsage"] = ["denied"]
    done = CliRunner().invoke(command, ["build", "--bill", "cost-explorer"])
    assert isinstance(done.exception, MissingError)
    assert "ce:GetCostAndUsage" in str(done.exception)
