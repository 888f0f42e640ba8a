"""The step time of a server as a client can learn it: a few coefficients, and the table that the simulator compiles.

    step = (floor_s ^ p + (tokens * token_s) ^ p) ^ (1 / p) + num_decode * decode_s
           + num_decode * context * decode_context_s + prefill_tokens * context * prefill_context_s

``floor_s`` is what a step costs however small (weights read once, launches, the engine's own work); p says how sharply
it gives way to arithmetic: 1 adds the two, large values take the longer one.
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
        time += shape.num_decode * (self.decode_s + shape.decode_mean_context * self.decode_context_s)
        return max(time + shape.num_prefill_tokens * shape.prefill_mean_context * self.prefill_context_s, 1e-9)


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
    """The table of a measured server; exact, since the formula is bilinear in what the table interpolates."""
    fit = step_fit(profile)
    tokens = np.arange(max_tokens + 1, dtype=np.float64)
    positionwise = fit.positionwise_s(tokens)
    reach = float(max(replica.engine.max_model_len or replica.model.max_position_embeddings, 2))
    c, p = np.array([0.0, float(max_tokens)]), np.array([0.0, reach])
    n, k = np.array([0.0, float(max_seqs)]), np.array([0.0, reach])
    prefill = np.outer(c, p) * fit.prefill_context_s
    decode = np.outer(n, k) * fit.decode_context_s + n[:, None] * fit.decode_s
    return StepTable(
        decode_tokens_s=positionwise,
        mixed_tokens_s=positionwise,
        sampled_s=np.zeros(max_seqs + 1),
        prefill_tokens_axis=c,
        prefill_context_axis=p,
        num_decode_axis=n,
        decode_context_axis=k,
        attention_s=prefill[:, :, None, None] + decode[None, None, :, :],
        overhead_s=0.0,
        overhead_per_sequence_s=0.0,
        request_overhead_s=fit.request_overhead_s,
        output_overhead_s=0.0,
    )
