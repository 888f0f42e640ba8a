"""How fast the engine is, and how its cost grows; printed, not asserted (`make bench`)."""

from __future__ import annotations

import resource
import time
from dataclasses import replace

import numpy as np
import pytest

from calibrate.step import StepTable
from simulator.engine.disaggregation import simulate_disaggregated
from simulator.engine.pools import Pools
from simulator.engine.simulate import ReplicaSpec, simulate_replicas
from simulator.engine.techniques import Adapters, Speculation
from simulator.workload.requests import Requests

pytestmark = pytest.mark.bench


def table() -> StepTable:
    """Times like those of an 8B model on an H100."""
    tokens, seqs = np.arange(8193), np.arange(1025)
    c, p = np.array([0.0, 512, 2048, 8192]), np.array([0.0, 1000, 8000])
    d, k = np.array([0.0, 16, 256, 1024]), np.array([0.0, 512, 1024, 4096, 16384])
    attention = c[:, None, None, None] * (p[None, :, None, None] + 1) * 1e-11
    attention = attention + d[None, None, :, None] * k[None, None, None, :] * 1.5e-9
    return StepTable(
        6e-3 + 1e-6 * tokens, 6e-3 + 2e-5 * tokens, 1e-4 + 1e-7 * seqs, c, p, d, k, attention, 1e-3, 4e-5, 5e-3, 0.0
    )


def workload(num: int, rate: float, mean_input: int = 1155, mean_output: int = 211) -> Requests:
    rng = np.random.default_rng(0)
    return Requests(
        np.cumsum(rng.exponential(1 / rate, num)),
        np.maximum(1, rng.exponential(mean_input, num)).astype(np.int64),
        np.maximum(1, rng.exponential(mean_output, num)).astype(np.int64),
    )


def report(name: str, requests: Requests, specs: list[ReplicaSpec], router: str = "round_robin") -> None:
    start = time.process_time()
    records = simulate_replicas(requests, specs, router)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    steps = int(records.iterations.sum())
    print(f"{name:44s} {len(requests) / seconds:>12,.0f} requests/s {steps / seconds:>14,.0f} steps/s {peak:6.2f} GB")


def test_requests_per_cpu_second() -> None:
    spec = ReplicaSpec(table(), 27_000, max_num_seqs=1024, max_num_batched_tokens=8192)
    report("warm-up", workload(1000, 5.0), [spec])
    print()
    for rate in (1, 4, 16, 32):
        report(f"4 replicas, {rate} requests/s", workload(50_000, rate), [spec] * 4)
    for num in (1, 16, 100):
        report(f"{num} replicas, 1.5 requests/s each", workload(50_000, 1.5 * num), [spec] * num)
    for router in ("least_loaded", "power_of_two", "weighted"):
        report(f"4 replicas, {router}", workload(50_000, 6.0), [spec] * 4, router)
    for num in (10_000, 100_000, 1_000_000):
        report(f"{num:,} requests", workload(num, 6.0), [spec] * 4)
    for seats in (8, 64, 512):
        small = ReplicaSpec(table(), 27_000, max_num_seqs=seats, max_num_batched_tokens=8192)
        report(f"overload, {seats} seats", workload(20_000, 200.0), [small])
    tight = ReplicaSpec(table(), 1500, max_num_seqs=256, max_num_batched_tokens=2048)
    report("short of blocks (preemptions)", workload(20_000, 8.0), [tight])
    prefill_first = ReplicaSpec(table(), 27_000, max_num_batched_tokens=8192, policy="prefill_first")
    report("prompts before decodes", workload(50_000, 6.0), [prefill_first] * 4)
    requests = workload(50_000, 6.0)
    sync = replace(spec, async_scheduling=False)
    for name, one in {
        "4 data-parallel ranks behind a front end": replace(spec, front_end_ranks=4),
        "4 ranks in lock step": replace(spec, lockstep_ranks=4, front_end_ranks=4, graph_tokens=512),
        "a pipeline of 4 stages": replace(sync, pipeline_stages=4),
        "16 adapters in 4 slots, 4 replicas": replace(spec, adapters=Adapters(16, 4, 0.003)),
        "speculation, 3 tokens, 4 replicas": replace(sync, speculation=Speculation(3, 0.7)),
    }.items():
        report(name, requests, [one] * 4)
    plain = time.process_time()
    simulate_replicas(workload(100, 6.0), [spec] * 4, fast=False)
    print(f"the plain reference: {100 / (time.process_time() - plain):,.0f} requests/s")


def test_disaggregated_requests_per_cpu_second() -> None:
    spec = ReplicaSpec(table(), 27_000, max_num_seqs=1024, max_num_batched_tokens=8192)
    requests = workload(50_000, 24.0)
    print()
    for prefill, decode in ((2, 2), (8, 8)):
        specs = ((spec,) * prefill, (spec,) * decode)
        pools = Pools(*specs, (9e9,) * (prefill + decode), block_bytes=2.1e6, latency_s=4e-4)
        simulate_disaggregated(workload(100, 24.0), pools)
        start = time.process_time()
        simulate_disaggregated(requests, pools, "least_loaded")
        rate = len(requests) / (time.process_time() - start)
        print(f"{prefill} prefill and {decode} decode replicas {rate:>22,.0f} requests/s")
