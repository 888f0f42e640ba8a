"""The highest rate that one replica sustains within the promise, by simulation on the workload's own shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from planner.capacity import bounds
from planner.capacity.disaggregated import PoolLine, pool_bound_rps, pool_key, simulate_line
from planner.capacity.simulated import MOST_REQUESTS, Seen, engine_state, packed, simulated, unpacked
from planner.capacity.store import CapacityStore
from planner.inputs.demand import Demand, Pattern
from simulator.engine.metrics import Latencies, class_mask, promised_percentile
from simulator.engine.replica_spec import ReplicaSpec
from simulator.pool import results_of
from simulator.scenario.replicas import Line
from simulator.workload.requests import Requests, Slo
from simulator.workload.scaling import scale_requests

METHOD = 4  # raise it when the search changes, so that kept capacities are found anew
TOLERANCE = 0.03  # relative width at which the search stops
MAX_REPLICAS = 6  # searched together at most; more only pool better
TARGET_REQUESTS = 12000  # a search simulates about this many at most
TPOT_SLACK = 1.3  # a percentile lets some requests be slower than its limit; see rate_bound
MIN_REQUESTS = 50


@dataclass(frozen=True)
class Question:
    """What one replica sustains of a pattern of sizes: all that a worker needs to find it.

    Attributes:
        line: what the replica is.
        num_replicas: that share the requests.
        requests: of the pattern, at ``rate_rps`` altogether.
        bound_rps: a rate that one replica cannot exceed.
        slos, router, seed: as in ``Capacities``.
    """

    line: Line
    num_replicas: int
    requests: Requests
    rate_rps: float
    bound_rps: float
    slos: tuple[Slo, ...]
    router: str
    seed: int


@dataclass
class Capacities:
    """Answers what a replica sustains; remembers on disk.

    Attributes:
        demand: the workload.
        slos: the promise.
        router: between replicas.
        seed: of the simulations.
        store: kept capacities.
        workers: simulations at a time; None: one a core. They change nothing but the time that it takes.
        simulations: how many were run, not counting what was remembered.
    """

    demand: Demand
    slos: tuple[Slo, ...]
    router: str
    seed: int
    store: CapacityStore
    workers: int | None = None
    simulations: int = 0
    _parts: dict[Pattern, Requests] = field(default_factory=dict)
    _spec_hashes: dict[int, str] = field(default_factory=dict)
    _hashes: dict[Pattern, str] = field(default_factory=dict)
    _bounds: dict[tuple[int, Pattern], float] = field(default_factory=dict)
    _roles_rps: dict[tuple[int, float, float, float | None], tuple[float, float]] = field(default_factory=dict)

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
        key = (id(line), pattern)
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
            rate_rps = self._packed_rps(line, float(tokens[0]), float(tokens[1]), None)
            kept = 1 / max(rate_rps, 1e-9)
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
        return self._packed_rps(
            line,
            float(part.input_tokens.mean()) if part.hash_ids is None else 1.0,
            float(part.output_tokens.mean()),
            TPOT_SLACK * max(tpots) if tpots else None,
        )

    def _packed_rps(self, line: Line, mean_input: float, mean_output: float, tpot_limit_s: float | None) -> float:
        """Of one replica or pool: see ``bounds.rate_bound_rps``; pools of one replica share what they rest on."""
        if not isinstance(line, PoolLine):
            return bounds.rate_bound_rps(line.spec, mean_input, mean_output, tpot_limit_s) * line.num_engines
        key = (id(line.spec), mean_input, mean_output, tpot_limit_s)
        if key not in self._roles_rps:
            self._roles_rps[key] = (
                bounds.rate_bound_rps(line.spec, mean_input, 1.0, None),
                bounds.rate_bound_rps(line.spec, mean_input, mean_output, tpot_limit_s, computes_prompts=False),
            )
        return pool_bound_rps(line, *self._roles_rps[key], mean_input)

    def rps(self, pairs: Sequence[tuple[Line, Pattern]]) -> list[float]:
        """Requests a second that each replica sustains of its mix of sizes, found by simulation; 0: none."""
        questions = [self._question(line, pattern) for line, pattern in pairs]
        keys = [self._key(q.line, pattern, q.num_replicas) for q, (_, pattern) in zip(questions, pairs, strict=True)]
        kept = [0.0 if q.bound_rps <= 0 else self.store.get(key) for q, key in zip(questions, keys, strict=True)]
        unknown = [i for i, rps in enumerate(kept) if rps is None]
        found = results_of(sustained_rps, [questions[i] for i in unknown], self.workers, threads=True)
        for i, (rps, simulations) in zip(unknown, found, strict=True):
            self.store.put(keys[i], rps)
            self.simulations += simulations
            kept[i] = rps
        return [rps for rps in kept if rps is not None]

    def _question(self, line: Line, pattern: Pattern) -> Question:
        bound, rate = self.bound_rps(line, pattern), self.demand.rate_of(pattern)
        num = int(np.clip(round(rate / (0.7 * bound)), 1, MAX_REPLICAS)) if bound > 0 else 1
        return Question(line, num, self.part(pattern), rate, bound, self.slos, self.router, self.seed)

    def holds(self, line: Line, requests: Requests, num_replicas: int) -> bool:
        """Whether that many replicas keep every promise on these requests."""
        seen = self.seen(line, requests, num_replicas, self.seed)
        self.simulations += seen.ran
        return keeps(requests, seen.latencies, self.slos)

    def seen(self, line: Line, requests: Requests, num_replicas: int, seed: int) -> Seen:
        """What that many replicas do to these requests, simulated or remembered; safe to call from several threads."""
        if len(requests) > MOST_REQUESTS:
            return simulated(line, requests, num_replicas, self.router, seed)
        asked = self._asked(line, hash_requests(requests), num_replicas, seed)
        key = _digest([engine_state(), *asked, *pool_key(line)])
        body = self.store.get_body("simulated", key)
        found = None if body is None else unpacked(body, len(requests))
        if found is None:
            found = simulated(line, requests, num_replicas, self.router, seed)
            self.store.put_body("simulated", key, packed(found))
        return found

    def _spec_hash(self, spec: ReplicaSpec) -> str:
        if id(spec) not in self._spec_hashes:
            self._spec_hashes[id(spec)] = spec_hash(spec)
        return self._spec_hashes[id(spec)]

    def _key(self, line: Line, pattern: Pattern, num: int) -> str:
        if pattern not in self._hashes:
            self._hashes[pattern] = hash_requests(self.part(pattern))
        promises = [(s.metric, s.percentile, s.limit_s, s.request_class) for s in self.slos]
        asked = [
            METHOD,
            engine_state(),
            *self._asked(line, self._hashes[pattern], num, self.seed),
            promises,
            *pool_key(line),
        ]
        return _digest(asked)

    def _asked(self, line: Line, requests: str, num: int, seed: int) -> list[object]:
        """What a simulation follows from, beside a pool's roles; ``requests`` are given by their hash."""
        return [self._spec_hash(line.spec), line.num_engines, requests, num, self.router, seed]


def sustained_rps(question: Question) -> tuple[float, int]:
    """The highest rate of one replica, by bisection over the rate of the requests, and how many simulations it took."""
    q, simulations = question, 0

    def at(rate_rps: float) -> bool:
        nonlocal simulations
        simulations += 1
        return _holds(q.line, _at_rate(q.requests, rate_rps / q.rate_rps), q.num_replicas, q.slos, q.router, q.seed)

    most = max(TARGET_REQUESTS / len(q.requests), 1.0) * q.rate_rps
    high = min(1.05 * q.bound_rps * q.num_replicas, most * 4)
    low, factor = 0.0, 0.62
    trial = high * factor
    while trial * len(q.requests) / q.rate_rps >= MIN_REQUESTS:
        if at(trial):
            low = trial
            break
        high, trial = trial, trial * factor
    if low == 0.0:
        return 0.0, simulations
    while high / low > 1 + TOLERANCE:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if at(middle) else (low, middle)
    return low / q.num_replicas, simulations


def _holds(line: Line, requests: Requests, num_replicas: int, slos: Sequence[Slo], router: str, seed: int) -> bool:
    records = simulate_line(line, requests, num_replicas, router, seed)
    return keeps(requests, Latencies.of(requests, records), slos)


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


def _digest(asked: list[object]) -> str:
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


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
