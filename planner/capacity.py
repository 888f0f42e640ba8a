"""The highest rate that one replica sustains within the promise, by simulation on the workload's own shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from planner import bounds
from planner.demand import Demand, Pattern
from planner.store import CapacityStore
from simulator.engine import ReplicaSpec, simulate_replicas
from simulator.metrics import Latencies, class_mask, promised_percentile
from simulator.replicas import Line
from simulator.scaling import scale_requests
from simulator.workload import Requests, Slo

METHOD = 3  # raise it when the search changes, so that kept capacities are found anew
TOLERANCE = 0.03  # relative width at which the search stops
MAX_REPLICAS = 6  # searched together at most; more only pool better
TARGET_REQUESTS = 12000  # a search simulates about this many at most
TPOT_SLACK = 1.3  # a percentile lets some requests be slower than its limit; see rate_bound
MIN_REQUESTS = 50


@dataclass
class Capacities:
    """Answers what a replica sustains; remembers on disk.

    Attributes:
        demand: the workload.
        slos: the promise.
        router: between replicas.
        seed: of the simulations.
        store: kept capacities.
        simulations: how many were run, not counting what was remembered.
    """

    demand: Demand
    slos: tuple[Slo, ...]
    router: str
    seed: int
    store: CapacityStore
    simulations: int = 0
    _parts: dict[Pattern, Requests] = field(default_factory=dict)
    _spec_hashes: dict[int, str] = field(default_factory=dict)
    _hashes: dict[Pattern, str] = field(default_factory=dict)
    _bounds: dict[tuple[int, Pattern], float] = field(default_factory=dict)

    def part(self, pattern: Pattern) -> Requests:
        """The requests of some buckets."""
        if pattern not in self._parts:
            self._parts[pattern] = self.demand.part(pattern)
        return self._parts[pattern]

    def floors(self, line: Line, pattern: Pattern) -> dict[str, float]:
        """The promise's values if every request were alone on such a replica."""
        part = self.part(pattern)
        found = {}
        for slo in self.slos:
            mask = class_mask(part, slo.request_class)
            value = bounds.floor_s(line.spec, part.input_tokens[mask], part.output_tokens[mask], slo)
            if value is not None:
                found[_full_name(slo)] = value
        return found

    def bound_rps(self, line: Line, pattern: Pattern) -> float:
        """A rate that a replica cannot exceed: 0 where a floor is above its limit already."""
        key = (id(line.spec), pattern)
        if key not in self._bounds:
            name = self._key(line, pattern, 0)
            kept = self.store.get(name)
            if kept is None:
                kept = self._bound_rps(line, pattern)
                self.store.put(name, kept)
            self._bounds[key] = kept
        return self._bounds[key]

    def work(self, line: Line, bucket: int) -> float:
        """Relative work of one bucket's request: a perfectly packed replica's seconds for it."""
        name = self._key(line, (bucket,), -1)
        kept = self.store.get(name)
        if kept is None:
            tokens = self.demand.mean_tokens[bucket]
            kept = 1 / max(bounds.rate_bound_rps(line.spec, float(tokens[0]), float(tokens[1]), None), 1e-9)
            self.store.put(name, kept)
        return kept

    def _bound_rps(self, line: Line, pattern: Pattern) -> float:
        part = self.part(pattern)
        if len(part) == 0 or int(part.input_tokens.min()) >= line.spec.max_model_len:
            return 0.0
        limits = {_full_name(s): s.limit_s for s in self.slos}
        if part.hash_ids is None and any(v > limits[n] for n, v in self.floors(line, pattern).items()):
            return 0.0  # with shared prefixes a prompt may cost less than its floor
        tpots = [s.limit_s for s in self.slos if s.metric == "tpot"]
        return bounds.rate_bound_rps(
            line.spec,
            float(part.input_tokens.mean()) if part.hash_ids is None else 1.0,
            float(part.output_tokens.mean()),
            TPOT_SLACK * max(tpots) if tpots else None,
        )

    def rps(self, line: Line, pattern: Pattern) -> float:
        """Requests a second that a replica sustains of this mix, found by simulation; 0: none."""
        bound = self.bound_rps(line, pattern)
        if bound <= 0:
            return 0.0
        num = self._replicas(bound, pattern)
        key = self._key(line, pattern, num)
        kept = self.store.get(key)
        if kept is None:
            kept = self._search(line, pattern, num, bound)
            self.store.put(key, kept)
        return kept

    def holds(self, line: Line, requests: Requests, num_replicas: int) -> bool:
        """Whether that many replicas keep every promise on these requests."""
        self.simulations += 1
        records = simulate_replicas(requests, [line.spec] * num_replicas, self.router, self.seed)
        return keeps(requests, Latencies.of(requests, records), self.slos)

    def _replicas(self, bound: float, pattern: Pattern) -> int:
        rate = self.demand.rate_of(pattern)
        return int(np.clip(round(rate / (0.7 * bound)), 1, MAX_REPLICAS))

    def _search(self, line: Line, pattern: Pattern, num: int, bound: float) -> float:
        """Bisection over the rate of the pattern's requests, on ``num`` replicas together."""
        part, rate = self.part(pattern), self.demand.rate_of(pattern)
        most = max(TARGET_REQUESTS / len(part), 1.0) * rate
        high = min(1.05 * bound * num, most * 4)
        low, factor = 0.0, 0.62
        trial = high * factor
        while trial * len(part) / rate >= MIN_REQUESTS:
            if self.holds(line, _at_rate(part, trial / rate), num):
                low = trial
                break
            high, trial = trial, trial * factor
        if low == 0.0:
            return 0.0
        while high / low > 1 + TOLERANCE:
            middle = float(np.sqrt(low * high))
            if self.holds(line, _at_rate(part, middle / rate), num):
                low = middle
            else:
                high = middle
        return low / num

    def _spec_hash(self, spec: ReplicaSpec) -> str:
        if id(spec) not in self._spec_hashes:
            self._spec_hashes[id(spec)] = spec_hash(spec)
        return self._spec_hashes[id(spec)]

    def _key(self, line: Line, pattern: Pattern, num: int) -> str:
        if pattern not in self._hashes:
            self._hashes[pattern] = hash_requests(self.part(pattern))
        asked = [METHOD, self._spec_hash(line.spec), self._hashes[pattern], num, self.router, self.seed,
                 [(s.metric, s.percentile, s.limit_s, s.request_class) for s in self.slos]]  # fmt: skip
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def keeps(requests: Requests, latencies: Latencies, slos: Sequence[Slo]) -> bool:
    """Whether every promise holds; a promise to a class without requests does."""
    for slo in slos:
        chosen = class_mask(requests, slo.request_class)
        if not chosen.any():
            continue
        found = promised_percentile(
            latencies.of_metric(slo.metric)[chosen], latencies.completed[chosen], slo.percentile
        )
        if found > slo.limit_s:
            return False
    return True


def hash_requests(requests: Requests) -> str:
    """Content hash of a workload."""
    digest = hashlib.sha256()
    for name in ("arrival_s", "input_tokens", "output_tokens", "hash_offsets", "hash_ids", "request_class", "session"):
        values = getattr(requests, name)
        digest.update(name.encode() + (b"-" if values is None else np.ascontiguousarray(values).tobytes()))
    digest.update(f"{requests.hash_block_tokens}{requests.class_names}".encode())
    return digest.hexdigest()


def spec_hash(spec: ReplicaSpec) -> str:
    """Content hash of all that the engine knows of a replica."""
    digest = hashlib.sha256()
    for name in sorted(spec.__dataclass_fields__):
        value = getattr(spec, name)
        if name == "name":
            continue
        if name == "step_table":
            for part in value:
                digest.update(np.asarray(part, dtype=np.float64).tobytes())
        else:
            digest.update(f"{name}={value!r};".encode())
    return digest.hexdigest()


def _at_rate(requests: Requests, factor: float) -> Requests:
    return requests if abs(factor - 1) < 1e-9 else scale_requests(requests, factor)


def _full_name(slo: Slo) -> str:
    return slo.name if slo.request_class is None else f"{slo.request_class}.{slo.name}"
