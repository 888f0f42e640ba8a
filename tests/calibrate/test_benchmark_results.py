"""Files in the forms that the tools write; the figures in them are made up, small and round."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.cli.main import cli
from calibrate.profiles import load_profile
from calibrate.server.benchmark_results import read_results
from catalogs.errors import InputError


def vllm(concurrency: int | None, tpot_ms: float, ttft_ms: float, rate: object = "inf") -> dict[str, Any]:
    return {
        "model_id": "m", "request_rate": rate, "max_concurrency": concurrency, "burstiness": 1.0,
        "completed": 10, "failed": 1, "total_input_tokens": 5120, "total_output_tokens": 1280,
        "request_throughput": 2.0, "output_throughput": 256.0,
        "mean_ttft_ms": ttft_ms, "median_ttft_ms": ttft_ms, "p99_ttft_ms": 2 * ttft_ms,
        "mean_tpot_ms": tpot_ms, "median_tpot_ms": tpot_ms, "p99_tpot_ms": tpot_ms, "mean_e2el_ms": 2000.0,
    }  # fmt: skip


def guidellm(version: int = 2) -> dict[str, Any]:
    def block(mean: float) -> dict[str, Any]:
        return {"successful": {"mean": mean, "count": 20, "percentiles": {"p50": mean, "p95": 2 * mean}}}

    metrics = {
        "request_latency": block(2.0), "prompt_token_count": block(256.0), "output_token_count": block(128.0),
        "time_to_first_token_ms": block(50.0), "inter_token_latency_ms": block(15.0),
        "time_per_output_token_ms": block(15.6), "requests_per_second": block(4.0), "request_concurrency": block(7.9),
        "output_tokens_per_second": block(512.0), "request_totals": {"errored": 2},
    }  # fmt: skip
    strategies = ({"type_": "concurrent", "streams": 8}, {"type_": "constant", "rate": 4.0})
    return {
        "metadata": {"version": version},
        "benchmarks": [{"config": {"strategy": s}, "metrics": metrics} for s in strategies],
    }


def aiperf(unit: str = "ms") -> dict[str, Any]:
    def block(avg: float, unit: str) -> dict[str, Any]:
        return {"unit": unit, "avg": avg, "p50": avg, "p99": 3 * avg}

    return {
        "schema_version": "1.0", "input_config": {"loadgen": {"concurrency": 16}},
        "request_count": {"unit": "requests", "avg": 64.0}, "request_latency": block(2500.0, unit),
        "time_to_first_token": block(80.0, unit), "inter_token_latency": block(19.0, unit),
        "input_sequence_length": block(512.0, "tokens"), "output_sequence_length": block(128.0, "tokens"),
        "request_throughput": {"unit": "requests/sec", "avg": 6.4},
        "output_token_throughput": {"unit": "tokens/sec", "avg": 819.2},
    }  # fmt: skip


def record(begin_s: float, error: object = None) -> dict[str, Any]:
    def value(x: float, unit: str) -> dict[str, Any]:
        return {"value": x, "unit": unit}

    begin_ns = int(begin_s * 1e9)
    return {
        "metadata": {"request_start_ns": begin_ns, "request_end_ns": begin_ns + 10**9, "benchmark_phase": "profiling"},
        "metrics": {
            "time_to_first_token": value(100.0, "ms"), "inter_token_latency": value(10.0, "ms"),
            "request_latency": value(1000.0, "ms"), "input_sequence_length": value(64, "tokens"),
            "output_sequence_length": value(91, "tokens"),
        },
        "error": error,
    }  # fmt: skip


def saved(path: Path, document: object) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_vllm_bench_serve_json_and_appended_lines(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(vllm(c, 10.0 + c, 60.0)) for c in (1, 8))
    one, eight = read_results(saved(tmp_path / "b.jsonl", lines))
    assert (one.concurrency, eight.concurrency) == (1.0, 8.0)
    assert one.input_tokens == 512 and one.output_tokens == 128 and one.num_failed == 1
    assert eight.tpot_s["mean"] == pytest.approx(0.018) and eight.ttft_s["p99"] == pytest.approx(0.12)
    (open_loop,) = read_results(saved(tmp_path / "o.json", vllm(None, 10.0, 60.0, rate=2.0)))
    assert open_loop.rate_rps == 2.0 and open_loop.in_flight == pytest.approx(4.0)  # Little: 2 / s x 2 s


def test_detailed_vllm_results_give_quantiles_without_failed_requests(tmp_path: Path) -> None:
    document = vllm(4, 10.0, 60.0) | {"ttfts": [0.05, 0.06, 0.07, 0.0], "itls": [[0.01, 0.02], [0.03]]}
    (point,) = read_results(saved(tmp_path / "b.json", document))
    assert point.ttft_s["p90"] == pytest.approx(0.068) and point.itl_s["p50"] == pytest.approx(0.02)


def test_guidellm(tmp_path: Path) -> None:
    closed, opened = read_results(saved(tmp_path / "benchmarks.json", guidellm()))
    assert closed.concurrency == 8 and opened.rate_rps == 4.0 and closed.num_failed == 2
    assert closed.ttft_s == {"mean": 0.05, "p50": 0.05, "p95": 0.1}
    assert closed.tpot_s["mean"] == 0.015 and closed.e2e_s["mean"] == 2.0
    with pytest.raises(InputError, match="version 9"):
        read_results(saved(tmp_path / "new.json", guidellm(9)))


def test_aiperf_and_genai_perf_summaries_in_the_unit_they_name(tmp_path: Path) -> None:
    (point,) = read_results(saved(tmp_path / "profile_export_aiperf.json", aiperf()))
    assert point.concurrency == 16 and point.source == "AIPerf" and point.num_requests == 64
    assert point.ttft_s["mean"] == pytest.approx(0.08) and point.tpot_s["p99"] == pytest.approx(0.057)
    older = {k: v for k, v in aiperf("ns").items() if k != "schema_version"}
    older["input_config"] = {"perf_analyzer": {"stimulus": {"concurrency": 4}}}
    (point,) = read_results(saved(tmp_path / "profile_export_genai_perf.json", older))
    assert point.concurrency == 4 and point.source == "genai-perf" and point.ttft_s["mean"] == pytest.approx(8e-8)
    with pytest.raises(InputError, match="no unit of time"):
        read_results(saved(tmp_path / "odd.json", aiperf("fortnights")))


def test_aiperf_records(tmp_path: Path) -> None:
    lines = [record(0.0), record(0.0), record(1.0), record(1.0, error={"message": "x"})]
    (point,) = read_results(saved(tmp_path / "profile_export.jsonl", "\n".join(map(json.dumps, lines))))
    assert point.num_requests == 3 and point.num_failed == 1 and point.concurrency == pytest.approx(1.5)
    assert point.tpot_s["mean"] == pytest.approx(0.01) and point.input_tokens == 64


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"hello": 1}, "unknown form"),
        ("{broken", "not JSON"),
        ([1, 2], "not benchmark results"),
        (vllm(1, 1.0, 1.0) | {"completed": 0}, "no finished request"),
        ({k: v for k, v in vllm(1, 1.0, 1.0).items() if k != "total_output_tokens"}, "is missing"),
    ],
)
def test_other_files_are_refused_with_the_forms_that_are_known(tmp_path: Path, document: object, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_results(saved(tmp_path / "x.json", document))
    assert said in str(caught.value) and caught.value.remedy


def test_results_become_a_profile(tmp_path: Path) -> None:
    """TPOT 10 ms + 0.5 ms a sequence, TTFT 20 ms + 1 ms for 8 tokens."""
    lines = [vllm(c, 10.0 + 0.5 * c, 84.0) for c in (1, 4, 16, 64)]
    source = saved(tmp_path / "b.jsonl", "\n".join(map(json.dumps, lines)))
    target = tmp_path / "p.json"
    args = ["calibrate", "endpoint", "--results", str(source), "-o", str(target), "--framework", "vllm"]
    result = CliRunner().invoke(cli, [*args, "--format", "json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["error"]["decode"]["median"] < 0.2
    profile = load_profile(target)
    assert profile.kind == "endpoint" and profile.framework == "vllm" and "vllm bench serve" in profile.source


def test_neither_or_both_sources_are_refused() -> None:
    for args in ([], ["--url", "http://x", "--results", "b.json"]):
        result = CliRunner().invoke(cli, ["calibrate", "endpoint", *args])
        assert isinstance(result.exception, InputError) and "either --url or --results" in str(result.exception)
