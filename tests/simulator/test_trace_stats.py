"""A trace is described exactly, in pieces as well as whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import simulator.workload.trace_stats as trace_stats
from app.cli.main import cli
from simulator.workload.requests import Requests
from simulator.workload.trace_stats import Arrivals, Lengths, PrefixSharing, describe, describe_file
from simulator.workload.trace_writing import write_trace
from simulator.workload.traces import TraceReader, read_trace
from tests.shared_data import shared_data

RNG = np.random.default_rng(0)


def test_lengths_counted_by_value_give_exact_percentiles() -> None:
    values = RNG.integers(1, 5000, 10_001)
    lengths = Lengths()
    for part in np.array_split(values, 7):
        lengths.add(part)
    found = lengths.summary()
    assert found["mean"] == pytest.approx(values.mean())
    assert found["cv"] == pytest.approx(values.std() / values.mean())
    assert [found["p50"], found["p99"]] == np.percentile(values, [50, 99], method="inverted_cdf").tolist()
    assert (found["min"], found["max"]) == (values.min(), values.max())


def test_a_poisson_process_has_cv_and_dispersion_one() -> None:
    arrivals = Arrivals()
    for part in np.array_split(np.cumsum(RNG.exponential(0.1, 200_000)), 13):
        arrivals.add(part)
    assert arrivals.interarrival_cv() == pytest.approx(1, rel=0.02)
    for window in arrivals.windows()[:3]:
        assert window["index_of_dispersion"] == pytest.approx(1, rel=0.15)


def test_windows_equal_a_histogram_however_the_trace_is_cut() -> None:
    arrival = np.sort(RNG.uniform(0, 500, 3000))
    whole, cut = Arrivals([7.0]), Arrivals([7.0])
    whole.add(arrival)
    for part in np.split(arrival, [1, 2, 10, 11, 400, 2999]):
        cut.add(part)
    counts = np.bincount(((arrival - arrival[0]) // 7).astype(int))[:-1]
    expected = counts.var() / counts.mean()
    for arrivals in (whole, cut):
        assert arrivals.windows()[0]["index_of_dispersion"] == pytest.approx(expected)


def test_prefix_sharing_counts_blocks_seen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = RNG.integers(0, 50_000, 200_000)
    exact = PrefixSharing()
    for part in np.array_split(ids, 5):
        exact.add(part)
    truth = 1 - len(np.unique(ids)) / len(ids)
    assert exact.summary()["infinite_cache_hit_rate"] == pytest.approx(truth)
    monkeypatch.setattr(trace_stats, "MAX_HASH_IDS", 6000)
    sampled = PrefixSharing()
    for part in np.array_split(ids, 50):
        sampled.add(part)
    assert sampled.summary()["sampled_share"] < 0.2
    assert sampled.summary()["infinite_cache_hit_rate"] == pytest.approx(truth, abs=0.02)
    assert sampled.summary()["num_hash_ids"] == pytest.approx(200_000, rel=0.05)


def test_prefix_hits_by_window_add_up_to_those_of_the_whole() -> None:
    hits = [[1, 2], [1, 3], [4], [1, 3]]
    ids = np.array([i for row in hits for i in row])
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in hits])])
    ones = np.ones(4, dtype=np.int64)
    requests = Requests(np.array([0.0, 1.0, 5.0, 10.0]), ones, ones, offsets, ids)
    found = trace_stats.prefix_hits_per_window(requests, 5)
    assert found is not None
    assert found[0].tolist() == [0.0, 4.0, 8.0]  # windows without blocks are left out
    assert found[1].tolist() == [0.25, 0.0, 1.0]
    assert trace_stats.prefix_hits_per_window(Requests(requests.arrival_s, ones, ones), 5) is None


def test_the_published_figures_of_the_mooncake_trace() -> None:
    found = describe_file(shared_data("traces/mooncake_conversation.csv"))
    assert found["num_requests"] == 12031
    assert found["prefix_sharing"]["infinite_cache_hit_rate"] == pytest.approx(0.366, abs=5e-4)


def test_a_file_in_pieces_is_described_as_if_whole(tmp_path: Path) -> None:
    num = 600_000
    requests = Requests(
        np.round(np.cumsum(RNG.exponential(0.1, num)), 6), RNG.integers(1, 900, num), RNG.integers(0, 90, num),
        request_class=RNG.integers(0, 2, num), class_names=("a", "b"),
    )  # fmt: skip
    path = tmp_path / "t.csv"
    write_trace(requests, path)
    assert len(list(TraceReader(path))) > 1
    found, whole = describe_file(path), describe(read_trace(path))
    assert found["by_class"]["a"]["num_requests"] == whole["by_class"]["a"]["num_requests"]
    assert found["input_tokens"] == whole["input_tokens"]
    assert found["burstiness"]["interarrival_cv"] == pytest.approx(whole["burstiness"]["interarrival_cv"])


def test_one_request_alone_is_described() -> None:
    found = describe(Requests(np.array([3.0]), np.array([10]), np.array([2])))
    assert found["rate_rps"] is None and found["burstiness"]["interarrival_cv"] is None


def test_the_command_prints_one_json_document(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n1,20,6\n")
    shown = CliRunner().invoke(cli, ["trace", "stats", str(path), "--format", "json"])
    assert json.loads(shown.stdout)["num_requests"] == 2
    for form in ("table", "csv", "md"):
        assert CliRunner().invoke(cli, ["trace", "stats", str(path), "--format", form]).exit_code == 0


def test_import_writes_the_contracts_columns(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,10,5\n2023-11-16 18:15:47,20,6\n")
    out = tmp_path / "out.csv"
    done = CliRunner().invoke(cli, ["trace", "import", str(path), "-o", str(out), "--scale", "2"])
    assert done.exit_code == 0
    assert out.read_text().splitlines()[0] == "arrival_s,input_tokens,output_tokens"
    assert len(read_trace(out)) == 4
