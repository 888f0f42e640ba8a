"""A replica's step time from a profile: each layer's kernels summed, as a function of the step's shape.

Of a data-parallel replica this is one rank's step: its attention and dense layers compute the rank's own tokens, its
experts those of all ranks (which are taken to be as busy as this one). Of a pipelined replica it is one micro-batch's
way through all stages; a stage takes its share of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from calibrate import static_batches, work
from calibrate.attention import Heads, decode_time_s, prefill_time_s
from calibrate.backends import backend_of, demand_own_backend, eager_decode_extra_s, prefill_factor
from calibrate.collectives import all_gather_time_s, all_reduce_time_s, send_time_s
from calibrate.expert_exchange import exchange_family, exchange_time_s
from calibrate.gemm import gemm_time_s, quantize_time_s, widened_gemm_time_s
from calibrate.moe import Experts, busiest_share, experts_time_s
from calibrate.options import number_option
from calibrate.precisions import Precision, kv_cache_bytes, on_gpu, precision
from calibrate.profiles import Profile
from calibrate.step import StepShape, StepTable, StepTimeModel
from calibrate.techniques import with_adapters, with_recomputation
from catalogs.errors import InputError
from catalogs.schema import Replica

FloatArray = NDArray[np.float64]
# Kernels that stand in for a format without tables of its own: the nearest in arithmetic and weight width.
VARIANTS: dict[str, tuple[str, ...]] = {
    "fp8_block": ("fp8_block", "fp8"),
    "int8": ("int8", "fp8"),
    "nvfp4": ("nvfp4", "fp8"),
    "mxfp4": ("mxfp4", "int4_wo"),
    "gguf": ("gguf", "int4_wo"),
    "int4_wo_slow": ("int4_wo_slow", "int4_wo"),
}
# FP8 experts are published with a scale for each block (DeepSeek, Qwen); kernels for one scale a tensor differ.
EXPERT_VARIANTS = {**VARIANTS, "fp8": ("fp8_block", "fp8"), "int8": ("int8", "fp8_block", "fp8")}
# Layers whose input the kernel before them rounds to FP8 (one scale a tensor) on its way: the norm before, or the
# activation. The compilers of vLLM (``fuse_norm_quant``, ``fuse_act_quant``) and TensorRT-LLM do so; tables do not.
FUSED_QUANTIZATION = dict.fromkeys(("vllm", "tensorrt-llm"), ("qkv", "gate_up", "down"))
LEAST_WITHOUT_ROUNDING = 0.3  # share of a GEMM's time
KERNELS_BETWEEN_GEMMS = 5  # a layer's two add-norms, rotary, activation, cache write
SAMPLING_KERNELS = 12  # final norm, logits in fp32, greedy sampling and its bookkeeping: 25 us in vLLM 0.19
# 2:4 GEMMs over dense ones at many tokens, of a nominal 2: 1.22 for FP8 on H100, CUTLASS against cuBLAS (HPC-AI, "2:4
# semi-structured sparsity with 1.27x inference speedup", 2025). Elsewhere and in other formats assumed the same.
SPARSE_SPEEDUP = 1.22
LOGIT_BYTES = 7.0  # traffic a logit while sampling: 1.75 passes in fp32, vLLM 0.19 on RTX 4090 and RTX PRO 6000
GRAPH_SIZES = np.concatenate([[0, 1, 2, 4], np.arange(8, 256, 8), np.arange(256, 513, 16)]).astype(np.float64)
TableBuilder = Callable[[Replica, Profile, int, int], StepTable]


@dataclass(frozen=True)
class KernelSums:
    """The kernels of a replica's step, summed over its layers."""

    replica: Replica
    profile: Profile

    @cached_property
    def form(self) -> Precision:
        """The replica's precision as its GPU runs it."""
        return on_gpu(self.replica.precision, self.replica.gpu)

    @cached_property
    def half(self) -> Precision:
        """16 bit (or wider, if the replica is) as the GPU runs it: what quantization leaves out."""
        wide = self.form.weight_bytes >= 2.0
        return self.form if wide else on_gpu("fp16", self.replica.gpu)

    @property
    def skew(self) -> float:
        """How unevenly experts are popular: ``expert_skew`` of the engine's options (power of rank); 0: evenly.

        Even is what routers are trained for (DeepSeek-V3, arXiv 2412.19437, section 2.1.2) and what expert balancers
        restore; AIConfigurator's tables of uneven loads have 1.01 and 1.2.
        """
        return number_option(self.replica.engine, "expert_skew", 0.0, high=5.0)

    @property
    def layers(self) -> float:
        """Layers in a step; of a pipeline, the fullest stage's times the stages, since the others wait for it."""
        stages = self.replica.pipeline_parallel_size
        return float(stages * work.split(self.replica.model.num_layers, stages))

    @property
    def link(self) -> str:
        """``nvlink`` or ``pcie``."""
        own = self.replica.interconnect_bytes_per_s
        nvlink = self.replica.gpu.nvlink_bytes_per_s
        if own is None:
            return "nvlink" if nvlink else "pcie"
        return "nvlink" if nvlink and own > 0.5 * nvlink else "pcie"

    @property
    def link_bytes_per_s(self) -> float:
        """One direction, per GPU."""
        gpu = self.replica.gpu
        return self.replica.interconnect_bytes_per_s or gpu.nvlink_bytes_per_s or gpu.pcie_bytes_per_s

    def gemm_s(self, gemm: work.Gemm, tokens: FloatArray) -> FloatArray:
        """One linear layer, for each number of tokens (ascending)."""
        keep_wide = not gemm.quantized or self.form.experts_only
        form = self.half if keep_wide else self.form
        if gemm.name == "lm_head" and self.form.embeddings_too:
            form = self.form
        fit = self.profile.family("gemm", *VARIANTS.get(form.gemm, (form.gemm,)))
        if form.gemm == "int4_wo_slow" and form.gemm not in self.profile.families.get("gemm", {}):
            half = on_gpu("fp16", self.replica.gpu)
            fit = self.profile.family("gemm", *VARIANTS.get(half.gemm, (half.gemm,)))
            return widened_gemm_time_s(fit, self.replica.gpu, half, tokens, gemm.n, gemm.k, form.weight_bytes)
        k = float(gemm.k)
        if form.sparse:  # as a dense GEMM of less depth, which still reads all stored weights
            form, k = replace(form, weight_bytes=form.weight_bytes * SPARSE_SPEEDUP), gemm.k / SPARSE_SPEEDUP
        time = gemm_time_s(fit, self.replica.gpu, form, tokens, gemm.n, k)
        if form.gemm == "fp8" and gemm.name in FUSED_QUANTIZATION.get(self.replica.engine.framework, ()):
            rounding = quantize_time_s(fit, self.replica.gpu, tokens, gemm.k)
            time = np.maximum.accumulate(np.maximum(time - rounding, LEAST_WITHOUT_ROUNDING * time))
        return time

    def positionwise_s(self, tokens: FloatArray) -> FloatArray:
        """All work that depends on the number of tokens alone: GEMMs, norms, experts, exchanges."""
        model, tp = self.replica.model, self.replica.tensor_parallel_size
        if model.kind != "decoder":
            return static_batches.positionwise_s(self.replica, tokens, self.profile.families.get("static_batch"))
        gemms = (*work.attention_gemms(model, tp), *work.mlp_gemms(model, tp))
        layer = np.zeros_like(tokens)
        for gemm in gemms:
            layer += gemm.share * gemm.count * self.gemm_s(gemm, tokens)
        if model.mla is not None:
            layer += self._mla_up_s(tokens)
        layer += self._elementwise_s(tokens) + self._experts_s(tokens)
        layer += 2.0 * self._all_reduce_s(tokens)
        return self.layers * layer + self._ends_s(tokens)

    def _mla_up_s(self, tokens: FloatArray) -> FloatArray:
        """W_UK and W_UV of MLA: absorbed in decode, multiplied in prefill; the same FLOPs a token either way."""
        tp, mla = self.replica.tensor_parallel_size, self.replica.model.mla
        assert mla is not None
        width = work.split(self.replica.model.num_attention_heads, tp) * (mla.qk_nope_head_dim + mla.v_head_dim)
        return self.gemm_s(work.Gemm("kv_b", width, mla.kv_lora_rank), tokens)

    def _elementwise_s(self, tokens: FloatArray) -> FloatArray:
        gpu, model = self.replica.gpu, self.replica.model
        fit = self.profile.family("elementwise")
        moved = tokens * work.elementwise_bytes_per_token(model, self.replica.tensor_parallel_size)
        traffic = moved / (fit["eff_bandwidth"] * gpu.memory_bandwidth_bytes_per_s)
        return np.asarray(traffic + KERNELS_BETWEEN_GEMMS * fit["launch_s"])

    def _experts_s(self, tokens: FloatArray) -> FloatArray:
        model, replica = self.replica.model, self.replica
        if model.moe is None:
            return np.zeros_like(tokens)
        ep, tp, dp = replica.expert_parallel_size, replica.tensor_parallel_size, replica.data_parallel_size
        local = work.split(model.moe.num_experts, ep)
        inter = work.split(model.moe.expert_intermediate_size, 1 if ep > 1 else tp)
        experts = Experts(
            model.moe.num_experts, local, model.moe.num_experts_per_token, model.hidden_size, inter,
            model.num_mlp_matrices,
        )  # fmt: skip
        together = tokens * (dp if ep > 1 else 1)
        fit = self.profile.family("moe", *EXPERT_VARIANTS.get(self.form.gemm, (self.form.gemm,)))
        time = experts_time_s(fit, replica.gpu, self.form, experts, together, self.skew)
        if ep > 1 and dp > 1:
            fit = self.profile.family(exchange_family(replica.engine), self.link)
            busiest = busiest_share(experts, self.skew, together)
            time = time + exchange_time_s(
                fit, replica, self.link_bytes_per_s, experts, tokens, busiest, self.form.activation_bytes
            )
        return time * work.num_moe_layers(model) / model.num_layers

    def _all_reduce_s(self, tokens: FloatArray) -> FloatArray:
        tp = self.replica.tensor_parallel_size
        if tp < 2:
            return np.zeros_like(tokens)
        num_bytes = tokens * self.replica.model.hidden_size * 2.0
        return all_reduce_time_s(self.profile.family("all_reduce", self.link), self.link_bytes_per_s, tp, num_bytes)

    def _ends_s(self, tokens: FloatArray) -> FloatArray:
        """Embedding lookup (and its all-reduce), hand-over between pipeline stages."""
        replica = self.replica
        num_bytes = tokens * replica.model.hidden_size * 2.0
        time = 2.0 * num_bytes / replica.gpu.memory_bandwidth_bytes_per_s + self._all_reduce_s(tokens)
        if replica.pipeline_parallel_size > 1:
            fit = self.profile.family("all_to_all", self.link)
            hops = replica.pipeline_parallel_size - 1
            time = time + hops * send_time_s(fit, self.link_bytes_per_s, num_bytes)
        return time

    def sampled_s(self, num_sampled: FloatArray) -> FloatArray:
        """Final norm, lm_head, gathering the logits, sampling; the other stages of a pipeline wait for its last one."""
        replica, tp = self.replica, self.replica.tensor_parallel_size
        head = work.lm_head(replica.model, tp)
        if head is None:
            return np.zeros_like(num_sampled)
        logits = num_sampled * replica.model.vocab_size
        fit = self.profile.family("elementwise")
        passes = logits * LOGIT_BYTES / (fit["eff_bandwidth"] * replica.gpu.memory_bandwidth_bytes_per_s)
        time = self.gemm_s(head, num_sampled) + passes + SAMPLING_KERNELS * fit["launch_s"]
        if tp > 1:
            gather = self.profile.family("all_gather", self.link)
            time = time + all_gather_time_s(gather, self.link_bytes_per_s, tp, 2.0 * logits)
        return np.where(num_sampled > 0, time * replica.pipeline_parallel_size, 0.0)

    def heads(self, window: int | None, absorbed: bool) -> Heads:
        """Attention as one GPU runs it; ``absorbed``: MLA reads the latent vector as one KV head (decode)."""
        model, tp = self.replica.model, self.replica.tensor_parallel_size
        size = kv_cache_bytes(self.replica.kv_cache_dtype, model.dtype)
        num_heads, causal = work.split(model.num_attention_heads, tp), model.kind == "decoder"
        if model.mla is None:
            kv, width = work.split(model.num_kv_heads, tp), model.head_dim
            return Heads(num_heads, kv, width, width, 2 * width, size, window, causal)
        mla = model.mla
        latent = mla.kv_lora_rank + mla.qk_rope_head_dim
        if absorbed:
            return Heads(num_heads, 1, latent, mla.kv_lora_rank, latent, size, window, causal)
        query = mla.qk_nope_head_dim + mla.qk_rope_head_dim
        return Heads(num_heads, num_heads, query, mla.v_head_dim, query + mla.v_head_dim, 2.0, window, causal)

    def prefill_s(self, tokens: FloatArray, mean_context: FloatArray) -> FloatArray:
        """Prefill attention of all layers."""
        if self.replica.model.kind != "decoder":
            demand_own_backend(self.replica.engine, self.replica.gpu, self.replica.model.name)
            fit = self.profile.families.get("static_batch")
            return static_batches.attention_s(self.replica, tokens, mean_context, fit)
        total = np.zeros(np.broadcast_shapes(np.shape(tokens), np.shape(mean_context)))
        backend = backend_of(self.replica.engine, self.replica.gpu)
        for window, count in work.layer_windows(self.replica.model):
            variants = (backend.variant,) if backend.variant else self.cache_variants(window)
            fit = self.profile.family("prefill_attention", *variants)
            heads = self.heads(window, absorbed=False)
            total = total + count * prefill_time_s(fit, self.replica.gpu, heads, tokens, mean_context)
        return total * prefill_factor(backend, self.replica.gpu) * self.layers / self.replica.model.num_layers

    def decode_s(self, batch: FloatArray, mean_context: FloatArray) -> FloatArray:
        """Decode attention of all layers."""
        if self.replica.model.kind != "decoder":
            return np.zeros_like(batch)
        total = np.zeros(np.broadcast_shapes(np.shape(batch), np.shape(mean_context)))
        backend = backend_of(self.replica.engine, self.replica.gpu)
        for window, count in work.layer_windows(self.replica.model):
            fit = self.profile.family("decode_attention", *self.cache_variants(window))
            heads = self.heads(window, absorbed=True)
            total = total + count * decode_time_s(fit, self.replica.gpu, heads, batch, mean_context)
            if backend.variant == "eager":
                total = total + count * eager_decode_extra_s(self.replica.gpu, heads, batch, mean_context)
        return total * self.layers / self.replica.model.num_layers

    def cache_variants(self, window: int | None) -> tuple[str, ...]:
        cache = "fp8" if kv_cache_bytes(self.replica.kv_cache_dtype, self.replica.model.dtype) == 1.0 else "bf16"
        if self.replica.model.mla is not None:
            return ("mla", cache)
        return (f"{cache}-window", "bf16-window", cache) if window else (cache,)


@dataclass
class TableStepModel:
    """Step time of one replica, asked one shape at a time: its table, read by interpolation, grown as needed."""

    replica: Replica
    profile: Profile
    table: StepTable | None = None

    def step_time_s(self, shape: StepShape) -> float:
        """Seconds that the step takes; always > 0."""
        tokens = shape.num_prefill_tokens + shape.num_decode
        seqs = max(shape.num_decode, shape.num_sampled)
        table = self.table
        if table is None or tokens >= len(table.decode_tokens_s) or seqs >= len(table.sampled_s):
            sizes = (2 ** max(9, tokens.bit_length()), 2 ** max(6, seqs.bit_length()))
            table = self.table = step_table(self.replica, self.profile, *sizes)
        positionwise = table.mixed_tokens_s if shape.num_prefill_tokens else table.decode_tokens_s
        sequences = shape.num_decode + (1 if shape.num_prefill_tokens else 0)
        time = float(positionwise[tokens]) if tokens else 0.0
        time += float(table.sampled_s[shape.num_sampled]) + attention_of(table, shape)
        return max(time + table.overhead_s + table.overhead_per_sequence_s * sequences, 1e-9)


def attention_of(table: StepTable, shape: StepShape) -> float:
    """Attention seconds of a shape: multilinear between the table's points, the last cells extended."""
    at = (shape.num_prefill_tokens, shape.prefill_mean_context, shape.num_decode, shape.decode_mean_context)
    axes = (table.prefill_tokens_axis, table.prefill_context_axis, table.num_decode_axis, table.decode_context_axis)
    cube = table.attention_s
    for axis, value in zip(axes, at, strict=True):
        left = int(np.clip(np.searchsorted(axis, value, side="right") - 1, 0, len(axis) - 2))
        share = (value - axis[left]) / (axis[left + 1] - axis[left])
        cube = cube[left] * (1.0 - share) + cube[left + 1] * share
    return float(cube)


OVERHEAD_KEYS = ("step_overhead_s", "per_sequence_s", "request_overhead_s", "output_overhead_s")


def _overheads(kernels: KernelSums) -> dict[str, float]:
    known = kernels.profile.overheads(kernels.replica.engine)
    return {key: float(known.get(key, 0.0)) for key in OVERHEAD_KEYS}


def step_model(replica: Replica, profile: Profile) -> StepTimeModel:
    """Answers how long a step of a replica takes, by a profile's kernels.

    Raises:
        InputError: the GPU cannot run the precision. MissingError: the profile lacks a kernel family.
    """
    precision(replica.precision)
    if profile.kind == "endpoint":
        from calibrate.endpoint_step import step_fit

        return step_fit(profile)
    return TableStepModel(replica, profile)


def padded_tokens(replica: Replica, tokens: FloatArray) -> FloatArray:
    """Tokens that a step computes: vLLM pads to the next captured CUDA graph, up to 512 tokens (its V1 defaults)."""
    if replica.engine.framework != "vllm" or replica.engine.enforce_eager or replica.model.kind != "decoder":
        return tokens
    place = np.minimum(np.searchsorted(GRAPH_SIZES, tokens), len(GRAPH_SIZES) - 1)
    return np.where(tokens <= GRAPH_SIZES[-1], GRAPH_SIZES[place], tokens)


def _axis(last: float, start: float) -> FloatArray:
    """0, start, 2 start, ... up to ``last``."""
    num = max(2, int(np.ceil(np.log2(max(last, 2 * start) / start))) + 1)
    points = start * 2.0 ** np.arange(num)
    return np.concatenate([[0.0], points[points < last], [max(last, start)]])


def _rising(grid: FloatArray) -> FloatArray:
    """The grid, never falling along either axis: more work takes no less time."""
    return np.asarray(np.maximum.accumulate(np.maximum.accumulate(grid, axis=0), axis=1))


def _kernel_table(replica: Replica, profile: Profile, max_tokens: int, max_seqs: int) -> StepTable:
    kernels = KernelSums(replica, profile)
    tokens = np.arange(max_tokens + 1, dtype=np.float64)
    positionwise = kernels.positionwise_s(np.maximum(padded_tokens(replica, tokens), 1.0))
    reach = float(max(replica.engine.max_model_len or replica.model.max_position_embeddings, 4096))
    c, n = _axis(max_tokens, 1.0), _axis(max_seqs, 1.0)
    p, k = _axis(reach, 16.0), _axis(reach, 16.0)
    prefill = _rising(kernels.prefill_s(*np.meshgrid(c, p, indexing="ij")))
    decode = _rising(kernels.decode_s(*np.meshgrid(n, k, indexing="ij")))
    overheads = _overheads(kernels)
    return StepTable(
        decode_tokens_s=positionwise,
        mixed_tokens_s=positionwise,
        sampled_s=kernels.sampled_s(np.arange(max_seqs + 1, dtype=np.float64)),
        prefill_tokens_axis=c,
        prefill_context_axis=p,
        num_decode_axis=n,
        decode_context_axis=k,
        attention_s=prefill[:, :, None, None] + decode[None, None, :, :],
        overhead_s=overheads["step_overhead_s"],
        overhead_per_sequence_s=overheads["per_sequence_s"],
        request_overhead_s=overheads["request_overhead_s"],
        output_overhead_s=overheads["output_overhead_s"],
    )


def _llmservingsim_table(replica: Replica, profile: Profile, max_tokens: int, max_seqs: int) -> StepTable:
    from calibrate import kernel_tables

    demand_own_backend(replica.engine, replica.gpu, f"profile {profile.name}")
    return kernel_tables.step_table(replica, profile, max_tokens, max_seqs)


def _endpoint_table(replica: Replica, profile: Profile, max_tokens: int, max_seqs: int) -> StepTable:
    from calibrate import endpoint_step

    return endpoint_step.step_table(replica, profile, max_tokens, max_seqs)


TABLE_BUILDERS: dict[str, TableBuilder] = {
    "kernels": _kernel_table,
    "llmservingsim": _llmservingsim_table,
    "endpoint": _endpoint_table,
}


def step_table(replica: Replica, profile: Profile, max_tokens: int, max_seqs: int) -> StepTable:
    """A replica's step time as arrays, for steps of up to ``max_tokens`` tokens and ``max_seqs`` sequences.

    Raises:
        InputError: unknown profile kind, or the GPU cannot run the precision. MissingError: a kernel family is missing.
    """
    if profile.device:
        replica = replace(replica, gpu=replace(replica.gpu, **profile.device))
    builder = TABLE_BUILDERS.get(profile.kind)
    if builder is None:
        raise InputError(f"profile {profile.name} is of unknown kind {profile.kind!r}", remedy="update this program")
    if replica.model.kind == "vision":
        replica = replace(replica, kv_cache_dtype="auto")
    return with_adapters(replica, with_recomputation(replica, builder(replica, profile, max_tokens, max_seqs)))
