"""When no replica can keep the promise even for a lone request: the floor, and what sets it."""

from __future__ import annotations

from collections.abc import Mapping

from calibrate.physics.work import replica_weight_bytes
from catalogs.errors import GateError
from catalogs.units import GB, MILLISECONDS_PER_SECOND
from planner.capacity.sustained import Capacities
from simulator.engine.metrics import class_mask
from simulator.scenario.replicas import Line as Served
from simulator.workload.requests import Slo


def below_the_floor(capacities: Capacities, served: Mapping[str, Served]) -> GateError | None:
    """The error that names the floor of a promise that nothing can keep; None when each can be kept by something."""
    everything = tuple(range(len(capacities.demand.names)))
    for slo in capacities.slos:
        key = slo.name if slo.request_class is None else f"{slo.request_class}.{slo.name}"
        found = {config: capacities.floors(line, everything).get(key) for config, line in served.items()}
        known = {config: value for config, value in found.items() if value is not None}
        if not known:
            continue
        best = min(known, key=lambda c: known[c])
        if known[best] > slo.limit_s:
            return _error(slo, key, best, known[best], served[best])
    return None


def beyond_the_context(capacities: Capacities, served: Mapping[str, Served]) -> str:
    """How many requests every replica rejects, since their prompts leave no room in its context; empty: none.

    Raises:
        GateError: more than a promise allows.
    """
    longest, requests = max(line.spec.longest_sequence for line in served.values()), capacities.demand.requests
    too_long = requests.input_tokens >= longest
    if not too_long.any():
        return ""
    what = (
        f"{int(too_long.sum()):,} of {len(requests):,} requests have prompts longer than a context of {longest - 1:,}"
    )
    for slo in capacities.slos:
        chosen = too_long[class_mask(requests, slo.request_class)]
        if len(chosen) and chosen.mean() > 1.0 - slo.percentile / 100.0:
            raise GateError(
                what, where="workload",
                why=f"every candidate rejects them; {slo.name} bears {100 - slo.percentile:.3g} % of lost requests",
                remedy="a model with a longer context, or a workload without them",
            )  # fmt: skip
    return what + ": every replica rejects them"


def _error(slo: Slo, key: str, config: str, floor_s: float, line: Served) -> GateError:
    milliseconds = floor_s * MILLISECONDS_PER_SECOND
    return GateError(
        f"{key} of {slo.limit_s:g} s is below the physical floor of {milliseconds:.3g} ms",
        where="slo",
        why=f"on the fastest candidate ({config}) a lone request takes that long: {_cause(slo, line)}",
        remedy=f"{slo.name}: {_round_up(floor_s * 1.5):g} or more; or faster GPUs, more tensor parallelism, "
        "a lower precision, a smaller model",
    )


def _cause(slo: Slo, line: Served) -> str:
    replica = line.replica
    weights = replica_weight_bytes(replica)
    reading_ms = weights / replica.gpu.memory_bandwidth_bytes_per_s * MILLISECONDS_PER_SECOND
    table = line.spec.step_table
    overhead_ms = (table.request_overhead_s + table.output_overhead_s + table.overhead_s) * MILLISECONDS_PER_SECOND
    read = (
        f"reading {weights / GB:.3g} GB of weights at {replica.gpu.memory_bandwidth_bytes_per_s / GB:,.0f} GB/s "
        f"alone takes {reading_ms:.3g} ms a step"
    )
    if slo.metric == "tpot":
        return f"memory bandwidth sets it; {read}"
    if replica.model.kind != "decoder":
        return f"computing it sets it, after {overhead_ms:.3g} ms of the engine's own time; {read}"
    if slo.metric == "ttft":
        return f"computing the prompt sets it, after {overhead_ms:.3g} ms of the engine's own time; {read}"
    return f"one step for every output token sets it; {read}"


def _round_up(seconds: float) -> float:
    return float(f"{seconds:.2g}")
