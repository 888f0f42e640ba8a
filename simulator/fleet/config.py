"""What a fleet run is made of: groups of replicas, and the rules around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from catalogs.errors import InputError
from simulator.fleet.admission import AdmissionPolicy
from simulator.fleet.autoscaling import Autoscaler
from simulator.fleet.cold_start import ColdStart
from simulator.fleet.failures import FailureRates
from simulator.fleet.spot import Availability, SpotPolicy

BLOCK_TERMINATION_S = 1800.0  # Capacity Blocks: instances are terminated from 30 minutes before the end


@dataclass(frozen=True)
class Group:
    """Replicas of one kind that are scaled together.

    Attributes:
        kind: index among the data plane's kinds.
        count: replicas at the start, and throughout where nothing scales them.
        purchase: form of what is not spot.
        scaler: makes the controller; None: a fixed count.
        spot: how a target is split; None: no spot.
        warm_pool: stopped machines that are held ready (image pulled), beyond the target.
        block: (start, end) of a Capacity Block; the group exists within it only.
        zones: zones in which what is not spot is bought, in turn.
    """

    name: str
    kind: int
    instance_type: str
    count: int
    num_gpus: int = 1
    purchase: str = "on_demand"
    scaler: Callable[[], Autoscaler] | None = None
    spot: SpotPolicy | None = None
    cold_start: ColdStart = field(default_factory=ColdStart)
    warm_pool: int = 0
    block: tuple[float, float] | None = None
    zones: tuple[str, ...] = ("zone-a",)

    def __post_init__(self) -> None:
        if self.block is not None and self.block[1] - self.block[0] <= BLOCK_TERMINATION_S:
            raise InputError(
                f"the Capacity Block of {self.name} lasts {self.block[1] - self.block[0]:.0f} s",
                where="fleet",
                why="its instances are terminated from 30 minutes before its end",
                remedy="an end_s more than 1800 s after start_s",
            )


@dataclass(frozen=True)
class CapacityRules:
    """When machines are not to be had, and how losses are announced.

    Attributes:
        insufficient_capacity_probability: an on-demand request fails with it; 0: always had.
        retry_s: until a failed request is made again (SkyServe decides every 20 s).
        notice_s: between the notice and the loss of a spot machine.
        drain_on_notice: stop sending requests at the notice; else serve on until the loss.
        rebalance_lead_s: a rebalance recommendation comes so long before the notice; 0: with it, so of no use.
        rebalance_share: share of the losses that are preceded by one (it is best effort).
        termination_grace_s: a draining replica is killed after so long.
    """

    insufficient_capacity_probability: float = 0.0
    retry_s: float = 20.0
    notice_s: float = 120.0
    drain_on_notice: bool = True
    rebalance_lead_s: float = 0.0
    rebalance_share: float = 1.0
    termination_grace_s: float = 120.0


@dataclass(frozen=True)
class FleetConfig:
    """A whole fleet.

    Attributes:
        availability: of the spot zones; None: no spot.
        metrics_delay_s: controllers see the fleet as it was so long ago.
        sample_interval_s: of the time series.
        start_ready: the first replicas serve from the start; else they boot like all others.
        drain_limit_s: how long after the last arrival the run may go on; what is left then has failed.
        pauses: stretches in which controllers do nothing.
    """

    groups: tuple[Group, ...]
    admission: AdmissionPolicy = field(default_factory=AdmissionPolicy)
    failures: FailureRates = field(default_factory=FailureRates)
    capacity: CapacityRules = field(default_factory=CapacityRules)
    availability: Availability | None = None
    metrics_delay_s: float = 0.0
    sample_interval_s: float = 60.0
    start_ready: bool = True
    drain_limit_s: float = 3600.0
    pauses: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if any(g.spot is not None for g in self.groups) and self.availability is None:
            raise InputError(
                "a group wants spot, but no zone is given",
                where="spot",
                why="spot replicas would have nowhere to run",
                remedy="spot: {zones: [us-east-1, us-west-2]}",
            )
        if not any(g.count or g.scaler for g in self.groups):
            raise InputError("the fleet is empty", where="fleet", remedy="a count of at least 1, or autoscaling")
