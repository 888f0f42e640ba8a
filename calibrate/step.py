"""What one engine step is, and the two forms in which its time is known: a model to ask, a table to compile.

A step computes tokens for some sequences: chunks of prompts (prefill) and one token (or a few, when speculating) for
each running sequence (decode). Five numbers are its shape; every profile turns them into seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class StepShape:
    """The work of one step of one replica.

    Attributes:
        num_prefill_tokens: prompt tokens computed in this step, over all sequences.
        prefill_mean_context: keys that a prefill token attends to, on average: sum over chunks of
            ``chunk * (context + chunk / 2)``, over ``num_prefill_tokens``; a whole prompt of n tokens has n / 2.
        num_decode: sequences that decode.
        decode_mean_context: tokens in a decoding sequence's context, on average.
        num_sampled: sequences for which a token is sampled (decodes, and prompts whose last chunk this is).
    """

    num_prefill_tokens: int
    prefill_mean_context: float
    num_decode: int
    decode_mean_context: float
    num_sampled: int

    @property
    def num_sequences(self) -> int:
        """Sequences in the step, its prompts taken as one."""
        return self.num_decode + (1 if self.num_prefill_tokens else 0)


class StepTimeModel(Protocol):
    """Answers how long a step takes."""

    def step_time_s(self, shape: StepShape) -> float:
        """Seconds that the step takes; always > 0."""
        ...


class SkewTable(NamedTuple):
    """How much a decode batch of unequal contexts lengthens attention: one long sequence can hold up a step.

    Attention = attention(mean context) + ``alpha`` * (attention(longest context) - attention(mean context)), both at
    the step's other coordinates. On each axis ``alpha`` is that of the first edge at or beyond the value, else of the
    last.

    Attributes:
        prefill_tokens: (C,) edges. num_decode: (N,) edges.
        share: (S,) edges of (mean - shortest) / (longest - shortest) context.
        longest: (B,) edges of the longest context. alpha: (C, N, S, B), 0 to 1.
    """

    prefill_tokens: FloatArray
    num_decode: FloatArray
    share: FloatArray
    longest: FloatArray
    alpha: FloatArray


class StepTable(NamedTuple):
    """A replica's step time as arrays, for the compiled loop.

    ``step_time_s`` = ``decode_tokens_s[n]`` or ``mixed_tokens_s[n]`` (n tokens in the step; the first when no prompt
    token is computed) + ``sampled_s[num_sampled]`` + multilinear interpolation of ``attention_s`` at
    (num_prefill_tokens, prefill_mean_context, num_decode, decode_mean_context) + ``overhead_s``
    + ``overhead_per_sequence_s`` * (sequences in the step). Beyond an axis's end the last cell is extended linearly.

    Attributes:
        decode_tokens_s: (T + 1,) all position-wise work (GEMMs, norms, collectives, experts) of a decode-only step.
        mixed_tokens_s: (T + 1,) the same in a step that computes prompt tokens.
        sampled_s: (S + 1,) final norm, lm_head and sampling.
        prefill_tokens_axis, prefill_context_axis, num_decode_axis, decode_context_axis: ascending; the first and third
            start at 0, and each has at least two points.
        attention_s: (C, P, D, K) attention of all layers.
        overhead_s: engine time between steps that the device does not hide.
        overhead_per_sequence_s: the same, for each sequence in the step.
        request_overhead_s: before a request reaches the queue (HTTP, tokenizing); adds to TTFT, not to the step.
        output_overhead_s: from a step's end until the client has its tokens (detokenizing, HTTP).
        prompt_token_s: for each prompt token, in the one thread that tokenizes a replica's requests in their order;
            adds to TTFT, before ``request_overhead_s``.
        experts_s: (ranks T + 1,) experts at the tokens of all ranks of a lock-step group (data parallel with experts
            spread over the ranks); None: they are in the token-wise arrays.
        skew: effect of unequal decode contexts, where it was measured; ``attention_s`` then never falls along K.
    """

    decode_tokens_s: FloatArray
    mixed_tokens_s: FloatArray
    sampled_s: FloatArray
    prefill_tokens_axis: FloatArray
    prefill_context_axis: FloatArray
    num_decode_axis: FloatArray
    decode_context_axis: FloatArray
    attention_s: FloatArray
    overhead_s: float
    overhead_per_sequence_s: float
    request_overhead_s: float
    output_overhead_s: float
    skew: SkewTable | None = None
    prompt_token_s: float = 0.0
    experts_s: FloatArray | None = None


def attention_at(table: StepTable, point: Sequence[float]) -> float:
    """Attention seconds at a point of the table's axes: multilinear between them, the outermost cells extended."""
    axes = (table.prefill_tokens_axis, table.prefill_context_axis, table.num_decode_axis, table.decode_context_axis)
    values = table.attention_s
    for axis, x in zip(axes, point, strict=True):
        left = int(np.clip(np.searchsorted(axis, x, side="right") - 1, 0, len(axis) - 2))
        share = float((x - axis[left]) / (axis[left + 1] - axis[left]))
        values = values[left] * (1.0 - share) + values[left + 1] * share
    return float(values)
