"""What a simulated fleet costs: the ledger's seconds times prices, to the cent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from catalogs.units import SECONDS_PER_HOUR
from simulator.accounting import Lease, Ledger

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


def fleet_cost(
    ledger: Ledger, price_of: PriceOf, paths: Mapping[tuple[str, str], PricePath] | None = None
) -> list[CostLine] | None:
    """Cost of a run by instance type and purchase form; None where a price is not known.

    Args:
        price_of: US dollars an hour of an instance type in a purchase form.
        paths: prices that change, by (instance type, zone), for spot.
    """
    lines = []
    for usage in ledger.usage():
        leases = [x for x in ledger.leases if (x.instance_type, x.purchase) == (usage.instance_type, usage.purchase)]
        price = price_of(usage.instance_type, usage.purchase)
        usd = Decimal(0)
        for lease in leases:
            path = (paths or {}).get((lease.instance_type, lease.zone)) if lease.purchase == "spot" else None
            if path is None and price is None:
                return None
            usd += lease_usd(lease, path if path is not None else float(price or 0.0))
        idle = Decimal(str(usage.wasted_gpu_share)) * usd
        lines.append(CostLine(usage.instance_type, usage.purchase, usage.billed_s / SECONDS_PER_HOUR, usd, idle))
    return lines


def cents(usd: Decimal) -> Decimal:
    """Rounded to the cent."""
    return usd.quantize(CENT, ROUND_HALF_UP)


def saved_usd(
    input_tokens: float, output_tokens: float, usd: Decimal, all_input_tokens: float, all_output_tokens: float
) -> float:
    """Dollars that a cache saves, if the fleet shrinks with its load: its share of all tokens, of what the rest cost.

    Args:
        input_tokens, output_tokens: answered by the cache; ``all_*``: of all requests.
        usd: cost of serving what the cache did not answer.
    """
    computed = all_input_tokens + all_output_tokens - input_tokens - output_tokens
    return float(usd) * (input_tokens + output_tokens) / computed if computed > 0 else 0.0
