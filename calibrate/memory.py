"""What one GPU's memory holds when it serves: weights, activations, the CUDA context, and the KV blocks that remain.

The accounts follow vLLM's: of ``gpu_memory_utilization`` times the device's memory, it takes away the weights, the peak
that a profiling step reaches above them, and what CUDA and NCCL take beside PyTorch; whole KV blocks fill the rest.
All bytes are those of one GPU, the fullest of the replica.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from calibrate.memory_remedies import changes, length_is_asked
from calibrate.options import number_option, recomputation_of
from calibrate.physics.activations import Activations, activation_peak, experts_bytes
from calibrate.physics.backends import attention_workspace_bytes, backend_of
from calibrate.physics.expert_layout import check_experts, expert_slices, ranks_sharing_experts
from calibrate.physics.lora import lora_bytes, lora_of
from calibrate.physics.precisions import check_sparse_kernels, precision
from calibrate.physics.work import (
    embedding_bytes,
    embedding_parameters,
    kv_bytes_per_sequence,
    replica_weight_bytes,
    split,
)
from catalogs.engines import version_numbers, version_of
from catalogs.errors import InputError
from catalogs.load import resolve_engine
from catalogs.schema import Engine, Model, Replica
from catalogs.units import GIB

# CUDA context and loaded kernels of a serving process: 0.41 to 0.63 GiB in start-up logs of vLLM ("free memory on
# device" before the weights are loaded), on 24 GB and 80 GB cards.
CONTEXT_BYTES = 0.5 * GIB
# What CUDA takes during the profiling step beside PyTorch, on one GPU: 0.06 to 0.09 GiB in vLLM's start-up logs.
NON_TORCH_BYTES = 0.07 * GIB
# NCCL's buffers and the custom all-reduce's, once a replica spans GPUs: 0.3 GiB in vLLM's start-up logs at TP 2.
NCCL_BYTES = 0.27 * GIB
# Transient of compiling and autotuning inside the profiling step, which is counted into its peak: what the one run
# whose KV blocks are known (vLLM 0.19.0, RTX 4090, Llama-3.1-8B, 2,588 blocks) leaves after all computed parts.
COMPILE_TRANSIENT_BYTES = 583.4e6
# CUDA graphs of about 50 batch sizes; 0.2 to 0.7 GiB in vLLM's start-up logs. Outside the budget before vLLM 0.21.
GRAPH_BYTES = 0.5 * GIB
GRAPHS_IN_BUDGET_SINCE = (0, 21)
CHECKPOINT = "activation_checkpoint_layers"
# SGLang's mem_fraction_static is of the memory that is free before loading, and holds weights and cache; the other
# parts must fit beside it (model_runner.py, profile_max_num_token). Its largest captured batch on most GPUs.
BESIDE_SGLANG_STATIC = ("activations", "NCCL and CUDA modules")
SGLANG_LARGEST_GRAPH = 256
MIN_KV_TOKENS = 1024  # below this a replica cannot serve one ordinary request
SLIDING_REFERENCE_TOKENS = 2048  # context at which sliding-window layers' share of the KV is taken


@dataclass(frozen=True)
class MemoryPart:
    """One part of a GPU's memory.

    Attributes:
        name: what it is.
        num_bytes: its size.
        source: computed, measured, data sheet or assumed.
        note: what it rests on.
    """

    name: str
    num_bytes: float
    source: str
    note: str = ""


@dataclass(frozen=True)
class MemoryPlan:
    """How one GPU's memory is used.

    Attributes:
        parts: all of the device's memory, in order; they add up to ``device_bytes``.
        device_bytes: the device's memory.
        kv_cache_bytes: memory in KV blocks.
        kv_bytes_per_token: KV bytes of one token on this GPU.
        block_size: tokens in a block.
        num_gpu_blocks: whole blocks; of one data-parallel rank.
        max_model_len: longest sequence that is served.
        max_batch_size: for models without a KV cache: items that fit at once (0 for decoders).
        notes: what was reduced or assumed.
    """

    parts: tuple[MemoryPart, ...]
    device_bytes: float
    kv_cache_bytes: float
    kv_bytes_per_token: float
    block_size: int
    num_gpu_blocks: int
    max_model_len: int
    max_batch_size: int = 0
    notes: tuple[str, ...] = ()

    @property
    def num_kv_tokens(self) -> int:
        """Tokens that the KV blocks hold."""
        return self.num_gpu_blocks * self.block_size

    @property
    def weight_bytes(self) -> float:
        """All weights on the GPU."""
        return sum(p.num_bytes for p in self.parts if p.name.startswith("weights"))

    def part(self, name: str) -> float:
        """Bytes of the part of that name; 0 when there is none."""
        return sum(p.num_bytes for p in self.parts if p.name == name)


def memory_plan(replica: Replica) -> MemoryPlan:
    """The memory of the replica's fullest GPU, and its KV blocks.

    Args:
        replica: model, GPU, parallelism, precision and engine; settings left ``None`` take the framework's defaults.

    Raises:
        InputError: the model does not fit; the remedy is the smallest change that would.
    """
    replica = _resolved(replica)
    _check_split(replica)
    check_sparse_kernels(replica)
    replica, note = _with_room_for_scores(replica)
    plan = _account(replica)
    if note:
        plan = replace(plan, notes=(*plan.notes, note))
    problem = _shortage(replica, plan)
    if problem:
        raise InputError(
            f"{replica.model.name} in {replica.precision} does not fit {_where(replica)}: {problem}",
            why="a GPU must hold its share of the weights, one step's activations and some KV cache",
            remedy=_smallest_change(replica),
        )
    return plan


def _with_room_for_scores(replica: Replica) -> tuple[Replica, str]:
    """Of eager attention, the longest context whose scores and KV fit, where none was asked for; and what was done.

    Both the scores of a step and one sequence's KV grow with ``max_model_len``: bisection finds the largest that fits.
    """
    if not backend_of(replica.engine, replica.gpu).score_bytes or length_is_asked(replica):
        return replica, ""
    low, high = 0, _max_len(replica)
    while low < high:
        middle = (low + high + 1) // 2
        fits_there = _account(replica.with_engine(max_model_len=middle)).num_kv_tokens >= middle
        low, high = (middle, high) if fits_there else (low, middle - 1)
    if low == _max_len(replica) or low < MIN_KV_TOKENS:
        return replica, ""
    note = f"max_model_len reduced from {_max_len(replica):,} to {low:,}: eager attention keeps every score of a step"
    return replica.with_engine(max_model_len=low), note


def fits(replica: Replica) -> bool:
    """Whether the replica's GPUs hold it; also False when its heads or layers cannot be split so."""
    try:
        memory_plan(replica)
    except InputError:
        return False
    return True


def _check_split(replica: Replica) -> None:
    """Raises InputError when the heads or layers cannot be divided so."""
    model, tp, pp = replica.model, replica.tensor_parallel_size, replica.pipeline_parallel_size
    if model.kind == "decoder" and model.num_attention_heads % tp:
        fitting = [n for n in (1, 2, 4, 8) if model.num_attention_heads % n == 0]
        raise InputError(
            f"tensor_parallel_size {tp} does not divide {model.name}'s {model.num_attention_heads} attention heads",
            why="each GPU computes whole heads",
            remedy=f"tensor_parallel_size {' or '.join(map(str, fitting))}",
        )
    if model.kind != "vision" and pp > model.num_layers:
        raise InputError(
            f"pipeline_parallel_size {pp} exceeds {model.name}'s {model.num_layers} layers",
            why="each stage computes whole layers",
            remedy=f"pipeline_parallel_size {model.num_layers} or less",
        )
    check_experts(replica)


def _resolved(replica: Replica) -> Replica:
    return replace(replica, engine=resolve_engine(replica.engine, replica.model, replica.gpu))


def _account(replica: Replica) -> MemoryPlan:
    """The accounts without judging them; KV may come out negative."""
    model, gpu, engine = replica.model, replica.gpu, replica.engine
    weights = replica_weight_bytes(replica)
    tables = embedding_parameters(model) / replica.tensor_parallel_size * embedding_bytes(precision(replica.precision))
    peak, what = _peak(replica)
    eager = engine.enforce_eager or engine.framework == "onnxruntime" or model.kind != "decoder"
    graphs = 0.0 if eager else GRAPH_BYTES
    nccl = NCCL_BYTES if replica.num_gpus > 1 else 0.0
    transient = 0.0 if eager or engine.framework in ("tensorrt-llm", "sglang") else COMPILE_TRANSIENT_BYTES
    used = [
        MemoryPart("weights: layers", weights - tables, "computed", f"this GPU's share, stored in {replica.precision}"),
        MemoryPart("weights: embedding and head", tables, "computed", "split over tensor parallelism"),
        MemoryPart("LoRA adapters", lora_bytes(replica), "computed", "max_loras slots of max_lora_rank, 16 bit"),
        MemoryPart("rotary table", _rotary_bytes(replica), "computed", "max_position_embeddings x head_dim, 16 bit"),
        MemoryPart("activations", peak.peak_bytes, "computed", what),
        MemoryPart("compiling", transient, "measured", "transient inside vLLM's profiling step, from one known run"),
        MemoryPart("NCCL and CUDA modules", NON_TORCH_BYTES + nccl, "assumed", "vLLM start-up logs"),
    ]  # fmt: skip
    used = [part for part in used if part.name != "LoRA adapters" or lora_of(engine) is not None]
    context = MemoryPart("CUDA context", CONTEXT_BYTES, "assumed", "vLLM start-up logs")
    graph_part = MemoryPart("CUDA graphs", graphs, "assumed", "vLLM start-up logs")
    held = sum(p.num_bytes for p in used)
    outside = context.num_bytes + graphs
    utilization = engine.gpu_memory_utilization or 0.9
    if engine.framework == "tensorrt-llm":  # a share of what is free once the engine is loaded
        room = utilization * (gpu.memory_bytes - held - outside)
    elif engine.framework == "sglang":  # a share of what is free before that, for weights and cache alone
        free = gpu.memory_bytes - context.num_bytes - NON_TORCH_BYTES - nccl
        static = sum(p.num_bytes for p in used if p.name not in BESIDE_SGLANG_STATIC)
        room = min(utilization * free - static, gpu.memory_bytes - held - outside)
    else:
        inside = graphs if _graphs_in_budget(engine) else 0.0
        room = min(utilization * gpu.memory_bytes - held - inside, gpu.memory_bytes - held - outside)
    return _with_kv(replica, (*used, graph_part, context), room)


def _with_kv(replica: Replica, parts: tuple[MemoryPart, ...], room: float) -> MemoryPlan:
    engine, model, device = replica.engine, replica.model, replica.gpu.memory_bytes
    if model.kind != "decoder":
        per_item = _peak(replica)[0].layer_bytes
        batch = int(max(0.0, room + _activation_bytes(parts)) // per_item)
        return MemoryPlan((*parts, _unused(parts, device)), device, 0.0, 0.0, 1, 0, _max_len(replica), batch)
    block_size = engine.block_size or 16
    token = _kv_bytes_per_token(replica)
    blocks = engine.num_gpu_blocks if engine.num_gpu_blocks is not None else math.floor(room / (token * block_size))
    kv = max(0, blocks) * token * block_size
    notes = [] if engine.num_gpu_blocks is None else ["num_gpu_blocks as given, not derived"]
    max_len = _max_len(replica)
    if not length_is_asked(replica) and 0 < blocks * block_size < max_len:
        notes.append(
            f"max_model_len reduced from {max_len:,} to {blocks * block_size:,}: "
            "the KV cache holds no longer sequence, and vLLM refuses to start otherwise"
        )
        max_len = blocks * block_size
    all_parts = (*parts, MemoryPart("KV cache", kv, "computed", f"{blocks:,} blocks of {block_size} tokens"))
    return MemoryPlan(
        (*all_parts, _unused(all_parts, device)), device, kv, token, block_size, blocks, max_len, 0, tuple(notes)
    )


def _activation_bytes(parts: tuple[MemoryPart, ...]) -> float:
    return sum(p.num_bytes for p in parts if p.name == "activations")


def _unused(parts: tuple[MemoryPart, ...], device_bytes: float) -> MemoryPart:
    left = device_bytes - sum(p.num_bytes for p in parts)
    return MemoryPart("unused", left, "computed", "beyond gpu_memory_utilization, and less than a block")


def _peak(replica: Replica) -> tuple[Activations, str]:
    """Peak of the profiling step (one item, for models without a KV cache), and what that step is."""
    engine, model, tp = replica.engine, replica.model, replica.tensor_parallel_size
    chunk, keep = (int(number_option(engine, n, 0, low=1)) for n in ("activation_chunk_tokens", CHECKPOINT))
    chunk_tokens, checkpoint = chunk or None, keep or None
    if model.kind != "decoder":
        tokens, seqs, what = _tokens_per_item(model, engine), 0, "one item"
    else:
        tokens = engine.max_num_batched_tokens or 2048
        seqs = min(engine.max_num_seqs or 256, tokens)
        if engine.framework == "sglang":  # no step is profiled; its cache binds long before the seats
            seqs = min(seqs, SGLANG_LARGEST_GRAPH)
        what = f"one step of {tokens:,} tokens, {seqs:,} sequences sampled"
    workspace = 0.0
    if model.kind != "vision":
        backend, longest = backend_of(engine, replica.gpu), _max_len(replica)
        workspace = attention_workspace_bytes(backend, model, tokens, longest, tp)
        what += f", scores of {longest:,} keys kept" if backend.score_bytes else ""
    again = recomputation_of(engine)
    model = replace(model, num_layers=split(model.num_layers, replica.pipeline_parallel_size))  # of one stage
    what += "" if again is None else f", kept with {again} recomputation"
    peak = activation_peak(model, tokens, seqs, tp, chunk_tokens, checkpoint, workspace, again)
    experts = experts_bytes(model, tokens, expert_slices(replica), ranks_sharing_experts(replica), chunk_tokens)
    return replace(peak, layer_bytes=max(peak.layer_bytes, experts)), what


def _tokens_per_item(model: Model, engine: Engine) -> int:
    return 1 if model.kind == "vision" else min(engine.max_model_len or 512, model.max_position_embeddings or 512)


def _rotary_bytes(replica: Replica) -> float:
    model = replica.model
    if model.kind != "decoder":
        return 0.0
    width = model.mla.qk_rope_head_dim if model.mla else model.head_dim
    return 2.0 * model.max_position_embeddings * width


def _max_len(replica: Replica) -> int:
    return replica.engine.max_model_len or replica.model.max_position_embeddings


def _kv_bytes_per_token(replica: Replica) -> float:
    """KV bytes of a token on this GPU; sliding-window layers count by the window's share of an ordinary context."""
    context = min(SLIDING_REFERENCE_TOKENS, _max_len(replica))
    tp, pp = replica.tensor_parallel_size, replica.pipeline_parallel_size
    return kv_bytes_per_sequence(replica.model, context, replica.kv_cache_dtype, tp, pp) / context


def _graphs_in_budget(engine: Engine) -> bool:
    if engine.framework != "vllm":
        return engine.framework == "tgi"
    return version_numbers(version_of(engine)) >= GRAPHS_IN_BUDGET_SINCE


def _shortage(replica: Replica, plan: MemoryPlan) -> str:
    """What is short, in words; empty when the replica fits."""
    gib = 1 / GIB
    if replica.model.kind != "decoder":
        if plan.max_batch_size >= 1:
            return ""
        return f"weights take {plan.weight_bytes * gib:.1f} GiB of {plan.device_bytes * gib:.1f}"
    asked = length_is_asked(replica)
    needed = min(_max_len(replica) if asked else MIN_KV_TOKENS, replica.model.max_position_embeddings)
    if plan.num_kv_tokens >= needed and plan.num_gpu_blocks > 0:
        return ""
    beside = plan.device_bytes - plan.part("KV cache") - plan.part("unused")
    short = f"weights, activations and reserves take {beside * gib:.1f} of {plan.device_bytes * gib:.1f} GiB per GPU, "
    left = max(0, plan.num_kv_tokens)
    want = f"max_model_len {needed:,} needs" if asked else "one request needs"
    return short + f"KV for {left:,} tokens remains and {want} {needed:,}"


def _where(replica: Replica) -> str:
    sizes = ((replica.tensor_parallel_size, "tensor"), (replica.pipeline_parallel_size, "pipeline"))
    split = ", ".join(f"{label}_parallel_size {n}" for n, label in sizes if n > 1)
    return f"{replica.num_gpus} x {replica.gpu.name}" + (f" ({split})" if split else "")


def _smallest_change(replica: Replica) -> str:
    """The first change, from the least to the most invasive, with which the replica fits."""
    for text, candidate in changes(replica):
        try:
            changed = _resolved(candidate)
            _check_split(changed)
            plan = _account(changed)
        except InputError:
            continue
        if not _shortage(changed, plan):
            return text.format(max_len=plan.num_kv_tokens)
    return "no change to one replica of up to 8 such GPUs makes it fit; split it over nodes (pipeline_parallel_size)"
