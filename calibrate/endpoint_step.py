"""The step time of a server as a client can learn it: a few coefficients, and the table that the simulator compiles.

    step = (floor_s ^ p + (tokens * token_s) ^ p) ^ (1 / p) + num_decode * decode_s
           + num_decode * context * decode_context_s + prefill_tokens * context * prefill_context_s
           + keys * (num_decode * decode_keys_s + prefill_tokens * prefill_keys_s)

``floor_s`` is what a step costs however small (weights read once, launches, the engine's own work); p says how sharply
it gives way to arithmetic: 1 adds the two, large values take the longer one. The last term (keys: of all sequences in
the step) is that of engines whose attention masks one matrix of all tokens against all sequences' keys (transformers'
continuous batching with SDPA); it vanishes where each sequence attends to its own keys alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.profiles import Profile
from calibrate.step import StepShape, StepTable
from catalogs.schema import Replica

FloatArray = NDArray[np.float64]
FAMILY = "endpoint_step"


@dataclass(frozen=True)
class StepFit:
    """The coefficients; see the module's formula."""

    floor_s: float
    token_s: float
    decode_s: float
    decode_context_s: float
    prefill_context_s: float
    decode_keys_s: float = 0.0
    prefill_keys_s: float = 0.0
    power: float = 1.0
    request_overhead_s: float = 0.0

    def positionwise_s(self, tokens: FloatArray) -> FloatArray:
        """The part that depends on the number of tokens alone."""
        p = self.power
        return np.asarray((self.floor_s**p + (tokens * self.token_s) ** p) ** (1.0 / p))

    def step_time_s(self, shape: StepShape) -> float:
        """Seconds of a step; always > 0."""
        tokens = np.float64(shape.num_prefill_tokens + shape.num_decode)
        time = float(self.positionwise_s(np.asarray(tokens)))
        crossed = shape.num_decode * self.decode_keys_s + shape.num_prefill_tokens * self.prefill_keys_s
        time += crossed * batch_keys(shape)
        time += shape.num_decode * (self.decode_s + shape.decode_mean_context * self.decode_context_s)
        return max(time + shape.num_prefill_tokens * shape.prefill_mean_context * self.prefill_context_s, 1e-9)


def batch_keys(shape: StepShape) -> float:
    """Keys of all sequences in a step: the decodes' contexts, and the ends of the prompts' chunks.

    A chunk of c tokens after s others ends at c + s, and its mean context is s + c / 2; several whole prompts of c
    tokens together end at c in sum, whatever their mean.
    """
    tokens = shape.num_prefill_tokens
    prompts = max(tokens, shape.prefill_mean_context + tokens / 2) if tokens else 0.0
    return shape.num_decode * shape.decode_mean_context + prompts


def step_fit(profile: Profile) -> StepFit:
    """The coefficients in a profile of kind ``endpoint``.

    Raises:
        MissingError: the profile holds none.
    """
    known: Mapping[str, float] = profile.family(FAMILY)
    return StepFit(**{name: float(known[name]) for name in StepFit.__dataclass_fields__ if name in known})


def fit_parameters(fit: StepFit) -> dict[str, float]:
    """The coefficients as a profile's family holds them."""
    return asdict(fit)


def step_table(replica: Replica, profile: Profile, max_tokens: int, max_seqs: int) -> StepTable:
    """The table of a measured server; exact without the last term, since the rest is bilinear in its axes."""
    fit = step_fit(profile)
    tokens = np.arange(max_tokens + 1, dtype=np.float64)
    positionwise = fit.positionwise_s(tokens)
    reach = float(max(replica.engine.max_model_len or replica.model.max_position_embeddings, 2))
    is_bilinear = fit.decode_keys_s == fit.prefill_keys_s == 0.0
    c, p = _axis(max_tokens, is_bilinear), np.array([0.0, reach])
    n, k = _axis(max_seqs, is_bilinear), np.array([0.0, reach])
    C, P, N, K = np.meshgrid(c, p, n, k, indexing="ij")
    attention = C * P * fit.prefill_context_s + N * (K * fit.decode_context_s + fit.decode_s)
    attention += (fit.prefill_keys_s * C + fit.decode_keys_s * N) * (
        N * K + np.where(C > 0, np.maximum(C, P + C / 2), 0.0)
    )
    return StepTable(
        decode_tokens_s=positionwise,
        mixed_tokens_s=positionwise,
        sampled_s=np.zeros(max_seqs + 1),
        prefill_tokens_axis=c,
        prefill_context_axis=p,
        num_decode_axis=n,
        decode_context_axis=k,
        attention_s=attention,
        overhead_s=0.0,
        overhead_per_sequence_s=0.0,
        request_overhead_s=fit.request_overhead_s,
        output_overhead_s=0.0,
    )


def _axis(last: int, is_bilinear: bool) -> FloatArray:
    """0 and ``last``; with points in between, a quarter apart, where the table must follow a curve."""
    if is_bilinear:
        return np.array([0.0, float(max(last, 1))])
    between = np.unique(np.round(1.25 ** np.arange(60)))
    return np.concatenate([[0.0], between[between < last], [float(max(last, 1))]])
