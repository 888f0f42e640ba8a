"""What no replica can beat: latency floors of a request that is alone, and the rate of a perfectly packed replica.

Both follow from the step table alone, so they cost microseconds; they prune candidates without a simulation.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from calibrate.step import StepTable
from simulator.engine.replica_spec import ReplicaSpec
from simulator.workload.requests import Slo

FloatArray = NDArray[np.float64]
GRID_LENGTHS = 48  # prompt lengths at which floors are computed; others lie between
GRID = 14  # points in each direction of the step shapes that the rate bound may mix


def attention_s(
    table: StepTable, prefill: FloatArray, context: FloatArray, decode: FloatArray, kv: FloatArray
) -> FloatArray:
    """Multilinear interpolation of the table's attention, as the engine does it (linear beyond the last point)."""
    axes = (table.prefill_tokens_axis, table.prefill_context_axis, table.num_decode_axis, table.decode_context_axis)
    points = np.broadcast_arrays(prefill, context, decode, kv)
    cells, shares = [], []
    for axis, values in zip(axes, points, strict=True):
        cell = np.clip(np.searchsorted(axis, values, side="right") - 1, 0, len(axis) - 2)
        cells.append(cell)
        shares.append((values - axis[cell]) / (axis[cell + 1] - axis[cell]))
    total = np.zeros(points[0].shape)
    for corner in range(16):
        bits = [(corner >> d) & 1 for d in range(4)]
        weight = np.ones(points[0].shape)
        for bit, share in zip(bits, shares, strict=True):
            weight = weight * (share if bit else 1 - share)
        total += weight * table.attention_s[tuple(c + b for c, b in zip(cells, bits, strict=True))]
    return np.maximum(total, 0.0)


def step_s(
    table: StepTable, prefill: FloatArray, context: FloatArray, decode: FloatArray, kv: FloatArray, prompts: FloatArray
) -> FloatArray:
    """Seconds of steps with ``prefill`` prompt tokens of ``prompts`` sequences beside ``decode`` sequences."""
    tokens = np.minimum(np.round(prefill + decode).astype(np.int64), len(table.mixed_tokens_s) - 1)
    sampled = np.minimum(np.round(decode + prompts).astype(np.int64), len(table.sampled_s) - 1)
    position = np.where(prefill > 0, table.mixed_tokens_s[tokens], table.decode_tokens_s[tokens])
    if table.experts_s is not None:  # shared with other ranks, whose tokens only make it longer
        position = position + table.experts_s[tokens]
    work = position + table.sampled_s[sampled] + attention_s(table, prefill, context, decode, kv)
    return np.asarray(work + table.overhead_s + table.overhead_per_sequence_s * (decode + prompts))


def ttft_floor_s(spec: ReplicaSpec, input_tokens: FloatArray) -> FloatArray:
    """(n,) time to first token on an idle replica without cache hits, the prompt in whole chunks."""
    table, chunk = spec.step_table, float(spec.max_num_batched_tokens)
    lengths = np.maximum(np.asarray(input_tokens, dtype=float), 1.0)
    if len(lengths) > GRID_LENGTHS:
        grid = np.unique(np.round(np.geomspace(lengths.min(), lengths.max(), GRID_LENGTHS))).astype(np.float64)
        return np.asarray(np.interp(lengths, grid, ttft_floor_s(spec, grid)))
    chunks = np.ceil(lengths / chunk).astype(np.int64)
    owner = np.repeat(np.arange(len(lengths)), chunks)
    starts = (np.arange(len(owner)) - np.repeat(np.cumsum(chunks) - chunks, chunks)) * chunk
    sizes = np.minimum(chunk, lengths[owner] - starts)
    zeros = np.zeros_like(sizes)
    times = step_s(table, sizes, starts + sizes / 2, zeros, zeros, zeros + 1)
    floor = np.bincount(owner, weights=times, minlength=len(lengths))
    return np.asarray(floor + table.request_overhead_s + table.output_overhead_s)


def tpot_floor_s(spec: ReplicaSpec, kv_tokens: FloatArray) -> FloatArray:
    """(n,) time per output token of a request that decodes alone with that context."""
    one, zero = np.ones_like(kv_tokens), np.zeros_like(kv_tokens)
    return step_s(spec.step_table, zero, zero, one, kv_tokens, zero)


def floor_s(
    spec: ReplicaSpec, input_tokens: NDArray[np.int64], output_tokens: NDArray[np.int64], slo: Slo
) -> float | None:
    """The best value of a promise that this replica could show if every request were alone; None: no request has it.

    Floors of TTFT and TPOT grow with the length alone, so the floor of the percentile is that of the length's.
    """
    decodes = output_tokens > 1
    if len(input_tokens) == 0 or (slo.metric == "tpot" and not decodes.any()):
        return None
    if slo.metric == "ttft":
        return float(ttft_floor_s(spec, np.array([np.percentile(input_tokens, slo.percentile)]))[0])
    context = input_tokens + output_tokens / 2.0
    if slo.metric == "tpot":
        return float(tpot_floor_s(spec, np.array([np.percentile(context[decodes], slo.percentile)]))[0])
    ends = np.array([context.min(), context.max()])
    tpot = np.interp(context, ends, tpot_floor_s(spec, ends))
    return float(
        np.percentile(
            ttft_floor_s(spec, input_tokens.astype(float)) + tpot * (output_tokens - 1).clip(0), slo.percentile
        )
    )


def rate_bound_rps(
    spec: ReplicaSpec,
    mean_input: float,
    mean_output: float,
    tpot_limit_s: float | None,
    *,
    computes_prompts: bool = True,
) -> float:
    """The most requests a second that any schedule of steps could serve, queues and bursts left out.

    max rate subject to: sum_k w_k t_k <= 1, sum_k w_k p_k = rate * input, sum_k w_k d_k = rate * (output - 1), where
    step k computes p_k prompt tokens and d_k decodes in t_k seconds, w_k steps a second. Decodes are at most the seats
    and what the KV cache holds; and where a time per output token is promised, decodes see it on average:
    sum_k w_k d_k t_k <= limit * sum_k w_k d_k. A replica that gets its prompts' KV from others only decodes (p_k = 0).
    """
    from scipy.optimize import linprog

    if not computes_prompts and mean_output <= 1:
        return math.inf
    kv_tokens = max(1.0, (spec.num_gpu_blocks - 1) * spec.block_size)
    context = mean_input + mean_output / 2
    seats = max(1.0, min(float(spec.max_num_seqs), kv_tokens / max(1.0, context)))
    budget = float(spec.max_num_batched_tokens)
    decode = np.unique(np.round(np.concatenate([[0.0], np.geomspace(1, seats, GRID)])))
    prefill = np.unique(np.round(np.concatenate([[0.0], np.geomspace(16, budget, GRID)])))
    p, d = (x.ravel() for x in np.meshgrid(prefill, decode, indexing="ij"))
    keep = (p + d <= max(budget, seats)) & (p + d > 0) & (computes_prompts | (p == 0))
    p, d = p[keep], d[keep]
    prompts = np.where(p > 0, p / max(mean_input, 1.0), 0.0)
    chunk_context = np.full_like(p, mean_input / 2)
    time_s = step_s(spec.step_table, p, chunk_context, d, np.full_like(p, context), prompts)
    decodes = max(mean_output - 1, 0.0)
    cost = np.append(np.zeros(len(p)), -1.0)
    most = [np.append(time_s, 0.0)]
    limit = [1.0]
    if tpot_limit_s is not None and decodes > 0:
        most.append(np.append(d * (time_s - tpot_limit_s), 0.0))
        limit.append(0.0)
    equal = [np.append(p, -mean_input if computes_prompts else 0.0), np.append(d, -decodes)]
    found = linprog(cost, np.array(most), limit, np.array(equal), [0.0, 0.0], bounds=(0, None), method="highs")
    return -float(found.fun or 0.0) if found.status == 0 else 0.0
