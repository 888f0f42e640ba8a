"""The data plane: replicas behind a router, moved forward in compiled code between a control plane's events."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.step import StepTable
from catalogs.errors import InputError
from simulator.engine import (
    engine_state,
    event_heap,
    feed,
    invariants,
    kv_cache,
    kv_tiers,
    replica_rows,
    routing,
    step_eval,
    transfers,
    waiting,
)
from simulator.engine.packed import Pack
from simulator.engine.records import COUNTS, FAILED, UNDECIDED, Records
from simulator.engine.replica_spec import ReplicaSpec, demand_alone, first_ranks, reserving
from simulator.workload.requests import Requests

__all__ = ["Plane", "ReplicaSpec", "Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """The replicas at one instant.

    Attributes:
        at_s: the instant.
        num_running, num_waiting: (r,) requests.
        kv_share: (r,) share of KV blocks in use, 0 to 1.
    """

    at_s: float
    num_running: NDArray[np.int64]
    num_waiting: NDArray[np.int64]
    kv_share: NDArray[np.float64]


class Plane:
    """Replicas that serve requests; a control plane moves it forward and changes it between moves.

    Example:
        >>> plane = Plane(requests, [spec, spec], router="least_loaded")     # doctest: +SKIP
        >>> plane.advance(60.0); plane.snapshot().num_waiting                # doctest: +SKIP
        >>> new = plane.add(spec); plane.drain(0); plane.advance(120.0)      # doctest: +SKIP
        >>> records = plane.finish()                                         # doctest: +SKIP

    Args:
        requests: the workload.
        replicas: those that stand at the start; more can be added.
        router: one of ``routing.ROUTERS``.
        seed: of the router, and of what speculation accepts.
        options: what else the router knows.
    """

    def __init__(
        self,
        requests: Requests,
        replicas: Sequence[ReplicaSpec],
        router: str = "round_robin",
        seed: int = 0,
        options: routing.RouterOptions | None = None,
    ) -> None:
        if len(replicas) == 0:
            raise InputError("no replica", where="fleet", remedy="a count of at least 1")
        self.requests = requests
        self.specs = [reserving(spec, requests) for spec in replicas]
        self.now_s = 0.0
        self._packs: dict[str, Pack] = {}
        self._seed = seed
        self._feed = feed.new_feed(len(requests), requests.concurrency)
        self._tables: list[StepTable] = []
        self._world = self._new_world()
        self._router = routing.new_router(
            router, len(self.specs), router_keys(requests, router), options or routing.RouterOptions(), seed
        )
        homes = self._world.replicas["home"]  # a pipeline's batches have one queue: requests are sent to its first row
        self._router.alive[homes != np.arange(len(homes))] = 0

    def advance(self, until_s: float) -> None:
        """Deliver all requests and make all decisions before ``until_s``."""
        feed.advance(self._pack("_world"), self._pack("_feed"), self._pack("_router"), float(until_s))
        self.now_s = max(self.now_s, until_s)

    def _pack(self, name: str) -> Pack:
        """One of the plane's tuples of arrays as compiled code takes it."""
        arrays, known = getattr(self, name), self._packs.get(name)
        if known is None or known.arrays is not arrays:
            known = self._packs[name] = Pack(arrays)
        return known

    def push(self, at_s: float, request: int) -> None:
        """Let a request come at an instant; there must be room in the feed."""
        event_heap.push(self._pack("_feed"), at_s, request)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return bool(
            self._feed.cursor[0] >= self._feed.limit[0]
            and self._feed.num_heap[0] == 0
            and (self._world.replicas["next_s"] == np.inf).all()
        )

    def add(self, spec: ReplicaSpec, weight: float = 1.0) -> int:
        """Start a replica at ``now_s``, ready to serve; returns its index."""
        world = self._world
        has_hashes = world.shared.content.shape[1] > 0
        if has_hashes and spec.block_size < min(s.block_size for s in self.specs):
            raise InputError(
                f"block_size {spec.block_size} is below that of the first replicas",
                where="Plane.add",
                why="prompt prefixes were cut into blocks for those",
                remedy="a replica with the smallest block_size among the first",
            )
        demand_alone(spec)
        spec = reserving(spec, self.requests)
        self.specs.append(spec)
        rows = np.zeros(1, engine_state.REPLICA)
        self._set_up(rows[0], spec, len(self.specs) - 1)
        rows["inflight_s"] = rows["idle_since_s"] = self.now_s
        rows["home"] = len(self.specs) - 1
        self._world = world._replace(
            tables=step_eval.pack_tables(self._tables),
            replicas=np.concatenate([world.replicas, rows]),
            nodes=replica_rows.with_nodes(world),
            shared=kv_cache.with_replica(world.shared),
            links=np.concatenate([world.links, np.full((2, *world.links.shape[1:]), kv_tiers.ABSENT, np.int32)]),
            tiers=np.concatenate([world.tiers, replica_rows.new_tiers([spec])]),
            adapters=replica_rows.with_adapters(world.adapters, replica_rows.num_adapters(spec)),
            crossing=replica_rows.with_row(world.crossing, spec.block_size, 0),
            running=replica_rows.with_row(world.running, spec.max_num_seqs, -1),
        )
        self._router = routing.with_replica(self._router, weight)
        return len(self.specs) - 1

    def drain(self, replica: int) -> None:
        """Send it no more requests; it finishes those that it has."""
        self._router.alive[replica] = 0

    def resume(self, replica: int) -> None:
        """Send it requests again."""
        self._router.alive[replica] = 1

    def kill(self, replica: int) -> NDArray[np.int64]:
        """Stop it at ``now_s``; returns the requests that it had not ended, for ``send`` or ``fail``."""
        demand_alone(self.specs[replica])
        self.drain(replica)
        rows = self._world.requests
        mine = rows["replica"] == replica
        ended = (rows["phase"] == engine_state.DONE) | (
            (rows["phase"] == engine_state.FINISHING) & (rows["end_s"] <= self.now_s)
        )
        rows["phase"][mine & ended] = engine_state.DONE
        lost = np.flatnonzero(mine & ~ended)
        for name in ("scheduled_s", "first_token_s", "finish_s"):
            rows[name][lost] = np.nan
        for name in ("next", "replica"):
            rows[name][lost] = -1
        for name in ("phase", "generated", "computed", "draws"):
            rows[name][lost] = 0
        self._world.nodes[lost] = np.zeros((), kv_cache.NODE)
        if self._world.shared.content.shape[1]:
            first = len(rows) + replica * self._world.shared.content.shape[1]
            self._world.nodes[first : first + self._world.shared.content.shape[1]] = np.zeros((), kv_cache.NODE)
            kv_cache.empty_shared(self._world.shared, replica)
            for i in lost:
                begin, end = self._world.shared.held_offsets[i : i + 2]
                self._world.shared.held[begin:end] = 0
        rows["status"][lost] = UNDECIDED
        row = self._world.replicas[replica]
        kept = {
            name: row[name]
            for name in ("iterations", "preemptions", "busy_s", "copied_s", "prefix_queries", "prefix_hits", *COUNTS)
        }
        row["inflight_s"] = row["idle_since_s"] = min(row["inflight_s"], self.now_s)
        for name in ("num_running", "num_decode", "sum_context", "num_finishing", "num_waiting", "steps",
                     "used_slots", "full_slots"):  # fmt: skip
            row[name] = 0
        self._world.adapters[replica] = 0
        self._set_up(row, self.specs[replica], replica)
        for name, value in kept.items():
            row[name] = value
        self._world.crossing[replica] = 0
        self._world.links[2 * replica : 2 * replica + 2] = kv_tiers.ABSENT
        self._world.tiers[2 * replica : 2 * replica + 2] = replica_rows.new_tiers([self.specs[replica]])
        return lost

    def send(self, requests: NDArray[np.int64], at_s: NDArray[np.float64]) -> None:
        """Requests come at given instants from now on; those that a ``kill`` returned, again from their first token."""
        self._feed = feed.with_room(self._feed, len(requests))
        for i, at in zip(requests.tolist(), at_s.tolist(), strict=True):
            self.push(at, i)

    def fail(self, requests: NDArray[np.int64]) -> None:
        """Requests that a ``kill`` returned are given up."""
        self._world.requests["status"][requests] = FAILED
        self._world.requests["phase"][requests] = engine_state.DONE

    def cancel(self, request: int) -> bool:
        """Take a request out of its replica at ``now_s``, as if it had never come; False if it is in none or ended."""
        if not waiting.cancel(self._pack("_world"), request):
            return False
        row = self._world.requests[request]
        row["scheduled_s"] = row["first_token_s"] = row["finish_s"] = np.nan
        row["replica"] = -1
        row["status"] = UNDECIDED
        return True

    def set_speed(self, replica: int, factor: float) -> None:
        """Multiply its step times by ``1 / factor`` from its next decision on (0.5: half as fast)."""
        if not factor > 0:
            raise InputError(f"speed factor {factor}", where="set_speed", remedy="a factor above 0, or kill")
        self._world.replicas["speed"][replica] = 1.0 / factor

    def snapshots(self, interval_s: float) -> Iterator[Snapshot]:
        """At every multiple of an interval, until nothing is left to do."""
        for number in itertools.count(1):
            self.advance(interval_s * number)
            yield self.snapshot()
            if self.idle:
                return

    def snapshot(self) -> Snapshot:
        """The replicas as they are at the instant of the last ``advance``."""
        rows = self._world.replicas
        return Snapshot(
            at_s=self.now_s,
            num_running=rows["num_running"].copy(),
            num_waiting=rows["num_waiting"].copy(),
            kv_share=1.0 - rows["free"][rows["home"]] / rows["num_blocks"],
        )

    def check(self) -> None:
        """Look for broken invariants (docs/invariants.md); raises ``BrokenInvariantError``."""
        invariants.check_world(self._world, self.now_s)

    def finish(self) -> Records:
        """Run until nothing is left to do."""
        self.advance(np.inf)
        return self.records()

    def records(self) -> Records:
        """What has happened so far; requests that have not ended are counted as failed."""
        rows, replicas = self._world.requests, self._world.replicas
        status = np.where(rows["status"] == UNDECIDED, FAILED, rows["status"]).astype(np.int8)
        return Records(
            arrival_s=rows["arrival_s"].copy(),
            scheduled_s=rows["scheduled_s"].copy(),
            first_token_s=rows["first_token_s"].copy(),
            finish_s=rows["finish_s"].copy(),
            replica=rows["replica"].copy(),
            status=status,
            num_cached_tokens=rows["num_cached_tokens"].copy(),
            num_preemptions=rows["num_preemptions"].copy(),
            iterations=replicas["iterations"].copy(),
            preemptions=replicas["preemptions"].copy(),
            busy_s=replicas["busy_s"].copy(),
            prefix_queries=replicas["prefix_queries"].copy(),
            prefix_hits=replicas["prefix_hits"].copy(),
            num_gpu_blocks=np.array([s.num_gpu_blocks for s in self.specs], np.int64),
            end_s=float(np.max(replicas["inflight_s"], initial=0.0)),
            stall_s=rows["stall_s"].copy(),
            copied_s=replicas["copied_s"].copy(),
            counts={name: replicas[name].copy() for name in COUNTS},
        )

    def _set_up(self, row: np.void, spec: ReplicaSpec, rank_0: int) -> None:
        """Write one replica's settings and empty state."""
        replica_rows.set_up(row, spec, rank_0)
        draft = None if spec.speculation is None else spec.speculation.draft_table
        row["table"] = self._table_of(spec.step_table)
        row["draft_table"] = -1 if draft is None else self._table_of(draft)
        row["seed"] = self._seed

    def _table_of(self, wanted: StepTable) -> int:
        for place, table in enumerate(self._tables):
            if table is wanted:
                return place
        self._tables.append(wanted)
        return len(self._tables) - 1

    def _new_world(self) -> engine_state.World:
        """Empty replicas and requests that no one has seen."""
        requests, num_replicas = self.requests, len(self.specs)
        replicas = np.zeros(num_replicas, engine_state.REPLICA)
        for row, spec, rank_0 in zip(replicas, self.specs, first_ranks(self.specs), strict=True):
            self._set_up(row, spec, rank_0)
        replicas["home"] = first_ranks(self.specs, "pipeline_stages")
        replicas["front"] = first_ranks(self.specs, "front_end_ranks")
        replicas["num_front"] = [spec.front_end_ranks for spec in self.specs]
        rows = np.zeros(len(requests), engine_state.REQUEST)
        rows["input"] = requests.input_tokens
        rows["output"] = requests.output_tokens
        rows["arrival_s"] = requests.arrival_s if requests.concurrency is None else 0.0
        for name in ("scheduled_s", "first_token_s", "finish_s"):
            rows[name] = np.nan
        for name in ("next", "replica"):
            rows[name] = -1
        rows["status"] = UNDECIDED
        sizes = [s.block_size for s in self.specs]
        shared = kv_cache.new_shared(requests, sizes, [s.num_gpu_blocks for s in self.specs])
        num_contents = shared.slot_of.shape[1] if any(s.kv_offload is not None for s in self.specs) else 0
        return engine_state.World(
            step_eval.pack_tables(self._tables),
            replicas,
            rows,
            nodes=np.zeros(len(rows) + num_replicas * shared.content.shape[1], kv_cache.NODE),
            shared=shared,
            links=np.full((2 * num_replicas, num_contents, 2), kv_tiers.ABSENT, np.int32),
            tiers=replica_rows.new_tiers(self.specs),
            adapters=np.zeros((num_replicas, max(replica_rows.num_adapters(s) for s in self.specs), 2), np.int64),
            crossing=np.zeros((num_replicas, max(s.block_size for s in self.specs)), np.int64),
            running=np.full((num_replicas, max(s.max_num_seqs for s in self.specs)), -1, np.int64),
            ended=np.zeros(0 if requests.concurrency is None else len(requests), np.int64),
            num_ended=np.zeros(1, np.int64),
            transfers=transfers.new_transfers(0),
        )


def router_keys(requests: Requests, router: str) -> NDArray[np.int64]:
    """What affinity looks at: a request's session, or its first prefix block; -1 where it has none."""
    keys = np.full(len(requests), -1, np.int64)
    if router == "session_affinity" and requests.session is not None:
        return np.asarray(requests.session, np.int64)
    if router == "prefix_affinity" and requests.hash_offsets is not None and requests.hash_ids is not None:
        has = requests.hash_offsets[1:] > requests.hash_offsets[:-1]
        keys[has] = requests.hash_ids[requests.hash_offsets[:-1][has]]
    return keys


def check_run(requests: Requests, records: Records, fresh: Plane) -> None:
    """Look for broken invariants in a run's records, and at instants of its repetition on a fresh plane.

    Raises:
        BrokenInvariantError: one does not hold.
    """
    invariants.check_records(requests, records)
    for at_s in np.linspace(0.0, records.end_s, invariants.CHECKS):
        fresh.advance(float(at_s))
        fresh.check()
