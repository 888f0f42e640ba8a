"""What the optimizer chooses from and must satisfy: options to buy, demand to serve, limits to keep.

Indices used everywhere: j option, o scenario of demand, t period, k state of the spot zones, s size bucket.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Kind = Literal["committed", "on_demand", "spot"]
FRONT_BLOCK = 128  # rows compared at once


@dataclass(frozen=True)
class Option:
    """One thing that can be bought: a machine (or several at once) with a configuration, in a purchase form.

    Attributes:
        name: unique.
        instance, config, purchase: what it is, for the answer.
        kind: ``committed`` (one count for the whole horizon, decided before demand is seen), ``on_demand`` (a count
            for each period and scenario), ``spot`` (the same, and lost with its zones).
        usd_per_hour: of one machine while it is held.
        load: (S,) share of one machine that one request a second of a bucket takes; inf: it cannot serve the bucket.
        max_count: machines at most; None: no limit.
        active: (T,) periods in which a commitment holds; None: all. It is paid for in these.
        start_hours: hours paid for and not used at each start (boot).
        machines: that one of it consists of; price, load and counts are of all of them together.
    """

    name: str
    instance: str
    config: str
    purchase: str
    kind: Kind
    usd_per_hour: float
    load: FloatArray
    max_count: int | None = None
    active: BoolArray | None = None
    start_hours: float = 0.0
    machines: int = 1


@dataclass(frozen=True)
class State:
    """A state of the spot zones within a period."""

    probability: float
    spot_up: float = 1.0  # share of the spot machines that run
    fallback: bool = True  # replacements bought on demand are serving already


@dataclass(frozen=True)
class SavingsPlan:
    """Dollars promised for each hour, that pay for machines on demand at the plan's rates; one amount for all time.

    Attributes:
        usd_per_hour: what a promised dollar an hour costs: 1, or with money upfront its level rate.
        rates: USD an hour of a machine under the plan, by instance type.
        upfront_usd: paid before it begins, for each promised dollar an hour.
        terms: for the answer.
        held_usd_per_hour: promised already, which costs nothing more and cannot become more; None: it is for sale.
    """

    name: str
    usd_per_hour: float
    rates: Mapping[str, float]
    upfront_usd: float = 0.0
    terms: Mapping[str, Any] = field(default_factory=dict)
    held_usd_per_hour: float | None = None


@dataclass(frozen=True)
class Quota:
    """At most ``limit`` of ``sum(weight * machines)`` at any time, over some options."""

    name: str
    weights: Mapping[str, float]  # by the options' config: machines 1, or vCPUs
    limit: float


@dataclass(frozen=True)
class Limits:
    """What the plan must keep, each None where it is not asked for."""

    budget_usd_per_hour: float | None = None
    spot_max_share: float | None = None  # of the requests of each period
    availability: float | None = None  # expected share of requests served
    max_added_per_period: int | None = None  # machines of one option
    max_removed_per_period: int | None = None
    min_run_periods: int = 1
    quotas: tuple[Quota, ...] = ()
    cvar_weight: float = 0.0  # objective: (1 - w) * expected cost + w * CVaR
    cvar_alpha: float = 0.9


@dataclass(frozen=True)
class FleetModel:
    """The whole model.

    Attributes:
        options: what can be bought.
        demand: (O, T, S) requests a second.
        hours: (T,) relative length of each period; normalised to sum 1.
        probability: (O,) of the scenarios; sums to 1.
        states: of the spot zones, the same in every period; probabilities sum to 1.
        limits: what must hold.
        cyclic: the last period is followed by the first (a week that repeats).
        savings_plans: that machines on demand may run under.
    """

    options: tuple[Option, ...]
    demand: FloatArray
    hours: FloatArray = field(default_factory=lambda: np.ones(1))
    probability: FloatArray = field(default_factory=lambda: np.ones(1))
    states: tuple[State, ...] = (State(1.0),)
    limits: Limits = Limits()
    cyclic: bool = False
    savings_plans: tuple[SavingsPlan, ...] = ()

    @property
    def weight(self) -> FloatArray:
        """(T,) share of time of each period."""
        return np.asarray(self.hours / self.hours.sum())

    @property
    def load(self) -> FloatArray:
        """(J, S) load of one request a second."""
        return np.array([o.load for o in self.options], dtype=float).reshape(len(self.options), self.demand.shape[2])

    @property
    def usd_per_hour(self) -> FloatArray:
        """(J,)"""
        return np.array([o.usd_per_hour for o in self.options], dtype=float)

    @property
    def plan_rates(self) -> FloatArray:
        """(P, J) USD an hour of an option's machines under each Savings Plan; inf: it does not hold for them."""
        rates = [
            [p.rates.get(o.instance, np.inf) * o.machines if o.kind == "on_demand" else np.inf for o in self.options]
            for p in self.savings_plans
        ]
        return np.array(rates, dtype=float).reshape(len(self.savings_plans), len(self.options))

    def undominated(self, options: Sequence[Option]) -> list[Option]:
        """See ``undominated``, under this model's quotas and Savings Plans."""
        return undominated(options, self.limits.quotas, {i for p in self.savings_plans for i in p.rates})

    def is_kind(self, kind: Kind) -> BoolArray:
        """(J,)"""
        return np.array([o.kind == kind for o in self.options], dtype=bool)

    @property
    def active(self) -> BoolArray:
        """(J, T) periods in which each option can be held."""
        num = self.demand.shape[1]
        rows = [np.ones(num, bool) if o.active is None else o.active for o in self.options]
        return np.array(rows, dtype=bool).reshape(len(self.options), num)

    def with_options(self, options: Sequence[Option]) -> FleetModel:
        """The same model with other options."""
        return replace(self, options=tuple(options))


def undominated(
    options: Sequence[Option], quotas: Sequence[Quota] = (), under_plans: Collection[str] = ()
) -> list[Option]:
    """The options that an optimum can need: no other of their kind costs no more and carries no more load per request.

    Exact: whatever a dominated option does in a plan, its dominator does at no more cost. An option that a count,
    a quota or a time window limits never dominates one that it cannot replace; nor do two instance types stand for each
    other of which one has a rate under a Savings Plan.

    Args:
        under_plans: instance types with such a rate.
    """
    limited = {name for q in quotas for name in q.weights}
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, option in enumerate(options):
        window = None if option.active is None else option.active.tobytes()
        # an option under a limit stands for others of its own machine only
        bounded = option.config in limited or option.max_count is not None or option.instance in under_plans
        machine = (option.instance, option.machines) if bounded else None
        groups.setdefault((option.kind, window, option.start_hours, machine, option.max_count), []).append(i)
    kept: list[int] = []
    for members in groups.values():
        price = np.array([options[i].usd_per_hour for i in members])
        load = np.array([options[i].load for i in members], dtype=float)
        order = np.lexsort((np.arange(len(members)), np.where(np.isfinite(load), load, 1e18).sum(1), price))
        kept += [members[at] for at in order[_on_front(load[order])]]
    return [options[i] for i in sorted(kept)]


def _on_front(load: FloatArray) -> BoolArray:
    """(n,) rows that no row before them equals or beats in every column: of options by price, whom none replaces."""
    kept = np.zeros(len(load), dtype=bool)
    for start in range(0, len(load), FRONT_BLOCK):
        block = load[start : start + FRONT_BLOCK]
        before = np.vstack([load[:start][kept[:start]], block])
        beaten = np.ones((len(before), len(block)), dtype=bool)
        for known, own in zip(before.T, block.T, strict=True):
            beaten &= known[:, None] <= own
        num = len(before) - len(block)
        beaten[num:] &= np.tri(len(block), k=-1, dtype=bool).T  # of its own block, those before it
        kept[start : start + FRONT_BLOCK] = ~beaten.any(axis=0)
    return kept
