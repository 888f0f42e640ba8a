"""Savings Plans: dollars promised for each hour, which pay for the on-demand machines of the plan at its rates.

A Compute Savings Plan holds for every instance type, an EC2 Instance Savings Plan for one family in a region; both for
1 or 3 years, paid all, half or not upfront. What an hour's machines do not use of the promise is lost; what they use
beyond it is on demand. AWS lets reservations pay first, then a family's plans, then Compute plans, each for the
machines with the largest share saved (docs.aws.amazon.com/savingsplans/latest/userguide/sp-applying.html, read
2026-11); within a plan the optimizer's choice is the same, between plans that overlap it shares them as is cheapest.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from catalogs.errors import InputError, MissingError
from catalogs.load import catalogue_prices, find_instance
from catalogs.price_store import PriceStore
from catalogs.units import HOURS_PER_YEAR
from planner.inputs.problem import Problem
from planner.money.cost import discounted_usd_per_hour
from planner.optimizer.fleet_model import SavingsPlan

PLANS = {"compute": "Compute Savings Plan", "ec2_instance": "EC2 Instance Savings Plan"}
# Share of the whole promise; partial is 50 to 99 % (AWS API reference, CreateSavingsPlan, upfrontPaymentAmount)
UPFRONT = {"no_upfront": 0.0, "partial_upfront": 0.5, "all_upfront": 1.0}
COLUMNS = ("plan", "term_years", "payment", "instance_type", "usd_per_hour")
TERMS = re.compile(r"(?:[13]-year )?(EC2 Instance|Compute) Savings Plan, (no|partial|all) upfront", re.IGNORECASE)
YEARS = {"reserved_1yr": 1, "reserved_3yr": 3}
Key = tuple[str, int, str]  # plan, years, payment


@dataclass(frozen=True)
class Rate:
    """What a machine takes of an hour's promise.

    Attributes:
        key: plan, years, payment.
    """

    key: Key
    instance: str
    usd_per_hour: float
    source: str


def plans_of(problem: Problem, instances: Iterable[str]) -> tuple[SavingsPlan, ...]:
    """The Savings Plans that are held, and those that the problem allows, for these instance types.

    Raises:
        InputError: a file of rates that cannot be used. MissingError: no rate is known for any of the instance types,
            or none of a plan that is held.
    """
    wanted = set(instances)
    held = tuple(_held(problem, i, wanted) for i in range(len(problem.commitments.existing_savings_plans)))
    if "savings_plan" not in problem.candidates.purchase:
        if problem.savings_plans is not None:
            user_rates(problem.savings_plans, problem.region)  # what is wrong with it is said even so
        return held
    rates = [r for r in rates_of(problem) if r.instance in wanted]
    if not rates:
        raise MissingError(
            f"no Savings Plan rate of any candidate is known in {problem.region}", where="candidates.purchase",
            why="a price that is not known is not guessed",
            remedy="plan prices refresh --only savings_plans gets them from AWS; or `savings_plans:` a CSV with "
            + ",".join(COLUMNS),
        )  # fmt: skip
    groups: dict[tuple[Key, str], dict[str, Rate]] = {}
    for rate in rates:
        family = rate.instance.split(".")[0] if rate.key[0] == "ec2_instance" else ""
        groups.setdefault((rate.key, family), {})[rate.instance] = rate
    return held + tuple(_plan(problem, key, family, found) for (key, family), found in sorted(groups.items()))


def _held(problem: Problem, index: int, wanted: Collection[str]) -> SavingsPlan:
    """What is promised already: dollars that are paid whether machines use them or not, so they cost nothing more."""
    one = problem.commitments.existing_savings_plans[index]
    key = (one.plan, one.term_years, one.payment)
    rates = {r.instance: r for r in rates_of(problem) if r.key == key and one.family in ("", r.instance.split(".")[0])}
    if not rates:
        raise MissingError(
            f"no rate of the {_words(key, one.family)}, is known in {problem.region}",
            where=f"commitments.existing_savings_plans[{index}]",
            why="what its dollars pay for is not known, and a price that is not known is not guessed",
            remedy="its rates, as AWS states them, in `savings_plans:`, a CSV with " + ",".join(COLUMNS),
        )
    usable = {name: rate for name, rate in rates.items() if name in wanted}
    plan = _plan(problem, key, one.family, usable or rates)
    return replace(plan, usd_per_hour=0.0, upfront_usd=0.0, held_usd_per_hour=one.usd_per_hour)


def _words(key: Key, family: str) -> str:
    plan, years, payment = key
    words = f"{PLANS[plan]}{f' of {family}' if family else ''}, {years} year{'s' if years > 1 else ''}"
    return f"{words}, {payment.replace('_', ' ')}"


def _plan(problem: Problem, key: Key, family: str, rates: Mapping[str, Rate]) -> SavingsPlan:
    plan, years, payment = key
    needed_years = min(years, problem.commitments.horizon_months / 12)
    upfront_usd = UPFRONT[payment] * HOURS_PER_YEAR * years
    usd = discounted_usd_per_hour(
        upfront_usd, (1 - UPFRONT[payment]) * years / needed_years, needed_years, problem.commitments.discount_rate
    )
    terms = {"plan": plan, "family": family, "term_years": years, "payment": payment}
    return SavingsPlan(
        _words(key, family), usd, {i: r.usd_per_hour for i, r in sorted(rates.items())},
        upfront_usd, {**terms, "source": "; ".join(sorted({r.source for r in rates.values()}))},
    )  # fmt: skip


def rates_of(problem: Problem) -> list[Rate]:
    """The user's own where there are any; else those fetched from AWS, and those that the catalogue's rows are."""
    if problem.savings_plans is not None:
        return user_rates(problem.savings_plans, problem.region)
    store = PriceStore()
    fetched = [(q.instance, q.region, q.purchase, q.terms, q.usd_per_hour, f"{q.source} ({q.as_of[:10]})")
               for q in (store.quotes() if store.exists() else [])]  # fmt: skip
    known = [(p.instance, p.region, p.purchase, p.notes, p.usd_per_hour, f"{p.source} ({p.as_of})")
             for p in catalogue_prices()]  # fmt: skip
    found: dict[tuple[Key, str], Rate] = {}
    for instance, region, purchase, terms, usd, source in (*known, *fetched):  # the latter replace the former
        match = TERMS.match(terms)
        if match is None or region != problem.region or purchase not in YEARS:
            continue
        plan = "compute" if match[1].lower() == "compute" else "ec2_instance"
        key = (plan, YEARS[purchase], f"{match[2].lower()}_upfront")
        found[(key, instance)] = Rate(key, instance, usd, source)
    return list(found.values())


def user_rates(path: Path, region: str) -> list[Rate]:
    """A user's own rates: ``plan,term_years,payment,instance_type,usd_per_hour[,region]``; an empty region means any.

    Raises:
        InputError: unreadable, a missing column, an unknown plan, term, payment or instance, a rate that is no number.
    """
    found: list[Rate] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as source:
            reader = csv.DictReader(source)
            for column in COLUMNS:
                if column not in (reader.fieldnames or ()):
                    raise InputError(f"has no column {column!r}", where=f"{path}:1", remedy=",".join(COLUMNS))
            for row in reader:
                rate = _user_rate(row, f"{path}:{reader.line_num}", f"your Savings Plan rates ({path.name})")
                if (row.get("region") or "").strip() in ("", region):
                    found.append(rate)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from error
    return found


def _user_rate(row: Mapping[str, str | None], where: str, source: str) -> Rate:
    cells = {name: (row.get(name) or "").strip() for name in COLUMNS}
    for name, allowed in (("plan", PLANS), ("term_years", ("1", "3")), ("payment", UPFRONT)):
        if cells[name] not in allowed:
            raise InputError(f"unknown {name} {cells[name]!r}", where=where, remedy=f"one of {', '.join(allowed)}")
    try:
        usd = float(cells["usd_per_hour"])
    except ValueError:
        usd = -1.0
    if not 0 < usd < 1e8:
        raise InputError(f"usd_per_hour is {cells['usd_per_hour']!r}: needs a number above 0", where=where)
    key = (cells["plan"], int(cells["term_years"]), cells["payment"])
    return Rate(key, find_instance(cells["instance_type"], where).name, usd, source)
