"""Fleet lines with a role: from a scenario to the prefill and the decode pool, and what lies between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from catalogs.errors import InputError
from catalogs.load import find_instance
from catalogs.schema import Gpu
from simulator.engine.pools import Pools
from simulator.engine.records import Records
from simulator.engine.replica_spec import ReplicaSpec
from simulator.scenario.sections import DisaggregationSpec
from simulator.workload.requests import Requests

if TYPE_CHECKING:
    from simulator.scenario.replicas import Line
    from simulator.scenario.spec import Scenario

WITHOUT_ROLES = ("tgi", "onnxruntime")  # no connector that hands KV to another server


def has_roles(scenario: Scenario) -> bool:
    """Whether the fleet is split into prefill and decode replicas.

    Raises:
        InputError: some lines have a role and others have none, or a section stands without them.
    """
    roles = [line.role for line in scenario.fleet]
    if "both" in roles and len(set(roles)) > 1:
        number = roles.index("both")
        raise InputError("a fleet line without a role beside lines with one", where=f"fleet.{number}.role",
                         why="no router knows what to send it", remedy="role: prefill or role: decode")  # fmt: skip
    split = roles[0] != "both"
    if not split and scenario.disaggregation is not None:
        raise InputError("disaggregation without roles", where="disaggregation",
                         remedy="fleet lines with role: prefill and role: decode")  # fmt: skip
    if split and scenario.is_live:
        raise InputError(
            "roles in a fleet that is scaled, fails or has a gateway", where="fleet",
            why="prefill and decode pools are simulated with a fixed number of replicas",
            remedy="a fixed fleet: leave out autoscaling, spot, failures, admission, caches and the like",
        )  # fmt: skip
    return split


def by_role(lines: Sequence[Line]) -> list[Line]:
    """Prefill lines first, else in their order."""
    return sorted(lines, key=lambda line: line.role != "prefill")


def build_pools(scenario: Scenario, lines: Sequence[Line]) -> Pools:
    """Both pools of a scenario whose lines have roles.

    Args:
        lines: as ``by_role`` gives them.

    Raises:
        InputError: lines that cannot exchange KV, or a link whose speed is not known.
    """
    instances = [scenario.fleet[line.number].instance for line in lines]
    return pools_of(scenario.disaggregation or DisaggregationSpec(), lines, instances)


def pools_of(spec: DisaggregationSpec, lines: Sequence[Line], instances: Sequence[str | None]) -> Pools:
    """Both pools of lines with roles.

    Args:
        lines: as ``by_role`` gives them.
        instances: the instance type of each line, where it is known.

    Raises:
        InputError: as ``build_pools``.
    """
    _check_exchange(lines)
    links: list[float] = []
    for line, instance in zip(lines, instances, strict=True):
        links += [_link_bytes_per_s(spec, line, instance)] * line.num_engines
    receiver = lines[-1]
    parallel = receiver.replica.tensor_parallel_size
    return Pools(
        prefill=_engines(lines, "prefill"),
        decode=_engines(lines, "decode"),
        link_bytes_per_s=tuple(links),
        block_bytes=receiver.memory.kv_bytes_per_token * parallel * receiver.spec.block_size,
        latency_s=spec.latency_s,
        first_token=spec.first_token,
        hidden_share=1.0 - 1.0 / receiver.replica.model.num_layers if spec.transfer == "layerwise" else 0.0,
        decode_router=spec.decode_router,
    )


def _engines(lines: Sequence[Line], role: str) -> tuple[ReplicaSpec, ...]:
    """A pool's engines: its router chooses among data-parallel ranks, not a front end.

    Prefill answers one token, for which no blocks are set aside.
    """
    alike: dict[str, Any] = {"front_end_ranks": 1} | ({"reserve_output_tokens": 0} if role == "prefill" else {})
    return tuple(replace(x.spec, **alike) for x in lines if x.role == role for _ in range(x.num_engines))


def _check_exchange(lines: Sequence[Line]) -> None:
    for line in lines:
        engine = line.replica.engine
        if line.replica.model.kind != "decoder":
            raise InputError(f"{line.replica.model.name} has no KV cache", where="fleet", why="roles hand over KV",
                             remedy="lines without a role")  # fmt: skip
        if engine.framework in WITHOUT_ROLES:
            raise InputError(f"{engine.framework} has no prefill or decode role", where="fleet",
                             why="it cannot hand KV over", remedy="vllm, sglang or tensorrt-llm")  # fmt: skip
        if line.replica.pipeline_parallel_size > 1:
            raise InputError("a role with pipeline_parallel_size above 1", where="fleet",
                             why="KV that is spread over stages moves over several links at once",
                             remedy="tensor_parallel_size")  # fmt: skip
    for name, values in (
        ("kv_cache_dtype", {_kv_type(line) for line in lines}),
        ("framework", {line.replica.engine.framework for line in lines}),
        ("lora.num_adapters", {str(line.spec.adapters.num_adapters if line.spec.adapters else 0) for line in lines}),
    ):
        if len(values) > 1:
            why = "a request has one adapter" if name.startswith("lora") else "KV is copied as it is"
            raise InputError(f"prefill and decode lines of different {name}: {', '.join(sorted(values))}",
                             where="fleet", why=why, remedy=f"one {name} in every line")  # fmt: skip


def _kv_type(line: Line) -> str:
    held = line.replica.kv_cache_dtype
    return line.replica.model.dtype if held == "auto" else held


def _link_bytes_per_s(spec: DisaggregationSpec, line: Line, name: str | None) -> float:
    """One engine's link, one direction, at the share of its data sheet that KV transfers reach."""
    if spec.link_bytes_per_s is not None:
        return spec.link_bytes_per_s
    gpu, parallel = line.replica.gpu, line.replica.tensor_parallel_size
    if spec.link != "network":
        return spec.link_efficiency * parallel * _own_link(gpu, spec.link)
    place = f"fleet.{line.number}"
    if name is None:
        raise InputError(
            "the link between prefill and decode replicas is not known", where=f"{place}.instance",
            why="the time of a KV transfer follows from it",
            remedy="an `instance` whose network the catalogue has, or `disaggregation: {link_bytes_per_s: ...}`",
        )  # fmt: skip
    instance = find_instance(name, where=f"{place}.instance")
    if instance.network_bytes_per_s is None:
        raise InputError(f"the network of {instance.name} is not in the catalogue", where=f"{place}.instance",
                         remedy="disaggregation: {link_bytes_per_s: ...}")  # fmt: skip
    return spec.link_efficiency * instance.network_bytes_per_s * min(1.0, parallel / instance.num_gpus)


def _own_link(gpu: Gpu, link: str) -> float:
    if link == "nvlink" and gpu.nvlink_bytes_per_s is None:
        raise InputError(f"{gpu.name} has no NVLink", where="disaggregation.link", remedy="pcie or network")
    return (gpu.nvlink_bytes_per_s or 0.0) if link == "nvlink" else gpu.pcie_bytes_per_s


def transfer_document(requests: Requests, records: Records) -> dict[str, object]:
    """KV transfers of a run: how many, how much, how long they waited and took, and how busy the links were."""
    from simulator.engine.metrics import summary

    way = records.handover
    assert way is not None
    took = way.end_s - way.start_s
    moved = ~np.isnan(took)
    span_s = max(float(records.end_s - records.arrival_s.min()), 1e-9)
    return {
        "transfers": int(moved.sum()),
        "bytes": float(way.num_bytes.sum()),
        "wait_s": summary(way.start_s - way.prefill_end_s),  # for blocks and for the link
        "transfer_s": summary(took),
        "seat_wait_s": summary(way.decode_scheduled_s - way.end_s),
        "bytes_per_s": float(way.num_bytes.sum()) / span_s,
        "prompt_tokens_per_transfer": float(requests.input_tokens[moved].mean()) if moved.any() else None,
    }
