"""What AWS can supply beside prices: types, zones, quotas, placement scores, interruption buckets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from catalogs.aws_prices import items
from catalogs.aws_session import Access
from catalogs.errors import InputError, MissingError
from catalogs.files import parse_json
from catalogs.price_store import Fact
from catalogs.units import MIB

GPU_FAMILIES = ("g4*", "g5*", "g6*", "g7*", "gr6*", "p3*", "p4*", "p5*", "p6*")
QUOTA_WORDS = ("G and VT", "P instances", " P4", " P5", " P6", "P4,", "P5 ", "P6 ", "P2, P3")
MAX_PLACEMENT_QUERIES = 10  # AWS allows ten new configurations a day
INTERRUPTION_LABELS = ("<5%", "5-10%", "10-15%", "15-20%", ">20%")


def instance_types(access: Access, region: str, _instances: Sequence[str]) -> Iterator[list[Fact]]:
    """Every GPU instance type of a region, the catalogue's or not (``ec2:DescribeInstanceTypes``).

    Partitions of a GPU (g6f) report a count of 0: their share is in ``gpu_partition_size``.
    """
    pages = access.client("ec2", region).get_paginator("describe_instance_types")
    for page in pages.paginate(Filters=[{"Name": "instance-type", "Values": list(GPU_FAMILIES)}]):
        yield [
            Fact("instance_type", region, str(item["InstanceType"]), _type(item), "EC2 DescribeInstanceTypes")
            for item in items(page, "InstanceTypes")
            if item.get("GpuInfo")
        ]


def _type(item: dict[str, Any]) -> dict[str, object]:
    gpus = item["GpuInfo"].get("Gpus") or [{}]
    first = gpus[0]
    return {
        "num_vcpus": item.get("VCpuInfo", {}).get("DefaultVCpus"),
        "memory_bytes": item.get("MemoryInfo", {}).get("SizeInMiB", 0) * MIB or None,
        "gpu": f"{first.get('Manufacturer', '')} {first.get('Name', '')}".strip(),
        "num_gpus": first.get("Count"),
        "gpu_partition_size": first.get("GpuPartitionSize"),
        "gpu_memory_bytes": first.get("MemoryInfo", {}).get("SizeInMiB", 0) * MIB or None,
        "network": item.get("NetworkInfo", {}).get("NetworkPerformance"),
        "usage_classes": item.get("SupportedUsageClasses", []),
    }


def zone_offerings(access: Access, region: str, instances: Sequence[str]) -> Iterator[list[Fact]]:
    """In which zones each type is offered (``ec2:DescribeInstanceTypeOfferings``)."""
    pages = access.client("ec2", region).get_paginator("describe_instance_type_offerings")
    for page in pages.paginate(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": list(instances)}]
    ):
        yield [
            Fact("zone_offering", region, str(item["InstanceType"]), {"offered": True},
                 "EC2 DescribeInstanceTypeOfferings", zone=str(item["Location"]))
            for item in items(page, "InstanceTypeOfferings")
        ]  # fmt: skip


def quotas(access: Access, region: str, _instances: Sequence[str]) -> Iterator[list[Fact]]:
    """The account's vCPU quotas for G and P instances, on demand and spot (``servicequotas:ListServiceQuotas``)."""
    pages = access.client("service-quotas", region).get_paginator("list_service_quotas")
    for page in pages.paginate(ServiceCode="ec2"):
        yield [
            Fact("quota", region, str(q["QuotaName"]), {"vcpus": q.get("Value"), "code": q.get("QuotaCode")},
                 "Service Quotas")
            for q in items(page, "Quotas")
            if any(word in str(q.get("QuotaName", "")) for word in QUOTA_WORDS)
        ]  # fmt: skip


def placement_scores(access: Access, region: str, instances: Sequence[str], capacity: int = 1) -> Iterator[list[Fact]]:
    """How likely a spot request is to succeed, 1 to 10, by zone (``ec2:GetSpotPlacementScores``).

    One question for each GPU, of all the instances that carry it: AWS allows ten new questions a day.

    Args:
        capacity: instances that are wanted at once.
    """
    from catalogs import load

    client = access.client("ec2", region)
    groups: dict[str, list[str]] = {}
    for name in instances:
        groups.setdefault(load.instances()[name].gpu, []).append(name)
    for gpu, names in list(groups.items())[:MAX_PLACEMENT_QUERIES]:
        for page in client.get_paginator("get_spot_placement_scores").paginate(
            InstanceTypes=names, TargetCapacity=capacity, TargetCapacityUnitType="units",
            SingleAvailabilityZone=True, RegionNames=[region],
        ):  # fmt: skip
            yield [
                Fact("placement_score", region, gpu, {"score": s["Score"], "instances": names, "capacity": capacity},
                     "EC2 spot placement scores", zone=str(s.get("AvailabilityZoneId", "")))
                for s in items(page, "SpotPlacementScores")
            ]  # fmt: skip
    if len(groups) > MAX_PLACEMENT_QUERIES:
        rest = ", ".join(list(groups)[MAX_PLACEMENT_QUERIES:])
        raise MissingError(f"not asked for {rest}: AWS allows ten questions a day", where="ec2:GetSpotPlacementScores",
                           remedy="name the instances with --instance")  # fmt: skip


def spot_advisor(source: str, regions: Sequence[str], instances: Sequence[str], timeout_s: float) -> list[Fact]:
    """Average saving and interruption bucket, from the Spot Advisor's JSON in a file or at an http(s) address.

    Raises:
        MissingError: the file or address cannot be read.
        InputError: it is not the Spot Advisor's form.
    """
    text = _read_url(source, timeout_s) if source.startswith(("http://", "https://")) else _read_file(source)
    wanted = set(instances)
    try:
        by_region = parse_json(text)["spot_advisor"]
        facts = [
            Fact("spot_advisor", region, name,
                 {"saving": entry["s"] / 100, "interruption": INTERRUPTION_LABELS[entry["r"]]},
                 f"Spot Advisor {source}")
            for region in regions
            for name, entry in by_region.get(region, {}).get("Linux", {}).items()
            if name in wanted
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"not the Spot Advisor's JSON ({type(error).__name__}: {error})",
            where="--spot-advisor",
            remedy="give the file spot-advisor-data.json as AWS publishes it",
        ) from None
    if not facts:
        raise MissingError(f"no GPU instance of {', '.join(regions)} in {source}", where="--spot-advisor")
    return facts


def _read_file(source: str) -> str:
    try:
        return Path(source).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingError(f"cannot read {source}: {error}", where="--spot-advisor") from None


def _read_url(source: str, timeout_s: float) -> str:
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(source, timeout=timeout_s) as answer:
            body: bytes = answer.read(64 * MIB)
        return body.decode("utf-8")
    except (URLError, OSError, UnicodeDecodeError) as error:
        raise MissingError(f"cannot fetch {source}: {error}", where="--spot-advisor") from None
