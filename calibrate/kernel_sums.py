"""The kernels of a replica's step by a profile, each kind summed over the layers: a step's time is made of these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from calibrate import static_batches
from calibrate.options import number_option
from calibrate.physics import work
from calibrate.physics.attention import Heads, decode_time_s, prefill_time_s
from calibrate.physics.backends import backend_of, demand_own_backend, eager_decode_extra_s, prefill_factor
from calibrate.physics.collectives import all_gather_time_s, all_reduce_time_s, send_time_s
from calibrate.physics.expert_exchange import exchange_family, exchange_time_s
from calibrate.physics.expert_layout import ranks_sharing_experts, splits_tokens
from calibrate.physics.gemm import gemm_time_s, quantize_time_s, widened_gemm_time_s
from calibrate.physics.moe import busiest_share, experts_of, experts_time_s
from calibrate.physics.precisions import Precision, kv_cache_bytes, on_gpu
from calibrate.profiles import Profile
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
        layer += self._elementwise_s(tokens) + (self.expert_kernels_s(tokens) + self.exchange_s(tokens))
        layer += self.all_reduce_s(tokens) + self.after_mlp_s(tokens)
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

    def experts_s(self, tokens: FloatArray) -> FloatArray:
        """Experts and their exchange, all layers, where each data-parallel rank has so many tokens."""
        return self.layers * (self.expert_kernels_s(tokens) + self.exchange_s(tokens))

    def expert_kernels_s(self, tokens: FloatArray) -> FloatArray:
        """Experts of one layer (of the mean layer, where some have none), each rank having so many tokens."""
        model, replica = self.replica.model, self.replica
        if model.moe is None:
            return np.zeros_like(tokens)
        together = tokens * ranks_sharing_experts(replica)
        fit = self.profile.family("moe", *EXPERT_VARIANTS.get(self.form.gemm, (self.form.gemm,)))
        time = experts_time_s(fit, replica.gpu, self.form, experts_of(replica), together, self.skew)
        return time * work.num_moe_layers(model) / model.num_layers

    def exchange_s(self, tokens: FloatArray) -> FloatArray:
        """Bringing one layer's tokens to the experts that data-parallel ranks share, and back."""
        model, replica, ranks = self.replica.model, self.replica, ranks_sharing_experts(self.replica)
        if ranks == 1:
            return np.zeros_like(tokens)
        experts, link = experts_of(replica), self.link_bytes_per_s
        fit = self.profile.family(exchange_family(replica), self.link)
        busiest = busiest_share(experts, self.skew, tokens * ranks)
        time = exchange_time_s(fit, replica, link, experts, tokens, busiest, self.form.activation_bytes)
        return time * work.num_moe_layers(model) / model.num_layers

    def all_reduce_s(self, tokens: FloatArray) -> FloatArray:
        """Summing hidden states over tensor parallelism, once; 0 without."""
        tp = self.replica.tensor_parallel_size
        if tp < 2:
            return np.zeros_like(tokens)
        num_bytes = tokens * self.replica.model.hidden_size * 2.0
        return all_reduce_time_s(self.profile.family("all_reduce", self.link), self.link_bytes_per_s, tp, num_bytes)

    def after_mlp_s(self, tokens: FloatArray) -> FloatArray:
        """Summing the MLP's output over tensor parallelism; where each GPU sent its own tokens, gathering them."""
        model, tp = self.replica.model, self.replica.tensor_parallel_size
        if not splits_tokens(self.replica):
            return self.all_reduce_s(tokens)
        share, num_bytes = work.num_moe_layers(model) / model.num_layers, tokens * model.hidden_size * 2.0
        fit = self.profile.family("all_gather", self.link)
        gathered = all_gather_time_s(fit, self.link_bytes_per_s, tp, num_bytes)
        return share * gathered + (1.0 - share) * self.all_reduce_s(tokens)

    def _ends_s(self, tokens: FloatArray) -> FloatArray:
        """Embedding lookup (and its all-reduce), hand-over between pipeline stages."""
        replica = self.replica
        num_bytes = tokens * replica.model.hidden_size * 2.0
        time = 2.0 * num_bytes / replica.gpu.memory_bandwidth_bytes_per_s + self.all_reduce_s(tokens)
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
        """Variants of the attention kernels that read such a KV cache, the fittest first."""
        cache = "fp8" if kv_cache_bytes(self.replica.kv_cache_dtype, self.replica.model.dtype) == 1.0 else "bf16"
        if self.replica.model.mla is not None:
            return ("mla", cache)
        return (f"{cache}-window", "bf16-window", cache) if window else (cache,)
