"""Batch, queue and KV use over time, counted from the requests' instants once a run is over: the loop pays nothing.

A request counts as running from its seat to its last token (preempted or not); its KV is its prompt from the seat on
and grows evenly from the first token to the last. Blocks that requests share count for each of them. ``--series-out``
samples the replicas themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.engine.course import GROWTH, KV_TOKENS, QUEUE, RUNNING, Stay, add_up
from simulator.engine.records import COMPLETED, Records
from simulator.engine.replica_spec import reserving
from simulator.workload.requests import Requests

if TYPE_CHECKING:
    from simulator.scenario.replicas import Line

NUM_INSTANTS = 48
Float = NDArray[np.float64]


def course(stay: Stay, start_s: float, end_s: float, kv_tokens: float, block_size: int) -> dict[str, Float]:
    """(NUM_INSTANTS,) each, at instants from after ``start_s`` to ``end_s``: requests and the share of the KV cache.

    Args:
        kv_tokens: that the replicas hold, all together. block_size: of a request's last block half is empty.
    """
    step_s = max(end_s - start_s, 1e-9) / NUM_INSTANTS
    changes = np.zeros((4, NUM_INSTANTS + 1))
    add_up(stay, start_s, step_s, 0.5 * (block_size - 1), changes)
    sums = changes[:, :NUM_INSTANTS].cumsum(axis=1)
    since_s = step_s * np.arange(1, NUM_INSTANTS + 1)
    tokens = sums[KV_TOKENS] + since_s * sums[GROWTH]
    return {
        "t_s": start_s + since_s,
        "num_running": sums[RUNNING],
        "num_waiting": sums[QUEUE],
        "kv_share": np.clip(tokens / max(kv_tokens, 1.0), 0.0, 1.0),
    }


def over_time(lines: Sequence[Line], requests: Requests, records: Records) -> dict[str, Any]:
    """The course of a run of a fixed fleet: ``t_s`` and at each instant ``num_running``, ``num_waiting``, ``kv_share``.

    Of prefill and decode replicas each has its own, with ``prefill_`` and ``decode_`` before the name.
    """
    start_s, end_s = float(records.arrival_s.min()), float(records.end_s)
    answer: dict[str, Any] = {"basis": "counted from the requests' instants"}
    for prefix, roles, stay in _stays(lines, requests, records):
        engines = [line.spec for line in lines if line.role in roles for _ in range(line.num_schedulers)]
        kv_tokens = float(sum(spec.num_gpu_blocks * spec.block_size for spec in engines))
        found = course(stay, start_s, end_s, kv_tokens, engines[0].block_size)
        answer["t_s"] = found.pop("t_s").tolist()
        if lines[0].replica.model.kind != "decoder":
            del found["kv_share"]
        answer |= {prefix + name: values.tolist() for name, values in found.items()}
    return answer


def _stays(lines: Sequence[Line], requests: Requests, records: Records) -> list[tuple[str, tuple[str, ...], Stay]]:
    done = records.status == COMPLETED
    arrival_s = np.where(done, records.arrival_s, np.nan)
    prompt, later = requests.input_tokens.astype(float), np.maximum(requests.output_tokens, 0).astype(float)
    way = records.handover
    if way is None:
        specs = [reserving(line.spec, requests) for line in lines for _ in range(line.num_engines)]
        reserved = np.array([spec.reserve_output_tokens for spec in specs], float)
        if reserved.any():
            kept = reserved[records.replica]
            prompt, later = prompt + kept, np.where(kept > 0, 0.0, later)
        scheduled, finish = records.scheduled_s, records.finish_s
        stay = Stay(arrival_s, scheduled, records.first_token_s, finish, scheduled, finish, prompt, later)
        return [("", ("both",), stay)]
    left_s = np.where(np.isnan(way.end_s), way.prefill_end_s, way.end_s)
    gone = ~np.isnan(way.decode_scheduled_s)
    computed_s = np.where(gone, way.prefill_end_s, np.nan)
    finish_s = np.where(gone, records.finish_s, np.nan)
    first = Stay(arrival_s, records.scheduled_s, way.prefill_end_s, way.prefill_end_s,
                 records.scheduled_s, left_s, prompt, np.zeros_like(prompt))  # fmt: skip
    second = Stay(computed_s, way.decode_scheduled_s, way.decode_scheduled_s, finish_s,
                  way.start_s, finish_s, prompt, later)  # fmt: skip
    return [("prefill_", ("prefill",), first), ("decode_", ("decode",), second)]
