"""What every test starts from: the catalogue's own prices, not those that this machine once fetched."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How many examples a property is searched with: some in every run, many under `--hypothesis-profile=thorough`.
QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=12, **QUIET)
settings.register_profile("thorough", max_examples=200, **QUIET)
settings.load_profile("quick")


@pytest.fixture(autouse=True, scope="session")
def _catalogue_prices_only(tmp_path_factory: pytest.TempPathFactory) -> None:
    import os

    path: Path = tmp_path_factory.mktemp("prices") / "none.sqlite"
    os.environ["PLAN_PRICES_DB"] = str(path)
