"""A replica's step time from measured kernel tables of its own model (profiles of kind ``llmservingsim``).

A step is the sum of its layers: the token-wise ones at the number of tokens, attention at (prompt tokens, their
context, decodes, their context), the head at the number of sampled sequences, and between GPUs the exchanges, which the
tables lack and the best shipped profile of the GPU gives. Decode steps run as CUDA graphs of fixed sizes, so that their
tokens are padded to the next captured size.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.kernel_sums import KernelSums
from calibrate.physics import work
from calibrate.physics.collectives import all_gather_time_s
from calibrate.physics.cuda_graphs import padded_tokens
from calibrate.physics.expert_exchange import exchange_family, exchange_time_s
from calibrate.physics.expert_layout import expert_slices, ranks_sharing_experts
from calibrate.physics.moe import busiest_share, experts_of
from calibrate.profiles import Profile, best_profile
from calibrate.step import SkewTable, StepTable
from catalogs.errors import MissingError
from catalogs.schema import Replica
from catalogs.units import MICROSECONDS_PER_SECOND

FloatArray = NDArray[np.float64]
ONCE = ("embedding", "final_layernorm")  # token-wise layers that a model has once
TWICE = ("layernorm",)  # before attention and before the MLP
EXPERT_LAYERS = ("gate_up_proj", "act_fn", "down_proj")  # the dense MLP, absent in layers with experts
BEYOND = 1e9  # the edge of a bucket without an end


def step_table(replica: Replica, profile: Profile, max_tokens: int, max_seqs: int) -> StepTable:
    """A replica's step time as arrays, for steps of up to ``max_tokens`` tokens and ``max_seqs`` sequences.

    Raises:
        MissingError: the tensor-parallel degree was not timed.
    """
    tables = _degree(profile, replica.tensor_parallel_size)
    tokens = np.arange(max_tokens + 1, dtype=np.float64)
    padded = padded_tokens(replica, tokens)
    ranks = ranks_sharing_experts(replica)
    token_wise = _token_wise_s(replica, tables, padded)
    experts_s = None
    if replica.model.moe is not None:
        together = np.arange(ranks * max_tokens + 1, dtype=np.float64) if ranks > 1 else padded
        experts_s = work.num_moe_layers(replica.model) * _experts_s(replica, _expert_table(replica, profile), together)
        if ranks == 1:
            token_wise, experts_s = token_wise + experts_s, None
    overheads = profile.engine_overheads.get("vllm", {})
    axes, attention = _attention(tables["attention"])
    attention = _surplus(attention, float(overheads.get("mixed_attention_share", 1.0)))
    return StepTable(
        decode_tokens_s=token_wise,
        mixed_tokens_s=token_wise + replica.model.num_layers * float(overheads.get("mixed_layer_overhead_s", 0.0)),
        sampled_s=_sampled_s(replica, tables, np.arange(max_seqs + 1, dtype=np.float64)),
        prefill_tokens_axis=axes[0],
        prefill_context_axis=axes[1],
        num_decode_axis=axes[2],
        decode_context_axis=axes[3],
        attention_s=attention * replica.model.num_layers,
        overhead_s=float(overheads.get("step_overhead_s", 0.0)),
        overhead_per_sequence_s=float(overheads.get("per_sequence_s", 0.0)),
        request_overhead_s=float(overheads.get("request_overhead_s", 0.0)),
        output_overhead_s=float(overheads.get("output_overhead_s", 0.0)),
        skew=_skew(tables["skew"]) if "skew" in tables else None,
        experts_s=experts_s,
    )


def _degree(profile: Profile, degree: int) -> Mapping[str, Any]:
    """The tables of one tensor-parallel degree; layers that it lacks are the same at every degree and come from 1."""
    name = f"tp{degree}"
    if name not in profile.tables:
        raise MissingError(
            f"profile {profile.name} was not timed at tensor_parallel_size {degree}",
            why="kernels of other sizes would have to be guessed",
            remedy=f"tensor_parallel_size {' or '.join(sorted(k[2:] for k in profile.tables))}",
        )
    own, base = profile.tables[name], profile.tables.get("tp1", {})
    merged = dict(base)
    for table, content in own.items():
        merged[table] = {**base.get(table, {}), **content} if table in ("dense", "per_sequence") else content
    return merged


def _curve(columns: Mapping[str, list[float]], key: str, at: FloatArray) -> FloatArray:
    """Seconds by linear interpolation; beyond the last point its last piece is extended."""
    x, y = np.asarray(columns[key], float), np.asarray(columns["time_us"], float) / MICROSECONDS_PER_SECOND
    order = np.argsort(x)
    x, y = x[order], y[order]
    time = np.interp(at, x, y)
    if len(x) > 1:
        slope = max(0.0, (y[-1] - y[-2]) / (x[-1] - x[-2]))
        time = time + slope * np.maximum(0.0, at - x[-1])
    return np.asarray(time)


def _token_wise_s(replica: Replica, tables: Mapping[str, Any], tokens: FloatArray) -> FloatArray:
    """All layers that see single tokens (of one rank) but the experts, and the exchanges after them."""
    model = replica.model
    num_moe = work.num_moe_layers(model) if model.moe is not None else 0
    total = np.zeros_like(tokens)
    for name, columns in tables["dense"].items():
        count = 1 if name in ONCE else model.num_layers * (2 if name in TWICE else 1)
        if name in EXPERT_LAYERS:
            count = model.num_layers - num_moe
        total += count * _curve(columns, "tokens", tokens)
    kernels = KernelSums(replica, best_profile(replica))
    once = kernels.all_reduce_s(tokens)  # after the embedding, and after each layer's attention
    return total + (model.num_layers + 1) * once + model.num_layers * kernels.after_mlp_s(tokens)


def _expert_table(replica: Replica, profile: Profile) -> Mapping[str, list[float]]:
    """The expert kernel of a GPU that has such a slice of each expert's width; other slices are other kernels.

    Raises:
        MissingError: it was not timed.
    """
    slices = expert_slices(replica)
    table: Mapping[str, list[float]] | None = profile.tables.get(f"tp{slices}", {}).get("moe")
    if table is None:
        raise MissingError(
            f"profile {profile.name} has no tp{slices}/moe.csv",
            why="the model has experts" if slices == 1 else f"{slices} GPUs share the width of the model's experts",
            remedy="profile its experts too" if slices == 1 else "expert_parallel_size, which leaves experts whole",
        )
    return table


def _experts_s(replica: Replica, table: Mapping[str, list[float]], together: FloatArray) -> FloatArray:
    """One layer of experts at the tokens of all ranks: one GPU's kernel, and bringing the tokens there and back.

    A GPU computes its share of the (token, expert) pairs, the busiest a little more: the table's time at that many
    whole tokens.
    """
    kernels, ranks = KernelSums(replica, best_profile(replica)), ranks_sharing_experts(replica)
    experts, share = experts_of(replica), 1.0 / replica.expert_parallel_size
    busiest = busiest_share(experts, kernels.skew, together)
    active = share * work.expected_experts_hit(together, experts.num_experts, experts.per_token, kernels.skew)
    time = _surface(table, together * share * busiest, np.maximum(active, 1.0))
    if ranks > 1:
        fit = kernels.profile.family(exchange_family(replica), kernels.link)
        own, link = together / ranks, kernels.link_bytes_per_s
        time = time + exchange_time_s(fit, replica, link, experts, own, busiest, kernels.form.activation_bytes)
    return time


def _surface(columns: Mapping[str, list[float]], tokens: FloatArray, active: FloatArray) -> FloatArray:
    """Seconds of the expert kernel at (tokens, activated experts): linear in each between measured points."""
    x, y = np.asarray(columns["tokens"]), np.asarray(columns["activated_experts"])
    time_us = np.asarray(columns["time_us"])
    nodes = np.unique(x)
    rows = np.stack(
        [
            np.interp(active, y[x == node][np.argsort(y[x == node])], time_us[x == node][np.argsort(y[x == node])])
            for node in nodes
        ]
    )  # (token nodes, steps)
    place = np.clip(np.searchsorted(nodes, tokens, side="right") - 1, 0, max(0, len(nodes) - 2))
    if len(nodes) == 1:
        return np.asarray(rows[0] / MICROSECONDS_PER_SECOND)
    step = np.arange(len(tokens))
    share = np.maximum(0.0, (tokens - nodes[place]) / (nodes[place + 1] - nodes[place]))
    low, high = rows[place, step], rows[place + 1, step]
    return np.asarray((low + share * (high - low)) / MICROSECONDS_PER_SECOND)


def _sampled_s(replica: Replica, tables: Mapping[str, Any], sampled: FloatArray) -> FloatArray:
    """lm_head, the sampler, and under tensor parallelism the logits' gathering."""
    time = np.zeros_like(sampled)
    for columns in tables["per_sequence"].values():
        time += _curve(columns, "sequences", sampled)
    if replica.tensor_parallel_size > 1:
        kernels = KernelSums(replica, best_profile(replica))
        fit = kernels.profile.family("all_gather", kernels.link)
        num_bytes = 2.0 * sampled * replica.model.vocab_size
        time += all_gather_time_s(fit, kernels.link_bytes_per_s, replica.tensor_parallel_size, num_bytes)
    return np.where(sampled > 0, time, 0.0)


def _attention(columns: Mapping[str, list[float]]) -> tuple[tuple[FloatArray, ...], FloatArray]:
    """Seconds of one layer's attention on the axes of ``StepTable``: (axes, (C, P, D, K) array)."""
    keys = [np.asarray(columns[k], float) for k in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")]
    chunk, history, decodes, context = (np.unique(np.append(k, 0.0)) for k in keys)
    grid = np.full((len(chunk), len(history), len(decodes), len(context)), np.nan)
    at = tuple(np.searchsorted(axis, key) for axis, key in zip((chunk, history, decodes, context), keys, strict=True))
    grid[at] = np.asarray(columns["time_us"]) / MICROSECONDS_PER_SECOND
    _fill(grid, (chunk, history, decodes, context))
    means = _mean_contexts(chunk, history)
    by_mean = np.empty((len(chunk), len(means), len(decodes), len(context)))
    for c, tokens in enumerate(chunk):
        if tokens == 0:
            by_mean[c] = grid[c, :1]
            continue
        for p, mean in enumerate(means):
            by_mean[c, p] = _at_history(grid[c], history, mean - tokens / 2)
    return (chunk, means, decodes, context), np.maximum.accumulate(by_mean, axis=3)


def _surplus(attention: FloatArray, share: float) -> FloatArray:
    """The same array with ``share`` of what mixed batches take beyond their prompts and their decodes apart.

    The tables time batches whose decodes have all the same context; in recorded runs, where no two are equal, the
    surplus is smaller. Axes as in ``StepTable``.
    """
    apart = attention[:, :, :1, :1] + attention[:1, :1, :, :]
    mixed = np.where(attention > apart, apart + share * (attention - apart), attention)
    mixed[0], mixed[:, :, 0] = attention[0], attention[:, :, 0]
    return np.asarray(np.maximum.accumulate(mixed, axis=3))


def _skew(columns: Mapping[str, list[float]]) -> SkewTable:
    """The skew table: buckets by their upper edges; histories of a prompt are averaged, buckets without samples take
    the fit's default, and no batch is faster than its mean or slower than if all contexts were the longest."""
    axes = [np.unique(columns[name]) for name in ("prefill_chunk", "num_decode", "share", "longest")]
    total = np.zeros([len(axis) for axis in axes])
    weight = np.zeros_like(total)
    at = tuple(
        np.searchsorted(axis, columns[name])
        for axis, name in zip(axes, ("prefill_chunk", "num_decode", "share", "longest"), strict=True)
    )
    samples = np.asarray(columns["num_samples"])
    np.add.at(total, at, samples * np.asarray(columns["alpha"]))
    np.add.at(weight, at, samples)
    alpha = np.where(weight > 0, total / np.maximum(weight, 1e-9), float(np.asarray(columns["default"])))
    for axis in (1, 3):  # number of decodes, longest context
        axes[axis], alpha = _between_edges(axes[axis], alpha, axis)
    return SkewTable(axes[0], axes[1], axes[2], axes[3], np.clip(alpha, 0.0, 1.0))


BUCKETS_BETWEEN = 4


def _between_edges(edges: FloatArray, alpha: FloatArray, axis: int) -> tuple[FloatArray, FloatArray]:
    """Four buckets for each one: (edges, alpha).

    What was swept lies at the buckets' upper edges (powers of two), so that alpha just above an edge is the edge's and
    not that of a context four times as long: between edges it follows a line in the logarithm.
    """
    known = edges[edges < BEYOND]
    if len(known) < 2:
        return edges, alpha
    shares = np.arange(1, BUCKETS_BETWEEN + 1) / BUCKETS_BETWEEN
    fine = np.concatenate([known[:1], *(low * (high / low) ** shares for low, high in pairwise(known))])
    middle = np.log(fine) - 0.5 * np.log(known[-1] / known[0]) / (len(fine) - 1)
    rows = np.moveaxis(alpha, axis, -1)[..., : len(known)]
    drawn = np.apply_along_axis(lambda row: np.interp(middle, np.log(known), row), -1, rows)
    return fine, np.moveaxis(drawn, -1, axis)


def _mean_contexts(chunk: FloatArray, history: FloatArray) -> FloatArray:
    """Keys that a prompt token attends to on average, at which attention is tabled."""
    return np.unique(np.concatenate([[0.0], chunk / 2, chunk / 4, history, history + chunk[-1] / 2]))


def _at_history(rows: FloatArray, history: FloatArray, value: float) -> FloatArray:
    """Attention at one history, linear between points and beyond (several short prompts attend to less than one)."""
    place = int(np.clip(np.searchsorted(history, value, side="right") - 1, 0, len(history) - 2))
    if value < 0:
        far = min(len(history) - 1, int(np.searchsorted(history, 1024.0)))
        slope = (rows[far] - rows[0]) / (history[far] - history[0])
        return np.asarray(np.maximum(0.3 * rows[0], rows[0] + slope * value))
    share = (value - history[place]) / (history[place + 1] - history[place])
    return np.asarray(rows[place] + share * (rows[place + 1] - rows[place]))


def _fill(grid: FloatArray, axes: tuple[FloatArray, ...]) -> None:
    """Complete a grid in place: no decode means no decode context; points that were not timed are extended linearly."""
    grid[0, :, 0, :] = 0.0
    grid[0, :, 1:, :] = grid[0, :1, 1:, :]  # without a prompt its history means nothing
    grid[1:, :, 0, :] = grid[1:, :, 0, :1]  # nor without a decode its context
    for place in (3, 1, 2, 0):
        _extend(np.moveaxis(grid, place, -1), axes[place])
    np.nan_to_num(grid, copy=False)


def _extend(rows: FloatArray, axis: FloatArray) -> None:
    """Fill NaNs along the last axis linearly, beyond the known points with their last slope."""
    for index in np.ndindex(rows.shape[:-1]):
        row = rows[index]
        known = np.flatnonzero(~np.isnan(row))
        if len(known) < 2 or len(known) == len(row):
            continue
        x, y = axis[known], row[known]
        slope = max(0.0, (y[-1] - y[-2]) / (x[-1] - x[-2]))
        filled = np.interp(axis, x, y) + slope * np.maximum(0.0, axis - x[-1])
        rows[index] = np.where(np.isnan(row), filled, row)
