"""The demand as the optimizer sees it: request sizes as buckets, and which buckets one line may serve together.

A gateway knows a request's class and prompt length when it arrives, never its output length: so buckets are classes
and ranges of input tokens, and each bucket keeps its own mix of output lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError
from simulator.workload.requests import Requests
from simulator.workload.traces import take

CUTS = (0.6, 0.92)  # quantiles of input tokens that part short, middle and long prompts
MIN_BUCKET_REQUESTS = 200  # fewer say nothing about a percentile
Pattern = tuple[int, ...]  # the buckets that one line serves


@dataclass(frozen=True)
class Demand:
    """A workload cut into buckets.

    Attributes:
        requests: the whole workload.
        bucket: (n,) bucket of each request.
        names: of the buckets.
        duration_s: over which rates are taken.
        length_cuts: input tokens at which prompts are parted.
        patterns: sets of buckets that may share machines.
    """

    requests: Requests
    bucket: NDArray[np.int64]
    names: tuple[str, ...]
    duration_s: float
    length_cuts: tuple[int, ...]
    patterns: tuple[Pattern, ...]

    @cached_property
    def rate_rps(self) -> NDArray[np.float64]:
        """(S,) mean requests a second."""
        return np.bincount(self.bucket, minlength=len(self.names)) / self.duration_s

    @cached_property
    def mean_tokens(self) -> NDArray[np.float64]:
        """(S, 2) mean input and output tokens."""
        num = np.maximum(np.bincount(self.bucket, minlength=len(self.names)), 1)
        sums = [
            np.bincount(self.bucket, weights=tokens.astype(float), minlength=len(self.names))
            for tokens in (self.requests.input_tokens, self.requests.output_tokens)
        ]
        return np.stack([s / num for s in sums], axis=1)

    @property
    def output_tokens_per_s(self) -> float:
        """Tokens generated a second."""
        return float(self.requests.output_tokens.sum() / self.duration_s)

    def part(self, pattern: Pattern) -> Requests:
        """The requests of some buckets."""
        if len(pattern) == len(self.names):
            return self.requests
        return take(self.requests, np.flatnonzero(np.isin(self.bucket, pattern)))

    def rate_of(self, pattern: Pattern) -> float:
        """Mean requests a second of some buckets."""
        return float(self.rate_rps[list(pattern)].sum())

    def pattern_name(self, pattern: Pattern) -> str:
        """In words."""
        if len(pattern) == len(self.names):
            return "all"
        return ", ".join(self.names[b] for b in pattern)


def demand_of(requests: Requests, split_lengths: bool = True) -> Demand:
    """Cut a workload into buckets by class and input length.

    Raises:
        InputError: a closed loop, whose rate depends on the fleet.
    """
    if requests.concurrency is not None:
        raise InputError(
            "a closed loop has no rate to plan for",
            where="workload.arrivals",
            why="its rate follows from the fleet",
            remedy="plan for an open load (poisson, a trace); simulate the closed loop with `plan simulate`",
        )
    cuts = _cuts(requests.input_tokens) if split_lengths else ()
    length = np.searchsorted(np.asarray(cuts), requests.input_tokens, side="left")
    kind = requests.request_class if requests.request_class is not None else np.zeros(len(requests), np.int64)
    bands = len(cuts) + 1
    raw = kind * bands + length
    present, bucket = np.unique(raw, return_inverse=True)
    many_classes = len(np.unique(kind)) > 1
    names, groups = [], []
    for code in present:
        k, band = divmod(int(code), bands)
        words = [requests.class_names[k]] if many_classes else []
        names.append(" ".join(words + ([_band_name(cuts, band)] if cuts else [])) or "all")
        groups.append((k, band))
    span = float(requests.arrival_s[-1] - requests.arrival_s[0]) if len(requests) > 1 else 1.0
    span = span * len(requests) / max(1, len(requests) - 1) or 1.0
    patterns = _patterns(groups, bands)
    return Demand(requests, bucket.astype(np.int64), tuple(names), span, tuple(int(c) for c in cuts), patterns)


def _cuts(input_tokens: NDArray[np.int64]) -> tuple[int, ...]:
    """Lengths that part prompts; none where all are much alike or requests are few."""
    low, high = np.quantile(input_tokens, [0.1, 0.95])
    if high < 1.5 * low:
        return ()
    cuts = sorted({int(np.quantile(input_tokens, q, method="lower")) for q in CUTS})
    kept: list[int] = []
    for cut in cuts:
        below = (input_tokens <= cut) & (input_tokens > (kept[-1] if kept else 0))
        if below.sum() >= MIN_BUCKET_REQUESTS and (input_tokens > cut).sum() >= MIN_BUCKET_REQUESTS:
            kept.append(cut)
    return tuple(kept)


def _band_name(cuts: Sequence[int], band: int) -> str:
    if band == 0:
        return f"input <= {cuts[0]}"
    if band == len(cuts):
        return f"input > {cuts[-1]}"
    return f"input {cuts[band - 1] + 1}-{cuts[band]}"


def _patterns(groups: Sequence[tuple[int, int]], bands: int) -> tuple[Pattern, ...]:
    """Everything together; each class alone; each contiguous range of lengths over all classes."""
    kinds = sorted({k for k, _ in groups})
    found = {tuple(range(len(groups)))}
    for k in kinds:
        found.add(tuple(i for i, (kind, _) in enumerate(groups) if kind == k))
    for first in range(bands):
        for last in range(first, bands):
            found.add(tuple(i for i, (_, band) in enumerate(groups) if first <= band <= last))
    return tuple(sorted((p for p in found if p), key=lambda p: (-len(p), p)))
