"""What is for sale: instances with a GPU, and their prices in a region by purchase form, a user's own first."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from catalogs.errors import InputError, MissingError
from catalogs.load import find_gpu, find_instance, find_region, instances, price_of, prices
from catalogs.names import nearest
from catalogs.schema import Instance
from planner.inputs.problem import PURCHASES, Problem

MONTHS_PER_YEAR = 12
AWS_REGION = re.compile(r"[a-z]{2}(-gov)?-(central|(north|south)?(east|west)|north|south)-\d")
TERM_YEARS = {"reserved_1yr": 1.0, "reserved_3yr": 3.0}


@dataclass(frozen=True)
class Offer:
    """What a machine costs in one purchase form.

    Attributes:
        usd_per_hour: with the money paid upfront spread over the time in which the machine is needed.
        upfront_usd: paid before a commitment begins.
        running_usd_per_hour: paid as it goes, beside that.
    """

    usd_per_hour: float
    source: str
    as_of: str
    confidence: str = ""
    upfront_usd: float = 0.0
    running_usd_per_hour: float = 0.0

    def times(self, machines: int) -> Offer:
        """Of so many machines."""
        usd = ("usd_per_hour", "upfront_usd", "running_usd_per_hour")
        return replace(self, **{name: getattr(self, name) * machines for name in usd})


def instances_with(gpu: str) -> list[Instance]:
    """Instances whose GPUs are whole ones of this kind."""
    return [i for i in instances().values() if i.gpu == gpu and i.gpu_fraction >= 1 and i.num_gpus >= 1]


def offers_of(problem: Problem, instance: str, *, all_forms: bool = False) -> dict[str, Offer]:
    """Offers of an instance in the problem's region, in the purchase forms that the problem allows.

    Args:
        all_forms: also those that it does not allow, for comparison.
    """
    own = user_prices(problem.prices) if problem.prices else {}
    forms = PURCHASES if all_forms else problem.candidates.purchase
    found: dict[str, Offer] = {}
    for purchase in forms:
        mine = own.get((instance, problem.region, purchase)) or own.get((instance, "", purchase))
        if mine is not None:
            found[purchase] = _discounted(problem, purchase, mine)
            continue
        price = price_of(instance, problem.region, purchase)
        if price is not None and price.region == problem.region:
            offer = Offer(price.usd_per_hour, price.source, price.as_of, price.confidence)
            found[purchase] = _discounted(problem, purchase, offer)
    return found


def _discounted(problem: Problem, purchase: str, offer: Offer) -> Offer:
    """A commitment's level hourly rate. The catalogue's are all upfront; a user's own say what is paid upfront.

    One that outlasts the horizon is paid for whole, over the months in which it is needed.
    """
    years = TERM_YEARS.get(purchase)
    if years is None:
        return offer
    from catalogs.units import HOURS_PER_YEAR
    from planner.money.cost import discounted_usd_per_hour

    in_parts = offer.upfront_usd > 0 or offer.running_usd_per_hour > 0
    upfront = offer.upfront_usd if in_parts else offer.usd_per_hour * HOURS_PER_YEAR * years
    running = offer.running_usd_per_hour
    needed_years = min(years, problem.commitments.horizon_months / MONTHS_PER_YEAR)
    usd = discounted_usd_per_hour(
        upfront, running * years / needed_years, needed_years, problem.commitments.discount_rate
    )
    return replace(offer, usd_per_hour=usd, upfront_usd=upfront)


@cache
def user_prices(path: Path) -> Mapping[tuple[str, str, str], Offer]:
    """A user's own prices: ``instance_type,region,purchase,usd_per_hour[,upfront_usd]``; an empty region means any.

    With ``upfront_usd`` a commitment costs that before it begins and ``usd_per_hour`` as it goes: no upfront (0),
    partial upfront. Left empty, it is all paid upfront, at ``usd_per_hour`` for each hour of its term.

    Raises:
        InputError: unreadable, a missing column, an unknown instance or purchase form, a price that is no number.
    """
    found: dict[tuple[str, str, str], Offer] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as source:
            reader = csv.DictReader(source)
            for column in ("instance_type", "purchase", "usd_per_hour"):
                if column not in (reader.fieldnames or ()):
                    raise InputError(f"has no column {column!r}", where=f"{path}:1")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                instance = find_instance(row["instance_type"].strip(), where).name
                purchase = row["purchase"].strip()
                if purchase not in PURCHASES:
                    raise InputError(
                        f"unknown purchase form {purchase!r}", where=where, remedy=f"one of {', '.join(PURCHASES)}"
                    )
                usd = _price(row["usd_per_hour"], where)
                region = (row.get("region") or "").strip()
                found[(instance, region, purchase)] = _own_offer(
                    row, purchase, usd, where, f"your prices ({path.name})"
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from error
    return found


def _own_offer(row: Mapping[str, str | None], purchase: str, usd: float, where: str, source: str) -> Offer:
    upfront = (row.get("upfront_usd") or "").strip()
    if not upfront:
        return Offer(usd, source, "")
    if purchase not in TERM_YEARS:
        raise InputError(
            f"{purchase} has no upfront_usd", where=where, remedy=f"leave it empty but for {', '.join(TERM_YEARS)}"
        )
    return Offer(usd, source, "", upfront_usd=_price(upfront, where, "upfront_usd"), running_usd_per_hour=usd)


def _price(text: str | None, where: str, column: str = "usd_per_hour") -> float:
    try:
        usd = float(text or "")
    except ValueError:
        usd = -1.0
    if not 0 <= usd < 1e8:
        raise InputError(f"{column} is {text!r}: needs a number of 0 or more", where=where)
    return usd


def region_of(problem: Problem) -> str:
    """The problem's region as the price catalogue spells it.

    Raises:
        InputError: no such region; the message names the nearest. MissingError: a region without prices.
    """
    try:
        return find_region(problem.region, "region")
    except InputError:
        if problem.prices and any(r in ("", problem.region) for _, r, _ in user_prices(problem.prices)):
            return problem.region
        if AWS_REGION.fullmatch(problem.region) is None:
            raise
        known = sorted({p.region for p in prices()} - {"any"})
    raise MissingError(
        f"no price of any GPU instance is known in {problem.region}",
        where="region",
        why=f"a price that is not known is not guessed; prices are known in {', '.join(known)}",
        remedy=f"plan prices refresh --region {problem.region} gets them from AWS; or `prices:` a CSV of your own",
    )


def wanted_instances(problem: Problem) -> list[Instance]:
    """The instance types that the problem's candidates name, with at least one offer.

    Raises:
        InputError: an unknown GPU or instance type. MissingError: none of them has a price in the region.
    """
    chosen = problem.candidates
    names = None if chosen.gpus == "all" else {find_gpu(g, "candidates.gpus").name for g in chosen.gpus}
    types = (
        None if chosen.instances == "all" else {find_instance(i, "candidates.instances").name for i in chosen.instances}
    )
    pool = [
        i
        for i in instances().values()
        if i.gpu_fraction >= 1 and (names is None or i.gpu in names) and (types is None or i.name in types)
    ]
    priced = [i for i in pool if offers_of(problem, i.name)]
    if not priced:
        forms = ", ".join(problem.candidates.purchase)
        elsewhere = sorted({p.region for p in prices() if p.instance in {i.name for i in pool}})
        close = nearest(problem.region, elsewhere, num=3)
        raise MissingError(
            f"no {forms} price in {problem.region} for {_some([i.name for i in pool])}",
            where="region",
            why="a price that is not known is not guessed",
            remedy="plan prices refresh gets them from AWS; or `prices:` a CSV of your own"
            + (f"; prices are known in {', '.join(close)}" if close else ""),
        )
    return priced


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "any instance"
