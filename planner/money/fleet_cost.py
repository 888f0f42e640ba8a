"""What a simulated fleet costs: the ledger's seconds times prices, to the cent."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from catalogs.errors import InputError, MissingError
from catalogs.files import read_text
from catalogs.load import find_region, price_of
from catalogs.units import MILLION, SECONDS_PER_HOUR
from planner.money.fleet_price import DEFAULT_REGION
from simulator.fleet.accounting import Lease, Ledger
from simulator.scenario.spec import Scenario

CENT = Decimal("0.01")
PriceOf = Callable[[str, str], float | None]  # (instance type, purchase) -> US dollars an hour


@dataclass(frozen=True)
class PricePath:
    """A price that changes: ``usd_per_hour[k]`` holds from ``start_s[k]`` on (the first one before, too)."""

    start_s: Sequence[float]
    usd_per_hour: Sequence[float]

    def integral_usd(self, from_s: float, to_s: float) -> Decimal:
        """Dollars for the stretch."""
        edges = [float("-inf"), *self.start_s[1:], float("inf")]
        total = Decimal(0)
        for k, price in enumerate(self.usd_per_hour):
            length = min(to_s, edges[k + 1]) - max(from_s, edges[k])
            if length > 0:
                total += Decimal(str(length)) * Decimal(str(price))
        return total / Decimal(int(SECONDS_PER_HOUR))


@dataclass(frozen=True)
class CostLine:
    """One instance type and purchase form.

    Attributes:
        usd: exact; ``cents`` rounds it as a bill does.
        usd_idle: share of it for time in which no step ran.
    """

    instance_type: str
    purchase: str
    hours: float
    usd: Decimal
    usd_idle: Decimal


def lease_usd(lease: Lease, usd_per_hour: float | PricePath) -> Decimal:
    """A machine's cost: its billed seconds at its price."""
    billed = Decimal(str(lease.billed_s))
    if isinstance(usd_per_hour, PricePath):
        start = lease.billed_from_s
        return Decimal(0) if start is None else usd_per_hour.integral_usd(start, start + lease.billed_s)
    return billed * Decimal(str(usd_per_hour)) / Decimal(int(SECONDS_PER_HOUR))


def read_price_paths(path: str | Path) -> dict[str, PricePath]:
    """Spot prices over time by zone, from a CSV of ``start_s,zone,usd_per_hour``.

    Raises:
        MissingError: no such file.
        InputError: other columns, a number that is none or negative, rows of a zone out of order.
    """
    file = Path(path)
    if not file.exists():
        raise MissingError(f"no price file {file}", where="spot.prices", remedy="a CSV of start_s,zone,usd_per_hour")
    found: dict[str, tuple[list[float], list[float]]] = {}
    with io.StringIO(read_text(file, "a price file"), newline="") as lines:
        reader = csv.DictReader(lines)
        if set(reader.fieldnames or ()) != {"start_s", "zone", "usd_per_hour"}:
            header = ",".join(reader.fieldnames or ())
            raise InputError(f"its header is {header}", where=f"{file}:1", remedy="start_s,zone,usd_per_hour")
        for number, row in enumerate(reader, start=2):
            try:
                start, price = float(row["start_s"]), float(row["usd_per_hour"])
            except (TypeError, ValueError):
                raise InputError(f"not a number in {row}", where=f"{file}:{number}") from None
            starts, prices = found.setdefault(row["zone"], ([], []))
            if not (math.isfinite(start) and 0 <= price < math.inf) or (starts and start <= starts[-1]):
                raise InputError(
                    f"zone {row['zone']}: {start:g} s, {price:g} USD/h", where=f"{file}:{number}",
                    remedy="prices of at least 0, each zone's rows in order of time",
                )  # fmt: skip
            starts.append(start)
            prices.append(price)
    return {zone: PricePath(*rows) for zone, rows in found.items()}


def fleet_cost(
    ledger: Ledger,
    price_of: PriceOf,
    paths: Mapping[str, PricePath] | None = None,
    block_hours: float | None = None,
) -> list[CostLine] | None:
    """Cost of a run by instance type and purchase form; None where a price is not known.

    Args:
        price_of: US dollars an hour of an instance type in a purchase form.
        paths: spot prices that change, by zone.
        block_hours: machine hours of the Capacity Blocks, which are paid in full and upfront; None: as used.
    """
    lines = []
    for usage in ledger.usage():
        leases = [x for x in ledger.leases if (x.instance_type, x.purchase) == (usage.instance_type, usage.purchase)]
        price = price_of(usage.instance_type, usage.purchase)
        usd = Decimal(0)
        for lease in leases:
            path = (paths or {}).get(lease.zone) if lease.purchase == "spot" else None
            if path is None and price is None:
                return None
            usd += lease_usd(lease, path if path is not None else float(price or 0.0))
        hours = usage.billed_s / SECONDS_PER_HOUR
        if usage.purchase == "capacity_block" and block_hours is not None and price is not None:
            usd, hours = Decimal(str(block_hours)) * Decimal(str(price)), block_hours
        served = Decimal(str(usage.serving_s)) / Decimal(str(hours * SECONDS_PER_HOUR)) if hours else Decimal(0)
        idle = (1 - served) * usd
        lines.append(CostLine(usage.instance_type, usage.purchase, hours, usd, idle))
    return lines


def cents(usd: Decimal) -> Decimal:
    """Rounded to the cent."""
    return usd.quantize(CENT, ROUND_HALF_UP)


def usd_per_hour_over(ledger: Ledger, price_of: PriceOf, at_s: Sequence[float]) -> list[float] | None:
    """What the machines held at each instant cost an hour; None where a price is not known."""
    total = [0.0] * len(at_s)
    for lease in ledger.leases:
        price = price_of(lease.instance_type, lease.purchase)
        start, end = lease.billed_from_s, lease.spans[-1].end_s if lease.spans else 0.0
        if start is None:
            continue
        if price is None:
            return None
        for k, at in enumerate(at_s):
            total[k] += price if start <= at < end else 0.0
    return total


def scenario_prices(scenario: Scenario) -> PriceOf:
    """Prices of a scenario's machines: as its lines give them, else the catalogue's.

    A line's ``usd_per_hour`` is that of its own purchase form; spot is the catalogue's, or ``spot.price_share`` of it.
    """
    region = find_region(scenario.region or DEFAULT_REGION, where="region")
    given = {line.instance: line.usd_per_hour for line in scenario.fleet if line.usd_per_hour is not None}
    unnamed = [line for line in scenario.fleet if line.instance is None]
    share = scenario.spot.price_share if scenario.spot is not None else None

    def price(instance: str, purchase: str) -> float | None:
        known = given.get(instance, unnamed[0].usd_per_hour if unnamed and instance not in given else None)
        if purchase != "spot" or share is not None:
            base = known
            if base is None:
                found = price_of(instance, region, "on_demand" if purchase == "spot" else purchase)
                base = found.usd_per_hour if found is not None else None
            return base if purchase != "spot" or base is None or share is None else base * share
        found = price_of(instance, region, "spot")
        return found.usd_per_hour if found is not None else None

    return price


def with_fleet_dollars(document: Mapping[str, Any], scenario: Scenario, ledger: Ledger) -> dict[str, Any]:
    """A live run's answer with what its machines cost; without dollars where a price is not known."""
    paths = read_price_paths(scenario.spot.prices) if scenario.spot is not None and scenario.spot.prices else None
    blocks = scenario.capacity.blocks if scenario.capacity is not None else ()
    block_hours = sum(scenario.fleet[b.line].count * (b.end_s - b.start_s) for b in blocks) / SECONDS_PER_HOUR
    lines = fleet_cost(ledger, scenario_prices(scenario), paths, block_hours if blocks else None)
    if lines is None:
        return dict(document)
    usd = sum((line.usd for line in lines), Decimal(0))
    tokens = document["output_tokens_per_s"] * document["duration_s"]
    cost = [
        {"instance_type": x.instance_type, "purchase": x.purchase, "hours": x.hours, "usd": float(cents(x.usd)),
         "usd_idle": float(cents(x.usd_idle))}
        for x in lines
    ]  # fmt: skip
    series = document["live_fleet"]["series"]
    rate = usd_per_hour_over(ledger, scenario_prices(scenario), series["t_s"])
    live = {**document["live_fleet"], "cost": cost, "series": {**series, "usd_per_hour": rate}}
    serving_s = sum(u.serving_s for u in ledger.usage())
    for cache in live["caches"].values():
        cache["saved_usd"] = saved_usd(cache["step_s_saved"], serving_s, usd)
    per_million = float(usd) / tokens * MILLION if tokens else None
    return {**document, "usd": float(cents(usd)), "usd_per_million_output_tokens": per_million, "live_fleet": live}


def saved_usd(step_s_saved: float, step_s: float, usd: Decimal) -> float:
    """Dollars that a cache saves if the fleet would have grown with its work.

    Args:
        step_s_saved: step time that its answers would have taken; step_s: that of the run, which cost ``usd``.
    """
    return float(usd) * step_s_saved / step_s if step_s > 0 else 0.0
