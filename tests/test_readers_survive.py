"""Every reader, on anything: it answers, or refuses with words. Never a crash, a hang or a foreign exception.

Seeds are real forms of each file, which hypothesis then damages: bytes dropped, doubled, replaced, cut off, spliced.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.report.schedule import Schedule
from calibrate.benchmark_results import read_results
from calibrate.measurements import read_measurements
from calibrate.profilers import read_trace as read_profiler_trace
from calibrate.profiles import load_profile
from calibrate.prometheus_text import scrape
from catalogs.errors import PlanError
from catalogs.hf_config import read_config
from catalogs.yaml_source import read_model
from planner.bill_readers import read_bill
from planner.capacity_table import read_capacity_table, read_demand
from planner.problem import read_problem
from simulator.scenario import read_scenario
from simulator.spot_trace import read_availability
from simulator.trace_stats import describe_file
from simulator.traces import read_trace

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 1000, "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}  # fmt: skip
BENCH = {"request_throughput": 1.0, "mean_ttft_ms": 10.0, "median_tpot_ms": 5.0, "max_concurrency": 4, "completed": 9}
PROFILE = {"schema_version": 1, "name": "p", "kind": "kernels", "gpu": "L4", "source": "s", "as_of": "2026-01-01"}
FOCUS = (
    "BilledCost,EffectiveCost,ChargeCategory,ChargePeriodStart,x_UsageType\n"
    "1,1,Usage,2026-10-01T00:00:00Z,BoxUsage:g5.xlarge\n"
)
TRACE = "arrival_s,input_tokens,output_tokens,hash_ids\n0,10,5,1 2\n1.5,20,1,1 3\n"
MOONCAKE = '{"timestamp": 0, "input_length": 900, "output_length": 5, "hash_ids": [1, 2]}\n'
PLAN = "model: llama-3.1-8b\nworkload: {trace: t.csv, scale: 2}\nslo: {ttft_p95_s: 1.0}\ncandidates: {gpus: [L4]}\n"
SCENARIO = (
    "model: llama-3.1-8b\nworkload:\n  arrivals: {process: poisson, rate_rps: 1, num_requests: 5}\n"
    "  input_tokens: {distribution: fixed, value: 9}\n  output_tokens: {distribution: fixed, value: 2}\n"
    "fleet:\n  - {gpu: L4, count: 1}\n"
)
SCHEDULE = "name: n\ncron: '0 8 * * MON'\nreport: {bill: b.csv}\nsend:\n  - {kind: file, path: x}\n"
METRICS = (
    '# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model="m"} 3\nvllm:kv_cache_usage_perc 0.5\n'
)
CHROME = {"traceEvents": [{"ph": "X", "cat": "kernel", "name": "gemm", "ts": 1, "dur": 5, "pid": 0, "tid": 0}]}
CAPACITY = "gpu,precision,input_tokens,output_tokens,max_rps,usd_per_hour\nL4,bf16,100,100,2,0.8\n"

READERS: dict[str, tuple[str, str | bytes, Callable[[Path], Any]]] = {
    "trace.csv": ("t.csv", TRACE, read_trace),
    "trace.jsonl": ("t.jsonl", MOONCAKE, read_trace),
    "trace.parquet": ("t.parquet", b"PAR1" + bytes(64) + b"PAR1", read_trace),
    "trace.gz": ("t.csv.gz", b"\x1f\x8b\x08" + bytes(30), read_trace),
    "trace stats": ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:01:00.5,9,3\n", describe_file),
    "plan.yaml": ("plan.yaml", PLAN, lambda p: read_problem(p, {})),
    "scenario.yaml": ("s.yaml", SCENARIO, read_scenario),
    "schedule.yaml": ("w.yaml", SCHEDULE, lambda p: read_model(p, Schedule)),
    "profile.json": ("p.json", json.dumps(PROFILE), load_profile),
    "config.json": ("config.json", json.dumps(CONFIG), read_config),
    "benchmark.json": ("r.json", json.dumps(BENCH), read_results),
    "bill.csv": ("bill.csv", FOCUS, read_bill),
    "bill.parquet": ("bill.parquet", b"PAR1" + bytes(64) + b"PAR1", read_bill),
    "metrics": ("m.prom", METRICS, lambda p: scrape(p.read_text(errors="replace"))),
    "measurements.jsonl": ("m.jsonl", '{"kind": "header"}\n', read_measurements),
    "chrome trace": ("trace.json", json.dumps(CHROME), read_profiler_trace),
    "capacity table": ("c.csv", CAPACITY, read_capacity_table),
    "demand": ("d.csv", "input_tokens,output_tokens,rate_rps\n100,100,3\n", read_demand),
    "availability": (
        "a.json",
        json.dumps({"metadata": {"gap_seconds": 60}, "data": [1, 0, 1]}),
        lambda p: read_availability(p, 100.0),
    ),
}


@st.composite
def damaged(draw: st.DrawFn, seed: bytes) -> bytes:
    """A seed with up to five wounds."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(0, 5))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(("drop", "insert", "replace", "cut", "double", "token")))
        if kind == "drop":
            del data[at : at + draw(st.integers(1, 12))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=8))
        elif kind == "replace" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at:]
        elif kind == "double":
            data[at:at] = data[max(0, at - 40) : at]
        else:
            words = (
                b"-1",
                b"nan",
                b"1e999",
                b"null",
                b"[]",
                b"{}",
                b'"',
                b"99999999999999999999",
                b"\n",
                b",",
                b": ",
                b"\x00",
            )
            data[at:at] = draw(st.sampled_from(words))
    return bytes(data)


@pytest.mark.parametrize("name", READERS)
@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(data=st.data())
def test_a_reader_answers_or_refuses_with_words(name: str, data: st.DataObject, tmp_path: Path) -> None:
    file, seed, read = READERS[name]
    path = tmp_path / file
    path.write_bytes(data.draw(damaged(seed if isinstance(seed, bytes) else seed.encode())))
    try:
        read(path)
    except PlanError as refusal:
        assert str(refusal).strip()


@pytest.mark.parametrize("name", READERS)
def test_a_reader_refuses_what_is_no_file(name: str, tmp_path: Path) -> None:
    file, _, read = READERS[name]
    if name == "metrics":
        pytest.skip("reads text, not files")
    with pytest.raises(PlanError):
        read(tmp_path / f"absent-{file}")
    (tmp_path / file).mkdir()
    with pytest.raises(PlanError):
        read(tmp_path / file)


def test_a_database_is_not_a_profiler_trace_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(PlanError):
        read_profiler_trace(path)
