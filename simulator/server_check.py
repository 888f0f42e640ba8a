"""Predicts loads on a measured server by simulation, and sets the prediction against what was measured there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibrate.server.endpoint_client import Reply
from calibrate.server.load_points import LoadPoint
from simulator.run import simulate
from simulator.scenario.spec import Scenario
from simulator.workload.requests import Requests

METRICS = ("ttft_s", "tpot_s", "output_tokens_per_s")


def requests_of(replies: Sequence[Reply], concurrency: int | None) -> Requests:
    """The workload that a load point was: its lengths, its arrivals (open loop) or its concurrency (closed loop)."""
    ordered = sorted((r for r in replies if r.ok), key=lambda r: r.sent_at_s)
    sent = np.array([r.sent_at_s for r in ordered])
    return Requests(
        arrival_s=np.zeros(len(ordered)) if concurrency else sent - sent[0],
        input_tokens=np.array([r.input_tokens for r in ordered], dtype=np.int64),
        output_tokens=np.array([r.output_tokens for r in ordered], dtype=np.int64),
        concurrency=concurrency,
    )


def scenario_of(model: str, gpu: str, profile: str, engine: Mapping[str, Any], seed: int = 0) -> Scenario:
    """One replica of a measured server. ``gpu`` only names a catalogue entry: the profile holds the step time."""
    workload = {
        "arrivals": {"process": "closed_loop", "concurrency": 1, "num_requests": 1},
        "input_tokens": {"distribution": "fixed", "value": 1},
        "output_tokens": {"distribution": "fixed", "value": 1},
    }
    line = {"gpu": gpu, "profile": profile, "engine": dict(engine)}
    return Scenario.model_validate({"model": model, "workload": workload, "fleet": [line], "seed": seed})


def check(scenario: Scenario, points: Sequence[LoadPoint], replies: Sequence[Sequence[Reply]]) -> list[dict[str, Any]]:
    """Predicted and measured mean TTFT, mean TPOT and throughput of each load, and the relative errors."""
    rows = []
    for point, own in zip(points, replies, strict=True):
        concurrency = None if point.concurrency is None else int(point.concurrency)
        told = simulate(scenario, requests_of(own, concurrency)).document
        measured = {
            "ttft_s": point.ttft_s["mean"],
            "tpot_s": point.tpot_s.get("mean"),
            "output_tokens_per_s": point.output_tokens_per_s,
        }
        predicted = {
            "ttft_s": told["ttft_s"]["mean"],
            "tpot_s": told["tpot_s"]["mean"],
            "output_tokens_per_s": told["output_tokens_per_s"],
        }
        load = f"concurrency {concurrency}" if concurrency else f"{point.rate_rps:g} requests/s"
        rows.append(
            {
                "load": f"{load}, {point.input_tokens:.0f} in, {point.output_tokens:.0f} out",
                "num_requests": point.num_requests,
                "measured": measured,
                "predicted": predicted,
                "error": {m: _error(predicted[m], measured[m]) for m in METRICS},
            }
        )
    return rows


def check_batches(
    profile: str, gpu: str, max_batch: int, tokens: int, real: tuple[Sequence[LoadPoint], Sequence[Sequence[Reply]]]
) -> list[dict[str, Any]]:
    """Predicted and measured latency of an encoder under dynamic batching, mean and 95th percentile, and the errors."""
    engine = {"framework": "onnxruntime", "max_num_seqs": max_batch, "max_num_batched_tokens": max_batch * tokens}
    scenario = scenario_of("bert-large", gpu, profile, engine)
    rows = []
    for point, replies in zip(*real, strict=True):
        told = simulate(scenario, requests_of(replies, None)).document
        measured = {"ttft_s": point.ttft_s["mean"], "ttft_p95_s": point.ttft_s["p95"]}
        predicted = {"ttft_s": told["ttft_s"]["mean"], "ttft_p95_s": told["ttft_s"]["p95"]}
        rows.append(
            {
                "load": f"{point.rate_rps:.3g} requests/s",
                "num_requests": point.num_requests,
                "measured": measured,
                "predicted": predicted,
                "error": {m: _error(predicted[m], measured[m]) for m in measured},
            }
        )
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Median and worst absolute error of each metric over the loads."""
    found = {}
    for metric in dict.fromkeys(name for row in rows for name in row["error"]):
        sizes = [abs(row["error"][metric]) for row in rows if row["error"][metric] is not None]
        if sizes:
            found[metric] = {"median": float(np.median(sizes)), "worst": max(sizes)}
    return found


def _error(predicted: float | None, measured: float | None) -> float | None:
    return predicted / measured - 1.0 if predicted is not None and measured else None
