"""What every test starts from: the catalogue's own prices, not those that this machine once fetched."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _catalogue_prices_only(tmp_path_factory: pytest.TempPathFactory) -> None:
    import os

    path: Path = tmp_path_factory.mktemp("prices") / "none.sqlite"
    os.environ["PLAN_PRICES_DB"] = str(path)
