"""`plan prices refresh`: every family of AWS calls in turn, each batch kept as it comes, each failure named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from catalogs import aws_prices, aws_supply, load
from catalogs.aws_session import Access, CredentialsError, MalformedAnswerError, check_regions, trouble
from catalogs.aws_supply import MAX_PLACEMENT_QUERIES
from catalogs.errors import InputError, MissingError, PlanError
from catalogs.price_store import Fact, PriceStore, Quote, as_prices, merge

Batches = Iterator[list[Quote]] | Iterator[list[Fact]]
Family = Callable[[Access, str, Sequence[str]], Batches]
FAMILIES: dict[str, tuple[str, Family]] = {  # name: (IAM action, function)
    "on_demand": ("pricing:GetProducts", aws_prices.on_demand),
    "savings_plans": ("savingsplans:DescribeSavingsPlansOfferingRates", aws_prices.savings_plans),
    "spot": ("ec2:DescribeSpotPriceHistory", aws_prices.spot),
    "capacity_blocks": ("ec2:DescribeCapacityBlockOfferings", aws_prices.capacity_blocks),
    "instance_types": ("ec2:DescribeInstanceTypes", aws_supply.instance_types),
    "zone_offerings": ("ec2:DescribeInstanceTypeOfferings", aws_supply.zone_offerings),
    "quotas": ("servicequotas:ListServiceQuotas", aws_supply.quotas),
    "placement_scores": ("ec2:GetSpotPlacementScores", aws_supply.placement_scores),
}
BLOCK_PREFIXES = ("p4d.", "p4de.", "p5", "p6")  # what Capacity Blocks are sold for


@dataclass(frozen=True)
class Request:
    """What to fetch."""

    regions: Sequence[str]
    only: Sequence[str] = ()  # families; empty: all
    instances: Sequence[str] = ()  # types; empty: every AWS type of the catalogue
    spot_advisor: str | None = None
    spot_days: float = 1.0
    placement_capacity: int = 1


@dataclass
class Refresh:
    """What came of it: how many rows of each family and region, and what is missing and why."""

    refresh_id: int
    fetched: dict[str, int] = field(default_factory=dict)
    missing: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    credentials: CredentialsError | None = None

    def miss(self, what: str, region: str, error: PlanError) -> None:
        """Note what is missing."""
        self.missing.append({
            "what": what, "region": region, "kind": str(getattr(error, "kind", "other")), "why": error.what,
            "action": error.where, "remedy": error.remedy,
        })  # fmt: skip


def refresh(
    request: Request, access: Access, store: PriceStore, progress: Callable[[str, float], None] | None = None
) -> Refresh:
    """Fetch prices and supply facts into the store.

    Returns:
        what was fetched and what is missing; a failure of one family or region leaves the others alone.

    Raises:
        InputError: an unknown region, instance type or family.
        MissingError: no credentials or expired ones, before anything was fetched.
    """
    regions = check_regions(request.regions)
    names = [load.find_instance(n, "--instance").name for n in request.instances] or [
        i.name for i in load.instances().values() if i.cloud == "aws"
    ]
    unknown = [f for f in request.only if f not in FAMILIES]
    if unknown:
        raise InputError(f"unknown family {unknown[0]!r}", where="--only", remedy=f"one of {', '.join(FAMILIES)}")
    result = Refresh(store.begin(regions))
    families = list(request.only) or list(FAMILIES)
    if not request.only and len({load.instances()[n].gpu for n in names}) * len(regions) > MAX_PLACEMENT_QUERIES:
        families.remove("placement_scores")
        result.notes.append(
            "Spot placement scores were not asked for: AWS allows ten new questions a day; "
            "name instances (--instance), or ask for them alone (--only placement_scores)."
        )
    tasks = [(family, region) for region in regions for family in families]
    if request.spot_advisor:
        _advisor(request.spot_advisor, regions, names, access, store, result)
    for i, (family, region) in enumerate(tasks):
        if progress:
            progress(f"{family} {region}", i / len(tasks))
        _fetch(family, region, names, request, access, store, result)
        if result.credentials is not None:
            for other, where in tasks[i + 1 :]:
                result.miss(other, where, result.credentials)
            break
    store.finish(result.refresh_id, result.missing)
    load.forget()
    if result.credentials is not None and not result.fetched:
        raise result.credentials
    return result


def _fetch(
    family: str,
    region: str,
    names: Sequence[str],
    request: Request,
    access: Access,
    store: PriceStore,
    result: Refresh,
) -> None:
    action, function = FAMILIES[family]
    wanted = [n for n in names if n.startswith(BLOCK_PREFIXES)] if family == "capacity_blocks" else names
    bound: Mapping[str, Family] = {
        "spot": partial(aws_prices.spot, days=request.spot_days),
        "placement_scores": partial(aws_supply.placement_scores, capacity=request.placement_capacity),
    }
    count = 0
    try:
        for batch in bound.get(family, function)(access, region, wanted):
            count += _keep(store, result.refresh_id, batch)
    except MalformedAnswerError as error:
        result.miss(family, region, MissingError(str(error), where=action, remedy="try again later"))
        result.missing[-1]["kind"] = "malformed"
    except Exception as error:
        told = trouble(error, action)
        if isinstance(told, CredentialsError):
            result.credentials = told
        result.miss(family, region, told)
    else:
        if count == 0 and family in ("on_demand", "spot"):
            result.miss(family, region, MissingError("AWS answered with no row", where=action))
    if count:
        result.fetched[f"{family} {region}"] = count


def _keep(store: PriceStore, refresh_id: int, batch: Sequence[Quote] | Sequence[Fact]) -> int:
    quotes = [row for row in batch if isinstance(row, Quote)]
    facts = [row for row in batch if isinstance(row, Fact)]
    return store.add_quotes(refresh_id, quotes) + store.add_facts(refresh_id, facts) if batch else 0


def _advisor(
    source: str, regions: Sequence[str], names: Sequence[str], access: Access, store: PriceStore, result: Refresh
) -> None:
    try:
        facts = aws_supply.spot_advisor(source, regions, names, access.timeout_s)
    except MissingError as error:
        result.miss("spot_advisor", ", ".join(regions), error)
    else:
        result.fetched["spot_advisor"] = store.add_facts(result.refresh_id, facts)


@dataclass(frozen=True)
class Change:
    """One price then and now."""

    instance: str
    region: str
    purchase: str
    before_usd_per_hour: float | None
    after_usd_per_hour: float | None
    before: str  # where and when the old one is from
    after: str

    @property
    def ratio(self) -> float | None:
        """New price over old, less one; ``None`` where one of them is not known."""
        if self.before_usd_per_hour is None or self.after_usd_per_hour is None:
            return None
        return self.after_usd_per_hour / self.before_usd_per_hour - 1


def differences(store: PriceStore, since: str | None = None) -> list[Change]:
    """What changed from the catalogue's snapshot, or from what was known at ``since`` (ISO), to what is known now.

    Prices that did not move are left out; one that was only in the snapshot stays in use and is no change.
    """
    catalogue = load.catalogue_prices()
    then = catalogue if since is None else merge(catalogue, as_prices(store.quotes(before=since)))
    old = {(p.instance, p.region, p.purchase): p for p in then}
    changes: list[Change] = []
    for p in merge(catalogue, as_prices(store.quotes())):
        was = old.get((p.instance, p.region, p.purchase))
        if was is None or abs(p.usd_per_hour / was.usd_per_hour - 1) > 1e-6:
            changes.append(
                Change(p.instance, p.region, p.purchase, was.usd_per_hour if was else None, p.usd_per_hour,
                       f"{was.source} ({was.as_of})" if was else "", f"{p.source} ({p.as_of})")
            )  # fmt: skip
    return sorted(changes, key=lambda c: -abs(c.ratio or 0.0))
