"""What committing to machines of one type saves, when the demand has a trace's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import MissingError
from catalogs.load import find_instance, find_region, prices
from catalogs.schema import Price
from planner.money.cost import break_even_utilisation, committed_usd_per_year, newsvendor_commitment

FloatArray = NDArray[np.float64]
WINDOWS = 96  # of the trace's length, each taken as equally long a part of the year


def priced(instance: str, region: str, purchase: str, prefix: str = "") -> tuple[Price, Price]:
    """An instance's price on demand and committed.

    Args:
        prefix: of the names in errors: ``--`` for flags.

    Raises:
        InputError: no such instance or region. MissingError: one of the two has no price there.
    """
    name, place = find_instance(instance, f"{prefix}instance").name, find_region(region, f"{prefix}region")
    known = {p.purchase: p for p in prices() if p.instance == name and p.region == place}
    for wanted in ("on_demand", purchase):
        if wanted not in known:
            raise MissingError(
                f"{name} has no {wanted} price in {place}", where=f"{prefix}instance",
                remedy=f"known there: {', '.join(sorted(known)) or 'none'}; `plan prices refresh` fetches today's",
            )  # fmt: skip
    return known["on_demand"], known[purchase]  # type: ignore[index]


def machines_of(rate: Sequence[float] | FloatArray, peak: int) -> FloatArray:
    """Machines needed in each window when the busiest needs ``peak``."""
    rate = np.asarray(rate, dtype=float)
    return np.ceil(peak * rate / max(float(rate.max()), 1e-9))


def commitment(machines: FloatArray, committed_usd: float, on_demand_usd: float, chosen: int | None) -> dict[str, Any]:
    """What a number of committed machines costs a year, beside the cheapest number and none.

    Args:
        machines: needed in each (equally long) window.
        committed_usd, on_demand_usd: USD an hour of one machine.
        chosen: machines to commit; None: the cheapest.
    """
    best = newsvendor_commitment(machines, committed_usd, on_demand_usd)
    peak = int(machines.max(initial=0))
    costs = [committed_usd_per_year(machines, n, committed_usd, on_demand_usd) for n in range(peak + 1)]
    held = best if chosen is None else chosen
    return {
        "peak": peak,
        "cheapest": best,
        "chosen": held,
        "usd_per_year": {"chosen": committed_usd_per_year(machines, held, committed_usd, on_demand_usd),
                         "cheapest": costs[best], "on_demand": costs[0]},
        "usd_per_year_by_machines": costs,
        "break_even_utilisation": break_even_utilisation(committed_usd, on_demand_usd),
    }  # fmt: skip
