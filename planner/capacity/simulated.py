"""What a simulation of replicas showed, kept beside the capacities: the same again need not run.

It is kept under the hash of all that it follows from, the state of the simulator's code included. So an answer whose
capacities and fleets are known does without the compiled engine, which takes a second to load.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

import simulator
from planner.capacity.disaggregated import simulate_line
from planner.capacity.store import state_of
from simulator.engine.metrics import Latencies
from simulator.scenario.replicas import Line
from simulator.workload.requests import Requests

MOST_REQUESTS = 30_000  # of one that is kept: of more it is not, since each takes 33 bytes
METRICS = ("ttft", "tpot", "e2e", "queue")


@dataclass(frozen=True)
class Seen:
    """What replicas did to requests.

    Attributes:
        latencies: of each request.
        busy: share of time that the replicas were in a step, on average.
        ran: simulated now, not remembered.
    """

    latencies: Latencies
    busy: float
    ran: bool


def simulated(line: Line, requests: Requests, num_replicas: int, router: str, seed: int) -> Seen:
    """Simulate so many replicas of a line on requests."""
    records = simulate_line(line, requests, num_replicas, router, seed)
    return Seen(Latencies.of(requests, records), float(records.busy_s.mean() / max(records.end_s, 1e-9)), True)


def packed(seen: Seen) -> bytes:
    """As bytes: busy, the four latencies, who completed."""
    columns = [np.ascontiguousarray(seen.latencies.of_metric(name), np.float64) for name in METRICS]
    return b"".join([np.float64(seen.busy).tobytes(), *(c.tobytes() for c in columns),
                     seen.latencies.completed.tobytes()])  # fmt: skip


def unpacked(body: bytes, num: int) -> Seen | None:
    """What ``packed`` wrote of so many requests; None where it is damaged."""
    if len(body) != 8 + (8 * len(METRICS) + 1) * num:
        return None
    values = np.frombuffer(body, np.float64, 1 + len(METRICS) * num)
    completed = np.frombuffer(body, np.bool_, num, 8 * len(values))
    columns = dict(zip(METRICS, values[1:].reshape(len(METRICS), num), strict=True))
    return Seen(Latencies(**columns, completed=completed), float(values[0]), False)


@cache
def engine_state() -> str:
    """Of the files that a simulation follows from."""
    return state_of(simulator)
