"""Speculation, swap and KV offload as a scenario asks for them under ``engine:``, and what becomes of them.

What each engine offers and refuses follows its own flags (vLLM 0.19, SGLang 0.5, TensorRT-LLM 1.0, TGI 3.3); a
combination that it refuses is refused here with its rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from calibrate.memory import MemoryPlan
from calibrate.options import number_option
from calibrate.physics.work import embedding_bytes, embedding_parameters, kv_bytes_per_sequence, replica_weight_bytes
from calibrate.profiles import Profile
from calibrate.step_time import step_table
from catalogs.engines import version_numbers, version_of
from catalogs.errors import InputError
from catalogs.load import find_model
from catalogs.schema import Engine, Replica
from catalogs.units import GIB
from catalogs.yaml_source import Strict
from simulator.engine.replica_spec import ReplicaSpec
from simulator.engine.techniques import KvOffload, Speculation, SwapSpace

METHODS: Mapping[str, tuple[str, ...]] = {  # of speculation, by framework
    "vllm": ("ngram", "draft", "eagle", "mtp"),
    "sglang": ("ngram", "draft", "eagle", "mtp"),
    "tensorrt-llm": ("ngram", "draft", "eagle", "mtp"),
    "tgi": ("ngram",),  # --speculate; its Medusa heads are not modelled
}
MTP_MODELS = ("deepseek-v3",)  # models of the catalogue that ship multi-token prediction layers
BACKENDS: Mapping[str, tuple[str, ...]] = {  # of KV offload, by framework; the first is its default
    "vllm": ("native", "lmcache"),  # --kv-offloading-backend
    "sglang": ("hicache",),  # --enable-hierarchical-cache
    "tensorrt-llm": ("host_cache",),  # kv_cache_config.host_cache_size
}
WITH_DISK = ("lmcache", "hicache")
OVERLAPPING = ("native", "hicache")  # loads run beside compute; the others' hold up the step
SWAP_UNTIL = (0, 11)  # the vLLM version that dropped the V0 engine, and with it --preemption-mode and its swap
SWAP_SPACE_GIB = 4.0  # vLLM's --swap-space, per GPU
DRAFT_CONTEXT = 2048  # tokens at which a drafter's KV bytes a token are taken

M = TypeVar("M", bound=Strict)
Gib = Annotated[float, Field(ge=0, le=1_000_000)]


class SpeculativeSpec(Strict):
    """``speculative:`` of an engine. ``acceptance_rate`` is the workload's and the drafter's: measure it."""

    method: Literal["ngram", "draft", "eagle", "mtp"]
    num_speculative_tokens: Annotated[int, Field(ge=1, le=64)]
    acceptance_rate: Annotated[float, Field(ge=0, le=1)]
    draft_model: str | None = None

    hints: ClassVar[Mapping[str, str]] = {"model": "`draft_model`", "k": "`num_speculative_tokens`"}

    @model_validator(mode="after")
    def _drafter(self) -> SpeculativeSpec:
        if (self.method == "draft") != (self.draft_model is not None):
            raise ValueError("method: draft and draft_model: NAME belong together; the other methods have no model")
        return self


class KvOffloadSpec(Strict):
    """``kv_offload:`` of an engine: a second tier of the prefix cache in host memory, a third on disk; per engine."""

    cpu_gib: Gib | None = None
    hicache_ratio: Annotated[float, Field(gt=0, le=10_000)] | None = None
    disk_gib: Gib = 0.0
    disk_gb_per_s: Annotated[float, Field(gt=0, le=1000)] | None = None
    backend: str | None = None

    hints: ClassVar[Mapping[str, str]] = {
        "kv_offloading_size": "`cpu_gib`", "kv_offloading_backend": "`backend`", "hicache_size": "`cpu_gib`",
        "host_cache_size": "`cpu_gib`",
    }  # fmt: skip

    @model_validator(mode="after")
    def _sizes(self) -> KvOffloadSpec:
        if (self.cpu_gib is None) == (self.hicache_ratio is None):
            raise ValueError("give cpu_gib, or (SGLang) hicache_ratio, one of the two")
        if self.disk_gib > 0 and self.disk_gb_per_s is None:
            raise ValueError("disk_gib needs disk_gb_per_s: what the disk reads, in 10^9 bytes a second")
        return self


WITHOUT_PIPELINE = {  # why a technique is refused over pipeline stages
    "speculative": "vLLM's documentation of speculative decoding: pipeline parallelism is not composable with it",
    "preemption_mode": "batches that share one swap space are not modelled",
}


def with_techniques(
    spec: ReplicaSpec, replica: Replica, asked: Engine, profile: Profile, memory: MemoryPlan
) -> ReplicaSpec:
    """The engine with the techniques that the scenario asks for.

    Args:
        spec: without them. replica: with its engine resolved. asked: the engine before that.

    Raises:
        InputError: the engine does not offer one, or refuses it beside another setting.
    """
    wanted = [name for name in TECHNIQUES if replica.engine.options.get(name) not in (None, "recompute")]
    for name in wanted:
        if replica.model.kind != "decoder":
            raise _refusal(f"{name} for {replica.model.name}", name, "it has no KV cache", f"without {name}")
        if replica.pipeline_parallel_size > 1 and name in WITHOUT_PIPELINE:
            why = WITHOUT_PIPELINE[name]
            remedy = f"pipeline_parallel_size 1, or without {name}"
            raise _refusal(f"{name} with pipeline_parallel_size", name, why, remedy)
        spec = TECHNIQUES[name](spec, replica, asked, profile, memory)
    if "swap_space_gib" in replica.engine.options and "preemption_mode" not in wanted:
        raise _refusal("swap_space_gib without preemption_mode: swap", "swap_space_gib", "nothing would be swapped",
                       "preemption_mode: swap")  # fmt: skip
    return spec


WITH_ROLE = {  # vLLM takes a second KV connector beside the transfers' (MultiConnector); a decode replica fetches KV
    "prefill": ("speculative", "kv_offload"),
    "decode": ("speculative",),
}


def demand_fitting_role(options: Mapping[str, object], role: str, where: str) -> None:
    """Raises ``InputError`` where a replica of a disaggregated fleet is to use a technique that has no place there."""
    for name in TECHNIQUES:
        if options.get(name) not in (None, "recompute") and name not in WITH_ROLE[role]:
            why = (
                "a decode replica fetches its prompts' KV from the prefill replica"
                if name == "kv_offload"
                else ("the engine that swaps (vLLM's V0) does not hand KV over")
            )
            raise _refusal(f"{name} with role: {role}", where, why, f"role: both, or without {name}")


def _refusal(what: str, where: str, why: str, remedy: str) -> InputError:
    return InputError(what, where=where, why=why, remedy=remedy)


def _asked(kind: type[M], replica: Replica, name: str) -> M:
    """A technique's settings as they stand in ``options``, where a scenario's own checks do not look."""
    try:
        return kind.model_validate(replica.engine.options[name])
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, (name, *fault["loc"])))
        raise _refusal(f"{place}: {fault['msg']}", f"engine.{name}", "", f"{name} under `engine:`") from error


def _block_bytes(replica: Replica, memory: MemoryPlan) -> float:
    """Bytes of a KV block on one GPU."""
    return memory.kv_bytes_per_token * memory.block_size


def _speculate(spec: ReplicaSpec, replica: Replica, asked: Engine, profile: Profile, memory: MemoryPlan) -> ReplicaSpec:
    wanted = _asked(SpeculativeSpec, replica, "speculative")
    framework, offered = replica.engine.framework, METHODS.get(replica.engine.framework, ())
    if wanted.method not in offered:
        raise _refusal(f"speculative method {wanted.method} with {framework}", "speculative",
                       f"it offers {', '.join(offered) or 'none'}", "another method or framework")  # fmt: skip
    if wanted.method == "mtp" and replica.model.name not in MTP_MODELS:
        raise _refusal(f"speculative method mtp with {replica.model.name}", "speculative",
                       "it has no multi-token prediction layers", "method: eagle or ngram")  # fmt: skip
    if asked.options.get("async_scheduling") is True:
        rule = "vLLM refuses it for n-gram" if wanted.method == "ngram" else "steps are decided one by one here"
        raise _refusal("speculative with async_scheduling: true", "speculative", rule, "leave async_scheduling out")
    k = wanted.num_speculative_tokens
    drafter = _drafter(replica, wanted)
    if drafter is None:
        speculation = Speculation(k, wanted.acceptance_rate)
        return replace(spec, async_scheduling=False, speculation=speculation)
    table = step_table(drafter, profile, spec.max_num_batched_tokens, spec.max_num_seqs)
    table = table._replace(overhead_s=0.0, overhead_per_sequence_s=0.0)  # launched by the step that it follows
    speculation = Speculation(k, wanted.acceptance_rate, k, table)
    num_blocks = spec.num_gpu_blocks if asked.num_gpu_blocks is not None else _blocks_beside(drafter, wanted, memory)
    return replace(spec, async_scheduling=False, speculation=speculation, num_gpu_blocks=num_blocks)


def _drafter(replica: Replica, wanted: SpeculativeSpec) -> Replica | None:
    """What proposes tokens: a model of its own, or (EAGLE, MTP) one layer of the target's size; None: look-up."""
    if wanted.draft_model is not None:
        return replace(replica, model=find_model(wanted.draft_model, where="speculative.draft_model"))
    if wanted.method in ("eagle", "mtp"):
        return replace(replica, model=replace(replica.model, num_layers=1))
    return None


def _blocks_beside(drafter: Replica, wanted: SpeculativeSpec, memory: MemoryPlan) -> int:
    """KV blocks once the drafter's weights and KV have their place; a head of one layer shares the embedding."""
    from calibrate.physics.precisions import precision

    weights = replica_weight_bytes(drafter)
    if wanted.draft_model is None:
        shared = embedding_parameters(drafter.model) * embedding_bytes(precision(drafter.precision))
        weights = max(0.0, weights - shared / drafter.tensor_parallel_size)
    tp, dtype = drafter.tensor_parallel_size, drafter.kv_cache_dtype
    token = memory.kv_bytes_per_token + kv_bytes_per_sequence(drafter.model, DRAFT_CONTEXT, dtype, tp) / DRAFT_CONTEXT
    blocks = int((memory.kv_cache_bytes - weights) // (token * memory.block_size))
    if blocks < 2:
        raise _refusal(f"the drafter ({drafter.model.name}) leaves no KV cache", "speculative",
                       f"it takes {weights / GIB:.1f} of {memory.kv_cache_bytes / GIB:.1f} GiB",
                       "a smaller drafter, or method: ngram")  # fmt: skip
    return blocks


def _swap(spec: ReplicaSpec, replica: Replica, asked: Engine, profile: Profile, memory: MemoryPlan) -> ReplicaSpec:
    engine = replica.engine
    numbers = version_numbers(version_of(engine))
    if engine.options["preemption_mode"] != "swap":
        raise _refusal(f"preemption_mode is {engine.options['preemption_mode']!r}", "preemption_mode", "",
                       "recompute or swap")  # fmt: skip
    if engine.framework != "vllm" or numbers >= SWAP_UNTIL:
        raise _refusal(
            f"preemption_mode: swap with {engine.framework} {version_of(engine)}", "preemption_mode",
            "only vLLM's V0 engine swaps (dropped in 0.11); this one computes preempted requests again",
            "preemption_mode: recompute, or framework: vllm with version: '0.10'",
        )  # fmt: skip
    if asked.enable_prefix_caching or asked.options.get("async_scheduling"):
        flag = "enable_prefix_caching" if asked.enable_prefix_caching else "async_scheduling"
        why = "V0 decides steps synchronously, and whole sequences are moved here"
        raise _refusal(f"preemption_mode: swap with {flag}", "preemption_mode", why, f"{flag}: false")
    gib = number_option(engine, "swap_space_gib", SWAP_SPACE_GIB)
    block_bytes = _block_bytes(replica, memory)
    swap = SwapSpace(int(gib * GIB // block_bytes), block_bytes / replica.gpu.pcie_bytes_per_s)
    policy = spec.policy if "policy" in engine.options or spec.enable_chunked_prefill else "prefill_first"
    return replace(spec, swap=swap, policy=policy, async_scheduling=False, enable_prefix_caching=False)


def _offload(spec: ReplicaSpec, replica: Replica, asked: Engine, profile: Profile, memory: MemoryPlan) -> ReplicaSpec:
    wanted = _asked(KvOffloadSpec, replica, "kv_offload")
    framework, offered = replica.engine.framework, BACKENDS.get(replica.engine.framework, ())
    backend = wanted.backend or (offered[0] if offered else "none")
    if backend not in offered:
        raise _refusal(f"kv_offload backend {backend} with {framework}", "kv_offload",
                       f"it offers {', '.join(offered) or 'none'}", "another backend or framework")  # fmt: skip
    if wanted.disk_gib > 0 and backend not in WITH_DISK:
        raise _refusal(f"kv_offload disk_gib with backend {backend}", "kv_offload",
                       "that backend keeps blocks in host memory only", " or ".join(WITH_DISK))  # fmt: skip
    if wanted.hicache_ratio is not None and (framework != "sglang" or wanted.hicache_ratio <= 1):
        raise _refusal(f"hicache_ratio {wanted.hicache_ratio:g} with {framework}", "kv_offload",
                       "it is SGLang's, whose host pool must be larger than the GPU's", "cpu_gib")  # fmt: skip
    block_bytes, link = _block_bytes(replica, memory), replica.gpu.pcie_bytes_per_s
    all_bytes = (
        block_bytes * replica.tensor_parallel_size * replica.pipeline_parallel_size
    )  # all GPUs together, as sizes
    cpu_blocks = int((wanted.cpu_gib or 0.0) * GIB // all_bytes)
    if wanted.hicache_ratio is not None:
        cpu_blocks = int(wanted.hicache_ratio * spec.num_gpu_blocks)
    from_cpu_s = block_bytes / link
    from_disk_s = max(from_cpu_s, all_bytes / ((wanted.disk_gb_per_s or 1.0) * 1e9))
    offload = KvOffload(
        cpu_blocks, from_cpu_s, int(wanted.disk_gib * GIB // all_bytes), from_disk_s, backend in OVERLAPPING
    )
    return replace(spec, kv_offload=offload)


Technique = Callable[[ReplicaSpec, Replica, Engine, Profile, MemoryPlan], ReplicaSpec]
TECHNIQUES: Mapping[str, Technique] = {"speculative": _speculate, "preemption_mode": _swap, "kv_offload": _offload}
OPTIONS = (*TECHNIQUES, "swap_space_gib")


def describe_techniques(specs: Any, counts: Mapping[str, Any], queries: int, hits: int) -> dict[str, Any]:
    """What techniques did in a run, for the ``engine`` section; empty where none was on.

    Args:
        specs: the engines. counts: per engine (see ``records.COUNTS``). queries, hits: prompt tokens, all engines.
    """
    total = {name: int(values.sum()) for name, values in counts.items()}
    answer: dict[str, Any] = {}
    if any(s.speculation for s in specs):
        drafted = total["drafted"]
        answer["speculation"] = {
            "draft_tokens": drafted,
            "accepted_tokens": total["accepted"],
            "acceptance_per_draft_token": total["accepted"] / drafted if drafted else None,
            "expected_tokens_per_step": next(s.speculation.tokens_per_step for s in specs if s.speculation),
        }
    if any(s.swap for s in specs):
        blocks = max(s.swap.num_blocks for s in specs if s.swap)
        answer["swap"] = {"out": total["swap_outs"], "in": total["swap_ins"], "host_blocks": blocks}
    if any(s.adapters for s in specs):
        slots = max(s.adapters.max_loras for s in specs if s.adapters)
        answer["lora"] = {"slots": slots, "copies": total["lora_loads"]}
    if any(s.kv_offload for s in specs):
        on_gpu = hits - total["cpu_hits"] - total["disk_hits"]
        parts = {"gpu": on_gpu, "cpu": total["cpu_hits"], "disk": total["disk_hits"]}
        tiers = [s.kv_offload for s in specs if s.kv_offload]
        answer["kv_offload"] = {
            **{f"{tier}_hit_rate": tokens / queries if queries else 0.0 for tier, tokens in parts.items()},
            "cpu_blocks": max(t.num_cpu_blocks for t in tiers),
            "disk_blocks": max(t.num_disk_blocks for t in tiers),
        }
    return answer
