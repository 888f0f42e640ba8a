"""A fleet in time: controllers decide, machines boot, spot is lost, replicas fail, and requests are served meanwhile.

The control plane is a SimPy model; between its events the data plane serves requests in compiled code. At equal
instants events happen in the order in which they were scheduled. All random draws come from streams of the run's seed,
one a purpose, so that one rule can be changed without moving the others' luck.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import numpy as np
import simpy

from simulator.fleet.accounting import Ledger
from simulator.fleet.autoscaling import Oscillation, Predictive, find_oscillation, forecast_error
from simulator.fleet.caches import Caches
from simulator.fleet.config import BLOCK_TERMINATION_S, FleetConfig
from simulator.fleet.data_plane import DataPlane
from simulator.fleet.events import Failures
from simulator.fleet.gateway import Gateway
from simulator.fleet.series import Series
from simulator.fleet.spot import PLACERS
from simulator.fleet.state import FleetResult, GroupState, Machine
from simulator.workload.requests import Requests

PENDING_SHARE = 0.88  # of the instance boot: API and pending -> running, not billed (brevdev/ec2-coldboot-research)
Process = Generator[Any, Any, None]


class Fleet:
    """One run of a fleet.

    Args:
        requests: an open load, sorted by arrival.
        plane: where requests are served; its kinds are those that the groups name.
        config: groups and rules.
        seed: of all random draws.
        caches: in front of the replicas.
        seats: requests that a replica of each kind may hold at once (``queue: central``).
    """

    def __init__(
        self,
        requests: Requests,
        plane: DataPlane,
        config: FleetConfig,
        seed: int = 0,
        caches: Caches | None = None,
        seats: tuple[int, ...] = (256,),
    ) -> None:
        self.requests, self.plane, self.config = requests, plane, config
        self.env = simpy.Environment()
        self.ledger = Ledger()
        self.events: list[tuple[float, str]] = []
        self.targets: dict[str, list[tuple[float, int]]] = {g.name: [] for g in config.groups}
        self._boot_rng = np.random.default_rng([seed, 0xB007])
        self._capacity_rng = np.random.default_rng([seed, 0xCA9A])
        most = config.admission.max_ongoing_requests
        self._seats = [most or s for s in seats]
        self.gateway = Gateway(requests, plane, config.admission, caches, seed, lambda: self._live)
        self._caches = caches
        zones = config.availability.zones if config.availability else ()
        self.groups = [
            GroupState(g, g.scaler() if g.scaler else None, 0, PLACERS[g.spot.placer](zones) if g.spot else None)
            for g in config.groups
        ]
        self.failures = Failures(self, seed)
        self.series = Series(self)
        self._live: dict[int, int] = {}  # slot -> seats, of replicas that requests are sent to
        self._done = self.env.event()

    @property
    def now_s(self) -> float:
        """The present instant."""
        return float(self.env.now)

    def run(self) -> FleetResult:
        """Play the whole workload and wait for its end."""
        for index, group in enumerate(self.groups):
            self.env.process(self._life_of_group(index, group))
        self.failures.start()
        self.env.process(self._watch())
        if self.gateway.ticks:
            self.env.process(self._tick())
        self.env.run(until=self._done)
        self.gateway.close()
        self.series.sample()
        for group in self.groups:
            for machine in [*group.machines, *group.pool]:
                self._note_busy(machine)
        self.ledger.close_all(self.now_s)
        return FleetResult(
            outcome=self.plane.outcome,
            ledger=self.ledger,
            series=self.series.arrays(),
            events=self.events,
            targets=self.targets,
            reasons=self.gateway.reasons,
            num_retries=self.gateway.num_retries,
            caches=self._caches.counts if self._caches else {},
            oscillations=self._oscillations(),
            forecast_error=self._forecast_errors(),
            end_s=self.now_s,
        )

    def settle(self) -> None:
        """Let requests be served up to now."""
        self.gateway.settle(self.now_s)

    def note(self, what: str) -> None:
        """Write an event down."""
        self.events.append((self.now_s, what))

    # Groups and their controllers

    def _life_of_group(self, index: int, group: GroupState) -> Process:
        block = group.spec.block
        if block is not None and block[0] > 0:
            yield self.env.timeout(block[0])
        self.set_target(group, group.spec.count, ready=self.config.start_ready and (block is None or block[0] <= 0))
        if block is not None:
            self.env.process(self._end_block(group, block[1]))
        self._fill_pool(index, group)
        scaler = group.scaler
        while scaler is not None:
            yield self.env.timeout(scaler.interval_s)
            if not any(a <= self.now_s < b for a, b in self.config.pauses):
                self.settle()
                self.set_target(group, scaler.target_replicas(self.now_s, self.series.observed(index)))

    def _end_block(self, group: GroupState, end_s: float) -> Process:
        yield self.env.timeout(end_s - BLOCK_TERMINATION_S - self.now_s)
        group.scaler = None
        self.note(f"{group.spec.name}: the Capacity Block ends")
        self.set_target(group, 0)
        yield self.env.timeout(end_s - self.now_s)
        self.settle()
        for machine in list(group.machines):
            self.kill(machine, "Capacity Block ended")

    def set_target(self, group: GroupState, target: int, *, ready: bool = False) -> None:
        """Want so many replicas, and act on it."""
        log = self.targets[group.spec.name]
        if not log or log[-1][1] != target:
            log.append((self.now_s, target))
        group.target = target
        self.reconcile(group, ready=ready)

    def reconcile(self, group: GroupState, *, ready: bool = False) -> None:
        """Start and stop machines so that the group has what it wants, by purchase form."""
        if group.spec.spot is None:
            self._bring_to(group, group.spec.purchase, group.target, ready)
            return
        num_ready = sum(m.serving and m.lease.purchase == "spot" for m in group.machines)
        num_ready = group.spec.spot.mix(group.target, 0)[0] if ready else num_ready
        spot, on_demand = group.spec.spot.mix(group.target, num_ready)
        self._bring_to(group, "spot", spot, ready)
        self._bring_to(group, group.spec.purchase, on_demand, ready)

    def _bring_to(self, group: GroupState, purchase: str, wanted: int, ready: bool) -> None:
        held = group.held(purchase)
        for _ in range(wanted - len(held)):
            if not self._launch(group, purchase, ready=ready):
                self._retry_later(group)
                break
        if len(held) > wanted:
            self.settle()
            load = self.plane.load()
            weight = {m: int(load.running[m.slot] + load.waiting[m.slot]) if m.slot is not None else -1 for m in held}
            order = sorted(held, key=lambda m: (weight[m], -m.lease.lease_id))  # not ready first, then least loaded
            for machine in order[: len(held) - wanted]:
                self.retire(machine, "scaled in")

    def _retry_later(self, group: GroupState) -> None:
        if not group.retry_pending:
            group.retry_pending = True
            self.env.process(self._retry(group))

    def _retry(self, group: GroupState) -> Process:
        yield self.env.timeout(self.config.capacity.retry_s)
        group.retry_pending = False
        self.reconcile(group)

    # Machines

    def _launch(self, group: GroupState, purchase: str, *, ready: bool = False) -> bool:
        """Ask for a machine; False if there is none to be had now."""
        index = self.groups.index(group)
        spec = group.spec
        if purchase == "spot":
            zone = self._spot_zone(group, ready)
            if zone is None:
                return False
            assert self.config.availability is not None
            name = self.config.availability.zones[zone].name
        else:
            zone = None
            if group.pool and not ready:
                return self._wake(group)
            if self._refused(purchase) and not ready:
                self.note(f"{spec.name}: insufficient capacity")
                return False
            names = [z for z in spec.zones if not self.failures.zone_is_down(z)]
            if not names:
                return False
            name = names[group.turn % len(names)]
            group.turn += 1
        lease = self.ledger.open(spec.instance_type, purchase, name, self.now_s, spec.num_gpus)
        machine = Machine(index, lease, zone)
        group.machines.append(machine)
        if ready:
            self._make_ready(machine, first=True)
        else:
            self.env.process(self._boot(machine, warm=False))
        return True

    def _refused(self, purchase: str) -> bool:
        probability = self.config.capacity.insufficient_capacity_probability
        return purchase == "on_demand" and probability > 0 and float(self._capacity_rng.uniform()) < probability

    def _spot_zone(self, group: GroupState, ready: bool) -> int | None:
        path = self.config.availability
        assert group.placer is not None and path is not None
        in_use = [m.zone for m in group.held("spot") if m.zone is not None]
        zone = group.placer.choose(in_use)
        capacity = path.zones[zone].capacity
        full = capacity is not None and in_use.count(zone) >= capacity
        if not self.failures.zone_is_down(path.zones[zone].name) and path.is_up(zone, self.now_s) and not full:
            group.placer.active(zone)
            return zone
        group.placer.preempted(zone)
        up = [z for z in range(len(path.zones)) if path.is_up(z, self.now_s) and path.zones[z].capacity is None]
        return up[0] if ready and up else None

    def _boot(self, machine: Machine, *, warm: bool) -> Process:
        parts = self.groups[machine.group].spec.cold_start.sample(self._boot_rng, warm=warm)
        total = math.fsum(parts.values())
        if not warm:
            pending = PENDING_SHARE * parts["instance_boot"] if len(parts) > 1 else 0.0
            yield self.env.timeout(pending)
            if not machine.live:
                return
            machine.lease.enter("booting", self.now_s)
            total -= pending
        yield self.env.timeout(total)
        if machine.live and machine.slot is None:
            self._make_ready(machine)

    def _make_ready(self, machine: Machine, *, first: bool = False) -> None:
        self.settle()
        group = self.groups[machine.group]
        machine.slot = self.plane.add(group.spec.kind)
        if machine.lease.state == "pending":
            machine.lease.enter("booting", self.now_s)
        machine.lease.enter("ready", self.now_s)
        self._live[machine.slot] = self._seats[group.spec.kind]
        self.settle()
        self.failures.watch(machine)
        if not first and machine.zone is not None:
            self.reconcile(group)  # on-demand stand-ins may go

    def restart(self, machine: Machine, restart_s: float | None) -> None:
        """Its process starts again on the same machine; what it held is lost."""
        self._free_slot(machine)
        machine.hung = False
        machine.lease.enter("booting", self.now_s)
        self.env.process(self._boot_again(machine, restart_s))

    def _boot_again(self, machine: Machine, restart_s: float | None) -> Process:
        if restart_s is None:
            yield from self._boot(machine, warm=True)
            return
        yield self.env.timeout(restart_s)
        if machine.live and machine.slot is None:
            self._make_ready(machine)

    def stop_sending(self, machine: Machine) -> None:
        """Requests go elsewhere from now on."""
        machine.draining = True
        if machine.slot is not None:
            self.settle()
            self.plane.drain(machine.slot)
            self._not_live(machine.slot)
            if not machine.hung:
                machine.lease.enter("draining", self.now_s)

    def retire(self, machine: Machine, cause: str) -> None:
        """Let it finish what it has, then give it back."""
        if machine.slot is None:
            self.kill(machine, cause)
            return
        self.stop_sending(machine)
        self.env.process(self._wait_until_empty(machine, cause))

    def _wait_until_empty(self, machine: Machine, cause: str) -> Process:
        end_s = self.now_s + self.config.capacity.termination_grace_s
        while machine.live and self.now_s < end_s:
            yield self.env.timeout(min(2.0, end_s - self.now_s))
            if machine.live and machine.slot is not None:
                self.settle()
                if self.plane.is_empty(machine.slot):
                    break
        if machine.live:
            self.kill(machine, cause)

    def kill(self, machine: Machine, cause: str) -> None:
        """Give it back at once; what it held is sent again or fails."""
        if not machine.live:
            return
        self.settle()
        self._free_slot(machine)
        machine.lease.end(self.now_s, cause)
        group = self.groups[machine.group]
        (group.pool if machine in group.pool else group.machines).remove(machine)

    def _free_slot(self, machine: Machine) -> None:
        if machine.slot is None:
            return
        self._note_busy(machine)
        lost = self.plane.kill(machine.slot)
        self._not_live(machine.slot)
        machine.slot = None
        if len(lost):
            self.gateway.lost(lost, self.now_s)

    def _not_live(self, slot: int) -> None:
        if self._live.pop(slot, None) is not None and not self._live:
            self.gateway.call_back()

    def _note_busy(self, machine: Machine) -> None:
        machine.lease.busy_s = machine.busy_before_s = machine.busy_s(self.plane.load())

    def hang(self, machine: Machine) -> None:
        """It answers no more, and no one knows yet."""
        assert machine.slot is not None
        self.settle()
        machine.busy_before_s = machine.busy_s(self.plane.load())
        machine.hung = True
        machine.lease.enter("hung", self.now_s)
        self.plane.set_speed(machine.slot, math.inf)

    # Warm pool

    def _fill_pool(self, index: int, group: GroupState) -> None:
        spec = group.spec
        while len(group.pool) < spec.warm_pool:
            lease = self.ledger.open(spec.instance_type, spec.purchase, spec.zones[0], self.now_s, spec.num_gpus)
            lease.enter("standby", self.now_s)
            group.pool.append(Machine(index, lease, None))

    def _wake(self, group: GroupState) -> bool:
        machine = group.pool.pop(0)
        group.machines.append(machine)
        machine.lease.enter("booting", self.now_s)
        self.env.process(self._boot(machine, warm=True))
        self.env.process(self._refill(group))
        return True

    def _refill(self, group: GroupState) -> Process:
        parts = group.spec.cold_start.sample(self._boot_rng)
        yield self.env.timeout(parts["instance_boot"] + parts.get("image_pull", 0.0))
        self._fill_pool(self.groups.index(group), group)

    # The run

    def _tick(self) -> Process:
        while True:
            yield self.env.timeout(self.config.admission.tick_s)
            self.settle()

    def _watch(self) -> Process:
        """Sample, and end the run when all requests have ended."""
        last_s = float(self.requests.arrival_s[-1]) if len(self.requests) else 0.0
        while True:
            yield self.env.timeout(self.config.sample_interval_s)
            self.settle()
            self.series.sample()
            if self.now_s <= last_s:
                continue
            if self.gateway.forget_ended() >= len(self.requests) or self.now_s > last_s + self.config.drain_limit_s:
                self._done.succeed()
                return

    def _oscillations(self) -> dict[str, Oscillation]:
        found = {name: find_oscillation([t for t, _ in log], [n for _, n in log]) for name, log in self.targets.items()}
        return {name: o for name, o in found.items() if o is not None}

    def _forecast_errors(self) -> dict[str, float]:
        arrival_s = self.requests.arrival_s
        scalers = {g.spec.name: g.scaler for g in self.groups if isinstance(g.scaler, Predictive)}
        found = {name: forecast_error(scaler, arrival_s) for name, scaler in scalers.items()}
        return {name: error for name, error in found.items() if error is not None}
