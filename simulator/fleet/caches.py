"""Caches in front of the replicas: answers given before (result cache) and answers to similar questions (semantic)."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError
from simulator.workload.requests import Requests


@dataclass(frozen=True)
class ResultCacheConfig:
    """Answers of deterministic requests, by their whole prompt.

    Attributes:
        ttl_s: an answer is stale so long after it was made; None: never.
        max_entries: answers kept; policy: which one goes when it is full.
        lookup_s: time of a look-up, hit or miss.
        deterministic_share: share of the requests whose answer may be reused (temperature 0).
    """

    max_entries: int = 10_000
    ttl_s: float | None = None
    policy: Literal["lru", "lfu"] = "lru"
    lookup_s: float = 0.0
    deterministic_share: float = 1.0


@dataclass(frozen=True)
class SemanticCacheConfig:
    """Answers to questions whose embedding is near enough.

    What a threshold means depends on the embedding and the traffic, so the user gives a measured curve; the rates at
    ``threshold`` are interpolated on it.

    Attributes:
        threshold: similarity from which a stored answer is given.
        curve: (threshold, hit rate, false hit rate) points, both as shares of all look-ups; a false hit is an answer
            to another question.
        lookup_s: embedding and search, on hits and misses.
    """

    threshold: float
    curve: tuple[tuple[float, float, float], ...]
    lookup_s: float = 0.0

    def rates(self) -> tuple[float, float]:
        """(hit rate, false hit rate) at the threshold.

        Raises:
            InputError: the curve is empty, no pair of shares, or does not reach the threshold.
        """
        points = sorted(self.curve)
        if not points or not points[0][0] <= self.threshold <= points[-1][0]:
            raise InputError(
                f"the curve does not reach threshold {self.threshold:g}",
                where="caches.semantic",
                why="beyond what was measured the hit rate is not known",
                remedy="curve: [[0.80, 0.60, 0.03], [0.90, 0.40, 0.01]] around the threshold",
            )
        if any(not 0 <= false <= hit <= 1 for _, hit, false in points):
            raise InputError(
                "the curve's rates are not shares with false hits among the hits",
                where="caches.semantic",
                remedy="[threshold, hit rate, false hit rate] with 0 <= false hit rate <= hit rate <= 1",
            )
        x, hit, false = (np.array(c) for c in zip(*points, strict=True))
        return float(np.interp(self.threshold, x, hit)), float(np.interp(self.threshold, x, false))


@dataclass
class CacheCount:
    """What a cache did. Tokens are those that no replica had to compute."""

    lookups: int = 0
    hits: int = 0
    false_hits: int = 0
    input_tokens_saved: int = 0
    output_tokens_saved: int = 0

    def saved(self, requests: Requests, i: int) -> None:
        """Count a hit."""
        self.hits += 1
        self.input_tokens_saved += int(requests.input_tokens[i])
        self.output_tokens_saved += int(requests.output_tokens[i])

    @property
    def hit_rate(self) -> float:
        """Hits over look-ups."""
        return self.hits / self.lookups if self.lookups else 0.0


@dataclass
class ResultCache:
    """Stored answers by key; least recently or least frequently used goes first (ties: the older use)."""

    config: ResultCacheConfig
    _entries: OrderedDict[int, tuple[float, int, int]] = field(default_factory=OrderedDict)  # made at, uses, order
    _by_use: list[tuple[int, int, int]] = field(default_factory=list)  # heap of (uses, order, key)
    _order: int = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: int, now_s: float) -> bool:
        """Whether a fresh answer is stored; counts as a use."""
        found = self._entries.get(key)
        if found is None:
            return False
        made_s, uses, _ = found
        if self.config.ttl_s is not None and now_s - made_s > self.config.ttl_s:
            del self._entries[key]
            return False
        self._store(key, made_s, uses + 1)
        return True

    def put(self, key: int, now_s: float) -> None:
        """Store an answer, pushing another out if need be."""
        if self.config.max_entries < 1:
            return
        uses = self._entries[key][1] if key in self._entries else 0
        if key not in self._entries and len(self._entries) >= self.config.max_entries:
            self._evict()
        self._store(key, now_s, uses + 1)

    def _store(self, key: int, made_s: float, uses: int) -> None:
        self._order += 1
        self._entries[key] = (made_s, uses, self._order)
        self._entries.move_to_end(key)
        if self.config.policy == "lfu":
            heapq.heappush(self._by_use, (uses, self._order, key))

    def _evict(self) -> None:
        if self.config.policy == "lru":
            self._entries.popitem(last=False)
            return
        while True:
            uses, order, key = heapq.heappop(self._by_use)
            found = self._entries.get(key)
            if found is not None and found[1:] == (uses, order):
                del self._entries[key]
                return


def prompt_keys(requests: Requests, num_prompts: int | None, zipf: float, seed: int) -> NDArray[np.int64]:
    """A key a request; equal keys are equal prompts.

    With ``num_prompts`` they are drawn with popularity ``1 / rank**zipf``; else they are the trace's prefix blocks,
    whole and in order, with the prompt's length.

    Raises:
        InputError: neither is known.
    """
    if num_prompts is not None:
        weights = np.arange(1, num_prompts + 1, dtype=float) ** -zipf
        rng = np.random.default_rng([seed, 0x0CAC])
        return np.searchsorted(np.cumsum(weights) / weights.sum(), rng.uniform(size=len(requests))).astype(np.int64)
    if requests.hash_offsets is None or requests.hash_ids is None:
        raise InputError(
            "nothing says which prompts are equal",
            where="caches.result",
            why="a result cache answers a prompt that was asked before",
            remedy="a trace with hash_ids, or popularity: {num_prompts: 10000, zipf: 1.0}",
        )
    seen: dict[tuple[int, ...], int] = {}
    offsets, ids = requests.hash_offsets, requests.hash_ids
    keys = np.empty(len(requests), np.int64)
    for i in range(len(requests)):
        prompt = (int(requests.input_tokens[i]), *ids[offsets[i] : offsets[i + 1]].tolist())
        keys[i] = seen.setdefault(prompt, len(seen))
    return keys


@dataclass
class Caches:
    """Both caches as the gateway asks them, result cache first."""

    requests: Requests
    seed: int
    result: ResultCacheConfig | None = None
    semantic: SemanticCacheConfig | None = None
    num_prompts: int | None = None
    zipf: float = 1.0
    counts: dict[str, CacheCount] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 0x5EAC])
        n = len(self.requests)
        if self.result is not None:
            self._store = ResultCache(self.result)
            self._keys: Sequence[int] = prompt_keys(self.requests, self.num_prompts, self.zipf, self.seed).tolist()
            self._reusable = rng.uniform(size=n) < self.result.deterministic_share
            self.counts["result"] = CacheCount()
        if self.semantic is not None:
            self._hit, self._false = self.semantic.rates()
            self._draw = rng.uniform(size=n)
            self.counts["semantic"] = CacheCount()

    def ask(self, i: int, now_s: float) -> tuple[bool, float]:
        """(whether an answer was found, seconds spent looking)."""
        spent = 0.0
        if self.result is not None and self._reusable[i]:
            count = self.counts["result"]
            count.lookups += 1
            spent += self.result.lookup_s
            if self._store.get(self._keys[i], now_s):
                count.saved(self.requests, i)
                return True, spent
        if self.semantic is not None:
            count = self.counts["semantic"]
            count.lookups += 1
            spent += self.semantic.lookup_s
            if self._draw[i] < self._hit:
                count.saved(self.requests, i)
                count.false_hits += int(self._draw[i] < self._false)
                return True, spent
        return False, spent

    def ended(self, i: int, now_s: float) -> None:
        """A replica has answered: store it."""
        if self.result is not None and self._reusable[i]:
            self._store.put(self._keys[i], now_s)
