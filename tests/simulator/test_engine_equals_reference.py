"""The compiled event loop equals the plain step-by-step engine on every policy it serves."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from simulator.engine.plain.reference import simulate_plainly
from simulator.engine.records import Records
from simulator.engine.simulate import simulate_replicas
from tests.simulator.engine_cases import Case, cases

INSTANTS = ("arrival_s", "scheduled_s", "first_token_s", "finish_s", "busy_s", "copied_s")
COUNTS = (
    "replica", "status", "num_cached_tokens", "num_preemptions", "iterations", "preemptions", "prefix_queries",
    "prefix_hits",
)  # fmt: skip


def both(case: Case) -> tuple[Records, Records]:
    fast = simulate_replicas(case.requests, case.specs, case.router, case.seed, options=case.options)
    return fast, simulate_plainly(case.requests, case.specs, case.router, case.seed, case.options)


def assert_equal(fast: Records, plain: Records) -> None:
    for name in COUNTS:
        np.testing.assert_array_equal(getattr(fast, name), getattr(plain, name), err_msg=name)
    for name, counted in fast.counts.items():
        np.testing.assert_array_equal(counted, plain.counts[name], err_msg=name)
    for name in INSTANTS:
        np.testing.assert_allclose(getattr(fast, name), getattr(plain, name), rtol=1e-9, atol=1e-9, err_msg=name)


@given(cases())
def test_compiled_equals_plain(case: Case) -> None:
    assert_equal(*both(case))


@given(cases(hashes=True))
def test_compiled_equals_plain_with_shared_prefixes(case: Case) -> None:
    assert_equal(*both(case))


@given(cases(hashes=True, speculating=True))
def test_compiled_equals_plain_when_speculating(case: Case) -> None:
    assert_equal(*both(case))


@given(cases(swapping=True))
def test_compiled_equals_plain_with_swap(case: Case) -> None:
    assert_equal(*both(case))


@given(cases(hashes=True, adapting=True))
def test_compiled_equals_plain_with_adapters(case: Case) -> None:
    assert_equal(*both(case))


@given(cases(hashes=True, tiers=True, adapting=True, pipelined=True))
def test_compiled_equals_plain_over_pipeline_stages(case: Case) -> None:
    assert_equal(*both(case))


@given(cases(hashes=True, tiers=True))
def test_compiled_equals_plain_with_kv_offload(case: Case) -> None:
    assert_equal(*both(case))
