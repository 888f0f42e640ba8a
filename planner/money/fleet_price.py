"""What a scenario's fleet costs an hour, where its prices are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from catalogs.errors import InputError
from catalogs.load import find_gpu, find_instance, find_region, price_of
from catalogs.units import MILLION, SECONDS_PER_HOUR
from simulator.scenario.spec import FleetLine, Scenario
from simulator.sweep import Point, play_point

DEFAULT_REGION = "us-east-1"


def line_usd_per_hour(line: FleetLine, region: str | None, where: str = "") -> float | None:
    """What a line's replicas cost an hour: as given, or by the price of its instances; None if neither is known.

    Raises:
        InputError: an unknown instance or region, or an instance without such GPUs or without enough of them.
    """
    if line.usd_per_hour is not None:
        return line.count * line.usd_per_hour
    if line.instance is None:
        return None
    instance = find_instance(line.instance, where=f"{where}.instance")
    gpu = find_gpu(line.gpu, where=f"{where}.gpu").name
    gpus_per_replica = line.tensor_parallel_size * line.pipeline_parallel_size * line.data_parallel_size
    if instance.gpu != gpu:
        raise InputError(f"{instance.name} has {instance.gpu}, not {gpu}", where=f"{where}.instance")
    if instance.num_gpus < gpus_per_replica:
        what = f"{instance.name} has {instance.num_gpus} GPUs, a replica needs {gpus_per_replica}"
        raise InputError(what, where=f"{where}.instance", remedy="a larger instance, or `usd_per_hour`")
    price = price_of(instance.name, find_region(region or DEFAULT_REGION, where="region"), line.purchase)
    if price is None:
        return None
    return math.ceil(line.count / (instance.num_gpus // gpus_per_replica)) * price.usd_per_hour


def fleet_usd_per_hour(scenario: Scenario) -> float | None:
    """What the whole fleet costs an hour; None if any line's price is not known."""
    prices = [line_usd_per_hour(line, scenario.region, f"fleet.{i}") for i, line in enumerate(scenario.fleet)]
    known = [p for p in prices if p is not None]
    return sum(known) if len(known) == len(prices) else None


def with_dollars(document: Mapping[str, Any], usd_per_hour: float | None) -> dict[str, Any]:
    """A run's answer with its cost over the run's duration, where the fleet's price is known."""
    if usd_per_hour is None:
        return dict(document)
    usd = usd_per_hour * document["duration_s"] / SECONDS_PER_HOUR
    tokens = document["output_tokens_per_s"] * document["duration_s"]
    per_million = usd / tokens * MILLION if tokens else None
    return {**document, "usd": usd, "usd_per_million_output_tokens": per_million}


def play_priced_point(point: Point) -> dict[str, Any]:
    """The answer of one point of a sweep, with dollars where its fleet's price is known.

    Raises:
        InputError: anything wrong with the point's scenario. MissingError: a profile that is not there.
    """
    usd_per_hour = fleet_usd_per_hour(point.read())
    return with_dollars(play_point(point), usd_per_hour)
