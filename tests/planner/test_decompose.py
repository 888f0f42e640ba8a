"""Decomposition: bounds that hold, plans that equal the whole program's, large models in seconds of one core."""

from __future__ import annotations

import resource
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from planner.optimizer import few_machines
from planner.optimizer.cells import cells_of
from planner.optimizer.decompose import separable, solve_decomposed
from planner.optimizer.fleet_model import FleetModel, Limits, Option, Quota, State, undominated
from planner.optimizer.milp import build, solve
from planner.optimizer.program import Program
from planner.optimizer.relaxation import relax
from planner.optimizer.solve import boot_usd_per_hour, solve_tied
from planner.optimizer.solve import solve as solve_any


def week(num_types, scale, hours, seed=0, configs=1):
    """A diurnal demand of three classes; types whose price grows a little slower than what they carry."""
    rng = np.random.default_rng(seed)
    options = []
    for j in range(num_types):
        size = 2.0 ** (j / 2) * rng.uniform(0.8, 1.2)
        usd = size**0.95 * rng.uniform(0.9, 1.1)
        for c in range(configs):
            load = 1 / (size * rng.uniform(0.5, 1.3, 3))
            name = f"g{j}c{c}"
            options += [
                Option(f"{name} {form}", f"g{j}", name, form, kind, usd * share, load)
                for form, kind, share in (
                    ("on_demand", "on_demand", 1.0), ("reserved_1yr", "committed", 0.6),
                    ("reserved_3yr", "committed", 0.4), ("spot", "spot", 0.45),
                )
            ]  # fmt: skip
    wave = 30 + 20 * np.sin(np.arange(hours) * 2 * np.pi / 24)
    demand = wave[None, :, None] * np.array([0.5, 0.3, 0.2]) * rng.uniform(0.9, 1.1, (1, hours, 3)) * scale
    return FleetModel(tuple(options), demand, np.ones(hours), limits=Limits(spot_max_share=0.4))


@pytest.mark.parametrize("seed", range(4))
def test_bound_and_plan_bracket_the_optimum(seed):
    model = week(3, 0.3, 4, seed)
    model = model.with_options(undominated(model.options))
    assert separable(model)
    whole = solve(model, 1e-6, 20)
    parts = solve_decomposed(model, 5e-3, 5)
    assert whole is not None and parts is not None
    assert parts.bound <= whole.usd_per_hour + 1e-6 <= parts.usd_per_hour + 2e-6


SPOT = (State(0.8), State(0.1, 0.5, fallback=False), State(0.1, 0.5))


def few_machines_an_hour(seed):
    """Two classes that want other machines, with what limits a fleet: every fourth seed has one of them."""
    rng = np.random.default_rng(seed)
    price, power, hours = np.array([0.5, 0.8, 1.9]), np.array([1.0, 2.0, 5.5]), 3
    options = []
    for j in range(3):
        load = 1 / (power[j] * np.array([3.0, 0.5]) * rng.uniform(0.6, 1.4, 2))
        forms = [("on_demand", "on_demand", 1.0), ("reserved_3yr", "committed", 0.4), ("spot", "spot", 0.45)]
        for form, kind, share in forms[: 2 + seed % 2]:
            options.append(Option(f"g{j} {form}", f"g{j}", f"g{j}", form, kind, price[j] * share, load))
    days = np.arange(hours) < 2
    options += [replace(options[1], name="g0 block", active=days, max_count=2, usd_per_hour=0.3)] * (seed % 4 == 0)
    options += [
        replace(options[1], name=f"g0 paid {n}", config=f"paid {n}", max_count=1, usd_per_hour=0.0) for n in range(2)
    ] * (seed % 4 == 1)
    wave = 1 + 0.6 * np.sin(np.arange(hours)[:, None] - rng.uniform(0, 6, 2))
    demand = np.round(wave * np.array([2.0, 0.7]), 2) * (rng.random((hours, 2)) < 0.9)
    limits = Limits(
        quotas={1: (Quota("paid", {"paid 0": 1.0, "paid 1": 1.0}, 1.0),), 2: (Quota("g2", {"g2": 1.0}, 1.0),)}.get(
            seed % 4, ()
        ),
        availability=0.99 if seed % 2 else None, spot_max_share=0.5 if seed % 4 == 3 else None,
    )  # fmt: skip
    states = SPOT if seed % 2 else (State(1.0),)
    two = np.array([demand, 1.3 * demand])
    return FleetModel(tuple(options), two, np.ones(hours), np.array([0.7, 0.3]), states, limits)


@pytest.mark.parametrize("seed", range(4))
def test_a_fleet_of_one_or_two_machines_an_hour_is_solved_to_its_gap(seed):
    """What one machine more or less costs is a large share of it: listing what it can be closes what prices leave."""
    model = few_machines_an_hour(seed)
    relaxed, cells = relax(model), cells_of(model)
    with ThreadPoolExecutor(2) as pool:
        listed = few_machines.search(model, cells, relaxed, 1e-4, time.monotonic() + 60, pool)
    whole = solve(model, 1e-5, 20)
    assert relaxed is not None and listed is not None and whole is not None
    assert listed.bound <= whole.usd_per_hour + 1e-6 and whole.bound <= listed.usd_per_hour + 1e-6
    assert listed.usd_per_hour - listed.bound <= 1.1e-4 * listed.usd_per_hour
    parts = solve_decomposed(model, 1e-3, 30)
    assert parts is not None and parts.optimal and not parts.hurried


def test_counts_are_listed_up_to_their_price_and_their_number():
    found = few_machines.whole_counts(np.array([1.0, 2.0]), np.array([np.inf, 1.0]), 4.0, 100)
    assert found is not None and len(found) == 8
    assert {tuple(f) for f in found} == {(n, m) for n in range(5) for m in range(2) if n + 2 * m <= 4}
    assert few_machines.whole_counts(np.array([1.0, 2.0]), np.array([np.inf, np.inf]), 4.0, 8) is None


@pytest.mark.parametrize("seed", range(6))
def test_relaxation_by_column_generation_equals_the_whole_program_s(seed):
    model = week(4, 0.5, 6, seed, configs=2)
    quota = Quota("g0 and g1", {"g0c0": 1.0, "g1c1": 2.0}, 9.0)
    limits = replace(model.limits, availability=0.995, quotas=(quota,) if seed % 2 else ())
    model = replace(model, states=SPOT, limits=limits)
    whole, relaxed = build(model)[0].relaxed(), relax(model)
    assert whole is not None and relaxed is not None
    assert relaxed.usd_per_hour == pytest.approx(whole[1], rel=1e-7)
    assert relaxed.reduced.min() > -1e-6 and relaxed.committed_reduced.min() > -1e-6


def test_a_reduced_cost_is_what_a_machine_adds_at_least():
    model = week(3, 0.3, 3, 5, configs=2)
    relaxed = relax(model)
    assert relaxed is not None
    for j, option in enumerate(model.options):
        if option.kind == "committed":
            continue
        program, columns = build(model)
        low = program.bounds[0]
        low[columns.held[j, 0, 1]] = 1.0
        forced = program.solve_with(program.cost, program.bounds[1], 1e-9, relax=True, low=low)
        assert forced.objective is not None
        assert forced.objective >= relaxed.usd_per_hour + relaxed.reduced[j, 0, 1] / 3 - 1e-7


def test_commitments_never_exceed_a_quota_together():
    model = week(2, 0.2, 4, 2)
    quota = Quota("all", {f"g{j}c0": 1.0 for j in range(2)}, 14.0)
    model = replace(model, limits=replace(model.limits, quotas=(quota,)))
    whole, parts = solve(model, 1e-4, 10), solve_decomposed(model, 5e-3, 5)
    assert whole is not None and parts is not None
    taken = parts.committed[:, None] + parts.held[:, 0]
    assert (taken.sum(0) <= 14 + 1e-9).all()
    assert parts.bound <= whole.usd_per_hour + 1e-6 and whole.bound <= parts.usd_per_hour + 1e-6


def test_what_cannot_be_served_is_said_and_not_stopped_for():
    model = week(2, 0.3, 4)
    nobody = [replace(o, load=np.array([o.load[0], o.load[1], np.inf])) for o in model.options]
    assert relax(model.with_options(nobody)) is None
    assert solve_decomposed(model.with_options(nobody), 1e-2, 5) is None


@pytest.mark.parametrize(
    "ties", [{"max_added_per_period": 2}, {"min_run_periods": 4}, {"max_removed_per_period": 1, "min_run_periods": 2}]
)
def test_periods_tied_together_keep_their_ties(ties):
    model = week(2, 0.1, 6, 3)
    model = replace(model, limits=replace(model.limits, **ties), cyclic=True)
    whole, parts = solve(model, 1e-2, 10), solve_tied(model, 2e-2, 10)
    assert whole is not None and parts is not None
    assert parts.bound <= whole.objective + 1e-6 and parts.objective >= whole.bound - 1e-6
    change = parts.held - np.roll(parts.held, 1, axis=2)
    assert change.max() <= ties.get("max_added_per_period", np.inf)
    assert -change.min() <= ties.get("max_removed_per_period", np.inf)
    for lag in range(1, ties.get("min_run_periods", 1)):
        started = np.roll(np.maximum(change, 0.0), lag, axis=2)
        assert (parts.held >= started - 1e-6).all(), "a machine stopped before its minimum run"


def test_a_search_that_its_limits_end_early_still_has_a_plan(monkeypatch):
    model = week(4, 1.0, 3, 4, configs=2)
    model = replace(model, states=SPOT, limits=replace(model.limits, availability=0.99))
    hurried = Program.solve_with

    def no_luck(self, cost, high, gap, time_limit_s=60.0, relax=False, low=None, node_limit=None):
        found = hurried(self, cost, high, gap, time_limit_s, relax, low, node_limit)
        return found if relax else replace(found, status=1, values=None, objective=None, bound=0.0)

    monkeypatch.setattr(Program, "solve_with", no_luck)
    found = solve_decomposed(model, 1e-3, 5)
    assert found is not None and found.bound <= found.usd_per_hour


def small_week(hours=168):
    """A few machines an hour for one size of request, three spot states and boots: wide gaps to the relaxation."""
    prices = {"a": (0.8, 0.41, 0.32, 0.4), "b": (1.86, 1.0, 0.7, 3.7), "c": (10.5, 3.9, 3.95, 14.9)}
    options = [
        Option(f"{name} {form}", name, name, form, kind, usd, np.array([1 / rps]), start_hours=boot)
        for name, (*usds, rps) in prices.items()
        for form, kind, usd, boot in (
            ("on_demand", "on_demand", usds[0], 0.07), ("spot", "spot", usds[1], 0.07),
            ("reserved_3yr", "committed", usds[2], 0.0),
        )
    ]  # fmt: skip
    hour = np.arange(hours)
    wave = 52 * (1 + 0.33 * np.sin((hour % 24 - 9) * np.pi / 12)) * np.where(hour // 24 >= 5, 0.6, 1.0)
    states = (State(0.22, 1.0), State(0.02, 0.26, fallback=False), State(0.76, 0.26))
    limits = Limits(availability=0.99)
    return FleetModel(tuple(options), wave[None, :, None], np.ones(hours), states=states, limits=limits, cyclic=True)


def test_a_small_fleet_of_one_size_is_solved_whole_with_its_boots():
    model = small_week(72)
    found = solve_any(model, 4e-3, 60)
    assert found is not None and found.optimal and not found.hurried and found.gap <= 4e-3
    relaxed = build(model)[0].relaxed()
    assert relaxed is not None and relaxed[1] <= found.bound + 1e-6
    boots = boot_usd_per_hour(model, found, np.array([o.start_hours for o in model.options]))
    assert boots > 0 and found.usd_per_hour > boots


def test_a_search_that_the_clock_ends_says_so_and_one_that_its_nodes_end_does_not():
    model = week(3, 0.4, 4, 4, configs=2)
    by_time, by_nodes = solve(model, 1e-9, 0.05), solve(model, 1e-9, 60, node_limit=1)
    assert by_time is None or (by_time.hurried and not by_time.optimal)
    assert by_nodes is not None and not by_nodes.hurried and not by_nodes.optimal
    again = solve(model, 1e-9, 60, node_limit=1)
    assert again is not None and np.array_equal(again.held, by_nodes.held) and again.bound == by_nodes.bound


@pytest.mark.bench
def test_a_small_fleet_over_a_week_reaches_the_default_gap():
    start, cpu = time.perf_counter(), time.process_time()
    found = solve_any(small_week(), 1e-3, 120)
    assert found is not None
    print(
        f"\nsmall week: gap {found.gap:.3%}, ${found.usd_per_hour:.2f} an hour, {time.perf_counter() - start:.1f} s, "
        f"{time.process_time() - cpu:.1f} s of CPU"
    )
    assert found.gap <= 1e-3


@pytest.mark.bench
@pytest.mark.parametrize("hours", [24, 168])
@pytest.mark.parametrize("types", [5, 15])
def test_time_grows_with_candidates_and_periods(types, hours):
    """15 types x 4 precisions x 3 parallelisms x 4 purchase forms x 168 hours x 3 classes, and parts of it."""
    start, cpu = time.perf_counter(), time.process_time()
    model = week(types, 300.0, hours, configs=12)
    pruned = model.with_options(undominated(model.options))
    found = solve_decomposed(pruned, 1e-3, 120)
    assert found is not None
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"\n{types} types, {hours} hours: {len(model.options)} options, {len(pruned.options)} undominated, gap "
        f"{found.gap:.3%}, {time.perf_counter() - start:.1f} s, {time.process_time() - cpu:.1f} s of CPU, peak "
        f"{peak_gb:.2f} GB, ${found.usd_per_hour:,.0f} an hour"
    )
    assert found.bound <= found.usd_per_hour + 1e-6
    assert found.gap <= 1e-3
