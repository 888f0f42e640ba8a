"""Batch, queue and KV use over time, counted from the requests' instants once a run is over: the loop pays nothing.

A request counts as running from its seat to its last token (preempted or not); its KV is its prompt from the seat on
and grows evenly from the first token to the last. Blocks that requests share count for each of them. ``--series-out``
samples the replicas themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.records import COMPLETED, Records
from simulator.replica_spec import reserving
from simulator.workload import Requests

if TYPE_CHECKING:
    from simulator.replicas import Line

NUM_INSTANTS = 48
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Stay:
    """When each request was at some replicas, in seconds; (n,) each, NaN where it never came.

    Attributes:
        come_s: into their queue. seat_s: onto a seat. token_s, end_s: first and last token there.
        held_s, freed_s: since and until when it held KV.
        prompt, later: tokens of KV from ``held_s`` on, and that it gains from ``token_s`` to ``end_s``.
    """

    come_s: Float
    seat_s: Float
    token_s: Float
    end_s: Float
    held_s: Float
    freed_s: Float
    prompt: Float
    later: Float


class Clock:
    """``NUM_INSTANTS`` instants, evenly from after the start to the end of a run."""

    def __init__(self, start_s: float, end_s: float) -> None:
        self.start_s, self.step_s = start_s, max(end_s - start_s, 1e-9) / NUM_INSTANTS
        self.t_s = start_s + self.step_s * np.arange(1, NUM_INSTANTS + 1)

    def place(self, at_s: Float) -> NDArray[np.int64]:
        """The first instant at or after each time; a time that never comes is beyond the last."""
        place = np.ceil((at_s - self.start_s) / self.step_s) - 1.0
        return np.clip(np.nan_to_num(place, nan=NUM_INSTANTS), 0, NUM_INSTANTS).astype(np.int64)

    def total(self, place: NDArray[np.int64], weights: Float | None = None) -> Float:
        """At each instant, the sum of ``weights`` (or the number) of what came before it."""
        found = np.bincount(place, weights, NUM_INSTANTS + 1)[:NUM_INSTANTS]
        return np.cumsum(found, dtype=np.float64)


def course(clock: Clock, stay: Stay, kv_tokens: float, block_size: int) -> dict[str, Float]:
    """(NUM_INSTANTS,) each: requests running and waiting, and the share of the KV cache in use.

    Args:
        kv_tokens: that the replicas hold, all together. block_size: of a sequence's last block half is empty.
    """
    come, seat, token, end = (clock.place(x) for x in (stay.come_s, stay.seat_s, stay.token_s, stay.end_s))
    held, freed = clock.place(stay.held_s), clock.place(stay.freed_s)
    seats, holders = clock.total(seat), clock.total(held) - clock.total(freed)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = np.where(stay.end_s > stay.token_s, stay.later / (stay.end_s - stay.token_s), 0.0)
    growing = clock.t_s * (clock.total(token, rate) - clock.total(end, rate))
    begun = np.nan_to_num(rate * (stay.token_s - clock.start_s))
    growing -= clock.start_s * (clock.total(token, rate) - clock.total(end, rate))
    growing -= clock.total(token, begun) - clock.total(end, begun)
    grown = clock.total(end, stay.later) - clock.total(freed, stay.later)
    tokens = clock.total(held, stay.prompt) - clock.total(freed, stay.prompt) + growing + grown
    tokens += 0.5 * (block_size - 1) * holders
    return {
        "num_running": seats - clock.total(end),
        "num_waiting": clock.total(come) - seats,
        "kv_share": np.clip(tokens / max(kv_tokens, 1.0), 0.0, 1.0),
    }


def over_time(lines: Sequence[Line], requests: Requests, records: Records) -> dict[str, Any]:
    """The course of a run of a fixed fleet: ``t_s`` and at each instant ``num_running``, ``num_waiting``, ``kv_share``.

    Of prefill and decode replicas each has its own, with ``prefill_`` and ``decode_`` before the name.
    """
    clock = Clock(float(records.arrival_s.min()), float(records.end_s))
    answer: dict[str, Any] = {"t_s": clock.t_s.tolist(), "basis": "counted from the requests' instants"}
    for prefix, roles, stay in _stays(lines, requests, records):
        engines = [line.spec for line in lines if line.role in roles for _ in range(line.num_schedulers)]
        kv_tokens = float(sum(spec.num_gpu_blocks * spec.block_size for spec in engines))
        found = course(clock, stay, kv_tokens, engines[0].block_size)
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
        kept = reserved[records.replica]
        prompt, later = prompt + kept, np.where(kept > 0, 0.0, later)
        scheduled, finish = records.scheduled_s, records.finish_s
        return [
            ("", ("both",), Stay(arrival_s, scheduled, records.first_token_s, finish, scheduled, finish, prompt, later))
        ]
    zeros = np.zeros_like(prompt)
    left_s = np.where(np.isnan(way.end_s), way.prefill_end_s, way.end_s)
    gone = ~np.isnan(way.decode_scheduled_s)
    computed_s = np.where(gone, way.prefill_end_s, np.nan)
    finish_s = np.where(gone, records.finish_s, np.nan)
    first = Stay(arrival_s, records.scheduled_s, way.prefill_end_s, way.prefill_end_s,
                 records.scheduled_s, left_s, prompt, zeros)  # fmt: skip
    second = Stay(
        computed_s, way.decode_scheduled_s, way.decode_scheduled_s, finish_s, way.start_s, finish_s, prompt, later
    )
    return [("prefill_", ("prefill",), first), ("decode_", ("decode",), second)]
