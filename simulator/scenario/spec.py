"""A scenario: one model, one workload, one fleet; what `plan simulate` reads.

`read_scenario` checks a YAML file line by line; `simulator.run.simulate` plays it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from calibrate.physics.compression import UNQUOTED, Compression, compressed
from catalogs.errors import InputError
from catalogs.load import find_instance
from catalogs.schema import Engine, Gpu, Model, Replica
from catalogs.yaml_source import Located, Place, Strict, check, read_yaml
from simulator.scenario.sections import DisaggregationSpec, FleetSections
from simulator.scenario.technique_spec import Gib, KvOffloadSpec, SpeculativeSpec
from simulator.workload.requests import Slo
from simulator.workload.spec import WorkloadSpec, resolve_paths

Parallel = Annotated[int, Field(ge=1, le=4096)]
Whole = Annotated[int, Field(ge=1, le=100_000_000)]
Share = Annotated[float, Field(gt=0, le=1)]
MAX_SLO_S = 1e9
PLACE_IN_LIST = re.compile("[0-9]{1,9}")
SLO_NAME = re.compile(r"(ttft|tpot|e2e)_p(\d{1,2}(?:\.\d+)?)_s")


class LoraSpec(Strict):
    """LoRA adapters under vLLM's names: how many requests ask for, of which rank, and the engine's slots for them."""

    num_adapters: Whole = 1
    rank: Whole = 16
    max_loras: Whole = 1
    max_lora_rank: Whole | None = None
    max_cpu_loras: Whole | None = None


class EngineSpec(Strict):
    """A serving engine's settings, under vLLM's names; what is left out is the framework's own default.

    ``speculative``, ``preemption_mode`` (with ``swap_space_gib``) and ``kv_offload`` are techniques of docs/engine.md;
    ``options`` are settings beyond the common core, by flag name.
    """

    framework: str = "vllm"
    version: str | None = None
    max_num_seqs: Whole | None = None
    max_num_batched_tokens: Whole | None = None
    max_model_len: Whole | None = None
    block_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    num_gpu_blocks: Whole | None = None
    gpu_memory_utilization: Share | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    enforce_eager: bool = False
    speculative: SpeculativeSpec | None = None
    preemption_mode: Literal["recompute", "swap"] | None = None
    swap_space_gib: Gib | None = None
    kv_offload: KvOffloadSpec | None = None
    attention_backend: str | None = None
    lora: LoraSpec | None = None
    activation_chunk_tokens: Whole | None = None
    activation_recomputation: Literal["none", "selective", "full"] | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    hints: ClassVar[Mapping[str, str]] = {
        "max_batch_size": "`max_num_seqs`", "max_running_requests": "`max_num_seqs`",
        "mem_fraction_static": "`gpu_memory_utilization`", "num_gpu_blocks_override": "`num_gpu_blocks`",
        "speculative_config": "`speculative`", "max_queue_delay_microseconds": "`options: {max_queue_delay_s: ...}`",
        "swap_space": "`swap_space_gib`", "kv_offloading_size": "`kv_offload: {cpu_gib: ...}`",
        "hicache_ratio": "`kv_offload: {hicache_ratio: ...}`",
        "dtype": "`precision` of the fleet line", "quantization": "`precision` of the fleet line",
        "kv_cache_dtype": "it stands in the fleet line, beside `precision`",
    }  # fmt: skip

    def engine(self) -> Engine:
        """As the noun that the rest of the project knows."""
        own = {f.name for f in fields(Engine)} - {"options"}
        given = {name: value for name, value in self if name in own}
        techniques: dict[str, Any] = {
            name: value.model_dump() if isinstance(value, Strict) else value
            for name, value in self
            if name not in own | {"options"} and value is not None
        }
        return Engine(**given, options=self.options | techniques)


class CompressionSpec(Strict):
    """How the line's model was pruned: ``unstructured`` (sparsity, storage), ``2of4``, ``layers`` or ``width``."""

    method: Literal["unstructured", "2of4", "layers", "width"]
    sparsity: Annotated[float, Field(gt=0, lt=1)] | None = None
    storage: Literal["dense", "bitmask"] = "dense"
    num_layers: Whole | None = None
    hidden_size: Whole | None = None
    intermediate_size: Whole | None = None
    num_attention_heads: Whole | None = None
    num_kv_heads: Whole | None = None

    @field_validator("method", mode="before")
    @classmethod
    def _other_names(cls, method: Any) -> Any:
        return UNQUOTED.get(str(method), method)


class FleetLine(Strict):
    """Some replicas of one kind.

    ``instance`` prices them and says over which links their GPUs exchange; ``purchase`` and ``usd_per_hour`` only price
    them. ``role``: ``prefill`` computes prompts only, ``decode`` goes on from their KV (docs/disaggregation.md).
    """

    gpu: str
    count: Annotated[int, Field(ge=1, le=100_000)] = 1
    role: Literal["both", "prefill", "decode"] = "both"
    tensor_parallel_size: Parallel = 1
    pipeline_parallel_size: Parallel = 1
    data_parallel_size: Parallel = 1
    expert_parallel_size: Parallel = 1
    precision: str = "bf16"
    kv_cache_dtype: str = "auto"
    compression: CompressionSpec | None = None
    profile: Path | None = None
    engine: EngineSpec = Field(default_factory=EngineSpec)
    instance: str | None = None
    purchase: str = "on_demand"
    usd_per_hour: Annotated[float, Field(ge=0)] | None = None

    hints: ClassVar[Mapping[str, str]] = {
        "tp": "`tensor_parallel_size`", "pp": "`pipeline_parallel_size`", "dp": "`data_parallel_size`",
        "ep": "`expert_parallel_size`", "replicas": "`count`", "dtype": "`precision`", "quantization": "`precision`",
        "kv_role": "`role`: prefill (vLLM's kv_producer) or decode (kv_consumer)",
    }  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _engine_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key in EngineSpec.model_fields and key not in cls.model_fields:
                    raise ValueError(f"{key!r} stands under `engine:`")
        return data

    def replica(self, model: Model, gpu: Gpu, where: str = "") -> Replica:
        """One replica of this line; where an instance is named, its GPUs exchange over that instance's links."""
        link = None
        if self.instance is not None and self.tensor_parallel_size * self.pipeline_parallel_size > 1:
            link = find_instance(self.instance, where=f"{where}.instance").interconnect_bytes_per_s
        precision = self.precision
        if self.compression is not None:
            pruned = Compression(**self.compression.model_dump())
            model, precision = compressed(model, precision, pruned, f"{where}.compression")
        return Replica(
            model=model,
            gpu=gpu,
            tensor_parallel_size=self.tensor_parallel_size,
            pipeline_parallel_size=self.pipeline_parallel_size,
            data_parallel_size=self.data_parallel_size,
            expert_parallel_size=self.expert_parallel_size,
            precision=precision,
            kv_cache_dtype=self.kv_cache_dtype,
            engine=self.engine.engine(),
            interconnect_bytes_per_s=link,
        )


class Scenario(FleetSections):
    """One fleet under one workload; with any of the fleet sections, a fleet that lives (docs/fleet.md)."""

    model: str
    workload: WorkloadSpec
    fleet: Annotated[tuple[FleetLine, ...], Field(min_length=1, max_length=1000)]
    router: str = "round_robin"
    disaggregation: DisaggregationSpec | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    slo: dict[str, Any] | None = None
    region: str | None = None

    @field_validator("slo")
    @classmethod
    def _slo_names(cls, slo: dict[str, Any] | None) -> dict[str, Any] | None:
        parse_slos(slo or {})
        return slo

    @property
    def slos(self) -> tuple[Slo, ...]:
        return parse_slos(self.slo or {})

    def resolved(self, folder: Path) -> Scenario:
        """The same with file names made relative to ``folder``."""
        data = resolve_paths(self.model_dump(exclude_unset=True), folder)
        if (
            isinstance(data.get("model"), str)
            and data["model"].endswith(".json")
            and not Path(data["model"]).is_absolute()
        ):
            data["model"] = str(folder / data["model"])
        return type(self).model_validate(data)


def parse_slos(slo: Mapping[str, Any], request_class: str | None = None) -> tuple[Slo, ...]:
    """Promises from the ``slo`` section: ``ttft_p95_s: 1.0``, or the same under a request class's name.

    Raises:
        InputError: a name that is no promise, or a limit that is not a positive number.
    """
    found: list[Slo] = []
    for name, limit in slo.items():
        if isinstance(limit, Mapping) and request_class is None:
            found += parse_slos(limit, request_class=str(name))
            continue
        match = SLO_NAME.fullmatch(str(name))
        if match is None:
            raise InputError(
                f"slo has no {name!r}", where=str(name), remedy="ttft, tpot or e2e and a percentile, as in ttft_p95_s"
            )
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit <= MAX_SLO_S:
            what = f"slo {name}: {limit!r} is not a positive number of seconds"
            raise InputError(what, where=str(name), remedy=f"{name}: 1.0")
        found.append(Slo(match[1], float(match[2]), float(limit), request_class))
    return tuple(found)


def read_scenario(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Scenario:
    """Read a scenario from YAML; file names in it start at its folder.

    Args:
        overrides: values by dotted place (``fleet.0.count``) that replace those in the file.

    Raises:
        InputError: anything wrong, with file and line.
    """
    located = read_yaml(path)
    for place, value in (overrides or {}).items():
        set_at(located, place, value)
    return check(located, Scenario).resolved(Path(path).parent)


def set_at(located: Located, dotted: str, value: Any) -> None:
    """Set one value in a YAML file's data by its dotted place.

    Raises:
        InputError: the place leads through something that has no such key or item.
    """
    place: Sequence[str | int] = [int(p) if PLACE_IN_LIST.fullmatch(p) else p for p in dotted.split(".")]
    data = located.data
    walked: Place = ()
    for part, after in itertools.pairwise(place):
        if isinstance(data, dict):
            data = data.setdefault(part, [] if isinstance(after, int) else {})
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            raise InputError(f"no {part!r} to set {dotted!r} in", where=located.where(walked))
        walked = (*walked, part)
    last = place[-1]
    fits = isinstance(data, dict) or (isinstance(data, list) and isinstance(last, int) and last < len(data))
    if not fits:
        raise InputError(f"no {last!r} to set {dotted!r} in", where=located.where(walked))
    data[last] = value
