"""Synthesises workloads: arrival processes, lengths, conversations and shared prefixes.

Point processes with a rate that changes are made by running a unit-rate Poisson process through the inverse of the
integrated rate, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError
from catalogs.units import HOURS_PER_YEAR, SECONDS_PER_HOUR
from simulator.workload.requests import Requests, demand_few_enough
from simulator.workload.spec import ArrivalSpec, LengthSpec, SessionSpec, SyntheticSpec, WorkloadSpec
from simulator.workload.traces import read_lengths, take

DAY_S = 24 * SECONDS_PER_HOUR
SYNTHETIC_BLOCK_TOKENS = 64
MOST_CHANGES = 5_000_000  # of the rate
Float = NDArray[np.float64]
Int = NDArray[np.int64]


def synthesize(spec: SyntheticSpec, seed: int) -> Requests:
    """The requests of a synthetic load; each part draws from its own stream, so that changing one leaves the others.

    Raises:
        InputError: an empirical file that cannot be read, or a load without a single request.
    """
    assert spec.arrivals is not None and spec.input_tokens is not None and spec.output_tokens is not None
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)]
    closed = spec.arrivals.process == "closed_loop"
    arrival = np.zeros(spec.arrivals.num_requests or 0) if closed else arrivals(spec.arrivals, streams[0])
    if not len(arrival):
        raise InputError("the load has no request", why="its rate times its duration is below one",
                         remedy="a longer duration_s or a higher rate_rps")  # fmt: skip
    turns = np.ones(len(arrival), dtype=np.int64)
    if spec.sessions is not None:
        turns = streams[3].geometric(1.0 / spec.sessions.mean_turns, len(arrival))
    inputs, outputs = lengths(spec.input_tokens, spec.output_tokens, int(turns.sum()), streams[1], streams[2])
    inputs = np.maximum(inputs, 1)
    if spec.sessions is None and spec.system_prompts is None:
        return Requests(arrival, inputs, outputs, concurrency=spec.arrivals.concurrency)
    requests = _conversations(spec, arrival, turns, inputs, outputs, streams)
    if closed:
        return replace(requests, arrival_s=np.zeros(len(requests)), concurrency=spec.arrivals.concurrency)
    return take(requests, np.argsort(requests.arrival_s, kind="stable"))


def arrivals(spec: ArrivalSpec, rng: np.random.Generator) -> Float:
    """Arrival times of an open-loop process, seconds, ascending."""
    if spec.process == "mmpp":
        return _modulated(*_mmpp_path(spec, rng), spec, rng)
    if spec.process == "diurnal":
        return _modulated(*_diurnal_path(spec), spec, rng)
    assert spec.rate_rps is not None
    rate = spec.rate_rps
    gaps: dict[str, Callable[[int], Float]] = {
        "poisson": lambda n: rng.exponential(1.0 / rate, n),
        "gamma": lambda n: rng.gamma(1.0 / (spec.cv or 1) ** 2, (spec.cv or 1) ** 2 / rate, n),
        "constant": lambda n: np.full(n, 1.0 / rate),
    }
    draw = gaps[spec.process]
    if spec.num_requests is not None:
        return np.cumsum(draw(spec.num_requests))
    assert spec.duration_s is not None
    demand_few_enough(rate * spec.duration_s, "a shorter duration_s")
    times = np.cumsum(draw(int(rate * spec.duration_s) + 64))
    while times[-1] < spec.duration_s:
        times = np.concatenate([times, times[-1] + np.cumsum(draw(len(times) // 4 + 64))])
    return times[times < spec.duration_s]


def _modulated(edges_s: Float, rates: Float, spec: ArrivalSpec, rng: np.random.Generator) -> Float:
    """A Poisson process whose rate is linear-interpolated mass between ``edges_s``; ``rates`` (one fewer) are means."""
    mass = np.concatenate([[0.0], np.cumsum(rates * np.diff(edges_s))])
    if spec.num_requests is not None:
        targets = np.cumsum(rng.exponential(1.0, spec.num_requests))
        if targets[-1] > mass[-1]:
            cycles = int(np.ceil(targets[-1] / mass[-1]))
            starts = np.arange(cycles)
            edges_s = np.concatenate([(edges_s[:-1] + c * edges_s[-1]) for c in starts] + [[cycles * edges_s[-1]]])
            mass = np.concatenate([(mass[:-1] + c * mass[-1]) for c in starts] + [[cycles * mass[-1]]])
    else:
        demand_few_enough(float(mass[-1]), "a shorter duration_s")
        targets = np.sort(rng.uniform(0.0, mass[-1], rng.poisson(mass[-1])))
    return np.interp(targets, mass, edges_s)


def _mmpp_path(spec: ArrivalSpec, rng: np.random.Generator) -> tuple[Float, Float]:
    """Exponential stays in states; the next state is any other one, equally likely."""
    assert spec.rates_rps is not None and spec.mean_durations_s is not None
    rates, stays = np.array(spec.rates_rps), np.array(spec.mean_durations_s)
    mean_rate = float((rates * stays).sum() / stays.sum())
    length_s = spec.duration_s or 1.5 * (spec.num_requests or 1) / mean_rate + 10 * stays.sum()
    edges, path, state, now = [0.0], [], int(rng.choice(len(rates), p=stays / stays.sum())), 0.0
    while now < length_s:
        stay = float(rng.exponential(stays[state]))
        now = min(now + stay, length_s)
        edges.append(now)
        path.append(rates[state])
        state = (state + 1 + int(rng.integers(len(rates) - 1))) % len(rates)
        if len(path) > MOST_CHANGES:
            raise _too_many_changes("longer mean_durations_s")
    if not np.any(np.array(path) > 0):
        path[0] = mean_rate
    return np.array(edges), np.array(path)


def _too_many_changes(remedy: str) -> InputError:
    return InputError(f"the load changes its rate more than {MOST_CHANGES:,} times", remedy=remedy)


def _diurnal_path(spec: ArrivalSpec) -> tuple[Float, Float]:
    """A sinusoid about the mean rate, in 1,440 steps a period."""
    assert spec.rate_rps is not None
    period = spec.period_s or DAY_S
    amplitude = (spec.peak_to_mean or 1.6) - 1.0
    peak_at = spec.peak_at_s if spec.peak_at_s is not None else 14.0 / 24.0 * period
    length_s = spec.duration_s or period * float(
        np.ceil(1.0 + 1.5 * (spec.num_requests or 1) / (spec.rate_rps * period))
    )
    if not 1440 * length_s / period <= MOST_CHANGES:
        raise _too_many_changes("a longer period_s, or a shorter duration_s")
    steps = int(np.ceil(1440 * length_s / period))
    edges = np.minimum(np.arange(max(1, steps) + 1) * period / 1440, length_s)
    phase = 2 * np.pi / period
    integral = edges + amplitude / phase * np.sin(phase * (edges - peak_at))
    return edges, spec.rate_rps * np.diff(integral) / np.maximum(np.diff(edges), 1e-12)


def lengths(
    inputs: LengthSpec, outputs: LengthSpec, num: int, input_rng: np.random.Generator, output_rng: np.random.Generator
) -> tuple[Int, Int]:
    """Input and output lengths of ``num`` requests; drawn together where both come from one empirical file."""
    if inputs.file is not None and inputs.file == outputs.file:
        table = read_lengths(inputs.file)
        rows = input_rng.integers(0, len(table[0]), num)
        return _clipped(table[0][rows], inputs), _clipped(table[1][rows], outputs)
    return _draw(inputs, 0, num, input_rng), _draw(outputs, 1, num, output_rng)


def _draw(spec: LengthSpec, column: int, num: int, rng: np.random.Generator) -> Int:
    if spec.distribution == "fixed":
        return np.full(num, spec.value, dtype=np.int64)
    if spec.distribution == "uniform":
        assert spec.low is not None and spec.high is not None
        return rng.integers(spec.low, spec.high + 1, num)
    if spec.distribution == "empirical":
        assert spec.file is not None
        values = read_lengths(spec.file)[column]
        return _clipped(values[rng.integers(0, len(values), num)], spec)
    assert spec.mean is not None and spec.cv is not None
    sigma = np.sqrt(np.log1p(spec.cv**2))
    values = np.rint(rng.lognormal(np.log(spec.mean) - sigma**2 / 2, sigma, num))
    return _clipped(np.clip(values, 1, 16_000_000).astype(np.int64), spec)


def _clipped(values: Int, spec: LengthSpec) -> Int:
    if spec.min is None and spec.max is None:
        return values
    return np.clip(values, spec.min, spec.max)


def _conversations(
    spec: SyntheticSpec, arrival: Float, turns: Int, new_tokens: Int, outputs: Int, streams: list[np.random.Generator]
) -> Requests:
    """Turns of conversations with all that was said before in their prompts, and the prefix blocks that they share.

    ``new_tokens`` (one a turn) are what the user adds; a prompt is system prompt + earlier turns and answers + these.
    """
    num_sessions = len(arrival)
    session = np.repeat(np.arange(num_sessions), turns)
    first = np.cumsum(turns) - turns
    system, prompt_of_session = 0, np.zeros(num_sessions, dtype=np.int64)
    if spec.system_prompts is not None:
        system = spec.system_prompts.tokens
        weights = 1.0 / np.arange(1, spec.system_prompts.num + 1) ** spec.system_prompts.zipf
        prompt_of_session = streams[4].choice(spec.system_prompts.num, num_sessions, p=weights / weights.sum())
    said = new_tokens + outputs
    before = np.cumsum(said) - said
    before -= np.repeat(before[first], turns)
    inputs = system + before + new_tokens
    times = arrival[session]
    if spec.sessions is not None:
        times = times + _turn_delays(spec.sessions, outputs, first, turns, streams[3])
        fits = inputs <= max(spec.sessions.max_input_tokens, 1)
        fits[first] = True
        session, times, inputs, outputs = session[fits], times[fits], inputs[fits], outputs[fits]
    block = spec.hash_block_tokens or SYNTHETIC_BLOCK_TOKENS
    offsets, ids = _prefix_blocks(session, inputs, prompt_of_session[session], system, block)
    return Requests(times, inputs, outputs, offsets, ids, block, session=session if spec.sessions is not None else None)


def _turn_delays(spec: SessionSpec, outputs: Int, first: Int, turns: Int, rng: np.random.Generator) -> Float:
    """Seconds from a conversation's start to each of its turns."""
    waits = rng.exponential(1.0, len(outputs)) * spec.think_time_s + outputs * spec.read_s_per_token
    total = np.cumsum(waits) - waits
    delays: Float = total - np.repeat(total[first], turns)
    return delays


def _prefix_blocks(session: Int, inputs: Int, prompt: Int, system: int, block: int) -> tuple[Int, Int]:
    """Ids of whole prefix blocks: block j of a prompt has the same id in every later turn of its conversation, and in
    every request with the same system prompt while j lies within it."""
    counts = inputs // block
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    widest = int(counts.max()) if len(counts) else 0
    shared_blocks = system // block
    owner = np.repeat(session, counts)
    ids = (owner + 1) * widest + place
    num_sessions = int(session.max()) + 1 if len(session) else 0
    shared = place < shared_blocks
    ids[shared] = (
        (num_sessions + 1) * widest + np.repeat(prompt, counts)[shared] * max(1, shared_blocks) + place[shared]
    )
    return offsets, np.unique(ids, return_inverse=True)[1].astype(np.int64)


def merge_classes(parts: Sequence[Requests], names: Sequence[str]) -> Requests:
    """Several loads as one, sorted by arrival, each its own request class; prefixes and sessions stay apart.

    Raises:
        InputError: the parts count prefix blocks of different sizes.
    """
    with_hashes = [p for p in parts if p.hash_offsets is not None]
    blocks = {p.hash_block_tokens for p in with_hashes}
    if len(blocks) > 1:
        raise InputError(f"classes have prefix blocks of {' and '.join(map(str, sorted(blocks)))} tokens",
                         remedy="the same hash_block_tokens in each")  # fmt: skip
    counts, ids, sessions, next_id, next_session = [], [], [], 0, 0
    for part in parts:
        num = len(part)
        part_ids = part.hash_ids if part.hash_ids is not None else np.zeros(0, dtype=np.int64)
        counts.append(np.diff(part.hash_offsets) if part.hash_offsets is not None else np.zeros(num, dtype=np.int64))
        dense = np.unique(part_ids, return_inverse=True)[1].astype(np.int64)
        ids.append(dense + next_id)
        next_id += int(dense.max(initial=-1)) + 1
        own = part.session if part.session is not None else np.arange(num)
        sessions.append(own + next_session)
        next_session += int(own.max(initial=-1)) + 1
    joined = Requests(
        arrival_s=np.concatenate([p.arrival_s for p in parts]),
        input_tokens=np.concatenate([p.input_tokens for p in parts]),
        output_tokens=np.concatenate([p.output_tokens for p in parts]),
        hash_offsets=np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64) if with_hashes else None,
        hash_ids=np.concatenate(ids) if with_hashes else None,
        hash_block_tokens=blocks.pop() if blocks else 512,
        request_class=np.repeat(np.arange(len(parts)), [len(p) for p in parts]),
        class_names=tuple(names),
        session=np.concatenate(sessions) if any(p.session is not None for p in parts) else None,
    )
    return take(joined, np.argsort(joined.arrival_s, kind="stable"))


def rate_factor(spec: WorkloadSpec) -> Callable[[float], float] | None:
    """Growth, weekly rhythm and flash crowds as one factor of the time (s); None where there are none."""
    if spec.growth is None and spec.week is None and not spec.flash_crowds:
        return None
    yearly = np.log1p(spec.growth.per_year) if spec.growth is not None else 0.0
    week, crowds = spec.week, spec.flash_crowds

    def factor(time_s: float) -> float:
        value = float(np.exp(yearly * time_s / (HOURS_PER_YEAR * SECONDS_PER_HOUR)))
        if week is not None:
            hour = (time_s / SECONDS_PER_HOUR + week.start_hour) % 168
            value *= week.hour_factors[int(hour % 24)] if week.hour_factors else 1.0
            value *= week.day_factors[int(hour // 24)] if week.day_factors else 1.0
        for crowd in crowds:
            ramp = max(crowd.ramp_s, 1e-9)
            into = min((time_s - crowd.at_s) / ramp, (crowd.at_s + crowd.duration_s - time_s) / ramp)
            value *= 1.0 + (crowd.factor - 1.0) * min(1.0, max(0.0, into))
        return value

    return factor
