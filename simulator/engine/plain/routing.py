"""The routers in plain Python, for the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from simulator.engine.front_end import UPDATE_S
from simulator.engine.plain.replica import Engine
from simulator.engine.routing import OVERLOAD, RouterOptions
from simulator.workload.requests import Requests

M64 = 2**64 - 1


class FrontEnd:
    """Chooses a rank of a data-parallel replica as ``simulator.engine.front_end`` does."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = engines
        self.load, self.told_s = [0] * len(engines), 0.0

    def choose(self, now: float) -> Engine:
        """The rank that takes a request."""
        told_s = math.floor(now / UPDATE_S) * UPDATE_S
        if told_s > self.told_s:
            self.told_s = told_s
            self.load = [next(load for at_s, load in reversed(e.loads) if at_s < told_s) for e in self.engines]
        best = self.load.index(min(self.load))
        self.load[best] += 4
        return self.engines[best]


class PlainRouter:
    """Chooses replicas as ``simulator.engine.routing`` does."""

    def __init__(
        self, name: str, engines: Sequence[Engine], requests: Requests, options: RouterOptions, seed: int
    ) -> None:
        self.name, self.engines, self.requests = name, engines, requests
        r = len(engines)
        self.weights = np.ones((1, r)) if options.weights is None else np.atleast_2d(options.weights).astype(float)
        self.groups = options.groups
        self.credit = np.zeros_like(self.weights)
        self.staleness_s, self.taken_s = options.staleness_s, -np.inf
        self.load, self.kv_share = [0.0] * r, [0.0] * r
        self.turn = 0
        self.state = (2 * seed + 1) & M64

    def random(self) -> float:
        """splitmix64."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & M64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
        z ^= z >> 31
        return (z >> 11) / 2**53

    def look(self, now: float) -> None:
        if now >= self.taken_s + self.staleness_s:
            self.taken_s = now
            self.load = [sum(batch.load for batch in engine.batches) for engine in self.engines]
            self.kv_share = [engine.kv_share for engine in self.engines]

    def least(self, values: Sequence[float], group: int) -> int:
        able = [r for r in range(len(self.engines)) if self.weights[group, r] > 0]
        return min(able, key=lambda r: (values[r] / self.weights[group, r], r))

    def key(self, i: int) -> int:
        requests = self.requests
        if self.name == "session_affinity":
            return -1 if requests.session is None else int(requests.session[i])
        if requests.hash_offsets is None or requests.hash_ids is None:
            return -1
        first = int(requests.hash_offsets[i])
        return int(requests.hash_ids[first]) if requests.hash_offsets[i + 1] > first else -1

    def home(self, key: int) -> int:
        z = ((key & M64) * 0x9E3779B97F4A7C15) & M64
        z = ((z ^ (z >> 29)) * 0xBF58476D1CE4E5B9) & M64
        return ((z ^ (z >> 32)) >> 1) % len(self.engines)

    def choose(self, i: int, now: float) -> int:
        """The replica that request i goes to."""
        num, group = len(self.engines), 0 if self.groups is None else int(self.groups[i])
        if self.name in ("least_loaded", "power_of_two", "least_kv", "prefix_affinity"):
            self.look(now)
        if self.name == "least_loaded":
            return self.least(self.load, group)
        if self.name == "least_kv":
            return self.least(self.kv_share, group)
        if self.name == "weighted":
            self.credit[group] += self.weights[group]
            able = [r for r in range(num) if self.weights[group, r] > 0]
            best = max(able, key=lambda r: (self.credit[group, r], -r))
            self.credit[group, best] -= self.weights[group].sum()
            return best
        if self.name == "random":
            return int(self.random() * num)
        if self.name == "power_of_two" and num > 1:
            a = int(self.random() * num)
            b = int(self.random() * (num - 1))
            b += b >= a
            w = self.weights[group]
            return b if self.load[b] * w[a] < self.load[a] * w[b] else a
        if self.name in ("prefix_affinity", "session_affinity") and self.key(i) >= 0:
            home = self.home(self.key(i))
            crowded = self.load[home] > OVERLOAD * (sum(self.load) / num) + 1.0
            return self.least(self.load, group) if self.name == "prefix_affinity" and crowded else home
        self.turn += 1
        return (self.turn - 1) % num
