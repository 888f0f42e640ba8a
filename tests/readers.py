"""Every reader of the program with real forms of what it reads: what the fuzzers damage and the bombs are thrown at."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from app.report.schedule import Schedule
from calibrate.device.dcgm import read_counters
from calibrate.device.measurements import read_measurements
from calibrate.device.profilers import read_trace as read_profiler_trace
from calibrate.fitting.importers.aiconfigurator import read_frames
from calibrate.fitting.importers.llmservingsim import import_profile
from calibrate.fitting.serving import read_closed_loop, read_tidy
from calibrate.profiles import load_profile
from calibrate.server.benchmark_results import read_results
from calibrate.server.prometheus_text import parse, scrape
from catalogs.files import parse_json
from catalogs.hf_config import read_config
from catalogs.load import find_gpu
from catalogs.yaml_source import read_model
from planner.inputs.capacity_table import read_capacity_table, read_demand
from planner.inputs.market import user_prices
from planner.inputs.problem import read_problem
from planner.inputs.quality import own_results
from planner.inputs.savings_plans import COLUMNS, user_rates
from planner.money.fleet_cost import read_price_paths
from planner.optimizer.certificate import VERSION, _digest, verify_certificate
from planner.spend.bill_readers import read_bill
from simulator.fleet.spot_trace import read_availability
from simulator.scenario.spec import read_scenario
from simulator.sweep import read_sweep
from simulator.workload.trace_stats import describe_file
from simulator.workload.traces import read_lengths, read_trace


@dataclass(frozen=True)
class Reader:
    """One reader: the name of its file, real contents of it, and how it is read.

    ``prepare`` lays the files that must stand beside it.
    """

    file: str
    seeds: tuple[bytes, ...]
    read: Callable[[Path], Any]
    prepare: Callable[[Path], None] = lambda folder: None


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 1000, "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128},
}  # fmt: skip
BENCH = {"request_throughput": 1.0, "mean_ttft_ms": 10.0, "median_tpot_ms": 5.0, "max_concurrency": 4, "completed": 9}
AIPERF = {"time_to_first_token": {"avg": 10, "unit": "ms"}, "request_latency": {"avg": 99, "unit": "ms"}}
GUIDELLM = {"benchmarks": [{"config": {"strategy": {"streams": 2}}, "metrics": {"requests_per_second": {"mean": 1}}}]}
PROFILE = {
    "schema_version": 1, "name": "p", "kind": "kernels", "gpu": "L4", "source": "s", "as_of": "2026-01-01",
    "carried_from": "l40s", "power": {"demand": 2.0, "measured": 1.5}, "families": {"gemm": {"bf16": {"launch_s": 1}}},
    "error": {"gemm": {"bf16": {"median": 0.1}}},
}  # fmt: skip
FOCUS = (
    b"BilledCost,EffectiveCost,ChargeCategory,ChargePeriodStart,BillingCurrency,x_UsageType,Tags\n"
    b'1,1,Usage,2026-10-01T00:00:00Z,USD,BoxUsage:g5.xlarge,"{""plan-model"": ""m""}"\n'
)
CUR = (
    b"line_item_usage_start_date,line_item_line_item_type,line_item_unblended_cost,line_item_usage_type\n"
    b"2026-10-01T00:00:00Z,Usage,1.5,BoxUsage:g5.xlarge\n"
)
TRACE = b"arrival_s,input_tokens,output_tokens,hash_ids\n0,10,5,1 2\n1.5,20,1,1 3\n"
AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:01:00.5,9,3\n2023-11-16 18:01:01.5,7,2\n"
BURSTGPT = (
    b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
)
MOONCAKE = b'{"timestamp": 0, "input_length": 900, "output_length": 5, "hash_ids": [1, 2]}\n'
SHAREGPT = b'[{"conversations": [{"from": "human", "value": "hello there"}, {"from": "gpt", "value": "hi"}]}]'
PLAN = b"model: llama-3.1-8b\nworkload: {trace: t.csv, scale: 2}\nslo: {ttft_p95_s: 1.0}\ncandidates: {gpus: [L4]}\n"
SCENARIO = (
    b"model: llama-3.1-8b\nworkload:\n  arrivals: {process: poisson, rate_rps: 1, num_requests: 5}\n"
    b"  input_tokens: {distribution: fixed, value: 9}\n  output_tokens: {distribution: fixed, value: 2}\n"
    b"fleet:\n  - {gpu: L4, count: 1}\n"
)
SWEEP = b"scenario:\n" + b"".join(b"  " + line + b"\n" for line in SCENARIO.splitlines()) + b"grid: {seed: [1, 2]}\n"
SCHEDULE = b"name: n\ncron: '0 8 * * MON'\nreport: {bill: b.csv}\nsend:\n  - {kind: file, path: x}\n"
METRICS = (
    b'# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model="m"} 3\nvllm:kv_cache_usage_perc 0.5\n'
)
DCGM = (
    b'DCGM_FI_DEV_GPU_UTIL{gpu="0",modelName="NVIDIA L4",Hostname="n"} 99\n'
    b'DCGM_FI_PROF_DRAM_ACTIVE{gpu="0",modelName="NVIDIA L4",Hostname="n"} 0.8\n'
)
CHROME = {
    "schemaVersion": 1,
    "traceEvents": [{"ph": "X", "cat": "kernel", "name": "gemm", "ts": 1, "dur": 5, "pid": 0, "tid": 0}],
}
CAPACITY = b"gpu,precision,input_tokens,output_tokens,max_rps,usd_per_hour\nL4,bf16,100,100,2,0.8\n"
CERTIFICATE = {  # two machines at 3 USD that must serve 1.5 of one each
    "kind": "gpu-capacity-plan certificate", "version": VERSION, "usd_per_hour": 6.0, "proven_usd_per_hour": 6.0,
    "program": {"columns": 1, "integer": [0], "low": ["0"], "high": ["9"], "cost": ["3"], "right": ["-3/2"],
                "equal": [], "entries": [[0, 0, "-1"]]},
    "plan": [[0, "2"]],
    "proof": {"split": 0, "at": 1, "below": {"leaf": [[0, "9"]], "empty": True}, "above": {"leaf": []}},
}  # fmt: skip
DENSE = b"layer,tokens,time_us\nqkv_proj,1,3\nqkv_proj,64,99\n"
QUALITY = b"model,precision,task,score,baseline_score\nllama-3.1-8b,fp8,mmlu,0.66,0.67\nllama-3.1-8b,fp8\n"
MEASURED = (
    b'{"kind": "header", "schema_version": 1, "device": "cpu", "name": "cpu"}\n'
    b'{"kind": "point", "family": "gemm", "dtype": "bf16", "shape": {"m": 1, "n": 2, "k": 3}, "median_s": 1.0,'
    b' "p10_s": 0.9, "p90_s": 1.1, "num_samples": 5, "variant": "dense"}\n{"kind": "remark", "text": "warm"}\n'
)


CLOSED_LOOP = (
    b"system,model_path,precision,backend,isl,osl,len_scale,concurrency,tp_size,silicon_ttft_ms,silicon_tpot_ms\n"
    b"h100_sxm,llama-3.1-8b,fp8,vllm,1024,128,0.9,4,2,120,17\n"
)
TIDY = (
    b"gpu,tp,model,precision,framework,isl,osl,concurrency_or_rate,metric,value,unit,notes\n"
    b"L4,1,llama-3.1-8b,bf16,vLLM,512,64,conc=4,ttft,40,ms,ok=100 fail=0; max_num_seqs=100\n"
)
SPOT = b"time_s,za,zb\n0,1,0\n60,0,2\n120,1,1\n"


def _parquet(text: bytes) -> bytes:
    out = io.BytesIO()
    pd.read_csv(io.BytesIO(text)).to_parquet(out)
    return out.getvalue()


def _nsight() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.sqlite"
        db = sqlite3.connect(path)
        db.executescript(
            "CREATE TABLE META_DATA_EXPORT (name TEXT, value TEXT);"
            "INSERT INTO META_DATA_EXPORT VALUES ('EXPORT_SCHEMA_VERSION', '3.11.0');"
            "CREATE TABLE StringIds (id INTEGER, value TEXT); INSERT INTO StringIds VALUES (1, 'gemm');"
            "CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (demangledName INTEGER, start INTEGER, end INTEGER);"
            "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (1, 0, 1000);"
        )
        db.close()
        return path.read_bytes()


def _beside_llmservingsim(folder: Path) -> None:
    (folder / "tp1").mkdir(exist_ok=True)
    (folder / "meta.yaml").write_text("gpu: NVIDIA RTX PRO 6000\nhardware: RTXPRO6000\nmodel: m\nvariant: bf16\n")
    (folder / "tp1" / "per_sequence.csv").write_text("layer,sequences,time_us\nlm_head,1,10\nlm_head,8,10\n")
    (folder / "tp1" / "attention.csv").write_text(
        "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n0,0,1,16,2\n16,0,0,0,2\n16,0,1,16,3\n"
    )


def _kernel_rows() -> bytes:
    rows = ["device,gemm_dtype,m,n,k,latency"]
    rows += [f"NVIDIA L4,bfloat16,{m},{n},512,{0.01 + m * n / 1e7}" for m in (1, 64) for n in (512, 4096)]
    return "\n".join(rows).encode()


def _verify_rehashed(path: Path) -> Any:
    """A certificate whose hash is right whatever was changed: what someone who wants to cheat would hand in."""
    try:
        body = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return verify_certificate(path)
    if isinstance(body, dict):
        body["sha256"] = _digest({k: v for k, v in body.items() if k != "sha256"})
        path.write_text(json.dumps(body))
    return verify_certificate(path)


def _dump(document: Any) -> bytes:
    return json.dumps(document).encode()


READERS: dict[str, Reader] = {
    "trace.csv": Reader("t.csv", (TRACE, AZURE, BURSTGPT), read_trace),
    "trace.jsonl": Reader("t.jsonl", (MOONCAKE,), read_trace),
    "trace.json": Reader("t.json", (SHAREGPT,), read_trace),
    "trace.parquet": Reader("t.parquet", (_parquet(TRACE), b"PAR1" + bytes(64) + b"PAR1"), read_trace),
    "trace.gz": Reader("t.csv.gz", (gzip.compress(TRACE), b"\x1f\x8b\x08" + bytes(30)), read_trace),
    "trace lengths": Reader("t.csv", (TRACE, AZURE), read_lengths),
    "trace stats": Reader("t.csv", (AZURE, TRACE), describe_file),
    "plan.yaml": Reader("plan.yaml", (PLAN,), lambda p: read_problem(p, {})),
    "scenario.yaml": Reader("s.yaml", (SCENARIO,), read_scenario),
    "sweep.yaml": Reader("w.yaml", (SWEEP,), read_sweep),
    "schedule.yaml": Reader("w.yaml", (SCHEDULE,), lambda p: read_model(p, Schedule)),
    "profile.json": Reader("p.json", (_dump(PROFILE),), load_profile),
    "config.json": Reader("config.json", (_dump(CONFIG),), read_config),
    "benchmark.json": Reader("r.json", (_dump(BENCH), _dump(AIPERF), _dump(GUIDELLM)), read_results),
    "benchmark.yaml": Reader("r.yaml", (_dump(GUIDELLM),), read_results),
    "bill.csv": Reader("bill.csv", (FOCUS, CUR), read_bill),
    "bill.csv.gz": Reader("bill.csv.gz", (gzip.compress(FOCUS),), read_bill),
    "bill.parquet": Reader("bill.parquet", (_parquet(FOCUS), b"PAR1" + bytes(64) + b"PAR1"), read_bill),
    "metrics": Reader("m.prom", (METRICS,), lambda p: scrape(p.read_text(errors="replace"))),
    "dcgm": Reader("m.prom", (DCGM,), lambda p: read_counters(parse(p.read_text(errors="replace")))),
    "measurements.jsonl": Reader("m.jsonl", (MEASURED,), read_measurements),
    "chrome trace": Reader("trace.json", (_dump(CHROME), gzip.compress(_dump(CHROME))), read_profiler_trace),
    "nsight": Reader("t.sqlite", (_nsight(),), read_profiler_trace),
    "capacity table": Reader("c.csv", (CAPACITY,), read_capacity_table),
    "demand": Reader("d.csv", (b"input_tokens,output_tokens,rate_rps\n100,100,3\n",), read_demand),
    "price paths": Reader("p.csv", (b"start_s,zone,usd_per_hour\n0,a,1\n9,a,2\n",), read_price_paths),
    "own prices": Reader("p.csv", (b"instance_type,region,purchase,usd_per_hour\ng6.xlarge,,spot,1\n",), user_prices),
    "savings plan rates": Reader(
        "r.csv", (f"{','.join(COLUMNS)}\ncompute,1,no_upfront,g6.xlarge,0.5\n".encode(),),
        lambda p: user_rates(p, "us-east-1"),
    ),
    "quality results": Reader("q.csv", (QUALITY,), own_results),
    "certificate": Reader("c.json", (_dump(CERTIFICATE),), _verify_rehashed),
    "availability": Reader(
        "a.json", (_dump({"metadata": {"gap_seconds": 60}, "data": [1, 0, 1]}),), lambda p: read_availability(p, 100.0)
    ),
    "availability.csv": Reader("a.csv", (SPOT,), lambda p: read_availability(p, 100.0)),
    "serving points": Reader("p.csv", (TIDY,), read_tidy),
    "closed loops": Reader("p.csv", (CLOSED_LOOP,), read_closed_loop),
    "kernel table.csv": Reader(
        "gemm_perf.csv", (_kernel_rows(),), lambda p: read_frames(p.parent, find_gpu("L4"))
    ),
    "kernel table.parquet": Reader(
        "gemm_perf.parquet", (_parquet(_kernel_rows()),),
        lambda p: read_frames(p.parent, find_gpu("L4")),
    ),
    "step table": Reader("tp1/dense.csv", (DENSE,), lambda p: import_profile(p.parents[1]), _beside_llmservingsim),
}  # fmt: skip
