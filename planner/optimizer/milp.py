"""The optimizer: how many machines of each option in each period, and who serves what, at least expected cost.

Variables (indices as in ``fleet_model``): y_j machines committed for the whole horizon; n_jot machines held on
demand or spot in a period; f_jotk mean machines started on demand while spot zones are down; r_jot machines started;
c_p dollars an hour promised under a Savings Plan and v_pjotk machines that run under it; x_jotks share of a bucket's
demand routed to an option; u_otks share not served (only where an availability below 1 allows it). Counts are integer
and routing is continuous, and machines of one option are one count: no symmetry is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.optimizer.fleet_model import FleetModel
from planner.optimizer.program import INFEASIBLE, IntArray, Program, Result, quiet_stdout, relative_gap

FloatArray = NDArray[np.float64]
COUNT_LIMIT = 1e6
SAVINGS_PLANS = "promised under a Savings Plan"
NODES = 20_000  # of a search, unless told otherwise


@dataclass(frozen=True)
class Columns:
    """Where each family of variables lies; -1: no such variable."""

    committed: IntArray  # (J,)
    held: IntArray  # (J, O, T)
    fallback: IntArray  # (J, O, T, K)
    started: IntArray  # (J, O, T)
    routed: IntArray  # (J, O, T, K, S)
    unserved: IntArray  # (O, T, K, S)
    tail: IntArray  # (1 + O,) eta, and the cost above it in each scenario
    promised: IntArray  # (P,) USD an hour of each Savings Plan
    covered: IntArray  # (P, J, O, T, K) machines that run under it


@dataclass(frozen=True)
class Solution:
    """A plan of the model, with the proof of how good it is.

    Attributes:
        committed (J,), held (J, O, T), fallback (J, O, T, K): machines.
        routed: (J, O, T, K, S) share of each bucket's demand.
        unserved: (O, T, K, S).
        usd_per_hour: expected cost.
        objective, bound, gap: as minimised (with CVaR, where asked); gap is relative.
        optimal: proven within the gap that was asked for.
        hurried: the clock ended the search before its gap or its work limits did.
        promised (P,), covered (P, J, O, T, K): USD an hour of each Savings Plan, and machines under it.
    """

    committed: FloatArray
    held: FloatArray
    fallback: FloatArray
    routed: FloatArray
    unserved: FloatArray
    usd_per_hour: float
    objective: float
    bound: float
    gap: float
    optimal: bool
    hurried: bool = False
    promised: FloatArray = field(default_factory=lambda: np.zeros(0))
    covered: FloatArray = field(default_factory=lambda: np.zeros((0, 0, 0, 0, 0)))

    @property
    def machines(self) -> FloatArray:
        """(J,) of each option: committed, and held or started anywhere, summed; 0: it is not used."""
        return np.asarray(self.committed + self.held.sum((1, 2)) + self.fallback.sum((1, 2, 3)))


def build(model: FleetModel) -> tuple[Program, Columns]:
    """The model as a program: variables, then constraints, then objective."""
    program = Program()
    columns = _variables(model, program)
    _serve_all(model, program, columns)
    _capacity(model, program, columns)
    _starts(model, program, columns)
    _spot_share(model, program, columns)
    _availability(model, program, columns)
    _quotas(model, program, columns)
    _savings_plans(model, program, columns)
    _objective(model, program, columns)
    return program, columns


def solve(
    model: FleetModel, gap: float = 1e-3, time_limit_s: float = 60.0, node_limit: int | None = NODES
) -> Solution | None:
    """The cheapest plan, or None where the limits contradict each other (``planner.optimizer.relax`` says which).

    A limit of nodes ends the search at the same plan on every machine; one of time may not. Either way the best plan
    found so far comes back with its own gap and ``optimal`` False.
    """
    program, columns = build(model)
    result = program.solve(gap * 0.5, time_limit_s, node_limit=node_limit)
    if result.values is None and result.status == INFEASIBLE:
        return None
    if result.values is None:
        rounded = _rounded_up(program, result)
        if rounded is None:
            return None
        result = rounded
    return _solution(model, columns, result, gap)


def _variables(model: FleetModel, program: Program) -> Columns:
    scenarios, periods, buckets = model.demand.shape
    shape = (len(model.options), scenarios, periods)
    states = len(model.states)
    spot, on_demand, committed = (model.is_kind(k) for k in ("spot", "on_demand", "committed"))
    active = model.active[:, None, :]
    most = np.array([COUNT_LIMIT if o.max_count is None else o.max_count for o in model.options])
    serves = np.isfinite(model.load)
    useful = np.asarray((serves[:, None, None, :] & (model.demand > 0)[None]).any(axis=3))  # (J, O, T)
    y = program.columns(committed & useful.reshape(len(committed), -1).any(axis=1), 0.0, most, integer=True)
    held = (spot | on_demand)[:, None, None] & active & np.broadcast_to(useful, shape)
    n = program.columns(held, 0.0, most[:, None, None], integer=True)
    down = np.array([s.fallback and s.spot_up < 1 for s in model.states])
    may_replace = (on_demand[:, None, None] & held)[..., None] & down & bool(spot.any())
    f = program.columns(may_replace, 0.0, most[:, None, None, None])  # a mean: states pass
    tracks = held & _tracks_starts(model)[:, None, None]
    r = program.columns(tracks, 0.0)
    routes = (serves[:, None, None, :] & (model.demand > 0)[None] & active[..., None])[:, :, :, None, :]
    x = program.columns(np.broadcast_to(routes, (*shape, states, buckets)), 0.0, 1.0)
    lenient = model.limits.availability is not None and model.limits.availability < 1
    wants = np.broadcast_to((model.demand > 0)[:, :, None, :], (scenarios, periods, states, buckets))
    u = program.columns(wants & lenient, 0.0, 1.0)
    tail = program.columns(np.full(1 + scenarios, model.limits.cvar_weight > 0))
    plans = len(model.savings_plans)
    held_usd = [p.held_usd_per_hour for p in model.savings_plans]
    c = program.columns(np.ones(plans, bool), 0.0, np.array([np.inf if usd is None else usd for usd in held_usd]))
    may_cover = np.isfinite(model.plan_rates)[:, :, None, None, None] & held[..., None]
    v = program.columns(np.broadcast_to(may_cover, (plans, *shape, states)))
    return Columns(y, n, f, r, x, u, tail, c, v)


def _tracks_starts(model: FleetModel) -> NDArray[np.bool_]:
    limits = model.limits
    if model.demand.shape[1] == 1:
        return np.zeros(len(model.options), bool)
    bounded = limits.max_added_per_period is not None or limits.min_run_periods > 1
    return np.array([(bounded or o.start_hours > 0) and o.kind != "committed" for o in model.options], dtype=bool)


def _serve_all(model: FleetModel, program: Program, c: Columns) -> None:
    """sum_j x_jotks + u_otks = 1 for every bucket that has demand."""
    scenarios, periods, buckets = model.demand.shape
    shape = (scenarios, periods, len(model.states), buckets)
    wants = np.broadcast_to((model.demand > 0)[:, :, None, :], shape).astype(float)
    program.rows("serve every request", [(np.moveaxis(c.routed, 0, -1), 1.0), (c.unserved, 1.0)], wants, wants, shape)


def _capacity(model: FleetModel, program: Program, c: Columns) -> None:
    """sum_s L_js d_ots x_jotks <= a_jt y_j + up_jk n_jot + f_jotk."""
    shape = c.fallback.shape
    load = np.where(np.isfinite(model.load), model.load, 0.0)
    used = (load[:, None, None, :] * model.demand[None])[:, :, :, None, :]
    up = np.where(model.is_kind("spot")[:, None], np.array([s.spot_up for s in model.states])[None], 1.0)
    program.rows(
        "capacity",
        [
            (c.routed, used),
            (np.broadcast_to(c.committed[:, None, None, None], shape), -model.active[:, None, :, None].astype(float)),
            (np.broadcast_to(c.held[..., None], shape), -up[:, None, None, :]),
            (c.fallback, -1.0),
        ],
        -np.inf,
        0.0,
        shape,
    )


def _starts(model: FleetModel, program: Program, c: Columns) -> None:
    """n_t - n_(t-1) <= r_t <= added at most; n_(t-1) - n_t <= removed at most; n_t >= sum of r over the minimum run."""
    limits, periods = model.limits, model.demand.shape[1]
    if periods == 1:
        return
    before = np.roll(c.held, 1, axis=2)
    if not model.cyclic:
        before[:, :, 0] = -1
    machines = np.array([float(o.machines) for o in model.options])[:, None, None]
    tracked = c.started >= 0
    now = np.where(tracked, c.held, -1)
    then = np.where(tracked, before, -1)
    if tracked.any():
        first_free = np.zeros((1, 1, periods))
        if not model.cyclic:
            first_free[..., 0] = np.inf  # the fleet at the start is there already
        program.rows(
            "starts", [(now, 1.0), (then, -1.0), (c.started, -1.0)], -np.inf, np.broadcast_to(first_free, c.held.shape),
            c.held.shape,
        )  # fmt: skip
        if limits.max_added_per_period is not None:
            program.limit(c.started, limits.max_added_per_period // machines)
    if limits.max_removed_per_period is not None:
        known = np.where(before >= 0, c.held, -1)
        program.rows(
            "scaling down", [(before, machines), (known, -machines)], -np.inf, float(limits.max_removed_per_period),
            c.held.shape,
        )  # fmt: skip
    if limits.min_run_periods > 1 and tracked.any():
        recent = [np.roll(c.started, lag, axis=2) for lag in range(limits.min_run_periods)]
        if not model.cyclic:
            for lag, index in enumerate(recent):
                index[:, :, :lag] = -1
        program.rows("minimum run", [(now, -1.0), *[(i, 1.0) for i in recent]], -np.inf, 0.0, c.held.shape)


def _spot_share(model: FleetModel, program: Program, c: Columns) -> None:
    """sum over spot options and buckets of d x <= max_share * sum of d, in every period."""
    share, spot = model.limits.spot_max_share, model.is_kind("spot")
    if share is None or not spot.any():
        return
    routed = np.moveaxis(c.routed[spot], 0, -2)  # (O, T, K, J', S)
    demand = np.broadcast_to(model.demand[:, :, None, None, :], routed.shape)
    total = np.broadcast_to(model.demand.sum(2)[..., None], routed.shape[:3])
    scale = np.where(total > 0, total, 1.0)
    program.rows("spot share", [(routed, demand / scale[..., None, None])], -np.inf, share, routed.shape[:3])


def _availability(model: FleetModel, program: Program, c: Columns) -> None:
    """sum_ks p_k d_ots u_otks <= (1 - availability) * sum_s d_ots, in every period."""
    if model.limits.availability is None or not (c.unserved >= 0).any():
        return
    total = model.demand.sum(2)
    scale = np.where(total > 0, total, 1.0)
    chance = np.array([s.probability for s in model.states])
    share = chance[:, None] * (model.demand / scale[..., None])[:, :, None, :]  # (O, T, K, S)
    program.rows("availability", [(c.unserved, share)], -np.inf, 1 - model.limits.availability, total.shape)


def _quotas(model: FleetModel, program: Program, c: Columns) -> None:
    """sum_j w_j (y_j + n_jot + f_jotk) <= limit, at any time."""
    for quota in model.limits.quotas:
        weight = np.array([quota.weights.get(o.config, quota.weights.get(o.name, 0.0)) for o in model.options])
        shape = c.fallback.shape[1:]
        y = np.where(model.active[:, None, :, None], c.committed[:, None, None, None], -1)
        terms = [np.broadcast_to(y, c.fallback.shape), np.broadcast_to(c.held[..., None], c.fallback.shape), c.fallback]
        program.rows(
            f"quota: {quota.name}", [(np.moveaxis(index, 0, -1), weight) for index in terms], -np.inf, quota.limit,
            shape,
        )  # fmt: skip


def _savings_plans(model: FleetModel, program: Program, c: Columns) -> None:
    """sum_j q_pj v_pjotk <= c_p, and sum_p v_pjotk <= n_jot + f_jotk."""
    if not model.savings_plans:
        return
    shape = c.covered.shape
    rates = np.where(np.isfinite(model.plan_rates), model.plan_rates, 0.0)[:, None, None, None, :]
    hours = (shape[0], *shape[2:])
    promised = np.broadcast_to(c.promised[:, None, None, None], hours)
    program.rows(SAVINGS_PLANS, [(np.moveaxis(c.covered, 1, -1), rates), (promised, -1.0)], -np.inf, 0.0, hours)
    can = (c.covered >= 0).any(0)
    machines = [np.where(can, np.broadcast_to(c.held[..., None], shape[1:]), -1), np.where(can, c.fallback, -1)]
    there: list[tuple[IntArray, ArrayLike]] = [(np.moveaxis(c.covered, 0, -1), 1.0), *((m, -1.0) for m in machines)]
    program.rows("machines under a Savings Plan", there, -np.inf, 0.0, shape[1:])


def paid_share(model: FleetModel) -> FloatArray:
    """(J,) share of the time held for which a machine is paid: spot machines while their zones are up."""
    up = sum(s.probability * s.spot_up for s in model.states)
    return np.where(model.is_kind("spot"), up, 1.0)


def cost_terms(model: FleetModel, c: Columns) -> list[tuple[IntArray, FloatArray]]:
    """(columns, USD an hour on average over the horizon, shape (J, O, T[, K]) or (J, O)) before probabilities.

    A machine under a Savings Plan is paid for by what is promised, so its price on demand is given back.
    """
    price, weight = model.usd_per_hour, model.weight
    paid = paid_share(model)
    held_share = (model.active * weight).sum(1)
    scenarios = model.demand.shape[0]
    chance = np.array([s.probability for s in model.states])
    starts = np.array([o.start_hours for o in model.options])
    period_hours = model.hours
    per_start = price[:, None, None] * starts[:, None, None] / period_hours * weight
    terms = [
        (np.broadcast_to(c.committed[:, None], (len(price), scenarios)), (price * held_share)[:, None]),
        (c.held, (price * paid)[:, None, None] * weight),
        (c.fallback, price[:, None, None, None] * weight[:, None] * chance),
        (c.started, np.broadcast_to(per_start, c.started.shape)),
    ]
    if model.savings_plans:
        plans = np.array([p.usd_per_hour for p in model.savings_plans])
        given_back = -price[:, None, None, None] * weight[:, None] * chance
        terms.append((np.broadcast_to(c.promised[:, None], (len(plans), scenarios)), plans[:, None]))
        terms += [(covered, given_back) for covered in c.covered]
    return terms


def _objective(model: FleetModel, program: Program, c: Columns) -> None:
    """(1 - w) sum_o p_o cost_o + w (eta + sum_o p_o z_o / (1 - alpha)), z_o >= cost_o - eta; and the budget."""
    limits, w = model.limits, model.limits.cvar_weight
    terms = cost_terms(model, c)
    for index, usd in terms:
        chance = model.probability.reshape((1, -1) + (1,) * (index.ndim - 2))
        program.add_cost(index, (1 - w) * chance * usd)
    scenarios = model.demand.shape[0]
    by_scenario = [
        (np.moveaxis(index, 1, 0), np.moveaxis(np.broadcast_to(usd, index.shape), 1, 0)) for index, usd in terms
    ]
    if w > 0:
        program.add_cost(c.tail[:1], w)
        program.add_cost(c.tail[1:], w * model.probability / (1 - limits.cvar_alpha))
        eta = np.broadcast_to(c.tail[:1], (scenarios,))
        rows: list[tuple[IntArray, ArrayLike]] = [*by_scenario, (c.tail[1:], -1.0), (eta, -1.0)]
        program.rows("tail cost", rows, -np.inf, 0.0, (scenarios,))
    if limits.budget_usd_per_hour is not None:
        flat = [
            (index.ravel(), (model.probability.reshape((-1,) + (1,) * (usd.ndim - 1)) * usd).ravel())
            for index, usd in by_scenario
        ]
        program.rows("budget", flat, -np.inf, limits.budget_usd_per_hour, ())


def _rounded_up(program: Program, failed: Result) -> Result | None:
    """When the time ran out without a plan: the relaxation's counts rounded up, where the limits allow it."""
    with quiet_stdout():
        found = program.rounded_up(program.cost, program.bounds[1])
    if found is None or found.objective is None:
        return None
    bound = max(failed.bound, found.bound)
    gap = relative_gap(found.objective, bound)
    return Result(failed.status, found.values, found.objective, bound, gap, failed.hurried)


def _solution(model: FleetModel, c: Columns, result: Result, gap: float) -> Solution:
    assert result.values is not None and result.objective is not None
    padded = np.append(result.values, 0.0)  # index -1 reads 0
    counts = [np.round(padded[i]) for i in (c.committed, c.held)]
    counts.append(np.maximum(padded[c.fallback], 0.0))
    exact = padded.copy()
    for index, value in zip((c.committed, c.held), counts[:2], strict=True):
        exact[index[index >= 0]] = value[index >= 0]
    exact[-1] = 0.0
    usd = 0.0
    for index, price in cost_terms(model, c):
        chance = model.probability.reshape((1, -1) + (1,) * (index.ndim - 2))
        usd += float((exact[index] * price * chance).sum())
    achieved = relative_gap(result.objective, result.bound)
    return Solution(
        counts[0],
        counts[1],
        counts[2],
        np.clip(padded[c.routed], 0.0, 1.0),
        np.clip(padded[c.unserved], 0.0, 1.0),
        usd,
        result.objective,
        result.bound,
        achieved,
        achieved <= gap + 1e-9,
        result.hurried and achieved > gap + 1e-9,
        np.maximum(padded[c.promised], 0.0),
        np.maximum(padded[c.covered], 0.0),
    )
