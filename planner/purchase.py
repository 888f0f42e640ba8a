"""Purchase forms as options: boots, Capacity Blocks in whole days, commitments that are already paid for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from catalogs.units import SECONDS_PER_HOUR
from planner.candidates import Candidate
from planner.fleet_model import FleetModel, Option, Quota
from planner.problem import Holding, Problem

MAX_BLOCK_INSTANCES = 64  # of one Capacity Block
HOURS_PER_DAY = 24


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
                f"{h.purchase} (already paid)", "committed", 0.0, load, max_count=h.count,
            )
            for h in self.existing
            if h.instance_type == candidate.instance_type
        ]  # fmt: skip

    def shared(self, options: list[Option]) -> tuple[Quota, ...]:
        """What is already paid for can run one configuration or another, not each of them."""
        return tuple(
            Quota(
                existing_name(h),
                {o.name: 1.0 for o in options if o.name.startswith(existing_name(h) + " ")},
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


def _blocks(option: Option, periods: int) -> list[Option]:
    """A Capacity Block for each run of whole days of the horizon; for a static plan, blocks one after another."""
    days = periods // HOURS_PER_DAY
    if days < 1 or periods % HOURS_PER_DAY:
        return [replace(option, max_count=MAX_BLOCK_INSTANCES)]
    found = []
    for first in range(days):
        for last in range(first, days):
            active = np.zeros(periods, dtype=bool)
            active[first * HOURS_PER_DAY : (last + 1) * HOURS_PER_DAY] = True
            span = f"day {first + 1}" if first == last else f"days {first + 1}-{last + 1}"
            found.append(replace(option, name=f"{option.name} {span}", active=active, max_count=MAX_BLOCK_INSTANCES))
    return found
