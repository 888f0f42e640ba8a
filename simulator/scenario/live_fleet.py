"""The live fleet that a scenario's sections describe, checked against its lines and its load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from catalogs.errors import InputError
from simulator.fleet.cold_start import check_fits_run
from simulator.fleet.config import CapacityRules, FleetConfig, Group
from simulator.fleet.controllers import scaler
from simulator.fleet.failures import FailureRates
from simulator.fleet.spot import Availability
from simulator.workload.requests import Requests

if TYPE_CHECKING:
    from simulator.scenario.replicas import Line
from simulator.scenario.sections import (
    AdmissionSpec,
    CapacitySpec,
    ColdStartSpec,
    ControlSpec,
    FailuresSpec,
    FleetSections,
    SpotSpec,
)


def fleet_config(sections: FleetSections, lines: Sequence[Line], requests: Requests, labels: Sequence[tuple[str, str]],
                 seed: int) -> FleetConfig:  # fmt: skip
    """The fleet that a scenario describes.

    Args:
        labels: (instance type, purchase form) of each line.

    Raises:
        InputError: sections that do not fit the lines, the load or each other.
    """
    _check(sections, lines, requests)
    duration_s = float(requests.arrival_s[-1])
    capacity = sections.capacity or CapacitySpec()
    cold = sections.cold_start or ColdStartSpec()
    control = sections.control or ControlSpec()
    blocks = {b.line: (b.start_s, b.end_s) for b in capacity.blocks}
    groups = []
    for number, line in enumerate(lines):
        start = cold.build(_weight_bytes(line), enforce_eager=line.replica.engine.enforce_eager)
        spot = sections.spot if sections.spot is not None and sections.spot.line == number else None
        scaled = sections.autoscaling if sections.autoscaling and sections.autoscaling.line == number else None
        if scaled is not None or spot is not None:
            check_fits_run(start, duration_s)
        kind, purchase = labels[number]
        groups.append(
            Group(
                name=f"{number}: {line.replica.gpu.name}",
                kind=number,
                instance_type=kind,
                count=line.count,
                num_gpus=line.replica.num_gpus,
                purchase=purchase if purchase != "spot" else "on_demand",
                scaler=scaler(scaled, requests, start.mean_s, line.count) if scaled is not None else None,
                spot=spot.policy() if spot is not None else None,
                cold_start=start,
                warm_pool=cold.warm_pool if scaled is not None else 0,
                block=blocks.get(number),
                zones=capacity.zones,
            )
        )
    control_spec = sections.autoscaling
    return FleetConfig(
        groups=tuple(groups),
        admission=(sections.admission or AdmissionSpec()).build(requests),
        failures=FailureRates(**(sections.failures or FailuresSpec()).model_dump()),
        capacity=_capacity_rules(capacity, sections.spot),
        availability=_availability(sections, duration_s + control.drain_limit_s, seed),
        metrics_delay_s=control_spec.metrics_delay_s if control_spec else 0.0,
        sample_interval_s=control.sample_interval_s,
        start_ready=cold.start_ready,
        drain_limit_s=control.drain_limit_s,
        pauses=control_spec.pauses if control_spec else (),
    )


def _availability(sections: FleetSections, duration_s: float, seed: int) -> Availability | None:
    return None if sections.spot is None else sections.spot.availability(duration_s, seed)


def _capacity_rules(capacity: CapacitySpec, spot: SpotSpec | None) -> CapacityRules:
    spot = spot or SpotSpec(zones=("us-east-1",))
    return CapacityRules(
        capacity.insufficient_capacity_probability, capacity.retry_s, spot.notice_s, spot.drain_on_notice,
        spot.rebalance_lead_s, spot.rebalance_share, capacity.termination_grace_s,
    )  # fmt: skip


def _weight_bytes(line: Line) -> float:
    from calibrate.physics.work import replica_weight_bytes

    replica = line.replica
    return replica_weight_bytes(replica) * replica.tensor_parallel_size * replica.pipeline_parallel_size


def _check(sections: FleetSections, lines: Sequence[Line], requests: Requests) -> None:
    if requests.concurrency is not None:
        raise InputError(
            "a closed loop cannot drive a live fleet",
            where="workload.arrivals",
            why="its clients wait for answers, so no load ever asks for more replicas",
            remedy="poisson, diurnal or a trace",
        )
    for number, line in enumerate(lines):
        for name in ("data_parallel_size", "pipeline_parallel_size"):
            if getattr(line.replica, name) > 1:
                raise InputError(
                    f"{name} is {getattr(line.replica, name)}",
                    where=f"fleet.{number}",
                    why="a live fleet starts and stops engines one by one",
                    remedy=f"{name}: 1 and a larger count (or tensor_parallel_size)",
                )
    given = [("autoscaling", sections.autoscaling), ("spot", sections.spot)]
    used = [(name, spec.line) for name, spec in given if spec is not None]
    used += [("capacity.blocks", b.line) for b in (sections.capacity.blocks if sections.capacity else ())]
    for name, number in used:
        if number >= len(lines):
            raise InputError(
                f"line {number}, but the fleet has {len(lines)}",
                where=name,
                remedy=f"a line from 0 to {len(lines) - 1}",
            )
