"""Activation memory of a step: the most that is alive at once, by token chunk, and with recomputation.

Inference frees each layer's tensors when the next needs them; the peak is the widest point of one
layer, or the sampler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from calibrate.physics.work import activation_bytes_per_token, attention_gemms, split
from catalogs.schema import Model

LOGITS_COPIES_FP32 = 3.0  # fp32 logits, probabilities, and the exponential noise of the sampler
SAMPLER_BUFFER_ROWS = 128  # rows of the top-k/top-p kernel's fp32 buffer, one for each program it launches
VISION_BYTES_PER_IMAGE = 2.0 * (3 * 224 * 224 + 2 * 64 * 112 * 112)  # stem's input and output at 224 x 224, 16 bit


@dataclass(frozen=True)
class Activations:
    """The most activation memory that is alive at once on one GPU, in bytes.

    Attributes:
        layer_bytes: in the widest layer.
        sampler_bytes: while logits are turned into tokens.
        kept_bytes: kept from layer to layer when activations must survive the step (gradients, hidden-state outputs).
        compute_factor: work of the step over the same step without recomputation.
    """

    layer_bytes: float
    sampler_bytes: float
    kept_bytes: float = 0.0
    compute_factor: float = 1.0

    @property
    def peak_bytes(self) -> float:
        """The larger of the two moments, above what is kept."""
        return self.kept_bytes + max(self.layer_bytes, self.sampler_bytes)


def layer_activation_bytes(model: Model, num_tokens: int, tp: int = 1, chunk_tokens: int | None = None) -> float:
    """Bytes alive at the widest point of one layer, 16-bit activations.

    The residual and the hidden states (2 x hidden_size) stay for all tokens; the widest inner tensors (gate, up and
    their product; or Q, K, V and the attention output; or the experts' rows) only for the tokens of a chunk.
    """
    if model.kind == "vision":
        return VISION_BYTES_PER_IMAGE * num_tokens
    outer = 2.0 * 2 * model.hidden_size
    inner = activation_bytes_per_token(model, tp) - outer
    return outer * num_tokens + inner * min(num_tokens, chunk_tokens or num_tokens)


def experts_bytes(model: Model, num_tokens: int, slices: int = 1, ranks: int = 1, chunk: int | None = None) -> float:
    """Bytes alive in a layer's routed experts on one GPU, 16-bit activations; 0 without experts.

    The residual stays, and of the tokens of all ranks that share the experts the input, the router's logits and the
    result; each (token, expert) pair has two buffers, as wide as the wider of its input and what comes after the first
    or the second matrix (vLLM 0.19, ``TritonExperts.workspace_shapes`` in ``layers/fused_moe/fused_moe.py``).

    Args:
        num_tokens: of one rank. slices: GPUs that share each expert's width. ranks: whose tokens a GPU's experts see.
        chunk: tokens of one rank for which the pairs are computed at a time; None: all.
    """
    if model.moe is None:
        return 0.0
    inter, hidden = split(model.moe.expert_intermediate_size, slices), model.hidden_size
    ups = (model.num_mlp_matrices - 1) * inter
    pair = max(inter, hidden) + max(ups, hidden)
    pairs = ranks * min(num_tokens, chunk or num_tokens) * model.moe.num_experts_per_token
    return 2.0 * (num_tokens * (hidden + ranks * (2 * hidden + model.moe.num_experts)) + pairs * pair)


def attention_bytes(model: Model, num_tokens: int, tp: int = 1) -> float:
    """Bytes alive in a layer's attention: residual, hidden states, Q, K, V and the attention output, 16 bit."""
    gemms = attention_gemms(model, tp)
    return 2.0 * num_tokens * (2.0 * model.hidden_size + sum(g.n for g in gemms[:-1]) + gemms[-1].k)


def kept_bytes(model: Model, num_tokens: int, recomputation: str, tp: int = 1, workspace_bytes: float = 0.0) -> float:
    """Bytes that one layer keeps on one GPU until the step's end, by what is computed again (16-bit activations).

    ``none``: the inputs of both norms and of both blocks, Q, K, V and the attention output, the MLP's inner values, and
    the attention's workspace. ``selective``: all but Q K^T, softmax and what they leave, which are a small part of the
    work and, in eager attention, most of the memory. ``full``: the layer's input. Korthikanti et al., arXiv 2205.05198,
    sections 4 and 5; the widths here are those of gated MLPs and grouped queries.
    """
    hidden = 2.0 * num_tokens * model.hidden_size
    if recomputation == "full":
        return hidden
    inner = 2.0 * num_tokens * model.num_mlp_matrices * split(model.intermediate_size, tp)
    if model.moe is not None:
        inner = (
            2.0
            * num_tokens
            * model.moe.num_experts_per_token
            * model.num_mlp_matrices
            * split(model.moe.expert_intermediate_size, tp)
        )
    kept = 2.0 * hidden + attention_bytes(model, num_tokens, tp) + inner
    return kept + (workspace_bytes if recomputation == "none" else 0.0)


def sampler_bytes(model: Model, num_sampled: int) -> float:
    """Bytes alive while ``num_sampled`` sequences are sampled: 16-bit logits, fp32 copies, the kernel's buffer."""
    if model.kind != "decoder":
        return 0.0
    rows = num_sampled * (2.0 + 4.0 * LOGITS_COPIES_FP32) + SAMPLER_BUFFER_ROWS * 4.0
    return model.vocab_size * rows + 2.0 * model.hidden_size * num_sampled


def activation_peak(
    model: Model,
    num_tokens: int,
    num_sampled: int,
    tp: int = 1,
    chunk_tokens: int | None = None,
    checkpoint_layers: int | None = None,
    workspace_bytes: float = 0.0,
    recomputation: str | None = None,
) -> Activations:
    """Activation memory of one step on one GPU.

    Args:
        model: the network.
        num_tokens: tokens of the step (images, for vision).
        num_sampled: sequences sampled.
        tp: tensor_parallel_size.
        chunk_tokens: the inner tensors are computed for so many tokens at a time; the weights are read once a chunk.
        checkpoint_layers: when activations must be kept, only the input of every n-th layer is, and the layers between
            are computed again (Chen et al., arXiv 1604.06174, section 4). None: nothing is kept.
        workspace_bytes: of one layer's attention beside Q, K, V and its output (eager attention: all scores).
        recomputation: when all of a step's activations must be kept, what is computed again instead: one of
            ``options.RECOMPUTATION``.
    """
    layer = layer_activation_bytes(model, num_tokens, tp, chunk_tokens)
    if workspace_bytes:
        layer = max(layer, attention_bytes(model, num_tokens, tp) + workspace_bytes)
    sampler = sampler_bytes(model, num_sampled) + 2.0 * model.hidden_size * num_tokens * (model.kind == "decoder")
    if recomputation is not None:
        kept = model.num_layers * kept_bytes(model, num_tokens, recomputation, tp, workspace_bytes)
        return Activations(layer, sampler, kept, 2.0 if recomputation == "full" else 1.0)
    if checkpoint_layers is None:
        return Activations(layer, sampler)
    every = max(1, min(checkpoint_layers, model.num_layers))
    inputs = math.ceil(model.num_layers / every) * 2.0 * model.hidden_size * num_tokens
    return Activations(layer, sampler, inputs + (every - 1) * layer, 1.0 if every == 1 else 2.0)
