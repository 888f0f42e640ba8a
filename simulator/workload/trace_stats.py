"""Describes a workload in one pass: counts, rate, lengths, burstiness, prefix sharing, classes.

Lengths are counted value by value, so percentiles are exact and memory does not grow with the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.workload.requests import Requests
from simulator.workload.traces import Piece, TraceReader

WINDOWS_S = (1.0, 10.0, 60.0, 600.0, 3600.0)
PERCENTILES = (50, 90, 95, 99)
MAX_HASH_IDS = 8_000_000  # ids kept in memory; beyond it, a known share of all ids is followed
Int = NDArray[np.int64]


class Lengths:
    """How often each length occurred."""

    def __init__(self) -> None:
        self.counts: Int = np.zeros(0, dtype=np.int64)

    def add(self, values: Int) -> None:
        new = np.bincount(values, minlength=len(self.counts))
        new[: len(self.counts)] += self.counts
        self.counts = new

    def summary(self) -> dict[str, float]:
        """Mean, coefficient of variation, minimum, maximum and percentiles (the smallest length with that share)."""
        total = int(self.counts.sum())
        values = np.arange(len(self.counts), dtype=np.float64)
        mean = float(values @ self.counts) / total
        variance = float((values - mean) ** 2 @ self.counts) / total
        shares = np.cumsum(self.counts) / total
        present = np.flatnonzero(self.counts)
        answer: dict[str, float] = {"mean": mean, "cv": variance**0.5 / mean if mean else 0.0, "min": int(present[0])}
        answer |= {f"p{p}": int(np.searchsorted(shares, p / 100 - 1e-12)) for p in PERCENTILES}
        return answer | {"max": int(present[-1])}


class Arrivals:
    """Interarrival moments and counts in windows of several sizes, for arrivals that come in order."""

    def __init__(self, windows_s: Sequence[float] = WINDOWS_S) -> None:
        self.num, self.first_s, self.last_s = 0, 0.0, 0.0
        self._gaps = self._gaps_squared = 0.0
        self._windows = {
            w: [0, 0.0, 0.0] for w in windows_s
        }  # window being filled, its count, sum of squares before it
        self.peaks = dict.fromkeys(windows_s, 0)

    def add(self, arrival_s: NDArray[np.float64]) -> None:
        if not self.num:
            self.first_s = self.last_s = float(arrival_s[0])
        gaps = np.diff(arrival_s, prepend=self.last_s)
        self._gaps += float(gaps.sum())
        self._gaps_squared += float(gaps @ gaps)
        self.num += len(arrival_s)
        self.last_s = float(arrival_s[-1])
        for width, state in self._windows.items():
            bins, counts = np.unique(((arrival_s - self.first_s) // width).astype(np.int64), return_counts=True)
            if bins[0] == state[0]:
                counts[0] += int(state[1])
                closed = counts[:-1]
            else:
                closed = np.append(counts[:-1], int(state[1]))
            state[2] += float((closed.astype(np.float64) ** 2).sum())
            state[0], state[1] = int(bins[-1]), int(counts[-1])
            self.peaks[width] = max(self.peaks[width], int(counts.max()))

    @property
    def duration_s(self) -> float:
        return self.last_s - self.first_s

    def interarrival_cv(self) -> float | None:
        """Standard deviation of the gaps over their mean; 1 for a Poisson process."""
        if self.num < 3 or self._gaps == 0:
            return None
        mean = self._gaps / (self.num - 1)
        return float(max(0.0, self._gaps_squared / (self.num - 1) - mean**2) ** 0.5 / mean)

    def windows(self) -> list[dict[str, float]]:
        """Index of dispersion (variance over mean of the counts; 1 for Poisson) and peak over mean, by window.

        A window counts if at least 8 whole ones fit; the last, partial one is left out.
        """
        answer = []
        for width, (_, last_count, squares) in self._windows.items():
            whole = int(self.duration_s // width)
            if whole < 8:
                continue
            mean = (self.num - last_count) / whole
            variance = max(0.0, squares / whole - mean**2)
            if mean > 0:
                row = {
                    "window_s": width,
                    "index_of_dispersion": variance / mean,
                    "peak_to_mean": self.peaks[width] / mean,
                }
                answer.append(row)
        return answer


class PrefixSharing:
    """Share of prompt blocks that an infinite cache would hold already (a block is known when its id was seen).

    When more than ``MAX_HASH_IDS`` ids are known, only ids whose hash is a multiple of a growing power of two are
    followed (spatial sampling, Waldspurger et al., FAST 2015), which keeps the estimate unbiased in bounded memory.
    """

    def __init__(self) -> None:
        self._seen: Int = np.zeros(0, dtype=np.int64)
        self._mask = np.uint64(0)
        self.num_blocks = self.num_hits = 0

    @property
    def sampled_share(self) -> float:
        return 1.0 / (int(self._mask) + 1)

    def add(self, hash_ids: Int) -> None:
        ids = self._followed(hash_ids)
        unique = np.unique(ids)
        if len(self._seen):
            places = np.minimum(np.searchsorted(self._seen, unique), len(self._seen) - 1)
            new = unique[self._seen[places] != unique]
        else:
            new = unique
        self.num_blocks += len(ids)
        self.num_hits += len(ids) - len(new)
        self._seen = np.sort(np.concatenate([self._seen, new]), kind="stable")
        while len(self._seen) > MAX_HASH_IDS:
            before = self.sampled_share
            self._mask = (self._mask << np.uint64(1)) | np.uint64(1)
            self._seen = self._followed(self._seen)
            self.num_blocks = round(self.num_blocks * self.sampled_share / before)
            self.num_hits = round(self.num_hits * self.sampled_share / before)

    def _followed(self, ids: Int) -> Int:
        if not self._mask:
            return ids
        mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        followed: Int = ids[((mixed >> np.uint64(32)) & self._mask) == 0]
        return followed

    def summary(self) -> dict[str, float]:
        blocks = max(1, self.num_blocks)
        return {"infinite_cache_hit_rate": self.num_hits / blocks, "num_hash_ids": round(blocks / self.sampled_share),
                "sampled_share": self.sampled_share}  # fmt: skip


class Description:
    """All of the above, fed piece by piece."""

    def __init__(self) -> None:
        self.arrivals, self.inputs, self.outputs = Arrivals(), Lengths(), Lengths()
        self.prefixes: PrefixSharing | None = None
        self._classes: dict[int, tuple[Lengths, Lengths]] = {}
        self._sessions: Int = np.zeros(0, dtype=np.int64)
        self._has_sessions = False

    def add(self, piece: Piece) -> None:
        self.arrivals.add(piece.arrival_s)
        self.inputs.add(piece.input_tokens)
        self.outputs.add(piece.output_tokens)
        if piece.hash_ids is not None:
            self.prefixes = self.prefixes or PrefixSharing()
            self.prefixes.add(piece.hash_ids)
        if piece.request_class is not None:
            for number in np.unique(piece.request_class):
                of_class = piece.request_class == number
                inputs, outputs = self._classes.setdefault(int(number), (Lengths(), Lengths()))
                inputs.add(piece.input_tokens[of_class])
                outputs.add(piece.output_tokens[of_class])
        if piece.session is not None:
            self._has_sessions = True
            self._sessions = np.union1d(self._sessions, piece.session)

    def document(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The description as plain data."""
        arrivals, num = self.arrivals, self.arrivals.num
        duration = arrivals.duration_s
        rate = (num - 1) / duration if duration > 0 else None
        answer: dict[str, Any] = {
            "num_requests": num,
            "duration_s": duration,
            "rate_rps": rate,
            "input_tokens": self.inputs.summary(),
            "output_tokens": self.outputs.summary(),
            "burstiness": {"interarrival_cv": arrivals.interarrival_cv(), "windows": arrivals.windows()},
            "prefix_sharing": None if self.prefixes is None else self.prefixes.summary(),
        }
        if rate is not None:
            answer["input_tokens_per_s"] = rate * answer["input_tokens"]["mean"]
            answer["output_tokens_per_s"] = rate * answer["output_tokens"]["mean"]
        answer["by_class"] = {
            class_names[number]: {
                "num_requests": int(inputs.counts.sum()),
                "rate_rps": inputs.counts.sum() / duration if duration > 0 else None,
                "input_tokens": inputs.summary(),
                "output_tokens": outputs.summary(),
            }
            for number, (inputs, outputs) in sorted(self._classes.items())
        }
        answer["num_sessions"] = len(self._sessions) if self._has_sessions else None
        return answer


def describe(requests: Requests) -> dict[str, Any]:
    """Describe a workload that is in memory; see ``Description.document``."""
    counts = None if requests.hash_offsets is None else np.diff(requests.hash_offsets)
    piece = Piece(
        requests.arrival_s, requests.input_tokens, requests.output_tokens, counts, requests.hash_ids,
        requests.request_class, requests.session,
    )  # fmt: skip
    return _described([piece], requests.class_names)


def describe_file(path: str | Path, *, sort: bool = False) -> dict[str, Any]:
    """Describe a trace file piece by piece, so that its size does not matter.

    Raises:
        InputError: see ``TraceReader``; with ``sort`` the whole file is read into memory.
    """
    if sort:
        from simulator.workload.traces import read_trace

        answer = describe(read_trace(path, sort=True))
        return {"trace": str(path), **answer}
    reader = TraceReader(path)
    description = Description()
    for piece in reader:
        description.add(piece)
    answer = description.document(reader.class_names)
    return {"trace": str(path), "layout": reader.layout.name, "num_failed_left_out": reader.num_dropped, **answer}


def _described(pieces: Iterable[Piece], class_names: Sequence[str]) -> dict[str, Any]:
    description = Description()
    for piece in pieces:
        description.add(piece)
    return description.document(class_names)


def arrivals_per_window(requests: Requests, num_windows: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The arrival rate over a workload's length.

    Returns:
        (num_windows,) starts of the windows in seconds, (num_windows,) requests per second in each.
    """
    end_s = float(requests.arrival_s[-1]) if len(requests) else 0.0
    counts, edges = np.histogram(requests.arrival_s, bins=num_windows, range=(0.0, max(end_s, 1e-9)))
    return edges[:-1], counts / np.diff(edges)


def prefix_hits_per_window(
    requests: Requests, num_windows: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """How much of the prompts an infinite cache would hold already, over a workload's length.

    Returns:
        starts of the windows with prompt blocks in seconds, and the share of each window's blocks that were seen
        before; None for a workload without prefix blocks.
    """
    if requests.hash_offsets is None or requests.hash_ids is None:
        return None
    starts = np.linspace(0.0, max(float(requests.arrival_s[-1]), 1e-9), num_windows + 1)[:-1]
    rows = np.append(np.searchsorted(requests.arrival_s, starts), len(requests))
    sharing, at_s, shares = PrefixSharing(), [], []
    for start, first, last in zip(starts, rows[:-1], rows[1:], strict=True):
        blocks, hits = sharing.num_blocks, sharing.num_hits
        sharing.add(requests.hash_ids[requests.hash_offsets[first] : requests.hash_offsets[last]])
        if sharing.num_blocks > blocks:
            at_s.append(float(start))
            shares.append((sharing.num_hits - hits) / (sharing.num_blocks - blocks))
    return np.array(at_s), np.array(shares)
