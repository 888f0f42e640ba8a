"""Zones behave as the real ones did, and SpotHedge's rule on them yields what its replay gave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from catalogs.errors import InputError, MissingError
from simulator.fleet.spot import (
    Availability,
    Cheapest,
    DynamicFallback,
    EvenSpread,
    SpotPolicy,
    Zone,
    catalogue_zones,
    check_zones,
    find_zones,
    replay,
    synthesise,
)
from simulator.fleet.spot_trace import read_availability

DAY = 86400.0
DAYS = 45.5
SEEDS = range(6)


@pytest.fixture(scope="module")
def paths() -> list[Availability]:
    return [synthesise(catalogue_zones(), DAYS * DAY, seed) for seed in SEEDS]


def correlations(path: Availability) -> tuple[float, float]:
    matrix = np.corrcoef(path.up.astype(float))
    same = np.array([[a.region == b.region for a in path.zones] for b in path.zones])
    upper = np.triu(np.ones_like(same), 1).astype(bool)
    return float(matrix[same & upper].mean()), float(matrix[~same & upper].mean())


def test_shares_and_correlations_are_those_of_the_traces(paths: list[Availability]) -> None:
    shares = np.mean([p.up.mean(axis=1) for p in paths], axis=0)
    assert np.abs(shares - [z.available_share for z in catalogue_zones()]).max() < 0.09  # 45 days of slow weather
    within, across = np.mean([correlations(p) for p in paths], axis=0)
    assert within == pytest.approx(0.43, abs=0.05)
    assert across == pytest.approx(0.14, abs=0.05)


def test_independence_is_too_rosy_by_as_much_as_the_facts_say(paths: list[Availability]) -> None:
    def any_up(path: Availability) -> float:
        return float(path.up[:4].any(axis=0).mean())  # the four zones of us-east-1

    rosy = [synthesise(catalogue_zones(), DAYS * DAY, seed, independent=True) for seed in SEEDS]
    assert np.mean([any_up(p) for p in paths]) == pytest.approx(0.713, abs=0.05)
    assert np.mean([any_up(p) for p in rosy]) == pytest.approx(0.900, abs=0.03)


def test_stretches_are_bursty_as_real_ones(paths: list[Availability]) -> None:
    losses, means = [], []
    for zone in range(len(catalogue_zones())):
        per_path = [p.changes(zone) for p in paths]
        losses.append(np.mean([sum(not up for _, up in c) for c in per_path]) / DAYS)
        means.append(np.mean([p.up[zone].mean() for p in paths]) * 24 / losses[-1])
    real_losses = np.array([5.561, 7.539, 6.44, 6.264, 3.187, 3.825, 3.473, 2.066, 3.121])
    real_means = np.array([0.72, 1.48, 1.66, 2.26, 5.68, 4.26, 6.06, 10.4, 6.81])
    assert np.abs(np.log(np.array(losses) / real_losses)).mean() < 0.3
    assert np.abs(np.log(np.array(means) / real_means)).mean() < 0.3


def test_spothedge_costs_and_misses_what_the_replay_of_real_traces_did(paths: list[Availability]) -> None:
    plain = [replay(p, SpotPolicy(), 4, tick_s=195.0) for p in paths]
    assert np.mean([r.cost_share for r in plain]) == pytest.approx(0.291, abs=0.01)
    assert np.mean([r.short_share for r in plain]) == pytest.approx(0.060, abs=0.02)
    hedged = [replay(p, SpotPolicy(1, 0, True), 4, tick_s=195.0) for p in paths]
    assert np.mean([r.cost_share for r in hedged]) == pytest.approx(0.403, abs=0.01)
    assert np.mean([r.short_share for r in hedged]) == pytest.approx(0.0058, abs=0.005)


def test_spothedge_within_one_region_is_dearer() -> None:
    east = [synthesise(find_zones(["us-east-1"]), DAYS * DAY, seed) for seed in SEEDS]
    hedged = [replay(p, SpotPolicy(1, 0, True), 4, tick_s=195.0) for p in east]
    assert np.mean([r.cost_share for r in hedged]) == pytest.approx(0.695, abs=0.07)
    assert np.mean([r.short_share for r in hedged]) == pytest.approx(0.018, abs=0.01)


def test_the_mix_is_skyserves() -> None:
    assert SpotPolicy().mix(4, 0) == (4, 0)
    hedge = SpotPolicy(num_overprovision=2, base_ondemand_fallback_replicas=1, dynamic_ondemand_fallback=True)
    assert hedge.mix(4, 5) == (5, 1)
    assert hedge.mix(4, 3) == (5, 3)
    assert hedge.mix(4, 0) == (5, 4)  # capped at the target
    assert hedge.mix(0, 0) == (0, 0)


def test_placers_avoid_spread_or_save() -> None:
    zones = [Zone("a1", "a", 0.5, relative_price=0.4), Zone("a2", "a", 0.5), Zone("b1", "b", 0.5)]
    hedge = DynamicFallback(zones)
    assert hedge.choose([]) == 1 and hedge.choose([1]) == 2 and hedge.choose([1, 2]) == 0
    hedge.preempted(1)
    assert hedge.choose([]) == 2
    hedge.preempted(2)  # fewer than two left: forget all
    assert hedge.lost == set()
    spread = EvenSpread(zones)
    assert [spread.choose([]), spread.choose([0]), spread.choose([0, 1, 2])] == [0, 1, 0]
    cheap = Cheapest(zones)
    assert cheap.choose([1, 1]) == 1
    cheap.preempted(1)
    assert cheap.choose([]) == 2


def test_same_seed_same_path() -> None:
    zones = find_zones(["us-west-2"])
    assert (synthesise(zones, DAY, 3).up == synthesise(zones, DAY, 3).up).all()


def test_zone_lists_that_cannot_work_are_refused() -> None:
    with pytest.raises(InputError, match="no spot zone has capacity"):
        check_zones([Zone("a1", "a", 0.0), Zone("a2", "a", 0.5, capacity=0)])
    with pytest.raises(InputError, match="empty"):
        find_zones([])
    with pytest.raises(InputError, match="did you mean us-east"):
        find_zones(["us-esat-1"])
    with pytest.raises(InputError, match=r"available 1\.2"):
        check_zones([Zone("a1", "a", 1.2)])


def write(path: Path, rows: list[tuple[float, int, int]]) -> Path:
    path.write_text("time_s,za,zb\n" + "".join(f"{t},{a},{b}\n" for t, a, b in rows))
    return path


def test_a_trace_of_ones_own_is_read(tmp_path: Path) -> None:
    rows = [(60.0 * i, i % 2, 2) for i in range(20)]
    path = read_availability(write(tmp_path / "t.csv", rows), 600.0)
    assert [z.name for z in path.zones] == ["za", "zb"] and path.zones[1].capacity == 2
    assert path.is_up(0, 60.0) and not path.is_up(0, 120.0) and path.is_up(1, 0.0)
    assert path.changes(0)[0] == (60.0, True)
    (tmp_path / "us-east-1a_v100_1.json").write_text(json.dumps({"metadata": {"gap_seconds": 195}, "data": [1, 0] * 9}))
    one = read_availability(tmp_path / "us-east-1a_v100_1.json", 1000.0)
    assert one.zones[0].name == "us-east-1a" and one.step_s == 195.0


def test_traces_with_gaps_or_another_clock_are_refused_with_the_way_out(tmp_path: Path) -> None:
    gap = write(
        tmp_path / "gap.csv", [(60.0 * i, 1, 1) for i in range(10)] + [(3000.0 + 60 * i, 0, 1) for i in range(9)]
    )
    with pytest.raises(InputError, match="1 gaps, the first from 540 to 3000") as caught:
        read_availability(gap, 600.0)
    assert "trace_gaps: hold" in caught.value.remedy and caught.value.where.endswith(":12")
    assert read_availability(gap, 3300.0, gaps="hold").is_up(0, 1200.0)
    assert not read_availability(gap, 3300.0, gaps="down").is_up(0, 1200.0)
    epoch = write(tmp_path / "epoch.csv", [(1.7e9 + 60.0 * i, 1, 1) for i in range(20)])
    with pytest.raises(InputError, match="another clock"):
        read_availability(epoch, 600.0)
    assert read_availability(epoch, 600.0, start=1.7e9).up.all()
    with pytest.raises(InputError, match="covers 0 to"):
        read_availability(write(tmp_path / "short.csv", [(60.0 * i, 1, 1) for i in range(5)]), 6000.0)
    with pytest.raises(InputError, match="time goes from"):
        read_availability(write(tmp_path / "back.csv", [(60.0, 1, 1), (0.0, 1, 1), (120.0, 1, 1)]), 60.0)
    with pytest.raises(MissingError):
        read_availability(tmp_path / "none.csv", 60.0)
    (tmp_path / "bad.csv").write_text("when,za\n0,1\n")
    with pytest.raises(InputError, match="its header is"):
        read_availability(tmp_path / "bad.csv", 60.0)
    with pytest.raises(InputError, match="is a folder"):
        read_availability(tmp_path, 60.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"time_s,us-east-1\xe9\n0,1\n60,1\n", "not UTF-8"),
        (b"time_s,za\n0,1e400\n60,1\n", "not a finite number"),
        (b"time_s,za\n0,1\n1e-9,1\n2e-9,1\n1e9,1\n", "10,000,000 is the most"),
        (b"", "its header is empty"),
    ],
)
def test_a_broken_trace_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_availability(tmp_path / "t.csv", 6000.0, gaps="hold")
    assert words in str(caught.value)


def test_steps_too_fine_for_memory_are_refused() -> None:
    with pytest.raises(InputError, match="steps"):
        synthesise(find_zones(["us-east-1"]), 86400.0, 0, step_s=1e-6)
