"""The engine's numbered invariants (docs/invariants.md), searched for breaches."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given

from simulator.engine.invariants import BrokenInvariantError, check_records
from simulator.engine.simulate import Plane, ReplicaSpec, simulate_replicas
from tests.simulator.engine_cases import Case, cases, requests, step_table


@given(cases(hashes=True))
def test_invariants_1_to_7_hold_at_any_instant(case: Case) -> None:
    simulate_replicas(case.requests, case.specs, case.router, case.seed, options=case.options, check=True)


@given(cases(hashes=True, speculating=True))
def test_invariants_1_to_7_hold_when_speculating(case: Case) -> None:
    simulate_replicas(case.requests, case.specs, case.router, case.seed, options=case.options, check=True)


@given(cases(swapping=True))
def test_invariant_12_swap_space_is_accounted_for(case: Case) -> None:
    simulate_replicas(case.requests, case.specs, case.router, case.seed, options=case.options, check=True)


@given(cases(hashes=True, tiers=True))
def test_invariant_13_tiers_hold_what_they_can(case: Case) -> None:
    simulate_replicas(case.requests, case.specs, case.router, case.seed, options=case.options, check=True)


@given(cases(hashes=True, tiers=True, adapting=True, pipelined=True))
def test_a_pipelines_batches_share_seats_blocks_and_tiers(case: Case) -> None:
    simulate_replicas(case.requests, case.specs, case.router, case.seed, options=case.options, check=True)


@given(cases())
def test_invariant_6_no_step_exceeds_the_token_budget(case: Case) -> None:
    if not all(spec.enable_chunked_prefill for spec in case.specs):
        return
    records = simulate_replicas(case.requests, case.specs, case.router, case.seed, options=case.options)
    done = records.status == 0
    for r, spec in enumerate(case.specs):
        mine = done & (records.replica == r)
        tokens = case.requests.input_tokens[mine] - records.num_cached_tokens[mine]
        assert tokens.sum() <= records.iterations[r] * spec.max_num_batched_tokens


@given(cases())
def test_invariant_8_no_policy_sees_the_output_length(case: Case) -> None:
    if case.requests.concurrency is not None:
        return
    specs = [replace(spec, async_scheduling=False) for spec in case.specs]
    base = simulate_replicas(case.requests, specs, case.router, case.seed, options=case.options)
    longer = np.where(case.requests.output_tokens > 0, case.requests.output_tokens + 9, 0)
    other = simulate_replicas(
        replace(case.requests, output_tokens=longer), specs, case.router, case.seed, options=case.options
    )
    overhead_s = max(spec.step_table.output_overhead_s for spec in specs)
    first_end_s = np.nanmin(np.append(base.finish_s, np.inf)) - overhead_s - 1e-9
    before = base.scheduled_s < first_end_s
    np.testing.assert_allclose(base.scheduled_s[before], other.scheduled_s[before])
    np.testing.assert_array_equal(base.replica[before], other.replica[before])


@given(cases(hashes=True))
def test_invariant_9_same_inputs_and_seed_give_the_same_bytes(case: Case) -> None:
    one, two = (
        simulate_replicas(case.requests, case.specs, case.router, case.seed, options=case.options) for _ in range(2)
    )
    for field in fields(one):
        first, second = getattr(one, field.name), getattr(two, field.name)
        if isinstance(first, np.ndarray):
            assert first.tobytes() == second.tobytes(), field.name


def test_a_breach_is_named() -> None:
    rng = np.random.default_rng(0)
    made = requests(rng, 20, 1.0)
    spec = ReplicaSpec(step_table(rng), 40)
    records = simulate_replicas(made, [spec])
    with pytest.raises(BrokenInvariantError, match="invariant 3"):
        check_records(made, replace(records, first_token_s=records.scheduled_s - 1.0))
    plane = Plane(made, [spec])
    plane.advance(10.0)
    plane._world.replicas["free"] += 1
    with pytest.raises(BrokenInvariantError, match="invariant 2"):
        plane.check()
