"""What happens to a fleet: spot notices and losses, hangs, crashes, slow replicas, zones that go."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.fleet.spot import process_parameters

if TYPE_CHECKING:
    from simulator.fleet.simulate import Fleet
    from simulator.fleet.state import Machine

Process = Generator[Any, Any, None]


class Failures:
    """The processes that break a fleet."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet = fleet
        self._spot_rng = np.random.default_rng([seed, 0x590D])
        self._rng = np.random.default_rng([seed, 0xFA11])
        self._zone_rng = np.random.default_rng([seed, 0x203E])
        self._down: set[str] = set()

    def zone_is_down(self, name: str) -> bool:
        """Whether a zone has failed as a whole."""
        return name in self._down

    def start(self) -> None:
        """Set zones in motion."""
        fleet, path = self._fleet, self._fleet.config.availability
        names = {z for g in fleet.config.groups for z in g.zones}
        if path is not None and any(g.spot is not None for g in fleet.config.groups):
            for zone in range(len(path.zones)):
                fleet.env.process(self._spot_zone(zone))
            names |= {z.name for z in path.zones}
        if fleet.config.failures.zone_mtbf_h is not None:
            for name in sorted(names):
                fleet.env.process(self._zone_failures(name))

    # Spot

    def _spot_zone(self, zone: int) -> Process:
        fleet = self._fleet
        path, rules = fleet.config.availability, fleet.config.capacity
        assert path is not None
        for at_s, up in path.changes(zone):
            if up:
                continue
            lead = rules.rebalance_lead_s
            if lead > 0 and at_s - lead > fleet.now_s:
                yield fleet.env.timeout(at_s - lead - fleet.now_s)
                self._recommend_rebalance(zone)
            if at_s < fleet.now_s:
                continue
            yield fleet.env.timeout(at_s - fleet.now_s)
            for machine in self._spot_machines(zone):
                fleet.env.process(self._lose(machine))

    def _spot_machines(self, zone: int) -> list[Machine]:
        return [m for g in self._fleet.groups for m in g.machines if m.zone == zone]

    def _recommend_rebalance(self, zone: int) -> None:
        fleet = self._fleet
        for machine in self._spot_machines(zone):
            if float(self._spot_rng.uniform()) < fleet.config.capacity.rebalance_share:
                machine.doomed = True
                group = fleet.groups[machine.group]
                assert group.placer is not None
                group.placer.preempted(zone)
                fleet.reconcile(group)

    def _lose(self, machine: Machine) -> Process:
        """One machine of a zone that is reclaimed: a notice within minutes of the others', then the loss."""
        fleet, rules = self._fleet, self._fleet.config.capacity
        yield fleet.env.timeout(float(self._spot_rng.uniform(0.0, process_parameters()["loss_spread_s"])))
        if not machine.live:
            return
        group = fleet.groups[machine.group]
        assert group.placer is not None and machine.zone is not None
        group.placer.preempted(machine.zone)
        fleet.note(f"{group.spec.name}: spot notice in {machine.lease.zone}")
        machine.doomed = True
        if machine.slot is None:
            fleet.kill(machine, "spot loss")
            fleet.reconcile(group)
            return
        if rules.drain_on_notice and not machine.draining:
            fleet.stop_sending(machine)
        fleet.reconcile(group)
        yield fleet.env.timeout(rules.notice_s)
        if machine.live:
            fleet.kill(machine, "spot loss")
            fleet.reconcile(group)

    # Failures

    def watch(self, machine: Machine) -> None:
        """Draw when a replica that has just become ready will fail, and how."""
        rates = self._fleet.config.failures
        kinds = ["hang", "crash", "degrade"]
        if machine.lease.purchase.startswith("reserved") or machine.lease.purchase == "capacity_block":
            kinds.append("reserved_failure")
        for kind in kinds:
            after = rates.time_to_failure_s(kind, self._rng)  # type: ignore[arg-type]
            if after < float("inf"):
                self._fleet.env.process(self._fail(machine, machine.slot, kind, after))

    def _fail(self, machine: Machine, slot: int | None, kind: str, after_s: float) -> Process:
        fleet, rates = self._fleet, self._fleet.config.failures
        yield fleet.env.timeout(after_s)
        if not machine.live or machine.slot is None or machine.slot != slot or machine.lease.state != "ready":
            return
        fleet.note(f"{fleet.groups[machine.group].spec.name}: {kind.replace('_', ' ')}")
        fleet.settle()
        if kind == "crash":
            fleet.restart(machine, rates.restart_s)
        elif kind == "reserved_failure":
            group = fleet.groups[machine.group]
            fleet.kill(machine, "machine failed")
            fleet.reconcile(group)
        elif kind == "hang":
            fleet.hang(machine)
            yield fleet.env.timeout(rates.detect_s(self._rng))
            if machine.live and machine.slot == slot:
                fleet.settle()
                fleet.restart(machine, rates.restart_s)
        else:
            fleet.plane.set_speed(machine.slot, rates.degrade_factor)
            yield fleet.env.timeout(float(self._rng.exponential(rates.degrade_duration_s)))
            if machine.live and machine.slot == slot and machine.lease.state in ("ready", "draining"):
                fleet.settle()
                fleet.plane.set_speed(machine.slot, 1.0)

    def _zone_failures(self, name: str) -> Process:
        fleet, rates = self._fleet, self._fleet.config.failures
        while True:
            yield fleet.env.timeout(rates.time_to_failure_s("zone_loss", self._zone_rng))
            fleet.note(f"zone {name} is lost")
            self._down.add(name)
            for group in fleet.groups:
                for machine in [m for m in [*group.machines, *group.pool] if m.lease.zone == name]:
                    if group.placer is not None and machine.zone is not None:
                        group.placer.preempted(machine.zone)
                    fleet.kill(machine, "zone loss")
                fleet.reconcile(group)
            yield fleet.env.timeout(float(self._zone_rng.exponential(rates.zone_recover_s)))
            self._down.discard(name)
            for group in fleet.groups:
                fleet.reconcile(group)
