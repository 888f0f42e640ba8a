"""What the engine refuses, as the real one would."""

from __future__ import annotations

import numpy as np
import pytest

from catalogs.errors import InputError
from simulator.engine.records import COMPLETED, REJECTED
from simulator.engine.simulate import Plane, ReplicaSpec, RouterOptions, simulate_replicas
from simulator.workload.requests import Requests
from tests.simulator.test_engine_against_theory import constant_steps


def spec(**kw: object) -> ReplicaSpec:
    return ReplicaSpec(constant_steps(), **{"num_gpu_blocks": 101, "max_model_len": 1000, **kw})  # type: ignore[arg-type]


def serve(lengths: list[int], outputs: list[int], **kw: object) -> np.ndarray:
    requests = Requests(np.zeros(len(lengths)), np.array(lengths), np.array(outputs))
    return simulate_replicas(requests, [spec(**kw)], check=True).status


def test_a_prompt_longer_than_the_context_is_rejected_and_counted() -> None:
    assert serve([999, 1000, 1500], [5, 5, 5]).tolist() == [COMPLETED, REJECTED, REJECTED]


def test_a_prompt_longer_than_all_of_kv_is_rejected() -> None:
    assert serve([500, 150, 160], [1, 1, 1], num_gpu_blocks=11).tolist() == [REJECTED, COMPLETED, REJECTED]


def test_an_answer_stops_at_the_end_of_the_context() -> None:
    requests = Requests(np.zeros(1), np.array([900]), np.array([500]))
    records = simulate_replicas(requests, [spec()])
    assert records.finish_s[0] - records.first_token_s[0] == pytest.approx(99.0)


def test_zero_output_tokens_are_rejected() -> None:
    assert serve([10, 10], [0, 1]).tolist() == [REJECTED, COMPLETED]


def test_without_chunked_prefill_a_prompt_beyond_the_budget_is_rejected() -> None:
    statuses = serve([300, 200], [1, 1], enable_chunked_prefill=False, max_num_batched_tokens=256)
    assert statuses.tolist() == [REJECTED, COMPLETED]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_num_seqs": 300, "max_num_batched_tokens": 256}, "max_num_seqs 300 exceeds max_num_batched_tokens 256"),
        ({"num_gpu_blocks": 1}, "num_gpu_blocks is 1"),
        ({"block_size": 0}, "block_size is 0"),
        ({"max_queue_delay_s": float("inf")}, "max_queue_delay_s is inf"),
        ({"policy": "fastest"}, "no policy 'fastest'"),
    ],
)
def test_impossible_settings_are_refused_with_the_engines_own_rule(settings: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        spec(**settings)


def test_unknown_routers_and_wrong_weights_are_refused() -> None:
    requests = Requests(np.zeros(1), np.array([10]), np.array([1]))
    with pytest.raises(InputError, match="no router 'round-robbin'") as error:
        simulate_replicas(requests, [spec()], "round-robbin")
    assert "round_robin" in error.value.remedy
    with pytest.raises(InputError, match="router weights"):
        simulate_replicas(requests, [spec()], "weighted", options=RouterOptions(weights=np.ones(3)))
    with pytest.raises(InputError, match="no replica"):
        simulate_replicas(requests, [])


def test_an_overloaded_replica_still_drains() -> None:
    n = 2000
    requests = Requests(np.linspace(0, 1, n), np.full(n, 50), np.full(n, 20))
    records = simulate_replicas(requests, [spec(max_num_seqs=4)], check=True)
    assert (records.status == COMPLETED).all()


def test_a_killed_replicas_requests_come_again_elsewhere() -> None:
    n = 40
    requests = Requests(np.linspace(0, 20, n), np.full(n, 50), np.full(n, 20))
    plane = Plane(requests, [spec(), spec()], "least_loaded")
    plane.advance(15.0)
    lost = plane.kill(0)
    assert len(lost) > 0
    plane.send(lost, np.full(len(lost), 16.0))
    new = plane.add(spec())
    plane.advance(30.0)
    plane.check()
    records = plane.finish()
    assert (records.status == COMPLETED).all()
    assert set(records.replica[lost]) <= {1, new}
    assert (records.scheduled_s[lost] >= 16.0).all()


def test_reserved_blocks_mean_no_preemption_and_fewer_seats() -> None:
    requests = Requests(np.zeros(60), np.full(60, 40), np.full(60, 60))
    paged = simulate_replicas(requests, [spec(num_gpu_blocks=60)], check=True)
    reserved = simulate_replicas(requests, [spec(num_gpu_blocks=60, reserve_output_tokens=100)], check=True)
    contiguous = simulate_replicas(requests, [spec(num_gpu_blocks=60, reserve_output_tokens=900)], check=True)
    assert paged.preemptions.sum() > 0 == reserved.preemptions.sum() == contiguous.preemptions.sum()
    assert paged.end_s < reserved.end_s < contiguous.end_s
