"""Serving points from their tables, and the fit of engine overheads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.fitting.serving import (
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
    for text in ("", 'a,b\n1,2,3\n"'):
        path.write_text(text)
        with pytest.raises(InputError, match="is no table"):
            read_tidy(path)


@pytest.mark.parametrize("column", ["isl", "osl", "concurrency", "tp_size", "silicon_ttft_ms", "len_scale"])
@pytest.mark.parametrize("value", ["many", "0", "1e400", "-3"])
def test_a_load_without_a_number_is_refused_with_its_line(tmp_path: Path, column: str, value: str) -> None:
    names = "system,model_path,precision,backend,isl,osl,len_scale,concurrency,tp_size,silicon_ttft_ms,silicon_tpot_ms"
    values = "h100_sxm,llama-3.1-8b,fp8,vllm,1024,128,1,4,2,120,17".split(",")  # noqa: SIM905
    good = dict(zip(names.split(","), values, strict=True))
    path = tmp_path / "loops.csv"
    path.write_text(names + "\n" + ",".join(str(v) for v in (good | {column: value}).values()) + "\n")
    with pytest.raises(InputError, match=rf"loops\.csv:2: {column} is"):
        read_closed_loop(path)


@pytest.mark.parametrize(("isl", "load"), [("1e999", "conc=4"), ("1e99", "conc=4"), ("512", "conc=" + 5000 * "9")])
def test_a_load_beyond_all_is_left_out(tmp_path: Path, isl: str, load: str) -> None:
    path = tmp_path / "tidy.csv"
    path.write_text(HEAD + f"H100-SXM,1,llama-3.1-8b,bf16,vLLM,0.19.0,{isl},64,{load},ttft,40,ms,\n")
    assert read_tidy(path) == []


HEAD = "gpu,tp,model,precision,framework,framework_version,isl,osl,concurrency_or_rate,metric,value,unit,notes\n"


def test_experts_spread_over_all_gpus_are_read_from_their_labels(tmp_path: Path) -> None:
    path = tmp_path / "tidy.csv"
    row = "H200-SXM,{},MiniMaxAI/MiniMax-M2.5,,vLLM,,1024,128,conc=4,median_tpot,0.016,s,40 done; m25_{}_isl1024.json\n"
    path.write_text(HEAD + row.format("tep8", "tep8") + row.format("", "dep8"))
    sizes = {(p.tensor_parallel_size, p.data_parallel_size, p.expert_parallel_size) for p in read_tidy(path)}
    assert sizes == {(8, 1, 8), (1, 8, 8)}
    assert {(p.precision, p.num_requests) for p in read_tidy(path)} == {("fp8-block", 40)}


def test_short_prompts_are_assumed_and_their_first_tokens_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "tidy.csv"
    row = "L4,1,Qwen2.5-7B-Instruct,fp16,SGLang,0.4.6,<=256 (short chat prompts),128,conc=4,{},{},s,{}\n"
    measured = (("ttft_p50", 0.1), ("tpot_p50", 0.06))
    path.write_text(HEAD + "".join(row.format(*each, "ok=100 fail=0; cuda graph OFF") for each in measured))
    (point,) = read_tidy(path)
    assert point.measured == {"tpot_p50_s": 0.06}
    assert (point.input_tokens, point.num_requests, point.engine["enforce_eager"]) == (32, 100, True)


def test_maximum_load_is_as_much_as_tensorrt_llm_says_it_queues(tmp_path: Path) -> None:
    path = tmp_path / "tidy.csv"
    row = "H100-SXM,1,Llama-3.1-8B,fp8,TensorRT-LLM,0.14.0,{},{},inf rate (maximum load),output_throughput,1,tok/s,\n"
    path.write_text(HEAD + row.format(500, 2000) + row.format(20000, 2000) + row.format(77, 78))
    assert {p.input_tokens: p.num_requests for p in read_tidy(path)} == {500: 3000, 20000: 1000, 77: 1000}
    budgets = {p.input_tokens: p.engine.get("max_num_batched_tokens") for p in read_tidy(path)}
    assert budgets == {500: None, 20000: 22048, 77: None}
