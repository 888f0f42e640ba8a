"""The work of a step, counted once for the whole project: parameters, weight bytes, KV bytes, FLOPs, GEMM shapes.

Counts follow the architecture alone (Vaswani et al. 2017, arXiv 1706.03762; GQA arXiv 2305.13245; MLA arXiv
2405.04434 section 2.1); how fast they run is a profile's business. A multiply-add is 2 FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from calibrate.physics.expert_layout import expert_slices
from calibrate.physics.precisions import Precision, kv_cache_bytes, precision
from catalogs.schema import Model, Replica

Number = TypeVar("Number", float, NDArray[np.float64])


@dataclass(frozen=True)
class Gemm:
    """A linear layer as one GPU runs it: (m, k) x (k, n), m being the tokens of the step.

    Attributes:
        name: qkv, o, gate_up, down, router, ...
        n, k: output and input width on one GPU.
        count: how many a layer has.
        share: share of the model's layers that have it.
        quantized: stored in the replica's precision; else in 16 bit.
    """

    name: str
    n: int
    k: int
    count: int = 1
    share: float = 1.0
    quantized: bool = True


def num_moe_layers(model: Model) -> int:
    """Layers whose MLP is a mixture of experts."""
    return model.num_layers - model.moe.num_dense_layers if model.moe else 0


def split(size: int, ways: int) -> int:
    """A width divided over ``ways`` GPUs, rounded up; never below 1."""
    return max(1, -(-size // ways))


def attention_gemms(model: Model, tp: int = 1) -> tuple[Gemm, ...]:
    """The projections around attention on one of ``tp`` GPUs."""
    heads, hidden = split(model.num_attention_heads, tp), model.hidden_size
    if model.mla is None:
        kv_heads = split(model.num_kv_heads, tp)
        return (
            Gemm("qkv", (heads + 2 * kv_heads) * model.head_dim, hidden),
            Gemm("o", hidden, heads * model.head_dim),
        )
    mla = model.mla
    q_width = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    compressed = mla.kv_lora_rank + mla.qk_rope_head_dim
    if mla.q_lora_rank is None:
        q: tuple[Gemm, ...] = (Gemm("q_kv_a", q_width + compressed, hidden),)
    else:
        q = (Gemm("q_kv_a", mla.q_lora_rank + compressed, hidden), Gemm("q_b", q_width, mla.q_lora_rank))
    return (*q, Gemm("o", hidden, heads * mla.v_head_dim))


def mlp_gemms(model: Model, tp: int = 1) -> tuple[Gemm, ...]:
    """The dense MLP, the router and the shared experts on one of ``tp`` GPUs (routed experts apart)."""
    gemms: list[Gemm] = []
    moe, hidden = model.moe, model.hidden_size
    ups = model.num_mlp_matrices - 1
    moe_share = num_moe_layers(model) / model.num_layers
    if moe_share < 1.0:
        width = split(model.intermediate_size, tp)
        gemms += [Gemm("gate_up", ups * width, hidden, share=1 - moe_share)]
        gemms += [Gemm("down", hidden, width, share=1 - moe_share)]
    if moe is not None:
        gemms.append(Gemm("router", moe.num_experts, hidden, share=moe_share, quantized=False))
        if moe.num_shared_experts:
            width = split(moe.shared_intermediate_size or moe.num_shared_experts * moe.expert_intermediate_size, tp)
            gemms += [Gemm("shared_gate_up", ups * width, hidden, share=moe_share)]
            gemms += [Gemm("shared_down", hidden, width, share=moe_share)]
    return tuple(gemms)


def lm_head(model: Model, tp: int = 1) -> Gemm | None:
    """The projection to the vocabulary; None where the model generates nothing."""
    if model.kind != "decoder":
        return None
    return Gemm("lm_head", split(model.vocab_size, tp), model.hidden_size, quantized=False)


def expert_parameters(model: Model) -> float:
    """Parameters of one routed expert."""
    if model.moe is None:
        return 0.0
    return float(model.num_mlp_matrices * model.hidden_size * model.moe.expert_intermediate_size)


def mla_up_parameters(model: Model, tp: int = 1) -> float:
    """Parameters of a layer's W_UK and W_UV (kv_b), which decode absorbs and prefill multiplies."""
    if model.mla is None:
        return 0.0
    heads = split(model.num_attention_heads, tp)
    return float(heads * model.mla.kv_lora_rank * (model.mla.qk_nope_head_dim + model.mla.v_head_dim))


def embedding_parameters(model: Model) -> float:
    """Token embeddings, learned positions (encoders) and an untied lm_head."""
    if model.kind == "vision":
        return 0.0
    table = float(model.vocab_size) * model.hidden_size
    positions = float(model.max_position_embeddings) * model.hidden_size if model.kind == "encoder" else 0.0
    return table * (2.0 if model.kind == "decoder" and not model.tie_word_embeddings else 1.0) + positions


def _linear_parameters(model: Model, tp: int) -> float:
    """A layer's mean parameters outside the routed experts, on one GPU, biases and norms included."""
    gemms = (*attention_gemms(model, tp), *mlp_gemms(model, tp))
    weights = sum(g.n * g.k * g.count * g.share for g in gemms) + mla_up_parameters(model, tp)
    bias = attention_gemms(model, tp)[0].n if model.qkv_bias else 0
    return weights + bias + 2.0 * model.hidden_size


def num_parameters(model: Model) -> float:
    """Parameters, counted from the architecture (vision models: as published)."""
    if model.kind == "vision":
        return float(model.num_parameters or 0.0)
    experts = num_moe_layers(model) * (model.moe.num_experts if model.moe else 0) * expert_parameters(model)
    return embedding_parameters(model) + model.num_layers * _linear_parameters(model, 1) + experts + model.hidden_size


def num_active_parameters(model: Model) -> float:
    """Parameters that one token multiplies: all but the experts it is not sent to and the embedding table."""
    idle = 0.0
    if model.moe is not None:
        idle = num_moe_layers(model) * (model.moe.num_experts - model.moe.num_experts_per_token)
    table = float(model.vocab_size) * model.hidden_size
    unread = table if model.kind == "decoder" and not model.tie_word_embeddings else 0.0
    return num_parameters(model) - idle * expert_parameters(model) - unread


def dense_weight_bytes(form: Precision) -> float:
    """Bytes a weight outside the experts and the embeddings."""
    return 2.0 if form.experts_only else form.weight_bytes


def embedding_bytes(form: Precision) -> float:
    """Bytes a weight of the embeddings and lm_head."""
    return form.weight_bytes if form.embeddings_too else 2.0


def weight_bytes(
    model: Model, precision_name: str, tp: int = 1, pp: int = 1, ep: int = 1, slices: int | None = None
) -> float:
    """Weight bytes on the fullest GPU: group scales included, embeddings in 16 bit unless the format takes them too.

    Args:
        model: architecture.
        precision_name: storage format (``bf16``, ``int4-awq`` ...).
        tp: tensor parallel size. pp: pipeline stages. ep: GPUs over which whole experts are spread.
        slices: GPUs over which each expert's width is sliced; None: ``tp``, or with ``ep`` above 1 none.
    """
    form = precision(precision_name)
    if model.kind == "vision":
        return num_parameters(model) * form.weight_bytes
    layers = split(model.num_layers, pp)
    linear = layers * _linear_parameters(model, tp) * dense_weight_bytes(form)
    experts = 0.0
    if model.moe is not None:
        each = expert_parameters(model) * form.weight_bytes
        sliced = slices or (1 if ep > 1 else tp)
        here = split(model.moe.num_experts, ep) / sliced
        experts = layers * num_moe_layers(model) / model.num_layers * here * each
    tables = embedding_parameters(model) / tp
    if pp > 1 and model.kind == "decoder" and not model.tie_word_embeddings:
        tables /= 2.0  # the first stage holds the embedding, the last the lm_head
    return linear + experts + tables * embedding_bytes(form) + model.hidden_size * 2.0


def kv_bytes_per_token(model: Model, kv_dtype: str = "auto", tp: int = 1, pp: int = 1) -> float:
    """KV bytes of one token on one GPU, as if no layer slid: 2 x heads x head_dim, or MLA's one latent vector.

    KV heads are split over ``tp`` GPUs down to one each, then repeated; MLA's latent vector is repeated on all.
    """
    if model.kind != "decoder":
        return 0.0
    size = kv_cache_bytes(kv_dtype, model.dtype)
    layers = split(model.num_layers, pp)
    if model.mla is not None:
        return layers * (model.mla.kv_lora_rank + model.mla.qk_rope_head_dim) * size
    return layers * 2.0 * split(model.num_kv_heads, tp) * model.head_dim * size


def kv_bytes_per_sequence(model: Model, num_tokens: float, kv_dtype: str = "auto", tp: int = 1, pp: int = 1) -> float:
    """KV bytes that a sequence of ``num_tokens`` needs, sliding layers keeping their window only."""
    each = kv_bytes_per_token(model, kv_dtype, tp, pp)
    if not model.sliding_window or not model.num_sliding_layers:
        return each * num_tokens
    sliding = model.num_sliding_layers / model.num_layers
    return each * ((1 - sliding) * num_tokens + sliding * min(num_tokens, float(model.sliding_window)))


def expected_experts_hit(num_tokens: Number, num_experts: int, experts_per_token: int, skew: float = 0.0) -> Number:
    """Distinct experts that ``num_tokens`` tokens reach when each picks ``experts_per_token`` at random.

    E (1 - (1 - k/E)^tokens); with ``skew`` s > 0 expert i is picked in proportion to i^-s (a power law).
    """
    if skew == 0.0:
        miss = 1.0 - experts_per_token / num_experts
        hit: Number = num_experts * (1.0 - miss**num_tokens)
        return hit
    weight = np.arange(1, num_experts + 1, dtype=np.float64) ** -skew
    pick = np.minimum(1.0, experts_per_token * weight / weight.sum())
    tokens = np.asarray(num_tokens, dtype=np.float64)[..., None]
    return np.asarray(np.sum(1.0 - (1.0 - pick) ** tokens, axis=-1))  # type: ignore[return-value]


def attention_flops(model: Model, tokens: float, mean_context: float, tp: int = 1) -> float:
    """FLOPs of one full-attention layer: 4 x tokens x keys x heads x head_dim (QK and PV), ``mean_context`` keys each.

    A causal prompt of n tokens has a mean context of n / 2, which is where the factor one half comes from.
    """
    heads = split(model.num_attention_heads, tp)
    if model.mla is not None:
        mla = model.mla
        return 2.0 * tokens * mean_context * heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim + mla.v_head_dim)
    return 4.0 * tokens * mean_context * heads * model.head_dim


def layer_windows(model: Model) -> tuple[tuple[int | None, int], ...]:
    """(window or None, number of layers) for each kind of attention layer."""
    sliding = model.num_sliding_layers if model.sliding_window else 0
    kinds = ((None, model.num_layers - sliding), (model.sliding_window, sliding))
    return tuple((window, count) for window, count in kinds if count > 0)


def flops_per_token(model: Model, mean_context: float = 0.0) -> float:
    """FLOPs of computing one token: 2 x active parameters plus attention over ``mean_context`` keys in each layer."""
    if model.kind == "vision":
        return float(model.flops_per_item or 0.0)
    dense = 2.0 * num_active_parameters(model)
    attention = sum(
        count * attention_flops(model, 1.0, min(mean_context, float(window or np.inf)))
        for window, count in layer_windows(model)
    )
    return dense + attention


def activation_bytes_per_token(model: Model, tp: int = 1, dtype_bytes: float = 2.0) -> float:
    """Live bytes a token at a layer's widest point: residual, hidden, and the MLP's or attention's inner values.

    Routed experts apart (``activations.experts_bytes``).
    """
    if model.kind == "vision":
        return 0.0
    inner = (model.num_mlp_matrices) * split(model.intermediate_size, tp)
    if model.moe is not None:
        inner = inner if model.moe.num_dense_layers else 0
    attention = sum(g.n for g in attention_gemms(model, tp)[:-1]) + attention_gemms(model, tp)[-1].k
    return dtype_bytes * (2.0 * model.hidden_size + max(inner, attention))


def elementwise_bytes_per_token(model: Model, tp: int = 1) -> float:
    """Bytes a token moves through the kernels between a layer's GEMMs: two fused add-norms, rotary, activation, cache.

    Add-norm reads and writes hidden and residual (4 widths); rotary reads and writes Q and K; the gated activation
    reads ``ups`` widths and writes one; the cache write reads K and V and writes them.
    """
    hidden = model.hidden_size
    heads, kv = split(model.num_attention_heads, tp), split(model.num_kv_heads, tp)
    rotary = 2 * (heads + kv) * model.head_dim
    width = split(model.intermediate_size, tp)
    if model.moe is not None:
        moe_width = model.moe.num_experts_per_token * model.moe.expert_intermediate_size
        share = num_moe_layers(model) / model.num_layers
        width = round(share * split(moe_width, tp) + (1 - share) * width)
    return 2.0 * (8 * hidden + rotary + model.num_mlp_matrices * width + 4 * kv * model.head_dim)


def replica_weight_bytes(replica: Replica) -> float:
    """Weight bytes on the fullest GPU of a replica."""
    return weight_bytes(
        replica.model,
        replica.precision,
        replica.tensor_parallel_size,
        replica.pipeline_parallel_size,
        replica.expert_parallel_size,
        expert_slices(replica),
    )
