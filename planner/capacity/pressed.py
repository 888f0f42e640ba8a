"""Of a solved plan: what it uses, and the periods and spot states in which simulating its fleet says the most."""

from __future__ import annotations

import numpy as np

from planner.optimizer.fleet_model import FleetModel, Option
from planner.optimizer.milp import Solution

MAX_CHECKS = 24  # different fleets that are simulated; the busiest first


def pressed(model: FleetModel, solution: Solution, most: int = MAX_CHECKS) -> list[tuple[int, int]]:
    """(period, spot state) pairs to simulate: for every different fleet, the period with the most requests.

    The busiest period comes first; there the state in which all spot zones are down is checked too, with its fallback.
    """
    counts = np.concatenate([solution.held[:, 0], solution.committed[:, None] * model.active]).round()
    rate = model.demand[0].sum(1)
    hardest: dict[bytes, int] = {}
    for t in range(len(rate)):
        key = counts[:, t].tobytes()
        if rate[t] > 0 and (key not in hardest or rate[t] > rate[hardest[key]]):
            hardest[key] = t
    periods = sorted(hardest.values(), key=lambda t: (-rate[t], t))[:most]
    up = [s.spot_up for s in model.states]
    calm = int(np.argmax(up))
    found = [(t, calm) for t in periods]
    settled = [k for k, s in enumerate(model.states) if s.fallback]
    lowest = min(settled, key=lambda k: up[k], default=calm)
    if model.is_kind("spot").any() and up[lowest] < 1 and periods:
        found.append((periods[0], lowest))
    return found


def used_options(model: FleetModel, solution: Solution) -> list[Option]:
    """Options of which at least one machine is bought."""
    return [o for o, n in zip(model.options, solution.machines, strict=True) if n > 0.5]
