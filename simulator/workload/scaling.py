"""Changes the rate of a trace and keeps its burst shape and its duration.

A trace is cut into blocks of ``BLOCK_REQUESTS`` requests. In each, the gaps between arrivals are shortened by the
factor k and the block is then played k times in a row (a fractional last time plays its first part), so that it fills
the time that it filled before. So:

- slow changes (anything longer than a block: the hour of the day, a flash crowd of more requests than a block) keep
  their duration and are multiplied by k;
- fast changes keep their shape in request counts: gaps have the same coefficient of variation and the same
  correlation from one to the next, and the index of dispersion of the new trace at a window w is that of the old one
  at k w. A Poisson trace stays a Poisson trace, a bursty one stays as bursty.
- which requests make up a fractional part is chosen by conversation (session, or first prefix block that is not a
  system prompt), so that prefix sharing survives.

Copies are other users: their sessions and prefixes are new, except prefixes that more than 1 % of all requests share
(system prompts), which the copies share too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError
from simulator.workload.requests import Requests, demand_few_enough
from simulator.workload.traces import take

BLOCK_REQUESTS = 1024
MOST_REQUESTS = 200_000_000
SYSTEM_PROMPT_SHARE = 0.01
SYSTEM_PROMPT_REQUESTS = 10  # and never fewer than this many
Float = NDArray[np.float64]
Int = NDArray[np.int64]


def scale_requests(
    requests: Requests, factor: float | Callable[[float], float], resolution_s: float = 60.0
) -> Requests:
    """The workload at ``factor`` times its rate over the same duration, with the same burst shape.

    Args:
        requests: an open load, sorted by arrival.
        factor: > 0, or a function of the time (seconds from the start) that gives one; then blocks are also cut every
            ``resolution_s``.
        resolution_s: how finely a factor that changes with time is followed.

    Raises:
        InputError: a factor that is not positive and finite, a closed loop, or nothing left.
    """
    if requests.concurrency is not None:
        raise InputError(
            "a closed loop cannot be scaled in rate",
            why="its rate follows from its concurrency and the fleet",
            remedy="change `concurrency`",
        )
    if not callable(factor):
        if not (np.isfinite(factor) and factor > 0):
            raise InputError(f"scale {factor:g} is not a positive number", remedy="scale: 2 doubles the rate")
        if factor * len(requests) > MOST_REQUESTS:
            raise InputError(
                f"scale {factor:g} makes {factor * len(requests):.3g} requests of {len(requests):,}",
                why=f"more than {MOST_REQUESTS:,} are not simulated",
                remedy=f"scale: {MOST_REQUESTS // len(requests)} at most",
            )
        if factor == 1:
            return requests
    edges = _block_edges(requests.arrival_s, resolution_s if callable(factor) else None)
    rows, arrival, copies = _replay(requests.arrival_s, edges, factor, _conversation_rank(requests))
    if not len(rows):
        raise InputError("no request is left at that scale", remedy="a larger scale")
    return replace(_as_other_users(take(requests, rows), requests, copies), arrival_s=arrival)


def _block_edges(arrival_s: Float, resolution_s: float | None) -> Int:
    """Indices where blocks start, and the end."""
    num = len(arrival_s)
    edges = np.arange(0, num, BLOCK_REQUESTS)
    if len(edges) > 1 and num - edges[-1] < BLOCK_REQUESTS // 2:
        edges = edges[:-1]
    if resolution_s is not None:
        start = arrival_s[0]
        marks = np.arange(start, arrival_s[-1], resolution_s)
        edges = np.union1d(edges, np.searchsorted(arrival_s, marks))
    return np.append(edges[edges < num], num).astype(np.int64)


def _replay(
    arrival_s: Float, edges: Int, factor: float | Callable[[float], float], rank: Float | None
) -> tuple[Int, Float, Int]:
    """Rows to take, their new arrivals, and which copy of the row each is."""
    num, start = len(arrival_s), float(arrival_s[0])
    mean_gap = (arrival_s[-1] - start) / max(1, num - 1)
    ends = np.append(arrival_s, arrival_s[-1] + mean_gap)  # a block lasts until the next one's first arrival
    all_gaps = np.diff(ends)
    all_rows, all_times, all_copies, carry, num_before = [], [], [], 0.5, 0
    for first, last in itertools.pairwise(edges):
        span = ends[last] - arrival_s[first]
        k = factor(float(arrival_s[first] + span / 2) - start) if callable(factor) else factor
        exact = k * (last - first) + carry
        demand_few_enough(exact + num_before, "a smaller scale, or a shorter load")
        count = int(exact)
        carry = exact - count
        num_before += count
        if count == 0:
            continue
        place = np.arange(count)
        rows = first + place % (last - first)
        gaps = all_gaps[rows]
        part = count % (last - first)
        if part and rank is not None:
            rows[-part:] = first + np.sort(np.argsort(rank[first:last], kind="stable")[:part])
        total = gaps.sum()
        offset = np.cumsum(gaps) - gaps
        all_times.append(arrival_s[first] + (offset * (span / total) if total > 0 else offset))
        all_rows.append(rows)
        all_copies.append(place // (last - first))
    if not all_rows:
        empty = np.zeros(0, dtype=np.int64)
        return empty, np.zeros(0), empty
    times = np.maximum.accumulate(np.concatenate(all_times))  # rounding can put a block's end past the next one's start
    return np.concatenate(all_rows), times, np.concatenate(all_copies)


def _private_up_to(requests: Requests) -> float:
    """A prefix block that occurs more often than this is a system prompt's."""
    return max(SYSTEM_PROMPT_REQUESTS, SYSTEM_PROMPT_SHARE * len(requests))


def _conversation_rank(requests: Requests) -> Float | None:
    """A number from 0 to 1 for each request, the same for requests of one conversation; None where there are none."""
    key = requests.session
    if key is None:
        if requests.hash_offsets is None or requests.hash_ids is None or not len(requests.hash_ids):
            return None
        known, counts = np.unique(requests.hash_ids, return_counts=True)
        system = known[counts > _private_up_to(requests)]
        private = ~np.isin(requests.hash_ids, system)
        owner = np.repeat(np.arange(len(requests)), np.diff(requests.hash_offsets))[private]
        key = -1 - np.arange(len(requests))
        owners, where = np.unique(owner, return_index=True)
        key[owners] = requests.hash_ids[private][where]
    mixed = key.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def _as_other_users(taken: Requests, original: Requests, copies: Int) -> Requests:
    """Give copies their own sessions and prefixes."""
    session, ids = taken.session, taken.hash_ids
    if session is not None and original.session is not None:
        session = session + copies * (int(original.session.max()) + 1)
    if ids is not None and original.hash_ids is not None and taken.hash_offsets is not None and len(ids):
        known, counts = np.unique(original.hash_ids, return_counts=True)
        place = np.searchsorted(known, ids)
        private = counts[place] <= _private_up_to(original)
        copy_of_id = np.repeat(copies, np.diff(taken.hash_offsets))
        shift = np.where(private, copy_of_id, 0)
        ids = np.where(shift > 0, place + shift * len(known) + int(known[-1]) + 1, ids)
    return replace(taken, session=session, hash_ids=ids)


def repeat_requests(requests: Requests, duration_s: float) -> Requests:
    """The workload played again and again until ``duration_s``, each time as other users.

    Raises:
        InputError: a closed loop, or a trace without duration.
    """
    span = float(requests.arrival_s[-1] - requests.arrival_s[0]) * len(requests) / max(1, len(requests) - 1)
    if requests.concurrency is not None or not span > 0:
        raise InputError("only an open load with a duration can be repeated")
    demand_few_enough(len(requests) * (duration_s / span + 1), "a shorter repeat_s")
    times = int(np.ceil(duration_s / span))
    rows = np.tile(np.arange(len(requests)), times)
    copies = np.repeat(np.arange(times), len(requests))
    arrival = requests.arrival_s[rows] + copies * span
    kept = arrival - requests.arrival_s[0] < duration_s
    taken = take(requests, rows[kept])
    return replace(_as_other_users(taken, requests, copies[kept]), arrival_s=arrival[kept])
