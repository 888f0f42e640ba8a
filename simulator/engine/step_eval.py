"""Step times in the compiled loop: one step's time, and many equal decode steps in closed form.

All tables of a fleet lie in one flat array, so that replicas of different kinds share one compiled loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibrate.step import StepTable
from simulator.engine.compiled import inner

# columns of ``Tables.places``
DECODE, NUM_DECODE_ROWS, MIXED, NUM_MIXED_ROWS, SAMPLED, NUM_SAMPLED_ROWS = range(6)
AXIS = 6  # then (offset, length) of the axes C, P, D, K
ATTENTION = 14
SKEW = 15  # then (offset, length) of the edges C, N, S, B, and the offset of alpha; lengths are 0 without skew
ALPHA = 23
EXPERTS, NUM_EXPERTS_ROWS = 24, 25  # length 0: experts are in the token-wise arrays
NUM_PLACES = 26
FAR = 2**62
# columns of ``Tables.overhead``
STEP_S, SEQUENCE_S, REQUEST_S, OUTPUT_S, PROMPT_TOKEN_S = range(5)


class Tables(NamedTuple):
    """Step tables laid end to end.

    Attributes:
        data: all arrays of all tables, flat.
        places: (tables, NUM_PLACES) offsets into ``data`` and lengths.
        overhead: (tables, 5) seconds: per step, per sequence of a step, before a request's queue, after its step,
            per prompt token before the queue.
    """

    data: NDArray[np.float64]
    places: NDArray[np.int64]
    overhead: NDArray[np.float64]


def pack_tables(tables: Sequence[StepTable]) -> Tables:
    """Lay step tables end to end."""
    parts: list[NDArray[np.float64]] = []
    size = 0
    places = np.zeros((len(tables), NUM_PLACES), np.int64)

    def put(array: NDArray[np.float64]) -> int:
        nonlocal size
        flat = np.ascontiguousarray(array, np.float64).ravel()
        parts.append(flat)
        size += flat.size
        return size - flat.size

    for row, table in zip(places, tables, strict=True):
        arrays = (table.decode_tokens_s, table.mixed_tokens_s, table.sampled_s)
        axes = (table.prefill_tokens_axis, table.prefill_context_axis, table.num_decode_axis, table.decode_context_axis)
        for place, array in enumerate((*arrays, *axes)):
            row[2 * place], row[2 * place + 1] = put(array), len(array)
        row[ATTENTION] = put(table.attention_s)
        if table.skew is not None:
            for place, array in enumerate(table.skew[:4]):
                row[SKEW + 2 * place], row[SKEW + 2 * place + 1] = put(array), len(array)
            row[ALPHA] = put(table.skew.alpha)
        if table.experts_s is not None:
            row[EXPERTS], row[NUM_EXPERTS_ROWS] = put(table.experts_s), len(table.experts_s)
    overhead = np.array(
        [
            [t.overhead_s, t.overhead_per_sequence_s, t.request_overhead_s, t.output_overhead_s, t.prompt_token_s]
            for t in tables
        ],
        np.float64,
    )
    return Tables(np.concatenate(parts), places, overhead)


@inner
def row_at(data: Any, offset: int, length: int, i: int) -> float:
    """``data[offset + i]``; beyond the end the last difference is extended."""
    if i < length:
        return data[offset + i]  # type: ignore[no-any-return]
    last = data[offset + length - 1]
    return last + (last - data[offset + length - 2]) * (i - length + 1)  # type: ignore[no-any-return]


@inner
def token_wise_s(tables: Any, table: int, tokens: int, mixed: bool) -> float:
    """Seconds of all layers that see single tokens; ``mixed``: prompt tokens are among them."""
    ix = tables.places[table]
    if mixed:
        return row_at(tables.data, ix[MIXED], ix[NUM_MIXED_ROWS], tokens)
    return row_at(tables.data, ix[DECODE], ix[NUM_DECODE_ROWS], tokens)


@inner
def experts_s(tables: Any, table: int, tokens: int) -> float:
    """Seconds of the experts that the ranks of a lock-step group share, at all their tokens."""
    ix = tables.places[table]
    return row_at(tables.data, ix[EXPERTS], ix[NUM_EXPERTS_ROWS], tokens) if ix[NUM_EXPERTS_ROWS] > 0 else 0.0


@inner
def graph_size(tokens: int) -> int:
    """Tokens of the smallest CUDA graph that holds so many: vLLM captures 1, 2, 4, then every 8, from 256 every 16."""
    if tokens <= 2:
        return tokens
    width = 4 if tokens <= 4 else (8 if tokens <= 256 else 16)
    return (tokens + width - 1) // width * width


@inner
def cell_of(data: Any, offset: int, length: int, x: float) -> int:
    """The cell of an axis that holds x; the outermost cells extend to infinity."""
    low, high = 0, length - 1
    while high - low > 1:
        middle = (low + high) // 2
        if data[offset + middle] <= x:
            low = middle
        else:
            high = middle
    return low


@inner
def share_in_cell(data: Any, offset: int, cell: int, x: float) -> float:
    """Where x lies between a cell's two ends: 0 to 1, beyond where the cell is extended."""
    low = data[offset + cell]
    return (x - low) / (data[offset + cell + 1] - low)  # type: ignore[no-any-return]


@inner
def attention_at_node(tables: Any, table: int, c: int, p: int, d: int, k: int) -> float:
    """Attention seconds at grid node (c, p, d, k)."""
    ix = tables.places[table]
    place = ((c * ix[AXIS + 3] + p) * ix[AXIS + 5] + d) * ix[AXIS + 7] + k
    return tables.data[ix[ATTENTION] + place]  # type: ignore[no-any-return]


@inner
def attention_s(tables: Any, table: int, prefill: int, prefill_context: float, decode: int, context: float) -> float:
    """Attention seconds of a step, by multilinear interpolation."""
    data, ix = tables.data, tables.places[table]
    c = cell_of(data, ix[AXIS], ix[AXIS + 1], float(prefill))
    p = cell_of(data, ix[AXIS + 2], ix[AXIS + 3], prefill_context)
    d = cell_of(data, ix[AXIS + 4], ix[AXIS + 5], float(decode))
    k = cell_of(data, ix[AXIS + 6], ix[AXIS + 7], context)
    wc = share_in_cell(data, ix[AXIS], c, float(prefill))
    wp = share_in_cell(data, ix[AXIS + 2], p, prefill_context)
    wd = share_in_cell(data, ix[AXIS + 4], d, float(decode))
    wk = share_in_cell(data, ix[AXIS + 6], k, context)
    total = 0.0
    for i in range(2):
        for j in range(2):
            for m in range(2):
                weight = (wc if i else 1 - wc) * (wp if j else 1 - wp) * (wd if m else 1 - wd)
                if weight != 0.0:
                    low = attention_at_node(tables, table, c + i, p + j, d + m, k)
                    high = attention_at_node(tables, table, c + i, p + j, d + m, k + 1)
                    total += weight * (low + (high - low) * wk)
    return total


@inner
def edge_of(data: Any, offset: int, length: int, x: float) -> int:
    """The first edge at or beyond x, else the last."""
    place = 0
    while place < length - 1 and data[offset + place] < x:
        place += 1
    return place


@inner
def skew_alpha(tables: Any, table: int, prefill: int, decode: int, share: float, longest: float) -> float:
    """How far attention lies from its time at the mean context to that at the longest (see ``SkewTable``)."""
    data, ix = tables.data, tables.places[table]
    if ix[SKEW + 1] == 0 or decode < 2:
        return 0.0
    place = edge_of(data, ix[SKEW], ix[SKEW + 1], float(prefill))
    place = place * ix[SKEW + 3] + edge_of(data, ix[SKEW + 2], ix[SKEW + 3], float(decode))
    place = place * ix[SKEW + 5] + edge_of(data, ix[SKEW + 4], ix[SKEW + 5], share)
    place = place * ix[SKEW + 7] + edge_of(data, ix[SKEW + 6], ix[SKEW + 7], longest)
    return data[ix[ALPHA] + place]  # type: ignore[no-any-return]


@inner
def step_s(
    tables: Any,
    table: int,
    prefill: int,
    prefill_context: float,
    decode: int,
    decode_tokens: int,
    contexts: Any,
    sampled: int,
    seqs: int,
) -> float:
    """Seconds of one step (see ``StepTable``).

    Args:
        decode, decode_tokens: sequences that decode, and their tokens (more than one each when speculating).
        contexts: the decodes' (mean, shortest, longest).
    """
    data, ix, overhead = tables.data, tables.places[table], tables.overhead[table]
    mean, shortest, longest = contexts
    time = token_wise_s(tables, table, prefill + decode_tokens, prefill > 0)
    time += row_at(data, ix[SAMPLED], ix[NUM_SAMPLED_ROWS], sampled)
    at_mean = attention_s(tables, table, prefill, prefill_context, decode, mean)
    time += at_mean
    if longest > shortest:
        alpha = skew_alpha(tables, table, prefill, decode, (mean - shortest) / (longest - shortest), longest)
        if alpha > 0.0:
            time += alpha * (attention_s(tables, table, prefill, prefill_context, decode, longest) - at_mean)
    return time + overhead[STEP_S] + overhead[SEQUENCE_S] * seqs  # type: ignore[no-any-return]


@inner
def decode_run(
    tables: Any, table: int, speed: float, decode: int, contexts: Any, most: int, limit_s: float
) -> tuple[int, float, float]:
    """Decode steps of one unchanging batch, whose contexts grow by one each step.

    As long as mean and longest context stay within a cell of the context axis a step's time is linear, so that the
    time of many steps is an arithmetic series.

    Args:
        decode, contexts: sequences, and their (mean, shortest, longest) context in the first step.
        most: steps at most, > 0.
        limit_s: stop after the first step whose end is at or beyond it.

    Returns:
        (steps, seconds of all steps, seconds of all but the last).
    """
    data, ix, overhead = tables.data, tables.places[table], tables.overhead[table]
    mean, shortest, longest = contexts
    base = row_at(data, ix[DECODE], ix[NUM_DECODE_ROWS], decode)
    base += row_at(data, ix[SAMPLED], ix[NUM_SAMPLED_ROWS], decode)
    base += overhead[STEP_S] + overhead[SEQUENCE_S] * decode
    d = cell_of(data, ix[AXIS + 4], ix[AXIS + 5], float(decode))
    wd = share_in_cell(data, ix[AXIS + 4], d, float(decode))
    skewed = ix[SKEW + 1] > 0 and longest > shortest
    share = (mean - shortest) / (longest - shortest) if skewed else 0.0
    done, total = 0, 0.0
    while True:
        value, slope, room = _decode_attention(tables, table, d, wd, mean + done)
        if skewed:
            alpha = skew_alpha(tables, table, 0, decode, share, longest + done)
            if alpha > 0.0:
                high, high_slope, high_room = _decode_attention(tables, table, d, wd, longest + done)
                value, slope = value + alpha * (high - value), slope + alpha * (high_slope - slope)
                room = min(room, high_room)
            edge = data[ix[SKEW + 6] + edge_of(data, ix[SKEW + 6], ix[SKEW + 7], longest + done)]
            if edge >= longest + done:
                room = min(room, int(np.floor(edge - longest - done)) + 1)
        first, slope = (base + value) * speed, slope * speed
        steps = _steps_until(first, slope, min(room, most - done), limit_s - total)
        before = total + first * (steps - 1) + slope * (0.5 * (steps - 1) * (steps - 2))
        total += first * steps + slope * (0.5 * steps * (steps - 1))
        done += steps
        if done >= most or total >= limit_s:
            return done, total, before


@inner
def _decode_attention(tables: Any, table: int, d: int, wd: float, context: float) -> tuple[float, float, int]:
    """Attention of a decode step: (seconds, seconds a token of context, steps for which that holds)."""
    data, ix = tables.data, tables.places[table]
    axis, length = ix[AXIS + 6], ix[AXIS + 7]
    k = cell_of(data, axis, length, context)
    x0, x1 = data[axis + k], data[axis + k + 1]
    wp = share_in_cell(data, ix[AXIS + 2], 0, 0.0)
    low, high = 0.0, 0.0
    for j in range(2):
        weight = wp if j else 1 - wp
        if weight != 0.0:
            low += weight * (
                attention_at_node(tables, table, 0, j, d, k) * (1 - wd)
                + attention_at_node(tables, table, 0, j, d + 1, k) * wd
            )
            high += weight * (
                attention_at_node(tables, table, 0, j, d, k + 1) * (1 - wd)
                + attention_at_node(tables, table, 0, j, d + 1, k + 1) * wd
            )
    slope = (high - low) / (x1 - x0)
    room = FAR if k == length - 2 else int(np.floor(x1 - context)) + 1
    return low + slope * (context - x0), slope, room


@inner
def _steps_until(first: float, slope: float, room: int, limit_s: float) -> int:
    """The smallest number of steps, up to ``room``, whose time (an arithmetic series) reaches ``limit_s``."""
    if first * room + slope * (0.5 * room * (room - 1)) < limit_s:
        return room
    if slope == 0.0:
        guess = limit_s / first
    else:
        b = first - 0.5 * slope
        guess = 2.0 * limit_s / (b + np.sqrt(max(0.0, b * b + 2.0 * slope * limit_s)))
    steps = min(room, max(1, int(np.ceil(guess))))
    while steps > 1 and first * (steps - 1) + slope * (0.5 * (steps - 1) * (steps - 2)) >= limit_s:
        steps -= 1
    while steps < room and first * steps + slope * (0.5 * steps * (steps - 1)) < limit_s:
        steps += 1
    return steps
