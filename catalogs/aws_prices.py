"""Live prices from AWS: on-demand and RI terms, Savings Plans rates, spot by zone, Capacity Blocks.

Each function yields batches as pages arrive, so that what was fetched before a failure is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from catalogs.aws_session import Access, MalformedAnswerError
from catalogs.price_store import Quote
from catalogs.schema import Purchase
from catalogs.units import HOURS_PER_YEAR

PRICING_REGION = "us-east-1"  # the Price List answers in us-east-1, eu-central-1 and ap-south-1 only
YEAR_S = 31_536_000
CAPACITY_BLOCK_HOURS = 24


def on_demand(access: Access, region: str, instances: Sequence[str]) -> Iterator[list[Quote]]:
    """On-demand and Reserved Instance terms of Linux GPU instances (``pricing:GetProducts``)."""
    client = access.client("pricing", PRICING_REGION)
    fields = {"regionCode": region, "operatingSystem": "Linux", "preInstalledSw": "NA", "tenancy": "Shared",
              "capacitystatus": "Used", "marketoption": "OnDemand", "instanceFamily": "GPU instance"}  # fmt: skip
    filters = [{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in fields.items()]
    wanted = set(instances)
    for page in client.get_paginator("get_products").paginate(
        ServiceCode="AmazonEC2", FormatVersion="aws_v1", Filters=filters
    ):
        batch: list[Quote] = []
        for text in items(page, "PriceList"):
            product = _parsed(text)
            instance = str(product.get("product", {}).get("attributes", {}).get("instanceType", ""))
            if instance in wanted:
                batch += _product_quotes(product, instance, region)
        yield batch


def savings_plans(access: Access, region: str, instances: Sequence[str]) -> Iterator[list[Quote]]:
    """Hourly rates under Savings Plans (``savingsplans:DescribeSavingsPlansOfferingRates``); no paginator exists."""
    client = access.client("savingsplans", PRICING_REGION)
    token = ""
    for start in range(0, len(instances), 20):
        names = list(instances[start : start + 20])
        while True:
            page = client.describe_savings_plans_offering_rates(
                savingsPlanTypes=["EC2Instance", "Compute"],
                products=["EC2"],
                serviceCodes=["AmazonEC2"],
                filters=[
                    {"name": "region", "values": [region]},
                    {"name": "instanceType", "values": names},
                    {"name": "productDescription", "values": ["Linux/UNIX"]},
                    {"name": "tenancy", "values": ["shared"]},
                ],
                maxResults=1000,
                **({"nextToken": token} if token else {}),
            )
            yield [q for item in items(page, "searchResults") for q in _plan_quotes(item, region)]
            last, token = token, str(page.get("nextToken") or "")
            if not token or token == last:
                token = ""
                break


def spot(access: Access, region: str, instances: Sequence[str], days: float = 1.0) -> Iterator[list[Quote]]:
    """Spot prices by zone: those in force now, and their changes in the last ``days``.

    ``ec2:DescribeSpotPriceHistory``. The newest price of a zone is dated now, since it still holds.
    """
    client = access.client("ec2", region)
    here = datetime.now(UTC)
    newest: dict[tuple[str, str], tuple[datetime, Quote]] = {}
    pages = client.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=list(instances), ProductDescriptions=["Linux/UNIX"], StartTime=here - timedelta(days=days)
    )

    def current() -> list[Quote]:
        return [
            Quote(q.instance, q.region, q.purchase, q.usd_per_hour, q.source, here.isoformat(), zone=q.zone)
            for _, q in newest.values()
        ]

    try:
        for page in pages:
            batch: list[Quote] = []
            for item in items(page, "SpotPriceHistory"):
                at, zone, name = item["Timestamp"], str(item["AvailabilityZone"]), str(item["InstanceType"])
                usd = _amount(item["SpotPrice"])
                quote = Quote(name, region, "spot", usd, "EC2 spot price history", at.isoformat(), zone=zone)
                batch.append(quote)
                if (name, zone) not in newest or newest[name, zone][0] < at:
                    newest[name, zone] = (at, quote)
            yield batch
    except Exception:
        yield current()
        raise
    yield current()


def capacity_blocks(access: Access, region: str, instances: Sequence[str]) -> Iterator[list[Quote]]:
    """The cheapest one-day Capacity Block on offer for each type (``ec2:DescribeCapacityBlockOfferings``).

    Hourly = upfront fee / (instances x hours); the fee is all that is paid for the instances.
    """
    client = access.client("ec2", region)
    here = datetime.now(UTC)
    for instance in instances:
        offers: list[Quote] = []
        for page in client.get_paginator("describe_capacity_block_offerings").paginate(
            InstanceType=instance, InstanceCount=1, CapacityDurationHours=CAPACITY_BLOCK_HOURS,
            EndDateRange=here + timedelta(days=56),
        ):  # fmt: skip
            for item in items(page, "CapacityBlockOfferings"):
                if item.get("CurrencyCode", "USD") != "USD":
                    raise MalformedAnswerError(f"{instance} is priced in {item['CurrencyCode']}, not US dollars")
                fee = _amount(item["UpfrontFee"])
                hours = int(item["CapacityBlockDurationHours"]) * int(item["InstanceCount"])
                offers.append(
                    Quote(instance, region, "capacity_block", fee / hours, "EC2 Capacity Block offerings",
                          here.isoformat(), zone=str(item.get("AvailabilityZone", "")),
                          terms=f"{item['CapacityBlockDurationHours']} h from {item['StartDate']:%Y-%m-%d}",
                          upfront_usd=fee)
                )  # fmt: skip
        if offers:
            yield [min(offers, key=lambda q: q.usd_per_hour)]


def items(page: Mapping[str, Any], key: str) -> list[Any]:
    """A page's list; its absence means that something else than AWS answered."""
    if key not in page or not isinstance(page[key], list):
        raise MalformedAnswerError(f"the answer has no {key}")
    return list(page[key])


def _parsed(text: object) -> Mapping[str, Any]:
    try:
        product = json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError as error:
        raise MalformedAnswerError(f"a product of the Price List is not JSON: {error}") from None
    if not isinstance(product, dict):
        raise MalformedAnswerError("a product of the Price List is not an object")
    return product


def _amount(text: object) -> float:
    try:
        value = float(str(text))
    except ValueError:
        raise MalformedAnswerError(f"{text!r} is not an amount") from None
    if not 0 <= value < 1e9:
        raise MalformedAnswerError(f"{text!r} is not an amount")
    return value


def _product_quotes(product: Mapping[str, Any], instance: str, region: str) -> list[Quote]:
    here = datetime.now(UTC).isoformat()
    terms = product.get("terms") or {}
    quotes: list[Quote] = []
    for term in (terms.get("OnDemand") or {}).values():
        hourly, _ = _dimensions(term)
        if hourly:
            quotes.append(Quote(instance, region, "on_demand", hourly, "AWS Price List", here))
    for term in (terms.get("Reserved") or {}).values():
        about = term.get("termAttributes") or {}
        years = {"1yr": 1, "3yr": 3}.get(str(about.get("LeaseContractLength", "")).replace(" ", ""))
        if years is None:
            continue
        hourly, upfront = _dimensions(term)
        effective = hourly + upfront / (years * HOURS_PER_YEAR)
        if effective > 0:
            kind: Purchase = "reserved_1yr" if years == 1 else "reserved_3yr"
            label = f"RI {about.get('OfferingClass', 'standard')}, {about.get('PurchaseOption', '')}"
            quotes.append(Quote(instance, region, kind, effective, "AWS Price List", here, terms=label,
                                upfront_usd=upfront))  # fmt: skip
    return quotes


def _dimensions(term: Mapping[str, Any]) -> tuple[float, float]:
    """US dollars an hour, and US dollars upfront; dimensions in another currency are refused."""
    hourly = upfront = 0.0
    for dimension in (term.get("priceDimensions") or {}).values():
        amounts = dimension.get("pricePerUnit") or {}
        if "USD" not in amounts:
            raise MalformedAnswerError(f"a price in {', '.join(amounts) or 'no currency'}, not in US dollars")
        if dimension.get("unit") == "Quantity":
            upfront += _amount(amounts["USD"])
        else:
            hourly += _amount(amounts["USD"])
    return hourly, upfront


def _plan_quotes(item: Mapping[str, Any], region: str) -> list[Quote]:
    offering = item.get("savingsPlanOffering") or {}
    properties = {p.get("name"): p.get("value") for p in item.get("properties") or []}
    years = {YEAR_S: 1, 3 * YEAR_S: 3}.get(int(offering.get("durationSeconds", 0)))
    instance = properties.get("instanceType")
    if years is None or instance is None or "BoxUsage" not in str(item.get("usageType", "BoxUsage")):
        return []
    if offering.get("currency", "USD") != "USD":
        raise MalformedAnswerError(f"a Savings Plans rate in {offering['currency']}, not in US dollars")
    kind: Purchase = "reserved_1yr" if years == 1 else "reserved_3yr"
    plan = {"EC2Instance": "EC2 Instance Savings Plan", "Compute": "Compute Savings Plan"}
    label = f"{plan.get(str(offering.get('planType')), 'Savings Plan')}, {offering.get('paymentOption', '')}"
    here = datetime.now(UTC).isoformat()
    rate = _amount(item.get("rate"))
    return [Quote(str(instance), region, kind, rate, "AWS Savings Plans rates", here, terms=label)] if rate else []
