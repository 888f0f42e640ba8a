"""The gateway's queue, bucket and retries do what their words say."""

from __future__ import annotations

import numpy as np
import pytest

from catalogs.errors import InputError
from simulator.fleet.admission import AdmissionPolicy, CentralQueue, RetryPolicy, TokenBucket


def drain(queue: CentralQueue) -> list[int]:
    out = []
    while (i := queue.pop()) is not None:
        out.append(i)
    return out


def test_more_important_classes_go_first_and_equals_in_order() -> None:
    queue = CentralQueue()
    for i, priority in enumerate([1, 0, 1, 0]):
        queue.push(i, priority, float(i))
    assert drain(queue) == [1, 3, 0, 2]


def test_ageing_lets_the_old_overtake_the_important() -> None:
    queue = CentralQueue(ageing_s=10.0)
    queue.push(0, 2, 0.0)
    queue.push(1, 0, 19.0)  # 0 has gained 1.9 levels
    queue.push(2, 0, 25.0)  # and 2.5 by now
    assert drain(queue) == [1, 0, 2]
    again = CentralQueue(ageing_s=10.0)
    again.push(0, 2, 0.0)
    again.push(1, 0, 21.0)
    assert drain(again) == [0, 1]


def test_the_tenant_served_least_goes_first_and_a_newcomer_gets_no_credit() -> None:
    queue = CentralQueue(fair=True)
    for i in range(4):
        queue.push(i, 0, float(i), tenant=7)
    queue.charge(7, 1000.0)
    queue.push(4, 0, 5.0, tenant=8)  # starts at 1000 as tenant 7 does, so age decides
    assert queue.pop() == 0
    queue.charge(7, 500.0)
    assert queue.pop() == 4
    queue.charge(8, 2000.0)
    assert drain(queue) == [1, 2, 3]


def test_removed_requests_are_gone_and_may_come_back() -> None:
    queue = CentralQueue()
    for i in range(3):
        queue.push(i, 0, float(i))
    assert queue.remove(0) and not queue.remove(0) and len(queue) == 2
    queue.push(0, 0, 9.0)
    assert drain(queue) == [1, 2, 0]
    queue.push(5, 0, 1.0)
    queue.push(6, 0, 2.0, front=True)
    assert drain(queue) == [6, 5]


def test_the_newest_of_the_least_important_is_the_one_to_shed() -> None:
    queue = CentralQueue()
    for i, priority in enumerate([0, 5, 5, 1]):
        queue.push(i, priority, float(i))
    assert queue.least_important() == (5, 2) and queue.best_priority() == 0
    assert CentralQueue().least_important() is None and CentralQueue().best_priority() is None


def test_the_bucket_passes_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(rate_rps=2.0, burst=3.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(0.1 * i) for i in range(1, 11)].count(True) == 2
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]


def test_backoff_doubles_up_to_its_limit_with_jitter_below() -> None:
    rng = np.random.default_rng(0)
    exact = RetryPolicy(5, backoff_s=1.0, max_backoff_s=5.0, jitter=0.0)
    assert [exact.wait_s(k, rng) for k in range(4)] == [1.0, 2.0, 4.0, 5.0]
    full = RetryPolicy(5)
    assert all(0 <= full.wait_s(2, rng) <= 4.0 for _ in range(100))


def test_policies_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(InputError, match="need a queue to reorder"):
        AdmissionPolicy(preempt_lower=True)
    with pytest.raises(InputError, match="rate_rps is 0"):
        AdmissionPolicy(rate_rps=0.0)
    assert AdmissionPolicy().passes_all and not AdmissionPolicy(max_queue=5).passes_all
