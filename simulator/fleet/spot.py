"""Spot capacity: zones as correlated on/off blocks, who is bought where, and what a rule of buying yields.

A zone is up while a smooth Gaussian process lies above its threshold: ``sqrt(g) W + sqrt(r) R + sqrt(1 - g - r) Z > q``
with a part W shared by the world, R by its region and Z of its own; each is a sum of three critically damped processes
(minutes, hours, a day), which makes stretches as bursty as real ones. The threshold sets the share of time up, the
shared variances the correlations (a Gaussian copula). Zones, shares and the fit: ``catalogs/spot_zones.csv`` and
``catalogs/spot_process.csv``.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError
from catalogs.names import resolve

MOST_STEPS = 10_000_000
WARM_UP = 8  # time constants of a process before its path begins


@dataclass(frozen=True)
class Zone:
    """A place where spot instances of one type are bought.

    Attributes:
        available_share: share of time in which it gives instances, 0 to 1.
        capacity: most instances it gives at once; None: no bound known.
        relative_price: spot over on-demand price there, to rank zones by; 1 means no market.
    """

    name: str
    region: str
    available_share: float
    capacity: int | None = None
    relative_price: float = 0.3


@dataclass(frozen=True)
class Availability:
    """Which zones give spot instances when; row z of ``up`` holds from ``start_s + k * step_s`` on.

    Attributes:
        up: (zones, steps) bool.
    """

    zones: tuple[Zone, ...]
    start_s: float
    step_s: float
    up: NDArray[np.bool_]

    @property
    def end_s(self) -> float:
        """Where the path ends."""
        return self.start_s + self.step_s * int(self.up.shape[1])

    def is_up(self, zone: int, time_s: float) -> bool:
        """Whether a zone gives instances at an instant (the ends hold beyond the path)."""
        step = int((time_s - self.start_s) // self.step_s)
        return bool(self.up[zone, min(max(step, 0), self.up.shape[1] - 1)])

    def changes(self, zone: int) -> list[tuple[float, bool]]:
        """A zone's (instant, up from then on) changes, without its state at the start."""
        row = self.up[zone]
        at = np.flatnonzero(row[1:] != row[:-1]) + 1
        return [(self.start_s + self.step_s * float(k), bool(row[k])) for k in at]


def _rows(name: str) -> list[dict[str, str]]:
    with resources.files("catalogs").joinpath(name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@cache
def catalogue_zones() -> tuple[Zone, ...]:
    """The zones whose availability was observed."""
    return tuple(Zone(r["zone"], r["region"], float(r["available_share"])) for r in _rows("spot_zones.csv"))


@cache
def process_parameters() -> Mapping[str, float]:
    """The fitted parameters of the zones' process, by name."""
    return {r["parameter"]: float(r["value"]) for r in _rows("spot_process.csv")}


def find_zones(names: Sequence[str], where: str = "") -> tuple[Zone, ...]:
    """Catalogue zones by zone name, or all of a region by its name.

    Raises:
        InputError: the list is empty or a name is unknown.
    """
    if not names:
        raise InputError(
            "the list of spot zones is empty",
            where=where,
            why="spot replicas would have nowhere to run",
            remedy=f"name zones or regions, e.g. {catalogue_zones()[0].region}",
        )
    known: dict[str, tuple[Zone, ...]] = {z.name: (z,) for z in catalogue_zones()}
    for zone in catalogue_zones():
        known[zone.region] = tuple(z for z in catalogue_zones() if z.region == zone.region)
    found: dict[str, Zone] = {}
    for name in names:
        found.update({z.name: z for z in known[resolve(name, known, "spot zone or region", where)]})
    return tuple(found.values())


def synthesise(
    zones: Sequence[Zone], duration_s: float, seed: int, step_s: float = 195.0, *, independent: bool = False
) -> Availability:
    """A random availability path of correlated zones.

    Args:
        zones: at least one, each with a share of time above 0.
        step_s: resolution; the traces behind the fit have 195 s.
        independent: give each zone a process of its own (too rosy; for comparison).

    Raises:
        InputError: no zone has capacity, or a share lies outside 0 to 1.
    """
    check_zones(zones)
    from scipy.special import ndtri

    p = process_parameters()
    rng = np.random.default_rng([seed, 0x5907])
    demand_few_steps((duration_s + WARM_UP * max(p["slow_time_s"], p["middle_time_s"])) / step_s, "spot.step_s")
    num_steps = max(1, int(np.ceil(duration_s / step_s)))
    world = 0.0 if independent else p["world_variance"]
    region = 0.0 if independent else p["region_variance"]
    shared = _latent(1, num_steps, step_s, rng)[0]
    regions = {name: i for i, name in enumerate(dict.fromkeys(z.region for z in zones))}
    regional = _latent(len(regions), num_steps, step_s, rng)
    own = _latent(len(zones), num_steps, step_s, rng)
    up = np.empty((len(zones), num_steps), bool)
    for i, zone in enumerate(zones):
        latent = np.sqrt(world) * shared + np.sqrt(region) * regional[regions[zone.region]]
        latent = latent + np.sqrt(1 - world - region) * own[i]
        up[i] = latent > ndtri(1 - zone.available_share)
    return Availability(tuple(zones), 0.0, step_s, up)


def demand_few_steps(num: float, where: str) -> None:
    """Raise ``InputError`` for a path of availability of more steps than memory would hold."""
    if not num <= MOST_STEPS:
        raise InputError(f"the path of spot availability would have {num:.3g} steps", where=where,
                         why=f"{MOST_STEPS:,} is the most", remedy="wider steps, or a shorter run")  # fmt: skip


def check_zones(zones: Sequence[Zone], where: str = "spot.zones") -> None:
    """Refuse a list of zones that can never give an instance, and shares that are none."""
    for zone in zones:
        if not 0 <= zone.available_share <= 1:
            raise InputError(
                f"zone {zone.name} is available {zone.available_share:g} of the time",
                where=where,
                remedy="a share from 0 to 1",
            )
    if not any(z.available_share > 0 and z.capacity != 0 for z in zones):
        raise InputError(
            "no spot zone has capacity",
            where=where,
            why="every spot replica would wait for ever",
            remedy="add a zone with available_share above 0, or turn spot off",
        )


def _latent(num: int, num_steps: int, step_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """(num, num_steps) paths of unit variance: three critically damped second-order processes."""
    p = process_parameters()
    fast, middle = p["fast_variance"], p["middle_variance"]
    parts = (
        (fast, p["fast_time_s"]),
        (middle, p["middle_time_s"]),
        (1 - fast - middle, p["slow_time_s"]),
    )
    total = np.zeros((num, num_steps))
    for variance, time_s in parts:
        total += np.sqrt(variance) * _smooth(num, num_steps, step_s / time_s, rng)
    return total


def _smooth(num: int, num_steps: int, step: float, rng: np.random.Generator) -> NDArray[np.float64]:
    from scipy.signal import lfilter

    r = float(np.exp(-step))
    warm_up = int(WARM_UP / step) + 10
    noise = rng.standard_normal((num, num_steps + warm_up))
    path = lfilter([1.0], [1.0, -2 * r, r * r], noise, axis=1)[:, -num_steps:]
    smooth: NDArray[np.float64] = path / np.sqrt((1 + r * r) / (1 - r * r) ** 3)
    return smooth


@dataclass(frozen=True)
class SpotPolicy:
    """How a target is split into spot and on-demand replicas (SkyServe's names and defaults).

    Attributes:
        num_overprovision: spot replicas beyond the target.
        base_ondemand_fallback_replicas: replicas always bought on demand.
        dynamic_ondemand_fallback: buy on demand what spot does not deliver, as long as it does not.
        placer: a key of ``PLACERS``.
    """

    num_overprovision: int = 0
    base_ondemand_fallback_replicas: int = 0
    dynamic_ondemand_fallback: bool = False
    placer: str = "dynamic_fallback"

    def mix(self, target: int, num_ready_spot: int) -> tuple[int, int]:
        """(spot, on-demand) replicas to hold for a target (SkyServe's FallbackRequestRateAutoscaler)."""
        base = min(self.base_ondemand_fallback_replicas, target)
        spot = target + self.num_overprovision - base if target > 0 else 0
        on_demand = base + (max(0, spot - num_ready_spot) if self.dynamic_ondemand_fallback else 0)
        return spot, min(on_demand, target)


class Placer(Protocol):
    """Chooses the zone of the next spot replica and learns from losses."""

    def choose(self, in_use: Sequence[int]) -> int:
        """Index of the zone; ``in_use`` has the zones of the spot replicas that live."""
        ...

    def active(self, zone: int) -> None:
        """A replica came up there."""
        ...

    def preempted(self, zone: int) -> None:
        """A replica was lost, or could not be had, there."""
        ...


@dataclass
class DynamicFallback:
    """SpotHedge: active zones not in use first, the cheapest of them; forgets when fewer than two are active."""

    zones: Sequence[Zone]
    lost: set[int] = field(default_factory=set)

    def choose(self, in_use: Sequence[int]) -> int:
        """The cheapest active zone that holds no replica; else the cheapest active one with the fewest."""
        active = [z for z in range(len(self.zones)) if z not in self.lost]
        free = [z for z in active if z not in in_use]
        if free:
            return min(free, key=lambda z: (self.zones[z].relative_price, z))
        return min(active, key=lambda z: (self.zones[z].relative_price, in_use.count(z), z))

    def active(self, zone: int) -> None:
        """The zone works again."""
        self.lost.discard(zone)

    def preempted(self, zone: int) -> None:
        """Avoid the zone, unless that leaves fewer than two."""
        self.lost.add(zone)
        if len(self.zones) - len(self.lost) < 2:
            self.lost.clear()


@dataclass
class EvenSpread:
    """Fewest replicas first, whatever was lost; after a failure the next zone in turn."""

    zones: Sequence[Zone]
    _turn: int = 0

    def choose(self, in_use: Sequence[int]) -> int:
        """The zone with the fewest replicas, beginning after the last failure."""
        n = len(self.zones)
        return min(range(n), key=lambda z: (in_use.count(z), (z - self._turn) % n))

    def active(self, zone: int) -> None:
        """Nothing to learn."""

    def preempted(self, zone: int) -> None:
        """Begin with the next zone."""
        self._turn = (zone + 1) % len(self.zones)


@dataclass
class Cheapest:
    """All in the cheapest zone until it fails, then the next cheapest, back to the first after the last."""

    zones: Sequence[Zone]
    _at: int = 0

    def choose(self, in_use: Sequence[int]) -> int:
        """The zone in favour."""
        order = sorted(range(len(self.zones)), key=lambda z: (self.zones[z].relative_price, z))
        return order[self._at % len(order)]

    def active(self, zone: int) -> None:
        """Nothing to learn."""

    def preempted(self, zone: int) -> None:
        """Move on."""
        self._at += 1


PLACERS = {"dynamic_fallback": DynamicFallback, "even_spread": EvenSpread, "cheapest": Cheapest}


@dataclass(frozen=True)
class SpotReplay:
    """What a rule of buying yields over a path.

    Attributes:
        cost_share: cost over that of the target held on demand throughout.
        short_share: share of time with fewer ready replicas than the target.
        num_losses: spot replicas lost.
        ready: (ticks,) ready replicas.
    """

    cost_share: float
    short_share: float
    num_losses: int
    ready: NDArray[np.int64]


def replay(
    path: Availability,
    policy: SpotPolicy,
    target: int,
    spot_price_share: float = 0.3,
    cold_start_s: float = 195.0,
    tick_s: float = 20.0,
) -> SpotReplay:
    """Run a rule of buying for a fixed target over an availability path, without requests.

    A zone that goes down takes its replicas with it; a launch into a zone that is down fails and is known a tick
    later. Replicas cost from launch; on-demand ones always start.
    """
    placer: Placer = PLACERS[policy.placer](path.zones)
    spot: list[tuple[int, float]] = []  # (zone, ready at)
    on_demand: list[float] = []  # ready at
    num_ticks = int((path.end_s - path.start_s) / tick_s)
    cost = 0.0
    num_losses = 0
    ready = np.zeros(num_ticks, np.int64)
    for tick in range(num_ticks):
        now = path.start_s + tick * tick_s
        kept = [s for s in spot if path.is_up(s[0], now)]
        for zone in {z for z, _ in spot} - {z for z, _ in kept}:
            placer.preempted(zone)
        num_losses += len(spot) - len(kept)
        spot = kept
        num_ready_spot = sum(at <= now for _, at in spot)
        ready[tick] = num_ready_spot + sum(at <= now for at in on_demand)
        want_spot, want_on_demand = policy.mix(target, num_ready_spot)
        for _ in range(want_spot - len(spot)):
            zone = placer.choose([z for z, _ in spot])
            if path.is_up(zone, now):
                placer.active(zone)
                spot.append((zone, now + cold_start_s))
            else:
                placer.preempted(zone)
        on_demand = sorted(on_demand)[:want_on_demand]
        on_demand += [now + cold_start_s] * (want_on_demand - len(on_demand))
        cost += len(spot) * spot_price_share + len(on_demand)
    return SpotReplay(cost / (num_ticks * target), float(np.mean(ready < target)), num_losses, ready)
