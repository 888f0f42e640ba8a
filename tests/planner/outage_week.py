"""A fleet of spot and on-demand machines operated over a week of zone outages: what it costs and what it serves.

Every rule meets the same zones, the same boots and the same demand. Capacity is what the planner's model says a machine
sustains, so that rules are compared, not simulators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from planner.optimizer.fleet_model import FleetModel, Option
from planner.optimizer.milp import Solution
from simulator.fleet.spot import PLACERS, Availability, Placer, SpotPolicy

TICK_S = 60.0
Wanted = tuple[list[int], int]  # spot machines of each option, on-demand machines


@dataclass
class Machines:
    """Spot machines of one option: (zone, ready at) of each."""

    option: Option
    placer: Placer
    held: list[tuple[int, float]] = field(default_factory=list)

    def lose(self, path: Availability, now: float) -> None:
        """Zones that went down take theirs with them."""
        kept = [m for m in self.held if path.is_up(m[0], now)]
        for zone in {z for z, _ in self.held} - {z for z, _ in kept}:
            self.placer.preempted(zone)
        self.held = kept

    def ask_for(self, wanted: int, path: Availability, now: float, cold_start_s: float) -> None:
        """Start what is missing (a launch into a zone that is down fails), let go what is too much."""
        self.held = sorted(self.held, key=lambda m: m[1])[:wanted]
        for _ in range(wanted - len(self.held)):
            zone = self.placer.choose([z for z, _ in self.held])
            if path.is_up(zone, now):
                self.placer.active(zone)
                self.held.append((zone, now + cold_start_s))
            else:
                self.placer.preempted(zone)

    def ready(self, now: float) -> int:
        """How many serve."""
        return sum(at <= now for _, at in self.held)


def operate(
    path: Availability,
    demand_rps: np.ndarray,
    spot: Sequence[Machines],
    on_demand: Option,
    wanted: Callable[[int, list[int], float], Wanted],
    standing: tuple[np.ndarray, np.ndarray],
    cold_start_s: float,
) -> tuple[float, float]:
    """Cost in USD an hour, and the share of requests that found capacity.

    Args:
        demand_rps: (hours,)
        wanted: from the hour, the ready spot machines of each option and the on-demand machines ready, what to hold.
            It is asked for the hour that a machine started now would first serve in.
        standing: (hours,) capacity in requests a second and USD an hour of machines that are there by timetable.
    """
    bought: list[float] = []  # on-demand machines in place of spot: ready at
    usd = lost = 0.0
    num_hours = len(demand_rps)
    for tick in range(int(num_hours * 3600 / TICK_S)):
        now = tick * TICK_S
        hour = int(now // 3600)
        for machines in spot:
            machines.lose(path, now)
        ready = [m.ready(now) for m in spot]
        serving = sum(n / float(m.option.load[0]) for n, m in zip(ready, spot, strict=True))
        serving += sum(at <= now for at in bought) / float(on_demand.load[0]) + standing[0][hour]
        lost += max(0.0, demand_rps[hour] - serving) * TICK_S
        ahead = min(int((now + cold_start_s) // 3600), num_hours - 1)
        counts, instead = wanted(ahead, ready, serving)
        for machines, count in zip(spot, counts, strict=True):
            machines.ask_for(count, path, now, cold_start_s)
        bought = sorted(bought)[:instead]
        bought += [now + cold_start_s] * (instead - len(bought))
        usd += (sum(len(m.held) * m.option.usd_per_hour for m in spot) + len(bought) * on_demand.usd_per_hour) * (
            TICK_S / 3600
        )
        usd += standing[1][hour] * TICK_S / 3600
    return usd / num_hours, 1 - lost / float(demand_rps.sum() * 3600)


def operate_plan(
    path: Availability, model: FleetModel, plan: Solution, on_demand: Option, cold_start_s: float
) -> tuple[float, float]:
    """Our plan: its timetable, spot spread evenly over the zones, lost capacity replaced on demand."""
    demand = model.demand[0, :, 0]
    ids = [j for j, o in enumerate(model.options) if o.kind == "spot" and plan.held[j].any()]
    spot = [Machines(model.options[j], PLACERS["even_spread"](path.zones)) for j in ids]
    capacity = np.array([1 / float(o.load[0]) for o in model.options])
    price = model.usd_per_hour
    fixed = np.where(model.is_kind("on_demand")[:, None], plan.held[:, 0], 0.0) + plan.committed[:, None] * model.active
    rises = np.maximum(fixed - np.roll(fixed, 1, axis=1), 0.0) * np.array([[o.start_hours] for o in model.options])
    standing = capacity @ fixed, price @ (fixed + rises)

    def wanted(hour: int, ready: list[int], _serving: float) -> Wanted:
        have = standing[0][hour] + sum(n / float(m.option.load[0]) for n, m in zip(ready, spot, strict=True))
        short = demand[hour] - have
        return [int(plan.held[j, 0, hour]) for j in ids], max(0, math.ceil(short * float(on_demand.load[0]) - 1e-6))

    return operate(path, demand, spot, on_demand, wanted, standing, cold_start_s)


def operate_spothedge(
    path: Availability, demand: np.ndarray, spot: Option, on_demand: Option, policy: SpotPolicy, cold_start_s: float
) -> tuple[float, float]:
    """SpotHedge (SkyServe, arXiv 2411.01438): as many machines as the load needs, all on spot in zones that it takes to
    be active, and ``num_overprovision`` more; on demand in place of spot that is not ready, as long as it is not."""
    machines = Machines(spot, PLACERS[policy.placer](path.zones))
    targets = [math.ceil(d * float(spot.load[0]) - 1e-9) for d in demand]

    def wanted(hour: int, ready: list[int], _serving: float) -> Wanted:
        count, instead = policy.mix(targets[hour], ready[0])
        return [count], instead

    nothing = np.zeros(len(demand))
    return operate(path, demand, [machines], on_demand, wanted, (nothing, nothing), cold_start_s)
