"""The linear relaxation of a fleet model by column generation, and what one more machine of any option would add.

In the relaxation an option matters only through what it pays for a unit of work, so an optimum uses few of them: the
program is solved over some options, its shadow prices say in closed form what each of the others would save, and those
that save something join (Dantzig and Wolfe 1960; Gilmore and Gomory 1961). When none does, the value is a lower bound
of the whole model's optimum, and each option's reduced cost says by how much a plan that uses it must exceed the bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.optimizer.fleet_model import FleetModel, Option
from planner.optimizer.milp import SAVINGS_PLANS, Columns, build
from planner.optimizer.program import Program

FloatArray = NDArray[np.float64]
ENTERING = 16  # options that join in a round, at most
TOLERANCE = 1e-7  # of a machine's price; a reduced cost above minus this is none
STOPGAP = "(not served)"  # stands for anything that the options at hand cannot serve, at a price nobody would pay
STOPGAP_FACTOR = 1e4


@dataclass(frozen=True)
class Relaxed:
    """The optimum of the linear relaxation.

    Attributes:
        usd_per_hour: its value, a lower bound.
        committed: (J,) machines, not whole.
        value: (J, O, T) USD an hour that a machine's capacity is worth in a scenario and period, while it lasts.
        reduced: (J, O, T) USD an hour that one machine held there adds to the bound; inf where it cannot be held.
        committed_reduced: (J,) the same for a commitment.
        cell_usd: (O, T) USD an hour that each scenario and period costs, commitments at their worth there.
        basis: options that the optimum is made of, and the cheapest for each bucket; sorted.
    """

    usd_per_hour: float
    committed: FloatArray
    value: FloatArray
    reduced: FloatArray
    committed_reduced: FloatArray
    cell_usd: FloatArray
    basis: tuple[int, ...]


@dataclass(frozen=True)
class _Prices:
    """Shadow prices of the rows, as worth (>= 0); O scenarios, T periods, K states, S buckets."""

    request: FloatArray  # (O, T, K, S) of all of a bucket's demand
    spot: FloatArray  # (O, T, K, S) of the share limit, for all of a bucket's demand
    quotas: tuple[FloatArray, ...]  # (O, T, K) each
    promised: FloatArray  # (P, O, T, K) of a dollar that a Savings Plan has for the hour


def relax(model: FleetModel) -> Relaxed | None:
    """The relaxation of a model whose periods only commitments tie together; None: some demand cannot be served."""
    chosen = set(cheapest_by_bucket(model))
    while True:
        ids = sorted(chosen)
        part = model.with_options([*(model.options[j] for j in ids), stopgap(model)])
        program, columns = build(part)
        program.unlimit(columns.routed)  # implied by "serve every request"; its price would hide the true one
        found = program.relaxed()
        if found is None:
            return None
        values, objective, row_prices = found
        prices = _prices_of(model, program, row_prices)
        value, reduced, committed_reduced, missing = _price_options(model, prices)
        missing[ids] = 0.0
        entering = [int(j) for j in np.argsort(missing, kind="stable")[:ENTERING] if missing[j] < 0]
        if not entering:
            break
        chosen.update(entering)
    padded = np.append(values, 0.0)
    if _used(columns, padded, len(ids)) > 1e-6:
        return None
    committed = np.zeros(len(model.options))
    committed[ids] = padded[columns.committed[:-1]]
    usd = _cell_usd(model, program, row_prices)
    return Relaxed(objective, committed, value, reduced, committed_reduced, usd, tuple(ids))


def _cell_usd(model: FleetModel, program: Program, row_prices: FloatArray) -> FloatArray:
    """(O, T) each scenario and period's part of the dual objective: what its requests pay, less what limits grant."""
    usd = np.zeros(model.demand.shape[:2])
    row_high = program.row_bounds[1]
    for name, _, kept in program.families:
        if len(kept.shape) >= 2 and kept.shape[:2] == usd.shape:
            part = program.family(name, -row_prices * np.where(np.isfinite(row_high), row_high, 0.0))
            usd += part.reshape(*usd.shape, -1).sum(2)
    return np.asarray(usd / (model.probability[:, None] * model.weight))


def cheapest_by_bucket(model: FleetModel) -> list[int]:
    """For each kind of purchase and each bucket, the option that serves a request for the least money."""
    found: set[int] = set()
    for kind in ("on_demand", "spot", "committed"):
        ids = np.flatnonzero(model.is_kind(kind))
        if not len(ids):
            continue
        serves = np.isfinite(model.load[ids])
        usd = np.where(serves, model.usd_per_hour[ids, None] * np.where(serves, model.load[ids], 0.0), np.inf)
        for bucket in range(usd.shape[1]):
            if np.isfinite(usd[:, bucket]).any():
                found.add(int(ids[np.argmin(usd[:, bucket])]))
    return sorted(found)


def stopgap(model: FleetModel) -> Option:
    """An option that serves everything, dearer than any other by far: with it every program has a plan."""
    usd = model.usd_per_hour[:, None] * np.where(np.isfinite(model.load), model.load, 0.0)
    price = STOPGAP_FACTOR * max(float(usd.max(initial=0.0)), 1e-3)
    return Option(STOPGAP, STOPGAP, STOPGAP, "on_demand", "on_demand", price, np.ones(model.demand.shape[2]))


def _used(columns: Columns, padded: FloatArray, stopgap: int) -> float:
    return float(padded[columns.held[stopgap]].sum() + padded[columns.fallback[stopgap]].sum())


def _prices_of(model: FleetModel, program: Program, row_prices: FloatArray) -> _Prices:
    shape = (*model.demand.shape[:2], len(model.states), model.demand.shape[2])
    request = -program.family("serve every request", row_prices)
    spot = np.zeros(shape)
    known = {name for name, _, _ in program.families}
    if "spot share" in known:
        total = model.demand.sum(2)
        share = model.demand / np.where(total > 0, total, 1.0)[..., None]
        spot = program.family("spot share", row_prices)[..., None] * share[:, :, None, :]
    quotas = tuple(program.family(f"quota: {q.name}", row_prices) for q in model.limits.quotas)
    promised = -program.family(SAVINGS_PLANS, row_prices) if model.savings_plans else np.zeros((0, *shape[:3]))
    return _Prices(request, spot, quotas, promised)


def _on_demand_usd(model: FleetModel, prices: _Prices, j: int) -> FloatArray:
    """(O, T, K) weighted USD an hour of one machine on demand: its price, or less where a promise pays for it."""
    weight = (model.probability[:, None] * model.weight)[..., None]
    usd = model.options[j].usd_per_hour * weight * np.array([s.probability for s in model.states])
    for rate, worth in zip(model.plan_rates[:, j], prices.promised, strict=True):
        if np.isfinite(rate):
            usd = np.minimum(usd, rate * worth)
    return np.asarray(usd)


def _price_options(model: FleetModel, prices: _Prices) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """``value``, ``reduced`` and ``committed_reduced`` of every option, and what those that would save money save.

    An option's capacity in a state is worth the dearest request that a unit of it can serve:
    lambda_otk = max(0, max_s (alpha_otks - sigma_otks) / (L_s d_ots)); a machine's reduced cost is its price, less that
    worth where it is up, plus what it takes of quotas. Under a Savings Plan its price is what it takes of the promise.
    """
    scenarios, periods, _ = model.demand.shape
    weight = model.probability[:, None] * model.weight  # (O, T)
    chance = np.array([s.probability for s in model.states])
    up = np.array([s.spot_up for s in model.states])
    down = np.array([s.fallback and s.spot_up < 1 for s in model.states]) & bool(model.is_kind("spot").any())
    num = len(model.options)
    value, reduced = np.zeros((num, scenarios, periods)), np.full((num, scenarios, periods), np.inf)
    committed_reduced, missing = np.full(num, np.inf), np.zeros(num)
    demand = model.demand[:, :, None, :]
    plain = np.where(demand > 0, prices.request / np.where(demand > 0, demand, 1.0), 0.0)
    shared = np.where(demand > 0, (prices.request - prices.spot) / np.where(demand > 0, demand, 1.0), 0.0)
    active = model.active
    for j, option in enumerate(model.options):
        worth = shared if option.kind == "spot" else plain
        capacity = np.maximum((worth / option.load).max(3), 0.0) * active[j][None, :, None]  # (O, T, K)
        quota = np.zeros((scenarios, periods, len(up)))
        for q, price in zip(model.limits.quotas, prices.quotas, strict=True):
            quota += q.weights.get(option.config, q.weights.get(option.name, 0.0)) * price
        value[j] = capacity.sum(2) / weight
        slack = TOLERANCE * max(option.usd_per_hour, 1e-6)
        if option.kind == "committed":
            held = active[j][None, :, None]
            whole = option.usd_per_hour * float((active[j] * model.weight).sum())
            committed_reduced[j] = whole - capacity.sum() + float((quota * held).sum())
            missing[j] = min(committed_reduced[j] + slack, 0.0)
            continue
        there = up if option.kind == "spot" else np.ones(len(up))
        usd = _on_demand_usd(model, prices, j)
        paid = option.usd_per_hour * float(chance @ up) * weight if option.kind == "spot" else usd.sum(2)
        adds = paid - capacity @ there + quota.sum(2)
        adds = np.where(active[j], adds, np.inf)
        reduced[j] = adds / weight
        missing[j] = float(np.minimum(adds + slack * weight, 0.0).sum())
        if option.kind == "on_demand" and down.any():
            mean = usd - capacity + quota
            mean = np.where(down & active[j][None, :, None], mean + slack * weight[..., None] * chance, 0.0)
            missing[j] += float(np.minimum(mean, 0.0).sum())
    return value, reduced, committed_reduced, missing


def limits_fallback(model: FleetModel, ids: Iterable[int]) -> bool:
    """Whether a count or a quota limits one of these, so that it cannot stand in for others without end."""
    limited = {name for q in model.limits.quotas for name in q.weights}
    return any(
        model.options[j].max_count is not None or limited & {model.options[j].config, model.options[j].name}
        for j in ids
    )
