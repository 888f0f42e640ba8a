"""Synthetic loads have the rate, the burstiness, the lengths and the sharing that were asked for."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalogs.errors import InputError
from simulator.workload.load import load_workload
from simulator.workload.spec import ArrivalSpec, SyntheticSpec, WorkloadSpec
from simulator.workload.synthesis import arrivals, merge_classes, synthesize
from simulator.workload.trace_stats import describe
from simulator.workload.trace_writing import write_trace
from simulator.workload.traces import read_trace

FIXED: dict[str, Any] = {
    "input_tokens": {"distribution": "fixed", "value": 100},
    "output_tokens": {"distribution": "fixed", "value": 20},
}


def times(**spec: Any) -> np.ndarray:
    return arrivals(ArrivalSpec(**spec), np.random.default_rng(0))


def lengths_of(spec: dict[str, Any], num: int = 50_000) -> np.ndarray:
    load = {"arrivals": {"process": "constant", "rate_rps": 10, "num_requests": num}, **FIXED, "input_tokens": spec}
    return synthesize(SyntheticSpec(**load), 0).input_tokens


@pytest.mark.parametrize(
    ("spec", "cv"),
    [
        ({"process": "poisson"}, 1),
        ({"process": "gamma", "cv": 3}, 3),
        ({"process": "gamma", "cv": 0.3}, 0.3),
        ({"process": "constant"}, 0),
    ],
)
def test_renewal_processes_have_their_rate_and_cv(spec: dict[str, Any], cv: float) -> None:
    gaps = np.diff(times(**spec, rate_rps=20, num_requests=100_000))
    assert 1 / gaps.mean() == pytest.approx(20, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03, abs=1e-6)


@pytest.mark.parametrize("process", ["poisson", "constant", "diurnal"])
def test_a_duration_is_filled_and_not_exceeded(process: str) -> None:
    found = times(process=process, rate_rps=50, duration_s=200)
    assert 199 < found[-1] < 200
    assert (np.diff(found) >= 0).all()


def test_a_modulated_process_has_the_mean_rate_of_its_states() -> None:
    spec = {"process": "mmpp", "rates_rps": (5, 50), "mean_durations_s": (40, 10)}
    found = times(**spec, duration_s=40_000)
    assert len(found) / 40_000 == pytest.approx((5 * 40 + 50 * 10) / 50, rel=0.1)
    counts = np.bincount(found.astype(int))
    assert counts.var() / counts.mean() > 5
    assert len(times(**spec, num_requests=12_345)) == 12_345


def test_a_diurnal_load_swings_over_its_period() -> None:
    spec = {"process": "diurnal", "rate_rps": 2, "peak_to_mean": 1.8, "peak_at_s": 50_000}
    found = times(**spec, duration_s=2 * 86_400)
    assert len(found) == pytest.approx(2 * 2 * 86_400, rel=0.02)
    hours, _ = np.histogram(found % 86_400, 24, (0, 86_400))
    assert abs(hours.argmax() - 13) <= 1
    assert hours.max() / hours.mean() == pytest.approx(1.8, rel=0.05)
    assert len(times(**spec, num_requests=1000)) == 1000


def test_lengths_have_their_distributions(tmp_path: Path) -> None:
    assert set(lengths_of({"distribution": "fixed", "value": 7})) == {7}
    uniform = lengths_of({"distribution": "uniform", "low": 80, "high": 100})
    assert (uniform.min(), uniform.max()) == (80, 100)
    lognormal = lengths_of({"distribution": "lognormal", "mean": 1000, "cv": 0.9})
    assert lognormal.mean() == pytest.approx(1000, rel=0.02)
    assert lognormal.std() / lognormal.mean() == pytest.approx(0.9, rel=0.05)
    assert lengths_of({"distribution": "lognormal", "mean": 1000, "cv": 0.9, "max": 1500}).max() == 1500
    file = tmp_path / "lengths.csv"
    file.write_text("input_tokens,output_tokens\n10,1\n20,2\n30,3\n")
    assert set(lengths_of({"distribution": "empirical", "file": file})) == {10, 20, 30}


def test_two_empirical_lengths_of_one_file_are_drawn_row_by_row(tmp_path: Path) -> None:
    file = tmp_path / "lengths.csv"
    file.write_text("input_tokens,output_tokens\n10,1\n20,2\n30,3\n")
    both = {"distribution": "empirical", "file": file}
    load = {"arrivals": {"process": "poisson", "rate_rps": 1, "num_requests": 500}}
    requests = synthesize(SyntheticSpec(**load, input_tokens=both, output_tokens=both), 0)
    assert (requests.input_tokens == 10 * requests.output_tokens).all()


def test_turns_of_a_conversation_share_all_that_was_said_before() -> None:
    load = {"arrivals": {"process": "poisson", "rate_rps": 1, "num_requests": 200}, **FIXED}
    requests = synthesize(SyntheticSpec(**load, sessions={"mean_turns": 5}, hash_block_tokens=20), 0)
    assert requests.session is not None and requests.hash_offsets is not None and requests.hash_ids is not None
    assert len(requests) / 200 == pytest.approx(5, rel=0.2)
    longest = np.bincount(requests.session).argmax()
    turns = np.flatnonzero(requests.session == longest)
    assert requests.input_tokens[turns].tolist() == [100 + 120 * i for i in range(len(turns))]
    blocks = [requests.hash_ids[requests.hash_offsets[t] : requests.hash_offsets[t + 1]] for t in turns]
    for earlier, later in itertools.pairwise(blocks):
        assert later[: len(earlier)].tolist() == earlier.tolist()
    others = np.setdiff1d(requests.hash_ids, np.concatenate(blocks))
    assert len(others) + len(np.unique(np.concatenate(blocks))) == len(np.unique(requests.hash_ids))


def test_system_prompts_are_shared_by_their_popularity() -> None:
    load = {"arrivals": {"process": "poisson", "rate_rps": 1, "num_requests": 5000}, **FIXED}
    requests = synthesize(SyntheticSpec(**load, system_prompts={"tokens": 640, "num": 3, "zipf": 1}), 0)
    assert set(requests.input_tokens) == {740}
    assert requests.hash_offsets is not None and requests.hash_ids is not None
    first = requests.hash_ids[requests.hash_offsets[:-1]]
    counts = np.sort(np.unique(first, return_counts=True)[1])
    assert counts / 5000 == pytest.approx(np.array([2, 3, 6]) / 11, abs=0.03)
    shared = describe(requests)["prefix_sharing"]["infinite_cache_hit_rate"]
    assert shared == pytest.approx(10 / 11, abs=0.01)  # 640 tokens are 10 of the 11 whole blocks of 64


def test_prefix_blocks_survive_a_csv(tmp_path: Path) -> None:
    load = {"arrivals": {"process": "poisson", "rate_rps": 1, "num_requests": 300}, **FIXED}
    before = synthesize(SyntheticSpec(**load, sessions={}), 0)
    write_trace(before, tmp_path / "t.csv")
    after = read_trace(tmp_path / "t.csv")
    assert after.hash_block_tokens == before.hash_block_tokens
    assert np.array_equal(after.hash_ids, before.hash_ids)  # type: ignore[arg-type]


def test_the_seed_decides_and_parts_have_streams_of_their_own() -> None:
    load = {"arrivals": {"process": "poisson", "rate_rps": 1, "num_requests": 300}, **FIXED}
    one, same, other = (synthesize(SyntheticSpec(**load), s) for s in (1, 1, 2))
    assert np.array_equal(one.arrival_s, same.arrival_s) and not np.array_equal(one.arrival_s, other.arrival_s)
    longer = {**load, "output_tokens": {"distribution": "uniform", "low": 1, "high": 9}}
    assert np.array_equal(synthesize(SyntheticSpec(**longer), 1).arrival_s, one.arrival_s)


def test_classes_are_mixed_in_order_and_keep_their_names() -> None:
    classes = [{"name": n, "arrivals": {"process": "poisson", "rate_rps": r, "num_requests": 100 * r}, **FIXED}
               for n, r in (("chat", 3), ("batch", 1))]  # fmt: skip
    requests = load_workload(WorkloadSpec(classes=classes), seed=3)
    assert requests.class_names == ("chat", "batch")
    assert requests.request_class is not None and np.bincount(requests.request_class).tolist() == [300, 100]
    assert (np.diff(requests.arrival_s) >= 0).all()


def test_classes_with_other_prefix_blocks_are_refused() -> None:
    load = {"arrivals": {"process": "poisson", "rate_rps": 1, "num_requests": 30}, **FIXED, "sessions": {}}
    parts = [synthesize(SyntheticSpec(**load, hash_block_tokens=b), 0) for b in (16, 32)]
    with pytest.raises(InputError, match="16 and 32"):
        merge_classes(parts, ["a", "b"])


def test_growth_week_and_crowds_change_the_rate_over_time() -> None:
    load = {"arrivals": {"process": "poisson", "rate_rps": 2, "duration_s": 14_400}, **FIXED}
    crowd = {"at_s": 3600, "duration_s": 1200, "factor": 4}
    crowded = load_workload(WorkloadSpec(**load, flash_crowds=[crowd])).arrival_s
    counts, _ = np.histogram(crowded, [0, 3600, 4800, 14_400])
    assert counts / [3600, 1200, 9600] == pytest.approx([2, 8, 2], rel=0.06)
    hours = [1.0, 0.5, 2.0, 0.0] + [1.0] * 20
    rhythm = load_workload(WorkloadSpec(**load, week={"hour_factors": hours})).arrival_s
    counts, _ = np.histogram(rhythm, np.arange(5) * 3600.0)
    assert counts / 3600 == pytest.approx([2, 1, 4, 0], rel=0.1, abs=0.05)
    grown = load_workload(WorkloadSpec(**load, growth={"per_year": 1e3 - 1}, repeat_s=10 * 86_400)).arrival_s
    counts, _ = np.histogram(grown, 2, (0, 10 * 86_400))
    assert counts[1] / counts[0] == pytest.approx(1000 ** (5 / 365), rel=0.02)


def test_a_load_without_a_request_is_refused() -> None:
    load = {"arrivals": {"process": "constant", "rate_rps": 1, "duration_s": 0.5}, **FIXED}
    with pytest.raises(InputError, match="no request"):
        load_workload(WorkloadSpec(**load))


def test_an_absurdly_large_load_is_refused_before_memory_is() -> None:
    load = {"arrivals": {"process": "poisson", "rate_rps": 1e9, "duration_s": 1e9}, **FIXED}
    with pytest.raises(InputError, match="200,000,000"):
        load_workload(WorkloadSpec(**load))
    load = {"arrivals": {"process": "diurnal", "rate_rps": 1, "duration_s": 86400, "period_s": 1e-9}, **FIXED}
    with pytest.raises(InputError, match="5,000,000 times"):
        load_workload(WorkloadSpec(**load))
