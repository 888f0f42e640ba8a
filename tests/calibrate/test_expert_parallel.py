"""Experts spread over GPUs: the busiest one sets the step, and the exchange follows what is sent."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.physics.moe import Experts, busiest_share
from calibrate.profiles import best_profile
from calibrate.step import StepShape
from calibrate.step_time import step_model
from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica


@pytest.mark.parametrize(
    ("experts", "per_token", "ranks", "tokens"), [(128, 8, 8, 16), (128, 8, 4, 256), (8, 2, 8, 64)]
)
def test_chance_alone_loads_one_gpu_more_than_the_others(experts: int, per_token: int, ranks: int, tokens: int) -> None:
    """Against 400 draws of distinct experts for each token."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        chosen = np.argpartition(rng.random((tokens, experts)), per_token, axis=1)[:, :per_token]
        rows = np.bincount((chosen % ranks).ravel(), minlength=ranks)
        found.append(rows.max() / rows.mean())
    here = Experts(experts, experts // ranks, per_token, 1, 1)
    assert float(busiest_share(here, 0.0, np.array(float(tokens)))) == pytest.approx(np.mean(found), rel=0.05)


def test_the_busiest_share_has_its_limits() -> None:
    here = Experts(128, 16, 8, 1, 1)
    assert busiest_share(here, 0.0, np.array(1e9)) == pytest.approx(1.0, abs=1e-3)
    # popularity of 16 experts dealt in turn to 8 GPUs, by hand
    weight = 1 / np.arange(1.0, 129.0)
    assert busiest_share(here, 1.0, np.array(1e12)) == pytest.approx(8 * weight[::8].sum() / weight.sum(), rel=1e-4)
    assert busiest_share(Experts(128, 128, 8, 1, 1), 1.0, np.array(10.0)) == 1.0


def step_s(**options: object) -> float:
    replica = Replica(
        find_model("qwen3-30b-a3b"), find_gpu("H100-SXM"), data_parallel_size=8, expert_parallel_size=8,
        engine=Engine(options=options),
    )  # fmt: skip
    return step_model(replica, best_profile(replica)).step_time_s(StepShape(0, 0, 128, 1000, 128))


def test_skew_and_exchange_change_the_step() -> None:
    assert step_s(expert_skew=1.2) > step_s(expert_skew=0.6) > step_s()
    # 8 of 128 experts on 8 GPUs: a token goes to 5.25 of them, and not to all 8
    assert step_s(all2all_backend="deepep_high_throughput") < step_s()
    with pytest.raises(InputError, match="all2all_backend"):
        step_s(all2all_backend="carrier_pigeon")
