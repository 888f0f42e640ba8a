"""`plan catalog` and `plan prices show` in their four forms."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from app.cli.catalog import catalog
from app.cli.prices import prices
from catalogs.errors import InputError, MissingError


@pytest.mark.parametrize("what", ["gpus", "models", "instances"])
@pytest.mark.parametrize("form", ["table", "json", "csv", "md"])
def test_each_catalogue_prints_in_each_form(what: str, form: str) -> None:
    result = CliRunner().invoke(catalog, [what, "--format", form], catch_exceptions=False)
    assert result.exit_code == 0
    if form == "json":
        assert json.loads(result.stdout)["schema_version"] == 1


def test_prices_show_flags_what_is_old_on_the_day_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["show", "--instance", "g6e.xlarge", "--purchase", "on_demand", "--region", "us-east-1",
               "--format", "json"]  # fmt: skip
    for day, stale in (("2026-07-25", False), ("2026-11-23", True)):
        monkeypatch.setenv("PLAN_TODAY", day)
        result = CliRunner().invoke(prices, command, catch_exceptions=False)
        (price,) = json.loads(result.stdout)["prices"]
        assert (price["usd_per_hour"], price["stale"]) == (1.861, stale)
        assert ("plan prices refresh" in result.stderr) is stale


def test_an_unknown_region_or_gpu_is_refused() -> None:
    for flag, value in (("--region", "us-esat-1"), ("--gpu", "L50S")):
        with pytest.raises(InputError, match="did you mean"):
            CliRunner().invoke(prices, ["show", flag, value], catch_exceptions=False)


def test_a_price_that_is_not_known_is_said_not_to_be() -> None:
    with pytest.raises(MissingError, match="no such price"):
        CliRunner().invoke(prices, ["show", "--purchase", "reserved_1yr"], catch_exceptions=False)
