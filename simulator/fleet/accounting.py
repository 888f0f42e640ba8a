"""What was held, in which state, how long: the ledger that planner and reports price. No dollar here."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from catalogs.units import SECONDS_PER_HOUR

State = Literal["pending", "booting", "ready", "hung", "draining", "standby", "ended"]
BILLED: tuple[State, ...] = ("booting", "ready", "hung", "draining", "standby")
MINIMUM_CHARGE_S = 60.0  # EC2 Linux: by the second, at least one minute


@dataclass(frozen=True)
class Span:
    """A stretch of one state."""

    state: State
    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Its length."""
        return self.end_s - self.start_s


@dataclass
class Lease:
    """One machine from request to end.

    Attributes:
        instance_type, purchase, zone: what was bought, how and where.
        num_gpus: GPUs of the machine that the replica occupies.
        spans: its states in order; each starts where the last ended.
        busy_s: time in steps, of the ready and draining time.
        cause: why it ended; "" while it lives.

    The time in ``pending`` is not billed (EC2 bills from ``running``).
    """

    lease_id: int
    instance_type: str
    purchase: str
    zone: str
    num_gpus: int = 1
    spans: list[Span] = field(default_factory=list)
    busy_s: float = 0.0
    cause: str = ""
    state: State = "pending"
    since_s: float = 0.0

    def enter(self, state: State, now_s: float) -> None:
        """Leave the present state for another.

        Raises:
            ValueError: the lease has ended, or time runs backwards (faults of the caller).
        """
        if self.state == "ended":
            raise ValueError(f"lease {self.lease_id} has ended")
        if now_s < self.since_s:
            raise ValueError(f"lease {self.lease_id}: {now_s} is before {self.since_s}")
        if now_s > self.since_s:
            self.spans.append(Span(self.state, self.since_s, now_s))
        self.state, self.since_s = state, now_s

    def end(self, now_s: float, cause: str) -> None:
        """Give the machine back."""
        self.enter("ended", now_s)
        self.cause = cause

    def seconds(self, states: Iterable[State]) -> float:
        """Time spent in some states."""
        wanted = set(states)
        return math.fsum(s.length_s for s in self.spans if s.state in wanted)

    @property
    def held_s(self) -> float:
        """Time that is billed, before the minimum charge."""
        return self.seconds(BILLED)

    @property
    def billed_s(self) -> float:
        """Whole seconds, at least the minimum, nothing if it never ran."""
        held = self.held_s
        return max(MINIMUM_CHARGE_S, float(math.ceil(held - 1e-6))) if held > 0 else 0.0

    @property
    def billed_from_s(self) -> float | None:
        """When billing starts; None if it never does."""
        return next((s.start_s for s in self.spans if s.state in BILLED), None)


@dataclass(frozen=True)
class Usage:
    """Seconds of one instance type and purchase form, by state; and why seconds were wasted.

    Attributes:
        serving_s: busy time; idle_s: ready and not busy.
        billed_s: what the bill shows (whole seconds, minimum charge); rounding_s: its excess over what was held.
        lost_boot_s: booting that ended before the machine served (spot losses, scale-in), part of ``booting_s``.
    """

    instance_type: str
    purchase: str
    num_leases: int
    serving_s: float
    idle_s: float
    booting_s: float
    draining_s: float
    hung_s: float
    standby_s: float
    billed_s: float
    rounding_s: float
    lost_boot_s: float
    gpu_hours: float

    @property
    def wasted_gpu_share(self) -> float:
        """Share of the billed time in which no step ran."""
        return 1 - self.serving_s / self.billed_s if self.billed_s else 0.0

    @property
    def utilisation(self) -> float:
        """Busy share of the time ready."""
        ready = self.serving_s + self.idle_s
        return self.serving_s / ready if ready else 0.0


class Ledger:
    """All leases of a run."""

    def __init__(self) -> None:
        self.leases: list[Lease] = []

    def open(self, instance_type: str, purchase: str, zone: str, now_s: float, num_gpus: int = 1) -> Lease:
        """Ask for a machine."""
        lease = Lease(len(self.leases), instance_type, purchase, zone, num_gpus, since_s=now_s)
        self.leases.append(lease)
        return lease

    def close_all(self, now_s: float) -> None:
        """End what still lives, at the end of the run."""
        for lease in self.leases:
            if lease.state != "ended":
                lease.end(now_s, "end of run")

    @property
    def live(self) -> list[Lease]:
        """Leases that have not ended."""
        return [lease for lease in self.leases if lease.state != "ended"]

    def usage(self) -> list[Usage]:
        """One row an instance type and purchase form, in order of first use."""
        groups: dict[tuple[str, str], list[Lease]] = defaultdict(list)
        for lease in self.leases:
            groups[lease.instance_type, lease.purchase].append(lease)
        return [_usage(kind, purchase, leases) for (kind, purchase), leases in groups.items()]

    def waste(self) -> dict[str, float]:
        """GPU-hours that were paid for and computed nothing, by reason."""
        hours: dict[str, float] = defaultdict(float)
        for u, gpus in ((u, self._gpus(u)) for u in self.usage()):
            hours["idle"] += u.idle_s * gpus
            hours["booting"] += (u.booting_s - u.lost_boot_s) * gpus
            hours["booted in vain"] += u.lost_boot_s * gpus
            hours["draining"] += u.draining_s * gpus
            hours["hung"] += u.hung_s * gpus
            hours["warm pool"] += u.standby_s * gpus
            hours["rounding and minimum charge"] += u.rounding_s * gpus
        return {reason: s / SECONDS_PER_HOUR for reason, s in hours.items()}

    def _gpus(self, usage: Usage) -> float:
        return usage.gpu_hours * SECONDS_PER_HOUR / usage.billed_s if usage.billed_s else 0.0


def _usage(instance_type: str, purchase: str, leases: list[Lease]) -> Usage:
    ready = math.fsum(x.seconds(("ready",)) for x in leases)
    draining = math.fsum(x.seconds(("draining",)) for x in leases)
    busy = math.fsum(min(x.busy_s, x.seconds(("ready", "draining"))) for x in leases)
    busy_ready = min(busy, ready)
    held = math.fsum(x.held_s for x in leases)
    billed = math.fsum(x.billed_s for x in leases)
    return Usage(
        instance_type=instance_type,
        purchase=purchase,
        num_leases=len(leases),
        serving_s=busy,
        idle_s=ready - busy_ready,
        booting_s=math.fsum(x.seconds(("booting",)) for x in leases),
        draining_s=draining - (busy - busy_ready),
        hung_s=math.fsum(x.seconds(("hung",)) for x in leases),
        standby_s=math.fsum(x.seconds(("standby",)) for x in leases),
        billed_s=billed,
        rounding_s=billed - held,
        lost_boot_s=math.fsum(x.seconds(("booting",)) for x in leases if not x.seconds(("ready",))),
        gpu_hours=math.fsum(x.billed_s * x.num_gpus for x in leases) / SECONDS_PER_HOUR,
    )
