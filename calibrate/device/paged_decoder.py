"""A Llama-like decoder with a paged KV cache in plain torch: real steps of random weights, for timing whole batches.

Prefill, chunk and decode share one forward pass over all tokens of a step, as in vLLM: the position-wise layers see
the tokens end to end; attention runs a chunk at a time and for all decodes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

from catalogs.schema import Model

Tensor = torch.Tensor


@dataclass(frozen=True)
class Step:
    """What one step computes: first the chunks' tokens in order, then one token for each decode.

    Attributes:
        token_ids, positions, slots: (T,) all tokens; a slot is block * block_size + offset.
        chunks: (number of tokens, context, block table) of each prefill chunk.
        decode_tables: (D, blocks) block tables of the decoding sequences.
        decode_contexts: (D,) keys each attends to, its own token included.
        sampled: (S,) indices of the tokens after which one is sampled.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    chunks: Sequence[tuple[int, int, Tensor]]
    decode_tables: Tensor
    decode_contexts: Tensor
    sampled: Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Root-mean-square norm over the last dimension (Zhang & Sennrich 2019)."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (T, heads, dim) by angles (T, dim / 2), half against half (Su et al. 2021)."""
    first, second = x.chunk(2, dim=-1)
    c, s = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat((first * c - second * s, second * c + first * s), dim=-1)


def paged_decode_attention(q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, contexts: Tensor) -> Tensor:
    """Attention of one token a sequence over KV gathered from blocks.

    Args:
        q: (D, heads, 1, dim). keys, values: (num_blocks, block_size, kv_heads, dim).
        tables: (D, blocks) block ids. contexts: (D,) valid keys.

    Returns:
        (D, heads, 1, dim).
    """
    num, blocks = tables.shape
    flat = tables.reshape(-1)
    shape = (num, blocks * keys.shape[1], keys.shape[2], keys.shape[3])
    k = keys.index_select(0, flat).view(shape).transpose(1, 2)
    v = values.index_select(0, flat).view(shape).transpose(1, 2)
    mask = (torch.arange(shape[1], device=q.device)[None] < contexts[:, None])[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=k.shape[1] != q.shape[1])


class PagedDecoder(torch.nn.Module):
    """Random weights of a model's shape on a device, with a KV cache of ``num_blocks`` blocks."""

    def __init__(
        self, model: Model, device: torch.device, dtype: torch.dtype, num_blocks: int, block_size: int = 16
    ) -> None:
        super().__init__()
        self.model, self.block_size = model, block_size
        heads, kv = model.num_attention_heads * model.head_dim, model.num_kv_heads * model.head_dim
        hidden, mlp = model.hidden_size, model.intermediate_size

        def weights(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, dtype=dtype).mul_(shape[-1] ** -0.5)

        self.embed = weights(model.vocab_size, hidden)
        self.lm_head = weights(model.vocab_size, hidden)
        self.layers_weights = [
            (weights(heads + 2 * kv, hidden), weights(hidden, heads), weights(2 * mlp, hidden), weights(hidden, mlp))
            for _ in range(model.num_layers)
        ]
        self.ones = torch.ones(hidden, device=device, dtype=dtype)
        shape = (model.num_layers, num_blocks, block_size, model.num_kv_heads, model.head_dim)
        self.keys = torch.randn(shape, device=device, dtype=dtype)
        self.values = torch.randn(shape, device=device, dtype=dtype)
        self.frequencies = 1.0 / 10000 ** (torch.arange(0, model.head_dim, 2, device=device) / model.head_dim)

    def forward(self, step: Step) -> Tensor:
        """Token ids sampled greedily, (S,)."""
        angles = step.positions[:, None] * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        x = F.embedding(step.token_ids, self.embed)
        for layer, (qkv, out, gate_up, down) in enumerate(self.layers_weights):
            attended = self._attention(layer, F.linear(rms_norm(x, self.ones), qkv), cos, sin, step)
            x = x + F.linear(attended, out)
            gate, up = F.linear(rms_norm(x, self.ones), gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, down)
        logits = F.linear(rms_norm(x[step.sampled], self.ones), self.lm_head)
        return logits.argmax(-1)

    def _attention(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor, step: Step) -> Tensor:
        model = self.model
        heads, kv_heads, dim = model.num_attention_heads, model.num_kv_heads, model.head_dim
        tokens = qkv.view(-1, heads + 2 * kv_heads, dim)
        rotated = rope(tokens[:, : heads + kv_heads], cos, sin)
        q, k, v = rotated[:, :heads], rotated[:, heads:], tokens[:, heads + kv_heads :]
        self.keys[layer].view(-1, kv_heads, dim).index_copy_(0, step.slots, k)
        self.values[layer].view(-1, kv_heads, dim).index_copy_(0, step.slots, v)
        parts, start = [], 0
        for num, context, table in step.chunks:
            parts.append(self._chunk(layer, q[start : start + num], k, v, (start, num, context), table))
            start += num
        if step.decode_contexts.numel():
            decoded = paged_decode_attention(
                q[start:, :, None], self.keys[layer], self.values[layer], step.decode_tables, step.decode_contexts
            )
            parts.append(decoded.squeeze(2))
        return torch.cat(parts).reshape(-1, heads * dim)

    def _chunk(self, layer: int, q: Tensor, k: Tensor, v: Tensor, span: tuple[int, int, int], table: Tensor) -> Tensor:
        start, num, context = span
        grouped = k.shape[1] != q.shape[1]
        if context == 0:
            keys, values, mask = k[start : start + num], v[start : start + num], None
        else:
            keys = self.keys[layer].index_select(0, table).flatten(0, 1)[: context + num]
            values = self.values[layer].index_select(0, table).flatten(0, 1)[: context + num]
            mask = torch.ones(num, context + num, dtype=torch.bool, device=q.device).tril(context)
        attended = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=grouped,
        )
        return attended[0].transpose(0, 1)


def make_step(decoder: PagedDecoder, chunks: Sequence[tuple[int, int]], decodes: Sequence[int]) -> Step:
    """A step of prefill chunks (tokens, context) and decodes (context, own token included), blocks handed out afresh.

    Raises:
        ValueError: the cache has too few blocks.
    """
    device, size = decoder.embed.device, decoder.block_size
    free = iter(torch.randperm(decoder.keys.shape[1]).tolist())

    def blocks(num_tokens: int) -> list[int]:
        table = [b for _, b in zip(range(-(-num_tokens // size)), free, strict=False)]
        if len(table) < -(-num_tokens // size):
            raise ValueError("the step needs more KV blocks than the cache has")
        return table

    positions: list[int] = []
    slots: list[int] = []
    spans = []
    sampled = []
    for num, context in chunks:
        table = blocks(context + num)
        at = range(context, context + num)
        positions += at
        slots += [table[p // size] * size + p % size for p in at]
        spans.append((num, context, torch.tensor(table, device=device)))
        sampled.append(len(positions) - 1)
    longest = max(decodes, default=0)
    tables = []
    for context in decodes:
        table = blocks(context)
        positions.append(context - 1)
        slots.append(table[(context - 1) // size] * size + (context - 1) % size)
        tables.append(table + [0] * (-(-longest // size) - len(table)))
        sampled.append(len(positions) - 1)
    return Step(
        token_ids=torch.randint(0, decoder.model.vocab_size, (len(positions),), device=device),
        positions=torch.tensor(positions, device=device),
        slots=torch.tensor(slots, device=device),
        chunks=spans,
        decode_tables=torch.tensor(tables, device=device, dtype=torch.long).reshape(len(tables), -(-longest // size)),
        decode_contexts=torch.tensor(list(decodes), device=device, dtype=torch.long),
        sampled=torch.tensor(sampled, device=device),
    )
