"""The engine behind the control plane's seam: nothing is lost when replicas come, go and requests are taken back."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.step import StepTable
from simulator.engine.plane import ReplicaSpec
from simulator.engine.records import COMPLETED
from simulator.fleet.data_plane import DataPlane
from simulator.fleet.engine_plane import EnginePlane
from simulator.workload.requests import Requests
from tests.simulator.seat_plane import SeatPlane, SeatSpec


def table(step_s: float = 0.01, per_token_s: float = 5e-5) -> StepTable:
    """A step takes ``step_s`` and ``per_token_s`` a token."""
    axis = np.array([0.0, 1e6])
    work = step_s + per_token_s * np.arange(4097.0)
    return StepTable(work, work, np.zeros(513), axis, axis, axis, axis, np.zeros((2, 2, 2, 2)), 0.0, 0.0, 0.0, 0.0)


SPEC = ReplicaSpec(table(), num_gpu_blocks=4000, max_num_seqs=32)


def load(n: int, rate_rps: float, seed: int = 0) -> Requests:
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate_rps, n))
    return Requests(arrival, rng.integers(50, 500, n), rng.integers(1, 100, n))


def planes(requests: Requests) -> list[DataPlane]:
    return [EnginePlane(requests, [SPEC]), SeatPlane(requests, [SeatSpec(max_num_seqs=32)])]


@pytest.mark.parametrize("which", [0, 1])
def test_requests_survive_kills_drains_and_cancels(which: int) -> None:
    requests = load(400, 20.0)
    plane = planes(requests)[which]
    slots = [plane.add(0), plane.add(0)]
    plane.send(np.arange(400), requests.arrival_s)
    plane.advance(5.0)
    lost = plane.kill(slots[0])
    assert len(lost) and np.isnan(plane.outcome.finish_s[lost]).all()
    plane.send(lost, np.full(len(lost), 5.0))
    plane.advance(10.0)
    third = plane.add(0)
    plane.drain(slots[1])
    running = [i for i in range(400) if plane.outcome.replica[i] == slots[1] and np.isnan(plane.outcome.finish_s[i])]
    gone = [i for i in running[::2] if plane.cancel(i)]
    assert gone and not plane.cancel(gone[0])
    plane.advance(60.0)
    assert plane.is_empty(slots[1])
    plane.remove(slots[1])
    done = plane.outcome.status == COMPLETED
    assert sorted(np.flatnonzero(~done)) == sorted(gone)
    assert (plane.outcome.finish_s[done] >= plane.outcome.first_token_s[done]).all()
    assert (plane.outcome.first_token_s[done] > plane.outcome.scheduled_s[done]).all()
    assert plane.load().running.sum() == plane.load().waiting.sum() == 0
    assert plane.load().kv_share[third] == pytest.approx(0.0)


@pytest.mark.parametrize("which", [0, 1])
def test_a_hung_replica_does_nothing_and_a_slow_one_takes_longer(which: int) -> None:
    requests = load(40, 20.0)
    ends = []
    for factor in (1.0, 2.0, np.inf):
        plane = planes(requests)[which]
        slot = plane.add(0)
        plane.set_speed(slot, factor)
        plane.send(np.arange(40), requests.arrival_s)
        plane.advance(100.0)
        ends.append(np.nan if factor == np.inf else float(np.nanmax(plane.outcome.finish_s)))
        if factor == np.inf:
            assert len(plane.kill(slot)) == 40
    assert ends[1] > ends[0]


def test_a_slot_filled_again_starts_empty_and_counts_from_zero() -> None:
    requests = load(200, 20.0)
    plane = EnginePlane(requests, [SPEC])
    slot = plane.add(0)
    plane.send(np.arange(100), requests.arrival_s[:100])
    plane.advance(30.0)
    assert plane.load().busy_s[slot] > 1.0
    plane.remove(slot)
    plane.advance(50.0)
    assert plane.add(0) == slot
    assert plane.load().busy_s[slot] == 0.0
    plane.send(np.arange(100, 200), np.full(100, 50.0))
    plane.advance(100.0)
    assert (plane.outcome.scheduled_s[100:] >= 50.0).all() and (plane.outcome.status == COMPLETED).all()


def test_the_open_gate_serves_requests_that_had_to_wait_for_a_replica() -> None:
    requests = load(100, 20.0)
    plane = EnginePlane(requests, [SPEC])
    plane.advance(10.0)
    plane.add(0)
    plane.open_until(100)
    plane.advance(60.0)
    assert (plane.outcome.status == COMPLETED).all()
    assert plane.outcome.scheduled_s.min() >= 10.0


def test_the_router_gives_larger_replicas_more() -> None:
    requests = load(600, 30.0)
    fast = ReplicaSpec(table(0.005, 2e-5), num_gpu_blocks=4000, max_num_seqs=32)
    plane = EnginePlane(requests, [SPEC, fast], "weighted", weights=[1.0, 3.0])
    small, large = plane.add(0), plane.add(1)
    plane.open_until(600)
    plane.advance(300.0)
    counts = np.bincount(plane.outcome.replica, minlength=2)
    assert counts[large] == 3 * counts[small]
