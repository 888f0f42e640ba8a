"""The engine against queueing theory, and the limits in which a step model is all there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibrate.step import StepTable
from catalogs.errors import InputError
from simulator.engine.records import Records
from simulator.engine.simulate import ReplicaSpec, simulate_replicas
from simulator.workload.requests import Requests

STEP_S = 1.0


def constant_steps(step_s: float = STEP_S, per_token_s: float = 0.0) -> StepTable:
    tokens = np.arange(4097)
    axis = np.array([0.0, 1.0])
    time = step_s + per_token_s * tokens
    return StepTable(time, time, np.zeros(4097), axis, axis, axis, axis, np.zeros((2, 2, 2, 2)), 0.0, 0.0, 0.0, 0.0)


def spec(seats: int = 1, table: StepTable | None = None) -> ReplicaSpec:
    return ReplicaSpec(
        table or constant_steps(), 100_000, max_num_seqs=seats, max_num_batched_tokens=4096, async_scheduling=False
    )


def poisson(rate: float, num: int, output: np.ndarray | int = 1, seed: int = 1) -> Requests:
    rng = np.random.default_rng(seed)
    outputs = np.broadcast_to(np.asarray(output, np.int64), num).copy()
    return Requests(np.cumsum(rng.exponential(1.0 / rate, num)), np.full(num, 16, np.int64), outputs)


def wait_s(records: Records) -> float:
    return float(np.mean(records.scheduled_s - records.arrival_s))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_seat_and_equal_steps_is_m_d_1(load: float) -> None:
    records = simulate_replicas(poisson(load / STEP_S, 120_000), [spec()])
    assert wait_s(records) == pytest.approx(load * STEP_S / (2 * (1 - load)), rel=0.06)  # Pollaczek-Khinchine


@pytest.mark.parametrize("servers", [2, 4])
def test_one_queue_before_c_exponential_servers_is_m_m_c(servers: int) -> None:
    num, mean, load = 60_000, 200, 0.7
    rng = np.random.default_rng(2)
    output = np.maximum(1, np.round(rng.exponential(mean, num)).astype(np.int64))
    rate = load * servers / (mean * STEP_S)
    records = simulate_replicas(poisson(rate, num, output), [spec(seats=servers)])
    a = load * servers
    terms = [a**k / np.prod(np.arange(1, k + 1)) for k in range(servers)]
    last = a**servers / np.prod(np.arange(1, servers + 1)) / (1 - load)
    erlang_c = last / (sum(terms) + last)
    expected = erlang_c * mean * STEP_S / (servers * (1 - load))
    assert wait_s(records) == pytest.approx(expected + STEP_S / 2, rel=0.08)  # a request joins between steps


def test_littles_law() -> None:
    requests = poisson(0.5, 20_000, 20)
    records = simulate_replicas(requests, [spec(seats=32)], series_interval_s=19.973)
    inside = records.series["num_running"] + records.series["num_waiting"]
    time_in_system = np.mean(records.finish_s - records.arrival_s)
    rate = len(requests) / records.end_s
    assert np.mean(inside) == pytest.approx(rate * time_in_system, rel=0.05)


def test_a_batch_of_one_takes_what_the_step_model_says() -> None:
    table = constant_steps(0.01, 1e-4)
    requests = Requests(np.zeros(1), np.array([100]), np.array([50]))
    records = simulate_replicas(requests, [spec(table=table)])
    assert records.first_token_s[0] == pytest.approx(table.mixed_tokens_s[100])
    assert records.finish_s[0] == pytest.approx(table.mixed_tokens_s[100] + 49 * table.decode_tokens_s[1])


def test_twice_the_replicas_under_round_robin_carry_twice_the_load_as_each_carries_one() -> None:
    rng = np.random.default_rng(3)
    arrivals = np.cumsum(rng.exponential(1.0, 3000))
    lengths = rng.integers(1, 300, 3000), rng.integers(1, 60, 3000)
    one = simulate_replicas(Requests(arrivals, *lengths), [spec(seats=8)])
    two = simulate_replicas(
        Requests(np.repeat(arrivals, 2), np.repeat(lengths[0], 2), np.repeat(lengths[1], 2)), [spec(seats=8)] * 2
    )
    np.testing.assert_allclose(two.finish_s[::2], one.finish_s)
    np.testing.assert_allclose(two.finish_s[1::2], one.finish_s)


def test_a_closed_loop_keeps_its_concurrency() -> None:
    n = 500
    requests = Requests(np.zeros(n), np.full(n, 16, np.int64), np.full(n, 10, np.int64), concurrency=7)
    records = simulate_replicas(requests, [spec(seats=64)])
    order = np.argsort(records.arrival_s, kind="stable")
    np.testing.assert_allclose(records.arrival_s[order][7:], np.sort(records.finish_s)[: n - 7])


def test_static_batches_wait_to_fill_and_take_no_one_in_until_all_have_ended() -> None:
    arrivals = np.array([0.0, 1.0, 2.0, 3.0, 30.0])
    requests = Requests(arrivals, np.full(5, 16), np.array([5, 20, 5, 5, 5]))
    batch = replace(spec(seats=2), policy="static", max_queue_delay_s=4.0)
    scheduled_s = simulate_replicas(requests, [batch]).scheduled_s
    assert scheduled_s[:2].tolist() == [1.0, 1.0]  # the second fills the batch
    assert scheduled_s[2:4].tolist() == [21.0, 21.0]  # the longest answer has ended
    assert scheduled_s[4] == 34.0  # alone: it waited long enough


def test_a_padded_batch_is_a_rectangle_until_its_last_row_has_ended() -> None:
    """Times of a token each, by hand: prompts of 3 and 9 tokens, answers of 2 and 5."""
    table = constant_steps()
    by_tokens = np.arange(len(table.mixed_tokens_s), dtype=float)
    attention = np.zeros((2, 2, 2, 2))
    attention[:, :, :, 1] = 100.0  # of a context; its axis ends where the table's does
    table = table._replace(
        mixed_tokens_s=by_tokens, decode_tokens_s=by_tokens, sampled_s=np.zeros(2), attention_s=attention,
        decode_context_axis=np.array([0.0, 100.0]),
    )  # fmt: skip
    ragged = replace(
        spec(seats=2), step_table=table, policy="static", max_queue_delay_s=0.0, enable_chunked_prefill=False
    )
    requests = Requests(np.zeros(2), np.array([3, 9]), np.array([2, 5]))
    first_s = {"ragged": 3 + 9.0, "padded": 2 * 9.0, "bucket": 2 * 10.0, "full": 4 * 9.0}
    decodes_s = {
        "ragged": (2 + (4 + 10) / 2) + sum(1 + 10 + k for k in (1, 2, 3)),  # the mean context of those that go on
        "padded": sum(2 + 9 + k for k in (1, 2, 3, 4)),
        "bucket": sum(2 + 10 + k for k in (1, 2, 3, 4)),
        "full": sum(4 + 9 + k for k in (1, 2, 3, 4)),
    }
    kinds = {
        "ragged": ragged,
        "padded": replace(ragged, pad_to_longest=True),
        "bucket": replace(ragged, pad_to_longest=True, length_bucket=10),
        "full": replace(ragged, pad_to_longest=True, pad_batch=True, max_num_seqs=4),
    }
    for name, kind in kinds.items():
        for fast in (True, False):
            records = simulate_replicas(requests, [kind], fast=fast)
            assert records.first_token_s.tolist() == pytest.approx([first_s[name]] * 2), name
            assert records.finish_s[1] == pytest.approx(first_s[name] + decodes_s[name]), name
    assert simulate_replicas(requests, [kinds["padded"]], check=True).finish_s[0] == pytest.approx(18.0 + 12.0)


def test_a_batch_of_a_bucket_passes_over_requests_of_other_lengths() -> None:
    batch = replace(
        spec(seats=2), policy="static", max_queue_delay_s=50.0, enable_chunked_prefill=False, length_bucket=100,
        pad_to_longest=True,
    )  # fmt: skip
    requests = Requests(np.arange(5) * 1.0, np.array([10, 150, 20, 190, 30]), np.ones(5, np.int64))
    records = simulate_replicas(requests, [batch], check=True)
    # the first and the third fill a batch at 2, the second and the fourth at 3; the fifth waits in vain for another
    assert records.scheduled_s.tolist() == pytest.approx([2.0, 3.0, 2.0, 3.0, 54.0])
    assert simulate_replicas(requests, [batch], fast=False).scheduled_s.tolist() == pytest.approx([2, 3, 2, 3, 54])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"policy": "continuous", "pad_to_longest": True}, "padding with policy continuous"),
        ({"policy": "static", "pad_batch": True}, "padding with enable_chunked_prefill"),
        ({"policy": "static", "length_bucket": -4}, "length_bucket is -4"),
    ],
)
def test_padding_is_of_static_batches_of_whole_prompts(settings: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        replace(spec(seats=2), **settings)  # type: ignore[arg-type]


def test_continuous_batching_beats_static_batches() -> None:
    rng = np.random.default_rng(4)
    requests = Requests(np.cumsum(rng.exponential(4.0, 400)), np.full(400, 16), rng.integers(1, 60, 400))
    static = simulate_replicas(requests, [replace(spec(seats=8), policy="static", max_queue_delay_s=20.0)])
    continuous = simulate_replicas(requests, [spec(seats=8)])
    assert np.mean(continuous.finish_s) < np.mean(static.finish_s)
