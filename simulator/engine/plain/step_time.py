"""The time of one step in plain Python, for the reference (see ``calibrate.step.StepTable``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibrate.step import StepTable, attention_at
from simulator.engine.plain.job import Step
from simulator.engine.replica_spec import ReplicaSpec


def row(values: np.ndarray, i: int) -> float:
    """``values[i]``, extended linearly beyond the end."""
    last = len(values) - 1
    return float(values[i] if i <= last else values[last] + (values[last] - values[last - 1]) * (i - last))


def token_wise_s(table: StepTable, tokens: int, mixed: bool) -> float:
    """Seconds of all layers that see single tokens; ``mixed``: prompt tokens are among them."""
    return row(table.mixed_tokens_s if mixed else table.decode_tokens_s, tokens)


def experts_s(table: StepTable, tokens: int) -> float:
    """Seconds of the experts that lock-step ranks share, at all their tokens."""
    return 0.0 if table.experts_s is None else row(table.experts_s, tokens)


@dataclass(frozen=True)
class Work:
    """What a step computes, as its time depends on it; ``contexts`` holds (some of) the decoding sequences' own."""

    prefill: int
    prefill_work: float
    num_decode: int
    contexts: Sequence[float]
    decode_tokens: int
    sampled: int
    sequences: int


def step_time_s(table: StepTable, step: Work) -> float:
    """Seconds of a step (see ``StepTable``)."""
    prefill, contexts, decode = step.prefill, step.contexts, step.num_decode
    mean_keys = step.prefill_work / prefill if prefill else 0.0
    point = [prefill, mean_keys, decode, float(np.mean(contexts)) if decode else 0.0]
    time = token_wise_s(table, prefill + step.decode_tokens, prefill > 0)
    time += row(table.sampled_s, step.sampled)
    at_mean = attention_at(table, point)
    time += at_mean + skew_time_s(table, point, contexts, at_mean)
    return time + table.overhead_s + table.overhead_per_sequence_s * step.sequences


def engine_step_s(spec: ReplicaSpec, step: Step) -> float:
    """Seconds of a step of an engine: the model's, and the drafter's passes where it speculates."""
    prefill = step.num_prefill_tokens
    prefill_work = sum(tokens * (before + 0.5 * tokens) for _, tokens, before in step.chunks)
    decodes, sequences = len(step.decodes), len(step.decodes) + len(step.chunks)
    ending = len(step.sampling) - decodes
    sampled = step.num_decode_tokens + ending
    work = Work(prefill, prefill_work, decodes, step.contexts, step.num_decode_tokens, sampled, sequences)
    time = step_time_s(spec.step_table, work)
    draft = None if spec.speculation is None else spec.speculation.draft_table
    if draft is None or spec.speculation is None:
        return time
    drafting = decodes + ending
    time += step_time_s(draft, replace(work, sampled=drafting))
    if drafting:
        contexts: Sequence[float] = step.contexts or [2.0 * prefill_work / prefill]
        one = Work(0, 0.0, drafting, contexts, drafting, drafting, drafting)
        time += (spec.speculation.num_speculative_tokens - 1) * step_time_s(draft, one)
    return time


@dataclass
class Rectangle:
    """The padded batch under way: its rows, and their tokens so far."""

    rows: int = 0
    tokens: int = 0

    def step_s(self, spec: ReplicaSpec, step: Step) -> float:
        """Seconds of its first step, or of the next token of every row."""
        if step.chunks:
            bucket = spec.length_bucket or 1
            self.tokens = max(-(-(before + tokens) // bucket) * bucket for _, tokens, before in step.chunks)
            self.rows = max(len(step.chunks), spec.max_num_seqs if spec.pad_batch else 0)
            area = self.rows * self.tokens
            return step_time_s(spec.step_table, Work(area, 0.5 * area * self.tokens, 0, [], 0, self.rows, self.rows))
        self.tokens += 1
        work = Work(0, 0.0, self.rows, [self.tokens], self.rows, self.rows, self.rows)
        return step_time_s(spec.step_table, work)


def uniform(seed: int, i: int, draw: int) -> float:
    """The uniform number of a request's nth step of speculation, as ``draws.uniform`` has it."""
    mask = 2**64 - 1
    z = (seed * 0x9E3779B97F4A7C15 + (i + 1) * 0xD1342543DE82EF95 + (draw + 1) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    return (z >> 11) / 2**53


def skew_time_s(table: StepTable, point: Sequence[float], contexts: Sequence[float], at_mean: float) -> float:
    """What unequal contexts add (see ``SkewTable``)."""
    skew = table.skew
    if skew is None or point[2] < 2 or max(contexts) == min(contexts):
        return 0.0
    low, high = min(contexts), max(contexts)
    values = (point[0], point[2], (point[3] - low) / (high - low), high)
    place = tuple(
        min(int(np.searchsorted(edges, x)), len(edges) - 1) for edges, x in zip(skew[:4], values, strict=True)
    )
    return float(skew.alpha[place]) * (attention_at(table, [*point[:3], high]) - at_mean)
