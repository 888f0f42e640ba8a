"""Serving points from their tables, and the fit of engine overheads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.serving import (
    ServingPoint,
    fit_overheads,
    framework_of,
    implied_throughput,
    left_out_errors,
    read_closed_loop,
    read_tidy,
)
from catalogs.errors import InputError

POINT = ServingPoint("llama-3.1-8b", "H100-SXM", "bf16", "vllm", 1, 1024, 128, 8, 64, {})
START = {"step_overhead_s": 1e-3, "per_sequence_s": 1e-5, "request_overhead_s": 1e-3, "output_overhead_s": 0.0}


def server(point: ServingPoint, overheads: Mapping[str, float]) -> dict[str, float]:
    """A server whose step takes 5 ms of kernels and the overheads."""
    step = 5e-3 + overheads["step_overhead_s"] + overheads["per_sequence_s"] * point.concurrency
    return {"ttft_s": 4 * step + overheads["request_overhead_s"], "tpot_s": step}


def test_fit_finds_the_overheads_of_a_known_server() -> None:
    truth = {"step_overhead_s": 3e-3, "per_sequence_s": 5e-5, "request_overhead_s": 1e-2}
    points = [
        replace(p, measured=server(p, truth)) for p in (replace(POINT, concurrency=c) for c in (1, 4, 16, 64, 256))
    ]
    found = fit_overheads(points, server, START)
    for name, value in truth.items():
        assert found[name] == pytest.approx(value, rel=0.1)
    assert found["output_overhead_s"] == 0.0


def test_groups_are_left_out_one_by_one() -> None:
    truth = START | {"step_overhead_s": 2e-3}
    points = [
        replace(POINT, tensor_parallel_size=tp, concurrency=c, measured=server(replace(POINT, concurrency=c), truth))
        for tp in (1, 2)
        for c in (1, 8, 64)
    ]
    errors = left_out_errors(points, server, START)
    assert len(errors) == 6
    assert max(abs(e) for _, each in errors for e in each.values()) < 0.05


def test_throughput_follows_from_ttft_and_tpot() -> None:
    assert implied_throughput(10, 101, 1.0, 0.01) == pytest.approx(10 * 101 / 2.0)


@pytest.mark.parametrize(
    ("label", "meant"),
    [("trtllm", "tensorrt-llm"), ("TensorRT-LLM trtllm-bench in-flight batching", "tensorrt-llm"), ("vLLM V1", "vllm")],
)
def test_frameworks_are_known_by_their_labels(label: str, meant: str) -> None:
    assert framework_of(label) == meant


def test_unknown_framework_is_refused() -> None:
    with pytest.raises(InputError, match="unknown framework"):
        framework_of("llama.cpp")


def test_closed_loop_rows_become_points(tmp_path: Path) -> None:
    path = tmp_path / "loops.csv"
    path.write_text(
        "system,model_path,precision,backend,backend_version,isl,osl,len_scale,concurrency,tp_size,"
        "silicon_ttft_ms,silicon_tpot_ms\n"
        "h100_sxm,meta-llama/Llama-3.1-70B,fp8,vllm,,1024,1024,0.9,4,2,120,17\n"
    )
    (point,) = read_closed_loop(path)
    assert (point.model, point.gpu, point.framework, point.tensor_parallel_size) == (
        "llama-3.1-70b",
        "H100-SXM",
        "vllm",
        2,
    )
    assert (point.concurrency, point.num_requests, point.shortest) == (4, 64, 0.8)
    assert point.measured["tpot_s"] == pytest.approx(0.017)


def test_tidy_rows_of_one_load_become_one_point(tmp_path: Path) -> None:
    path = tmp_path / "tidy.csv"
    head = "gpu,tp,model,precision,framework,framework_version,isl,osl,concurrency_or_rate,metric,value,unit,notes\n"
    row = "H100-SXM,1,Llama-3.1-8B,bf16,vLLM,0.8.5,209,1,"
    path.write_text(
        head
        + row + '"rate=inf, 4096 prompts; max_num_seqs=100",duration,27,s,kv_tokens=334944; max_num_seqs=100\n'
        + row + '"rate=inf, 4096 prompts; max_num_seqs=100",mean_ttft_ms,13000,s,kv_tokens=334944; max_num_seqs=100\n'
        + "TPUv5,1,Llama-3.1-8B,bf16,vLLM,0.8.5,209,1,batch=4,duration,27,s,\n"
    )  # fmt: skip
    (point,) = read_tidy(path)
    assert point.measured == {"duration_s": 27.0, "ttft_s": 13.0}
    assert (point.num_requests, point.engine["max_num_seqs"]) == (4096, 100)
    assert point.engine["num_gpu_blocks"] == 334944 // 16


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("system,model_path\nh100,x\n")
    with pytest.raises(InputError, match="columns missing"):
        read_closed_loop(path)
