"""What breaks: replicas hang, crash or slow down, zones go; when it is seen, and when it is mended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from catalogs.errors import InputError
from catalogs.units import SECONDS_PER_HOUR

Kind = Literal["hang", "crash", "degrade", "zone_loss", "reserved_failure"]
KINDS: tuple[Kind, ...] = ("hang", "crash", "degrade", "zone_loss", "reserved_failure")


@dataclass(frozen=True)
class FailureRates:
    """How often things break and how long they take; a mean time between failures of None: never.

    Nothing breaks by default: rates are the user's own, since no sourced rate fits all fleets.

    Attributes:
        hang_mtbf_h: of one replica that stops answering until it is restarted.
        crash_mtbf_h: of one replica's process, which restarts on its machine.
        degrade_mtbf_h: of one replica that slows down (thermal throttling).
        degrade_factor: step times are multiplied by this while degraded.
        degrade_duration_s: mean length of it.
        zone_mtbf_h: of one zone, all of whose replicas are lost.
        zone_recover_s: mean time until the zone takes instances again.
        reserved_mtbf_h: of one reserved machine, which is replaced.
        health_check_period_s, health_check_failures: a hang is seen after so many failed probes (Kubernetes' liveness
            probe defaults: 10 s, 3).
        restart_s: from the kill until the engine is loaded again, on the same machine; None: the cold start without
            its machine parts.
    """

    hang_mtbf_h: float | None = None
    crash_mtbf_h: float | None = None
    degrade_mtbf_h: float | None = None
    degrade_factor: float = 1.5
    degrade_duration_s: float = 600.0
    zone_mtbf_h: float | None = None
    zone_recover_s: float = 3600.0
    reserved_mtbf_h: float | None = None
    health_check_period_s: float = 10.0
    health_check_failures: int = 3
    restart_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("hang_mtbf_h", "crash_mtbf_h", "degrade_mtbf_h", "zone_mtbf_h", "reserved_mtbf_h"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name} is {value:g}", where="failures", remedy="hours above 0, or none at all")
        if self.degrade_factor < 1:
            raise InputError(
                f"degrade_factor is {self.degrade_factor:g}",
                where="failures",
                why="a degraded replica is slower, never faster",
                remedy="a factor of at least 1",
            )

    def mtbf_h(self, kind: Kind) -> float | None:
        """Mean time between failures of one kind, for one replica, machine or zone."""
        return {
            "hang": self.hang_mtbf_h,
            "crash": self.crash_mtbf_h,
            "degrade": self.degrade_mtbf_h,
            "zone_loss": self.zone_mtbf_h,
            "reserved_failure": self.reserved_mtbf_h,
        }[kind]

    def time_to_failure_s(self, kind: Kind, rng: np.random.Generator) -> float:
        """An exponential draw; infinite where that kind never happens."""
        hours = self.mtbf_h(kind)
        return float("inf") if hours is None else float(rng.exponential(hours * SECONDS_PER_HOUR))

    def detect_s(self, rng: np.random.Generator) -> float:
        """From a hang until the health check gives up: the probes that must fail, from a random phase on."""
        phase = float(rng.uniform(0.0, self.health_check_period_s))
        return phase + (self.health_check_failures - 1) * self.health_check_period_s
