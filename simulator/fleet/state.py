"""The machines and groups of a running fleet, and what a run leaves behind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simulator.fleet.accounting import Lease, Ledger
from simulator.fleet.autoscaling import Autoscaler, Oscillation
from simulator.fleet.caches import CacheCount
from simulator.fleet.config import Group
from simulator.fleet.data_plane import Load, Outcome
from simulator.fleet.spot import Placer


@dataclass(eq=False)
class Machine:
    """A machine and the replica on it."""

    group: int
    lease: Lease
    zone: int | None  # of the spot zones; None: not spot
    slot: int | None = None
    draining: bool = False
    hung: bool = False
    doomed: bool = False  # a replacement may be started: notice or rebalance recommendation
    busy_before_s: float = 0.0  # of earlier lives on the same machine

    @property
    def live(self) -> bool:
        """Whether it is still held."""
        return self.lease.state != "ended"

    def busy_s(self, load: Load) -> float:
        """Seconds of steps so far, over all lives of its replica."""
        now_s = 0.0 if self.slot is None or self.hung else float(load.busy_s[self.slot])
        return self.busy_before_s + now_s

    @property
    def serving(self) -> bool:
        """Whether requests are sent to it."""
        return self.slot is not None and not self.draining


@dataclass
class GroupState:
    """A group as it runs."""

    spec: Group
    scaler: Autoscaler | None
    target: int
    placer: Placer | None
    machines: list[Machine] = field(default_factory=list)
    pool: list[Machine] = field(default_factory=list)
    retry_pending: bool = False
    turn: int = 0

    def held(self, purchase: str) -> list[Machine]:
        """Machines of a purchase form that count towards its target."""
        return [m for m in self.machines if m.lease.purchase == purchase and not m.draining and not m.doomed]

    @property
    def ready(self) -> list[Machine]:
        """Machines that serve."""
        return [m for m in self.machines if m.serving]


@dataclass(frozen=True)
class FleetResult:
    """A run.

    Attributes:
        outcome: of each request; ledger: of each machine.
        series: samples by name, all on ``t_s``.
        events: (instant, what) of losses, failures and refusals.
        targets: by group: (instant, target) whenever it changed.
        reasons: how often requests were refused, failed, answered by a cache...
        oscillations: by group, where one was found.
        forecast_error: by group that is scaled by a forecast: its weighted absolute percentage error in this run.
        end_s: when the last request had ended, or the run was cut off.
    """

    outcome: Outcome
    ledger: Ledger
    series: dict[str, np.ndarray[Any, np.dtype[np.float64]]]
    events: list[tuple[float, str]]
    targets: dict[str, list[tuple[float, int]]]
    reasons: Counter[str]
    num_retries: int
    caches: dict[str, CacheCount]
    oscillations: dict[str, Oscillation]
    forecast_error: dict[str, float]
    end_s: float
