"""Exchanges between GPUs that were timed apart from kernel tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from calibrate.fitting.links import MEASURED
from calibrate.physics.collectives import all_gather_time_s, all_reduce_time_s
from calibrate.profiles import shipped_profiles
from catalogs.load import find_gpu

TIMES = {"all_reduce": all_reduce_time_s, "all_gather": all_gather_time_s, "reduce_scatter": all_gather_time_s}
FAMILY = {"all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "all_gather"}


def test_every_row_names_its_source_and_a_gpu_of_the_catalogue() -> None:
    rows = pd.read_csv(MEASURED)
    assert rows["source"].str.len().min() > 10 and rows["as_of"].notna().all()
    assert {find_gpu(name).name for name in rows["gpu"]} == set(rows["gpu"])


@pytest.mark.parametrize("collective", ["all_reduce", "all_gather", "reduce_scatter"])
def test_shipped_profiles_agree_with_what_was_timed(collective: str) -> None:
    rows = pd.read_csv(MEASURED)
    rows = rows[rows["collective"] == collective]
    profile = next(p for p in shipped_profiles().values() if p.gpu == rows["gpu"].iloc[0])
    scale = 1 if collective == "all_reduce" else 2
    predicted = TIMES[collective](
        profile.family(FAMILY[collective], "pcie"),
        find_gpu(profile.gpu).pcie_bytes_per_s,
        2,
        scale * rows["chunk_bytes"].to_numpy(float),
    )
    error = np.abs(predicted / (rows["time_us"].to_numpy() * 1e-6) - 1.0)
    assert np.median(error) < 0.05 and error.max() < 0.15
