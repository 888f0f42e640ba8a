"""A replica's step time from a profile: each layer's kernels summed, as a function of the step's shape.

Of a data-parallel replica this is one rank's step: its attention and dense layers compute the rank's own tokens, its
experts those of all ranks (which are taken to be as busy as this one). Of a pipelined replica it is one micro-batch's
way through all stages; a stage takes its share of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibrate import kernel_tables
from calibrate.kernel_sums import KernelSums
from calibrate.physics.backends import demand_own_backend
from calibrate.physics.cuda_graphs import padded_tokens
from calibrate.physics.expert_layout import ranks_sharing_experts
from calibrate.physics.precisions import precision
from calibrate.profiles import Profile
from calibrate.step import StepShape, StepTable, StepTimeModel, attention_at
from calibrate.techniques import with_adapters, with_recomputation
from catalogs.errors import InputError
from catalogs.schema import Replica

FloatArray = NDArray[np.float64]
TableBuilder = Callable[[Replica, Profile, int, int], StepTable]


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
        time = token_wise_s(table, self.replica, shape)
        time += float(table.sampled_s[shape.num_sampled]) + attention_of(table, shape)
        return max(time + table.overhead_s + table.overhead_per_sequence_s * shape.num_sequences, 1e-9)


def token_wise_s(table: StepTable, replica: Replica, shape: StepShape) -> float:
    """Seconds of all that sees single tokens, experts included; the other ranks are taken to be as busy."""
    tokens = shape.num_prefill_tokens + shape.num_decode
    if not tokens:
        return 0.0
    time = float((table.mixed_tokens_s if shape.num_prefill_tokens else table.decode_tokens_s)[tokens])
    if table.experts_s is not None:
        time += float(table.experts_s[ranks_sharing_experts(replica) * tokens])
    return time


def attention_of(table: StepTable, shape: StepShape) -> float:
    """Attention seconds of a shape."""
    at = (shape.num_prefill_tokens, shape.prefill_mean_context, shape.num_decode, shape.decode_mean_context)
    return attention_at(table, at)


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
    padded = np.maximum(padded_tokens(replica, np.arange(max_tokens + 1, dtype=np.float64)), 1.0)
    positionwise, experts_s = kernels.positionwise_s(padded), None
    if (ranks := ranks_sharing_experts(replica)) > 1:  # what the others compute is known when they step together
        positionwise = positionwise - kernels.experts_s(padded)
        experts_s = kernels.experts_s(np.maximum(np.arange(ranks * max_tokens + 1), 1) / ranks)
    reach = float(max(replica.engine.max_model_len or replica.model.max_position_embeddings, 4096))
    c, n = _axis(max_tokens, 1.0), _axis(max_seqs, 1.0)
    p, k = _axis(reach, 16.0), _axis(reach, 16.0)
    # the engine counts a prompt's keys up to each token; an encoder's tokens see the later ones too
    ways = 2.0 if replica.model.kind == "encoder" else 1.0
    prefill = _rising(kernels.prefill_s(*np.meshgrid(c, ways * p, indexing="ij")))
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
        experts_s=experts_s,
    )


def _llmservingsim_table(replica: Replica, profile: Profile, max_tokens: int, max_seqs: int) -> StepTable:
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
