"""Money formulas: pure functions of prices, times and counts. US dollars; a month is 730 h."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from catalogs.units import HOURS_PER_MONTH, HOURS_PER_YEAR, MILLION, SECONDS_PER_HOUR

FloatArray = NDArray[np.float64]


def usd_per_month(usd_per_hour: float) -> float:
    """[USD/month] of a rate [USD/h]."""
    return usd_per_hour * HOURS_PER_MONTH


def usd_per_million_tokens(usd_per_hour: float, tokens_per_s: float) -> float | None:
    """[USD per 10^6 tokens] when a fleet of ``usd_per_hour`` yields ``tokens_per_s``; None without tokens."""
    if tokens_per_s <= 0:
        return None
    return usd_per_hour / (tokens_per_s * SECONDS_PER_HOUR) * MILLION


def usd_per_thousand_requests(usd_per_hour: float, requests_per_s: float) -> float | None:
    """[USD per 1000 requests]; None without requests."""
    if requests_per_s <= 0:
        return None
    return usd_per_hour / (requests_per_s * SECONDS_PER_HOUR) * 1000


def effective_usd_per_hour(upfront_usd: float, usd_per_hour: float, term_years: float) -> float:
    """Rate of a commitment with part of it paid upfront, spread over its term, undiscounted."""
    return upfront_usd / (term_years * HOURS_PER_YEAR) + usd_per_hour


def discounted_usd_per_hour(upfront_usd: float, usd_per_hour: float, term_years: float, discount_rate: float) -> float:
    """The level hourly rate whose present value is that of ``upfront_usd`` now plus ``usd_per_hour`` over the term.

    With a yearly rate r compounded continuously, an hourly payment c over T years is worth c * H * (1 - e^(-iT)) / i
    today, where i = ln(1 + r) and H = 8760 h (an annuity). At r = 0 this is ``effective_usd_per_hour``.
    """
    if discount_rate == 0:
        return effective_usd_per_hour(upfront_usd, usd_per_hour, term_years)
    rate = math.log1p(discount_rate)
    annuity_hours = HOURS_PER_YEAR * (1 - math.exp(-rate * term_years)) / rate
    return upfront_usd / annuity_hours + usd_per_hour


def break_even_utilisation(committed_usd_per_hour: float, on_demand_usd_per_hour: float) -> float:
    """Share of the time that a machine must be needed for a commitment to pay; above 1: it never does."""
    return committed_usd_per_hour / on_demand_usd_per_hour


def break_even_months(upfront_usd: float, committed_usd_per_hour: float, on_demand_usd_per_hour: float) -> float | None:
    """Months of full use after which the upfront money is back; None: never."""
    saving = on_demand_usd_per_hour - committed_usd_per_hour
    return upfront_usd / saving / HOURS_PER_MONTH if saving > 0 else None


def newsvendor_commitment(demand: Sequence[float] | FloatArray, committed_usd: float, on_demand_usd: float) -> int:
    """Machines to commit for one type: as long as P(demand >= r) >= committed / on-demand price.

    The newsvendor quantile of the load-duration curve.

    Args:
        demand: machines needed in each (equally long) period.
        committed_usd, on_demand_usd: USD an hour of one machine.
    """
    needed = np.ceil(np.asarray(demand, dtype=float) - 1e-9)
    ratio, committed = committed_usd / on_demand_usd, 0
    while committed < needed.max(initial=0) and np.mean(needed >= committed + 1) >= ratio - 1e-12:
        committed += 1
    return committed


def committed_usd_per_year(
    demand: Sequence[float] | FloatArray, committed: int, committed_usd: float, on_demand_usd: float
) -> float:
    """[USD/year] of holding ``committed`` machines all year and running what is needed beyond them on demand.

    Args:
        demand: machines needed in each (equally long) period.
        committed_usd, on_demand_usd: USD an hour of one machine.
    """
    beyond = np.maximum(np.asarray(demand, dtype=float) - committed, 0.0).mean()
    return float(committed * committed_usd + beyond * on_demand_usd) * HOURS_PER_YEAR
