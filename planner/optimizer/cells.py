"""One scenario and period of a model by itself: the cheapest whole machines beside given or priced commitments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from planner.optimizer.fleet_model import FleetModel, Limits, Option
from planner.optimizer.milp import Columns, build
from planner.optimizer.program import INFEASIBLE, IntArray, Program
from planner.optimizer.relaxation import cheapest_by_bucket, limits_fallback, relax

FloatArray = NDArray[np.float64]
Box = tuple[FloatArray, FloatArray]  # (J,) commitments at least, and at most
FEW_OPTIONS = 40  # up to this many, a period's program has all of them
CELL_LIMIT_S, CELL_NODES = 10.0, 500  # of one period's program; nodes end it first, so that the answer is the same


@dataclass(frozen=True)
class Plan:
    """Machines of one period beside commitments; n of the model's options, K states, S buckets.

    Attributes:
        ids: (n,) options that it had to choose from.
        holds: (J,) commitments that it uses.
        usd_per_hour: of all but commitments.
        held (n,), fallback (n, K), routed (n, K, S), unserved (K, S): as in ``planner.optimizer.milp``.
    """

    ids: IntArray
    holds: FloatArray
    usd_per_hour: float
    held: FloatArray
    fallback: FloatArray
    routed: FloatArray
    unserved: FloatArray


@dataclass
class Cell:
    """A scenario and period, and the plans found for it.

    Attributes:
        where: (scenario, period).
        weight: probability times share of time; sums to 1 over all cells.
        model: the period alone, with every option.
        plans: found so far, all different.
    """

    where: tuple[int, int]
    weight: float
    model: FleetModel
    plans: list[Plan] = field(default_factory=list)
    _programs: dict[bytes, tuple[Program, Columns]] = field(default_factory=dict)

    def under(
        self, commitments: FloatArray, ids: Iterable[int], tolerance_usd: float, expected_usd: float
    ) -> Plan | None:
        """The cheapest plan of some options beside commitments that are there already; None where they cannot serve.

        Args:
            commitments: (J,) machines.
            ids: options on demand and spot to choose from.
            tolerance_usd: how far from the cheapest it may be.
            expected_usd: about what it costs, to turn the tolerance into a share.
        """
        committed = self.model.is_kind("committed")
        wanted = {int(j) for j in ids if not committed[j]} | {int(j) for j in np.flatnonzero(commitments)}
        chosen = np.array(sorted(wanted), dtype=np.int64)
        fixed = (commitments, commitments)
        plan, _ = self._solve(chosen, np.zeros(len(commitments)), fixed, tolerance_usd, expected_usd)
        if plan is None and len(chosen) < len(self.model.options):
            everything = np.flatnonzero(~committed | (commitments > 0))
            plan, _ = self._solve(everything, np.zeros(len(commitments)), fixed, tolerance_usd, expected_usd)
        return plan

    def priced(
        self, price: FloatArray, tolerance_usd: float, expected_usd: float, slack_usd: float, hurry: bool
    ) -> float | None:
        """A lower bound of the period when commitments cost ``price`` each; a plan found on the way is kept.

        With many options only those that add at most ``slack_usd`` to the relaxation are solved for: any plan that
        uses another costs at least the relaxation plus what that one adds.

        Args:
            hurry: the relaxation is bound enough.
        """
        committed = self.model.is_kind("committed")
        options = [replace(o, usd_per_hour=float(p)) if c else o
                   for o, p, c in zip(self.model.options, price, committed, strict=True)]  # fmt: skip
        if len(options) <= FEW_OPTIONS and not hurry:
            _, bound = self._solve(np.arange(len(options)), price, None, tolerance_usd, expected_usd)
            return bound
        relaxed = relax(self.model.with_options(options))
        if relaxed is None:
            return None
        cheapest = cheapest_by_bucket(self.model)
        if hurry or limits_fallback(self.model, cheapest):
            return relaxed.usd_per_hour
        adds = np.where(committed, relaxed.committed_reduced, relaxed.reduced[:, 0, 0])
        keep = adds <= slack_usd
        keep[[*relaxed.basis, *cheapest]] = True
        _, bound = self._solve(np.flatnonzero(keep), price, None, tolerance_usd, relaxed.usd_per_hour)
        beyond = float(adds[~keep].min(initial=np.inf))
        return min(max(bound, relaxed.usd_per_hour), relaxed.usd_per_hour + beyond)

    def _solve(
        self, ids: IntArray, price: FloatArray, box: Box | None, tolerance_usd: float, expected_usd: float
    ) -> tuple[Plan | None, float]:
        """A plan of some options, and a bound of their cheapest at ``price``."""
        program, columns = self._program(ids)
        low, high = (b.copy() for b in program.bounds)
        cost = program.cost.copy()
        there = columns.committed >= 0
        index, owner = columns.committed[there], ids[there]
        cost[index] = price[owner]
        if box is not None:
            low[index] = box[0][owner]
            high[index] = np.minimum(high[index], box[1][owner])
            if (low > high).any():
                return None, np.inf
        share = tolerance_usd / max(expected_usd, 2 * tolerance_usd, 1e-9)
        found = program.solve_with(cost, high, max(share, 1e-7), CELL_LIMIT_S, low=low, node_limit=CELL_NODES)
        values = found.values
        if values is None and found.status != INFEASIBLE:  # the limits ended the search first
            rounded = program.rounded_up(cost, high, low)
            values = None if rounded is None else rounded.values
        if values is None:
            return None, np.inf if found.status == INFEASIBLE else found.bound
        plan = plan_of(ids, len(self.model.options), program, columns, values)
        self.keep(plan)
        return plan, found.bound

    def keep(self, plan: Plan) -> None:
        """Remember a plan that is not known yet."""
        for known in self.plans:
            if abs(known.usd_per_hour - plan.usd_per_hour) < 1e-9 and np.array_equal(known.holds, plan.holds):
                return
        self.plans.append(plan)

    def _program(self, ids: IntArray) -> tuple[Program, Columns]:
        key = ids.tobytes()
        if key not in self._programs:
            self._programs[key] = build(self.model.with_options([self.model.options[j] for j in ids]))
        return self._programs[key]


def plan_of(ids: IntArray, num: int, program: Program, columns: Columns, values: FloatArray) -> Plan:
    """A solution of the program over some of a period's ``num`` options."""
    padded = np.append(values, 0.0)  # index -1 reads 0
    holds = np.zeros(num)
    holds[ids] = np.round(padded[columns.committed])
    there = columns.committed[columns.committed >= 0]
    beside = float(program.cost @ values - program.cost[there] @ values[there])
    return Plan(
        ids, holds, beside, np.round(padded[columns.held[:, 0, 0]]),
        np.maximum(padded[columns.fallback[:, 0, 0]], 0.0), np.clip(padded[columns.routed[:, 0, 0]], 0.0, 1.0),
        np.clip(padded[columns.unserved[0, 0]], 0.0, 1.0),
    )  # fmt: skip


def cells_of(model: FleetModel) -> list[Cell]:
    """Each scenario and period of a model by itself, without what ties periods together."""
    scenarios, periods, _ = model.demand.shape
    inside = without_ties(model.limits)
    found = []
    for t in range(periods):
        options = tuple(_single(option, t) for option in model.options)
        for o in range(scenarios):
            single = FleetModel(options, model.demand[o : o + 1, t : t + 1], states=model.states, limits=inside)
            found.append(Cell((o, t), float(model.probability[o] * model.weight[t]), single))
    return found


def without_ties(limits: Limits) -> Limits:
    """The limits that hold in each period by itself."""
    return replace(
        limits, budget_usd_per_hour=None, max_added_per_period=None, max_removed_per_period=None, min_run_periods=1,
        cvar_weight=0.0,
    )  # fmt: skip


def _single(option: Option, t: int) -> Option:
    active = None if option.active is None else option.active[t : t + 1]
    return replace(option, active=active, start_hours=0.0)
