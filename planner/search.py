"""The loop of the main job: solve with bounds, simulate what the solution uses, verify the fleet, correct, repeat.

Capacities that are not simulated yet stand at a bound that no replica can beat. So the model is optimistic: when its
optimum uses simulated capacities only, nothing that was left out can be cheaper. A fleet that then misses its promise
has the capacity of the failing line cut to what the simulation shows; one that keeps it is tried with a machine less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from planner.capacity.pressed import pressed, used_options
from planner.capacity.sustained import Capacities
from planner.capacity.verify import Group, Verdict, group_requests, simulate_fleet
from planner.inputs.candidates import Candidate
from planner.inputs.demand import Demand, Pattern
from planner.inputs.horizon import Horizon, scaled
from planner.inputs.purchase import Extra
from planner.optimizer.fleet_model import FleetModel, Kind, Option, State
from planner.optimizer.milp import Solution
from planner.optimizer.solve import solve
from simulator.scenario.replicas import Line as Served
from simulator.workload.scaling import scale_requests

Progress = Callable[[str, float], None]
Key = tuple[str, Pattern]  # configuration, buckets
KINDS: dict[str, Kind] = {"on_demand": "on_demand", "spot": "spot"}
EPSILON = 1e-7
COARSE_GAP, COARSE_LIMIT_S = 3e-3, 20.0
FIRST_GAP = 5e-3  # of plans over many periods until one of them keeps its promise; then the gap that was asked for
ROUGH_GAP, ROUGH_LIMIT_S = 0.02, 10.0  # of plans over many periods that only stand for comparison


@dataclass
class Search:
    """The state of the search.

    Attributes:
        candidates: by label.
        served: what a replica of each configuration is, by configuration.
        capacities: asks the simulator.
        model: everything but the options.
        rps: simulated capacities so far, of one replica.
        locked: capacities that a simulation of the whole fleet has corrected.
    """

    candidates: dict[str, Candidate]
    served: dict[str, Served]
    capacities: Capacities
    horizon: Horizon
    model: FleetModel
    extra: Extra
    gap: float
    time_limit_s: float
    rps: dict[Key, float] = field(default_factory=dict)
    locked: set[Key] = field(default_factory=set)
    patterns: dict[str, Pattern] = field(default_factory=dict)  # by option name
    weights: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _loads: dict[Key, tuple[float, NDArray[np.float64] | None]] = field(default_factory=dict)
    _offered: dict[tuple[str, Pattern], tuple[NDArray[np.float64], list[Option]]] = field(default_factory=dict)
    rounds: int = 0
    checked: int = 0  # (period, spot state) pairs simulated as whole fleets
    first: bool = False  # no plan has kept its promise yet: the gap may be wider
    hurried: bool = False  # the clock ended one of the searches behind the plan

    @property
    def demand(self) -> Demand:
        """The workload in buckets."""
        return self.capacities.demand

    def capacity(self, key: Key) -> float:
        """Simulated, or else the bound."""
        config, pattern = key
        known = self.rps.get(key)
        return self.capacities.bound_rps(self.served[config], pattern) if known is None else known

    def options(self) -> list[Option]:
        """What can be bought at the present capacities; dominated options are left out."""
        loads = {
            (config, pattern): self.load_of((config, pattern))
            for config in sorted({c.config for c in self.candidates.values()})
            for pattern in self.demand.patterns
        }
        found = []
        for candidate in self.candidates.values():
            for pattern in self.demand.patterns:
                load = loads[(candidate.config, pattern)]
                if load is not None:
                    found += self._offers(candidate, pattern, load)
        self.model = self._with_shared(found)
        return self.model.undominated(found)

    def simulated(self) -> FleetModel:
        """The model with all that can be bought of what was simulated, dominated or not."""
        found: list[Option] = []
        for candidate in self.candidates.values():
            for key in sorted(k for k in self.rps if k[0] == candidate.config):
                load = self.load_of(key)
                if load is not None:
                    found += self._offers(candidate, key[1], load)
        return self._with_shared(found).with_options(found)

    def _with_shared(self, options: list[Option]) -> FleetModel:
        """The model with the limit that each existing commitment sets over its configurations."""
        limits = self.model.limits
        own = [q for q in limits.quotas if not q.name.startswith("existing ")]
        return replace(self.model, limits=replace(limits, quotas=(*own, *self.extra.shared(options))))

    def _offers(self, candidate: Candidate, pattern: Pattern, load: NDArray[np.float64]) -> list[Option]:
        """What is for sale of a candidate for some sizes, at this load of one replica."""
        known = self._offered.get((candidate.label, pattern))
        if known is None or known[0] is not load:
            offers = self._new_offers(candidate, pattern, load / candidate.served_at_once)
            known = self._offered[candidate.label, pattern] = (load, offers)
        return known[1]

    def _new_offers(self, candidate: Candidate, pattern: Pattern, load: NDArray[np.float64]) -> list[Option]:
        found = []
        for purchase, offer in candidate.offers.items():
            name = f"{candidate.label} {purchase} [{self.demand.pattern_name(pattern)}]"
            kind = KINDS.get(purchase, "committed")
            option = Option(
                name, candidate.instance_type, candidate.label, purchase, kind, offer.usd_per_hour, load,
                machines=candidate.machines,
            )  # fmt: skip
            found += self.extra.forms(option, self.model)
        found += self.extra.held_already(candidate, self.demand.pattern_name(pattern), load)
        for option in found:
            self.patterns[option.name] = pattern
        return found

    def load_of(self, key: Key) -> NDArray[np.float64] | None:
        """(S,) share of one replica that a request a second of each bucket takes; None: it serves none."""
        rps = self.capacity(key)
        known = self._loads.get(key)
        if known is None or known[0] != rps:
            known = self._loads[key] = (rps, self._load(key, rps) if rps > 0 else None)
        return known[1]

    def _load(self, key: Key, rps: float) -> NDArray[np.float64]:
        config, pattern = key
        weight, share = self._weights(config), self.demand.rate_rps
        chosen = list(pattern)
        mean = float((weight * share)[chosen].sum() / share[chosen].sum())
        load = np.full(len(share), np.inf)
        load[chosen] = weight[chosen] / mean / rps
        return load

    def _weights(self, config: str) -> NDArray[np.float64]:
        """(S,) relative work of a request of each bucket: a perfectly packed replica's time for it."""
        if config not in self.weights:
            served = self.served[config]
            self.weights[config] = np.array([self.capacities.work(served, b) for b in range(len(self.demand.names))])
        return self.weights[config]

    def restricted(self, candidates: dict[str, Candidate]) -> Search:
        """The same search among fewer candidates; what it simulates is shared."""
        if self.horizon.num_periods == 1:
            return replace(self, candidates=candidates, rounds=0)
        return replace(self, candidates=candidates, rounds=0, gap=ROUGH_GAP, time_limit_s=ROUGH_LIMIT_S)

    def settle(self, progress: Progress) -> tuple[FleetModel, Solution] | None:
        """Solve until the optimum rests on simulated capacities alone; None: no plan, even at the bounds."""
        coarse = self._settled(progress, coarse=True)
        if coarse is None or (_sketch(self.model) is self.model and coarse[1].gap <= self._gap):
            return coarse
        return self._settled(progress, coarse=False)

    def _settled(self, progress: Progress, coarse: bool) -> tuple[FleetModel, Solution] | None:
        """As ``settle``; ``coarse`` looks at few periods, without spot losses, to find what to simulate cheaply."""
        while True:
            options = self.options()
            model = self.model.with_options(options)
            model = _sketch(model) if coarse else model
            gap, limit = (COARSE_GAP, COARSE_LIMIT_S) if coarse else (self._gap, self.time_limit_s)
            solution = solve(model, gap, limit) if options else None
            if solution is None:
                return None
            self.hurried |= solution.hurried and not self.first
            unknown = self._unknown(model, solution)
            if not unknown:
                return model, solution
            num = len(self.rps) + len(unknown)
            progress(f"simulating {num} configuration{'s' if num > 1 else ''}", self._share())
            self._simulate(unknown)

    @property
    def _gap(self) -> float:
        return max(self.gap, FIRST_GAP) if self.first else self.gap

    def _share(self) -> float:
        return 0.1 + 0.6 * (1 - float(np.exp(-len(self.rps) / 12)))

    def _unknown(self, model: FleetModel, solution: Solution) -> list[Key]:
        return sorted(self._used_keys(model, solution) - set(self.rps))

    def _used_keys(self, model: FleetModel, solution: Solution) -> set[Key]:
        return {(self.candidates[o.config].config, self.patterns[o.name]) for o in used_options(model, solution)}

    def _simulate(self, keys: Sequence[Key]) -> None:
        found = self.capacities.rps([(self.served[config], pattern) for config, pattern in keys])
        self.rps.update(zip(keys, found, strict=True))

    def groups(
        self, model: FleetModel, solution: Solution, period: int = 0, state: int | None = None
    ) -> tuple[list[Group], list[Key]]:
        """The fleet of a period as groups of replicas, and the capacity that each rests on.

        Lines of one configuration and pattern (bought in several forms or sizes) are one group.

        Args:
            state: of the spot zones; None: the one in which the most of them are up.
        """
        k = int(np.argmax([s.spot_up for s in model.states])) if state is None else state
        found: dict[Key, Group] = {}
        active = model.active[:, period]
        for j, option in enumerate(model.options):
            up = model.states[k].spot_up if option.kind == "spot" else 1.0
            committed = solution.committed[j] * active[j]
            count = int(
                committed
                + np.floor(solution.held[j, 0, period] * up)
                + np.ceil(solution.fallback[j, 0, period, k] - 1e-6)
            )
            if not count:
                continue
            candidate = self.candidates[option.config]
            key = (candidate.config, self.patterns[option.name])
            share = solution.routed[j, 0, period, k, :]
            replicas = count * candidate.served_at_once
            before = found.get(key)
            if before is not None:
                share, replicas = share + before.share, replicas + before.num_replicas
            found[key] = Group(self.served[candidate.config], replicas, share, candidate.config)
        return list(found.values()), list(found)

    def tighten(self, demand: Demand, groups: Sequence[Group], keys: Sequence[Key], verdict: Verdict) -> None:
        """Cut the capacity of each failing group to the highest share of its traffic that it does sustain."""
        failing = [i for i, ok in enumerate(verdict.groups_ok) if not ok]
        for i in failing or range(len(groups)):
            part = group_requests(demand, groups, i)
            low, high = 0.5, 1.0
            if not self._holds(groups[i], part, low):
                low = 0.0
            for _ in range(5):
                if low == 0.0:
                    break
                middle = (low + high) / 2
                low, high = (middle, high) if self._holds(groups[i], part, middle) else (low, middle)
            self._cut(demand, groups[i], keys[i], max(low, 0.4))

    def _cut(self, demand: Demand, group: Group, key: Key, share: float) -> None:
        """The group sustains ``share`` of what it was given.

        Where that was more than its modelled capacity (a period's busiest stretch), the capacity falls by the share.
        """
        used = min(self._use(demand, group, key), 1.0)
        now = self.rps[key]
        self.rps[key] = min(now * used * share, now * (1 - 1e-3)) if used > 0 else now * share
        self.locked.add(key)

    def ask_more(self, model: FleetModel, solution: Solution, capacity_share: float, loss_share: float) -> None:
        """Cut the capacity of all that a plan uses; where that is spot too, outages may lose fewer requests."""
        for key in self._used_keys(model, solution):
            self.rps[key] *= capacity_share
            self.locked.add(key)
        availability = self.model.limits.availability
        if availability is not None and any(o.kind == "spot" for o in used_options(model, solution)):
            stricter = replace(self.model.limits, availability=1 - (1 - availability) * loss_share)
            self.model = replace(self.model, limits=stricter)

    def _use(self, demand: Demand, group: Group, key: Key) -> float:
        """Share of the group's modelled capacity that its traffic takes."""
        config, pattern = key
        weight, rate = self._weights(config), self.demand.rate_rps
        chosen = list(pattern)
        mean = float((weight * rate)[chosen].sum() / rate[chosen].sum())
        return float((weight / mean * demand.rate_rps * group.share).sum() / (self.rps[key] * group.num_replicas))

    def _holds(self, group: Group, part: object, share: float) -> bool:
        from simulator.workload.requests import Requests

        assert isinstance(part, Requests)
        return self.capacities.holds(group.served, scale_requests(part, share), group.num_replicas)

    def loosen(self, groups: Sequence[Group], keys: Sequence[Key], step: Sequence[int]) -> bool:
        """Try each group with a machine less; where the promise still holds, its capacity was too low: raise it."""
        raised = False
        for i, (group, key) in enumerate(zip(groups, keys, strict=True)):
            fewer = group.num_replicas - step[i]
            if key in self.locked or fewer < 1:
                continue
            part = group_requests(self.demand, groups, i)
            if self.capacities.holds(group.served, part, fewer):
                needed = self._use(self.demand, replace(group, num_replicas=fewer), key)
                if needed > 1:
                    self.rps[key] *= needed * (1 + EPSILON)
                    raised = True
        return raised

    def verified(self, progress: Progress, max_rounds: int) -> tuple[FleetModel, Solution, Verdict] | None:
        """Settle, simulate, correct, until the fleet keeps its promise and none of its lines can spare a machine.

        Where no fleet kept it within ``max_rounds`` the last one is returned, with the verdict that says so; None where
        the model has no plan at all.
        """
        best: tuple[FleetModel, Solution, Verdict] | None = None
        failing: tuple[FleetModel, Solution, Verdict] | None = None
        self.first = self.horizon.num_periods > 1
        for self.rounds in range(1, max_rounds + 1):
            settled = self.settle(progress)
            if settled is None:
                return best or failing
            model, solution = settled
            progress("verifying the fleet on the whole workload", 0.75)
            verdict = self._check(model, solution)
            if verdict is None:
                continue
            if not verdict.ok:
                failing = (model, solution, verdict)
                continue
            if best is None or solution.usd_per_hour <= best[1].usd_per_hour + 1e-9:
                best = (model, solution, verdict)
            if self.first and solution.gap > self.gap:
                self.first = False
                continue
            if self.horizon.num_periods > 1 or model.is_kind("spot").any():
                return best
            groups, keys = self.groups(model, solution)
            step = [self._step(model, solution, key) for key in keys]
            if not self.loosen(groups, keys, step):
                return model, solution, verdict
        return best or failing

    def _check(self, model: FleetModel, solution: Solution) -> Verdict | None:
        """Simulate the fleet where it is pressed hardest: a verdict that fails, after tightening, or the first.

        None where there is nothing to simulate.
        """
        first: Verdict | None = None
        failed: Verdict | None = None
        checked = 0
        for period, state in pressed(model, solution):
            groups, keys = self.groups(model, solution, period, state)
            if not groups:
                continue
            demand = self.horizon.demand_in(period)
            if self.model.demand.shape[1] == 1:
                demand = scaled(demand, self.scale)
            verdict = simulate_fleet(self.capacities, demand, groups)
            self.capacities.simulations += verdict.simulations
            if not verdict.ok:
                self.tighten(demand, groups, keys, verdict)
                failed = failed or verdict
            first = first or verdict
            checked += 1
        self.checked = checked
        return failed or first

    @property
    def scale(self) -> float:
        """The first scenario's demand over the workload's own rate, headroom aside."""
        return self.extra.first_scale

    def _step(self, model: FleetModel, solution: Solution, key: Key) -> int:
        """Replicas that leave with the smallest machine of a group."""
        sizes = [
            self.candidates[o.config].served_at_once
            for o in used_options(model, solution)
            if (self.candidates[o.config].config, self.patterns[o.name]) == key
        ]
        return min(sizes)


def _sketch(model: FleetModel) -> FleetModel:
    """The model at its busiest, a middling and its calmest hour, with all spot zones up; itself, where that is all."""
    limits = replace(
        model.limits, availability=None, budget_usd_per_hour=None, cvar_weight=0.0, max_added_per_period=None,
        max_removed_per_period=None, min_run_periods=1,
    )  # fmt: skip
    if model.demand.shape[:2] == (1, 1) and model.states == (State(1.0),) and limits == model.limits:
        return model
    rate = model.demand[0].sum(1)
    order = [int(t) for t in np.argsort(rate, kind="stable") if rate[t] > 0]
    chosen = sorted({order[0], order[len(order) // 2], order[-1]})
    options = [o if o.active is None else replace(o, active=o.active[chosen]) for o in model.options]
    return replace(
        model, options=tuple(o for o in options if o.active is None or o.active.any()),
        demand=model.demand[:1, chosen], hours=np.ones(len(chosen)), probability=np.ones(1), states=(State(1.0),),
        limits=limits, cyclic=False,
    )  # fmt: skip
