"""The optimizer equals exhaustive search, the newsvendor quantile and published solutions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from planner.money.cost import committed_usd_per_year, newsvendor_commitment
from planner.optimizer.fleet_model import FleetModel, Limits, Option, Quota, State, undominated
from planner.optimizer.milp import solve


def on_demand(name, usd, load, **more):
    return Option(name, name, name, "on_demand", "on_demand", usd, np.asarray(load, float), **more)


def routable(load, demand, counts):
    """Whether machines can serve the demand: a linear program of its own."""
    pairs = [(j, s) for j in range(len(counts)) for s in range(len(demand)) if np.isfinite(load[j, s])]
    serve = np.zeros((len(demand), len(pairs)))
    use = np.zeros((len(counts), len(pairs)))
    for i, (j, s) in enumerate(pairs):
        serve[s, i], use[j, i] = 1.0, load[j, s] * demand[s]
    wanted = (np.asarray(demand) > 0).astype(float)
    if not pairs:
        return not wanted.any()
    found = linprog(np.zeros(len(pairs)), use, np.asarray(counts, float) + 1e-9, serve, wanted, bounds=(0, 1))
    return found.status == 0


def brute_force(price, load, demand, most):
    best = None
    for counts in itertools.product(*[range(m + 1) for m in most]):
        usd = float(np.dot(counts, price))
        if (best is None or usd < best - 1e-12) and routable(load, demand, counts):
            best = usd
    return best


@pytest.mark.parametrize("seed", range(200))
def test_equals_brute_force_on_random_small_instances(seed):
    rng = np.random.default_rng(seed)
    num, buckets = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    price = rng.uniform(0.3, 4.0, num).round(2)
    load = 1 / rng.uniform(0.5, 8.0, (num, buckets))
    load[rng.random((num, buckets)) < 0.15] = np.inf
    demand = np.where(rng.random(buckets) < 0.1, 0.0, rng.uniform(0.2, 6.0, buckets))
    most = [5 if num == 3 else 12] * num
    options = tuple(on_demand(f"g{j}", price[j], load[j], max_count=most[j]) for j in range(num))
    found = solve(FleetModel(options, demand[None, None]), gap=1e-9)
    expected = brute_force(price, load, demand, most)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.usd_per_hour == pytest.approx(expected, abs=1e-7)
        assert found.bound <= expected + 1e-6


def test_finds_melanges_optimum_where_the_published_solver_pays_more():
    rates = {"A10G": (1.01, [2, 1, 5, 2]), "A100-80GB": (3.67, [20, 20, 40, 20])}
    options = tuple(on_demand(g, usd, 1 / np.array(r, float)) for g, (usd, r) in rates.items())
    found = solve(FleetModel(options, 30 * np.array([[[0.2, 0.1, 0.5, 0.2]]])))
    assert found is not None and found.usd_per_hour == pytest.approx(4.68)


@pytest.mark.parametrize("seed", range(12))
def test_one_type_commits_the_newsvendor_quantile(seed):
    rng = np.random.default_rng(seed)
    machines = rng.integers(0, 9, 24).astype(float)
    ratio = rng.uniform(0.2, 0.95)
    options = (
        on_demand("od", 1.0, [1.0]),
        Option("ri", "od", "od", "reserved_3yr", "committed", ratio, np.ones(1)),
    )
    demand = (machines - 0.5).clip(0)[None, :, None]
    found = solve(FleetModel(options, demand, np.ones(24)), gap=1e-9)
    committed = newsvendor_commitment(machines, ratio, 1.0)
    yearly = [committed_usd_per_year(machines, n, ratio, 1.0) for n in range(10)]
    assert yearly[committed] == pytest.approx(min(yearly))
    assert yearly[0] == pytest.approx(machines.mean() * 8760)
    need = np.ceil(demand.ravel())
    expected = committed * ratio + np.maximum(need - committed, 0).mean()
    assert found is not None
    assert found.usd_per_hour == pytest.approx(expected)
    assert found.committed[1] == committed


def test_undominated_options_keep_the_optimum():
    rng = np.random.default_rng(3)
    for _ in range(30):
        options = [on_demand(f"g{j}", rng.uniform(0.5, 4), 1 / rng.uniform(0.5, 6, 2)) for j in range(8)]
        demand = rng.uniform(1, 9, (1, 1, 2))
        kept = undominated(options)
        full, pruned = solve(FleetModel(tuple(options), demand), 1e-9), solve(FleetModel(tuple(kept), demand), 1e-9)
        assert full is not None and pruned is not None
        assert len(kept) <= len(options)
        assert pruned.usd_per_hour == pytest.approx(full.usd_per_hour)


def test_spot_outages_are_covered_by_on_demand_or_fallback_as_is_cheaper():
    states = (State(0.9, 1.0), State(0.1, 0.0))
    options = (
        on_demand("od", 1.0, [1.0]),
        Option("spot", "od", "od", "spot", "spot", 0.3, np.ones(1)),
    )
    found = solve(FleetModel(options, np.full((1, 1, 1), 4.0), states=states), gap=1e-9)
    assert found is not None
    assert found.usd_per_hour == pytest.approx(0.9 * 4 * 0.3 + 0.1 * 4)
    no_fallback = (State(0.9, 1.0), State(0.1, 0.0, fallback=False))
    safe = solve(FleetModel(options, np.full((1, 1, 1), 4.0), states=no_fallback), gap=1e-9)
    assert safe is not None and safe.usd_per_hour == pytest.approx(4.0)
    lenient = Limits(availability=0.95)
    some = solve(FleetModel(options, np.full((1, 1, 1), 4.0), states=no_fallback, limits=lenient), gap=1e-9)
    assert some is not None  # of the 0.1 * 4 at risk, 0.05 * 4 may be lost: two machines stay on demand
    assert some.usd_per_hour == pytest.approx(2 * 1.0 + 0.9 * 2 * 0.3)


def test_spot_share_quota_and_budget_hold():
    options = (on_demand("od", 1.0, [1.0]), Option("spot", "od", "sp", "spot", "spot", 0.3, np.ones(1)))
    demand = np.full((1, 1, 1), 4.0)
    half = solve(FleetModel(options, demand, limits=Limits(spot_max_share=0.5)), gap=1e-9)
    assert half is not None and half.usd_per_hour == pytest.approx(2.6)
    quota = Limits(quotas=(Quota("od", {"od": 1.0}, 1),))
    few = solve(FleetModel(options, demand, limits=quota), gap=1e-9)
    assert few is not None and few.usd_per_hour == pytest.approx(4 * 0.3)
    assert solve(FleetModel(options, demand, limits=Limits(budget_usd_per_hour=1.1))) is None


def test_scaling_limits_and_minimum_runs_cost_what_they_must():
    demand = np.array([1.0, 1.0, 5.0, 1.0, 1.0, 1.0])[None, :, None]
    model = FleetModel((on_demand("od", 1.0, [1.0]),), demand, np.ones(6))
    free = solve(model, 1e-9)
    slow = solve(FleetModel(model.options, demand, np.ones(6), limits=Limits(max_added_per_period=2)), 1e-9)
    long = solve(FleetModel(model.options, demand, np.ones(6), limits=Limits(min_run_periods=3)), 1e-9)
    assert free is not None and slow is not None and long is not None
    assert free.usd_per_hour * 6 == pytest.approx(10)
    assert slow.held[0, 0].tolist() == [1, 3, 5, 1, 1, 1]
    assert long.held[0, 0].tolist() == [4, 4, 5, 1, 1, 1]  # three that ran from the start end as one begins


def test_a_start_pays_for_its_boot():
    demand = np.array([1.0, 2.0, 1.0])[None, :, None]
    model = FleetModel((on_demand("od", 1.0, [1.0], start_hours=0.25),), demand, np.ones(3))
    found = solve(model, 1e-9)
    assert found is not None and found.usd_per_hour * 3 == pytest.approx(4.25)


def tail_mean(cost, probability, alpha):
    """Mean of the dearest (1 - alpha) of the outcomes (Rockafellar and Uryasev 2000, eq. 4)."""
    left, total = 1.0 - alpha, 0.0
    for i in np.argsort(-np.asarray(cost)):
        part = min(probability[i], left)
        total, left = total + part * cost[i], left - part
    return total / (1.0 - alpha)


@pytest.mark.parametrize(("weight", "alpha"), [(0.3, 0.5), (0.5, 0.8), (0.9, 0.95)])
def test_the_tails_mean_cost_is_weighed_as_enumeration_does(weight, alpha):
    options = (
        on_demand("od", 1.0, [1.0]),
        Option("ri", "od", "od", "reserved_3yr", "committed", 0.4, np.ones(1)),
    )
    demand, chance = np.array([1.0, 4.0, 10.0]), np.array([0.5, 0.3, 0.2])
    limits = Limits(cvar_weight=weight, cvar_alpha=alpha)
    found = solve(FleetModel(options, demand[:, None, None], probability=chance, limits=limits), 1e-9)
    cost = [0.4 * r + np.maximum(demand - r, 0.0) for r in range(11)]
    best = min((1 - weight) * chance @ c + weight * tail_mean(c, chance, alpha) for c in cost)
    assert found is not None and found.objective == pytest.approx(best)


def test_risk_aversion_commits_more():
    demand = np.array([1.0, 10.0])[:, None, None]
    options = (
        on_demand("od", 1.0, [1.0]),
        Option("ri", "od", "od", "reserved_3yr", "committed", 0.4, np.ones(1)),
    )
    chance = np.array([0.7, 0.3])
    neutral = solve(FleetModel(options, demand, probability=chance), 1e-9)
    averse = solve(
        FleetModel(options, demand, probability=chance, limits=Limits(cvar_weight=1.0, cvar_alpha=0.9)), 1e-9
    )
    assert neutral is not None and averse is not None
    assert neutral.committed[1] == 1 and averse.committed[1] == 10
    assert averse.objective == pytest.approx(10 * 0.4)


def test_zero_demand_in_some_hours_costs_nothing_there():
    demand = np.array([0.0, 2.0, 0.0, 1.0])[None, :, None]
    found = solve(FleetModel((on_demand("od", 1.0, [1.0]),), demand, np.ones(4)), 1e-9)
    assert found is not None and found.held[0, 0].tolist() == [0, 2, 0, 1]
