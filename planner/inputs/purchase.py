"""Purchase forms as options: boots, Capacity Blocks in whole days, commitments that are already paid for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from catalogs.load import find_instance
from catalogs.units import SECONDS_PER_HOUR
from planner.inputs.candidates import Candidate
from planner.inputs.problem import Holding, Problem
from planner.optimizer.fleet_model import FleetModel, Option, Quota

MAX_BLOCK_INSTANCES = 64  # of one Capacity Block
HOURS_PER_DAY = 24
DAILY_UP_TO_DAYS, LONGEST_BLOCK_DAYS = 14, 182  # in steps of a day up to the first, of a week up to the second


@dataclass(frozen=True)
class Extra:
    """What a problem adds to the plain offers."""

    boot_hours: float
    existing: tuple[Holding, ...]
    first_scale: float

    def forms(self, option: Option, model: FleetModel) -> list[Option]:
        """An offer as options of this model."""
        periods = model.demand.shape[1]
        if option.purchase == "capacity_block":
            return _blocks(option, periods)
        if option.kind != "committed" and periods > 1:
            return [replace(option, start_hours=self.boot_hours)]
        return [option]

    def held_already(self, candidate: Candidate, pattern: str, load: NDArray[np.float64]) -> list[Option]:
        """Machines that are paid for: free, and no more than there are."""
        return [
            Option(
                f"{existing_name(h)} {candidate.label} [{pattern}]", candidate.instance_type, candidate.label,
                f"{h.purchase} (already paid)", "committed", 0.0, load, max_count=h.count // candidate.machines,
                machines=candidate.machines,
            )
            for h in self.existing
            if h.instance_type == candidate.instance_type
        ]  # fmt: skip

    def shared(self, options: list[Option]) -> tuple[Quota, ...]:
        """What is already paid for can run one configuration or another, not each of them."""
        return tuple(
            Quota(
                existing_name(h),
                {o.name: float(o.machines) for o in options if o.name.startswith(existing_name(h) + " ")},
                float(h.count),
            )
            for h in self.existing
        )


def existing_name(holding: Holding) -> str:
    """Of the options that stand for a holding."""
    return f"existing {holding.purchase} {holding.instance_type}"


def extra_of(problem: Problem) -> Extra:
    """From a problem; scenario scales other than the first's matter to the optimizer only."""
    return Extra(
        problem.time.boot_s / SECONDS_PER_HOUR,
        tuple(problem.commitments.existing),
        problem.time.scenarios[0].scale,
    )


def check_holdings(problem: Problem, candidates: Iterable[Candidate]) -> list[str]:
    """Of commitments that are already paid for: what the plan can make no use of, in words.

    Raises:
        InputError: an instance type, of these or of today's fleet, that is not in the catalogue.
    """
    for where, holdings in (("commitments.existing", problem.commitments.existing), ("today", problem.today)):
        for holding in holdings:
            find_instance(holding.instance_type, where)
    usable = {c.instance_type for c in candidates}
    return [
        f"{h.count} x {h.instance_type} ({h.purchase}) are paid for, but are not among the candidates that can serve "
        "the model: the plan does not use them"
        for h in problem.commitments.existing
        if h.instance_type not in usable
    ]


def _blocks(option: Option, periods: int) -> list[Option]:
    """A Capacity Block for each run of whole days of the horizon; for a static plan, blocks one after another.

    A horizon that ends within a day pays for the whole of it.
    """
    most = MAX_BLOCK_INSTANCES // option.machines
    if periods == 1:
        return [replace(option, max_count=most)]
    days = math.ceil(periods / HOURS_PER_DAY)
    found = []
    for first in range(days):
        for last in range(first, days):
            length = last - first + 1
            if length > LONGEST_BLOCK_DAYS or (length > DAILY_UP_TO_DAYS and length % 7):
                continue
            active = np.zeros(periods, dtype=bool)
            active[first * HOURS_PER_DAY : (last + 1) * HOURS_PER_DAY] = True
            span = f"day {first + 1}" if first == last else f"days {first + 1}-{last + 1}"
            usd = option.usd_per_hour * length * HOURS_PER_DAY / int(active.sum())
            found.append(replace(option, name=f"{option.name} {span}", active=active, max_count=most, usd_per_hour=usd))
    return found
