"""The engine in plain Python, one step at a time: what the compiled loop must equal.

One object a concept (request, block pool, engine), no shortcut. Instants are kept as absolute numbers in one heap, in
which arrivals come before decisions of the same instant; a process kernel that adds delays would move them by rounding.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from simulator.engine.plain.group import Group, Pipeline
from simulator.engine.plain.job import Job
from simulator.engine.plain.replica import Engine
from simulator.engine.plain.routing import FrontEnd, PlainRouter
from simulator.engine.records import COUNTS, FAILED, REJECTED, Records
from simulator.engine.replica_spec import ReplicaSpec, first_ranks, reserving
from simulator.engine.routing import RouterOptions
from simulator.workload.requests import Requests
from simulator.workload.shared_prefix import SharedPrefix


class Run:
    """Requests, engines and a heap of what happens when."""

    def __init__(
        self, requests: Requests, specs: Sequence[ReplicaSpec], router: str, seed: int, options: RouterOptions
    ) -> None:
        n = len(requests)
        specs = [reserving(spec, requests) for spec in specs]
        self.requests = requests
        self.seed = seed
        self.prefix = {size: SharedPrefix.of(requests, size) for size in {s.block_size for s in specs}}
        self.speed = [1.0] * len(specs)
        self.front_s = [0.0] * len(specs)  # until when a replica's tokenizer is busy
        self.engines = [self.engine_of(spec, r) for r, spec in enumerate(specs)]
        self.home_of = first_ranks(specs, "pipeline_stages")
        firsts = [min(pair) for pair in zip(first_ranks(specs), self.home_of, strict=True)]  # one of the two is itself
        self.groups = {
            first: (Pipeline if specs[first].pipeline_stages > 1 else Group)(
                [e for e, f in zip(self.engines, firsts, strict=True) if f == first]
            )
            for first in sorted(set(firsts))
        }
        self.heads = sorted(set(self.home_of))  # a pipeline's batches have one queue
        if options.weights is not None:
            options = replace(options, weights=np.atleast_2d(options.weights)[:, self.heads])
        self.router = PlainRouter(router, [self.engines[r] for r in self.heads], requests, options, seed)
        fronts = first_ranks(specs, "front_end_ranks")
        each = {
            first: FrontEnd([e for e, f in zip(self.engines, fronts, strict=True) if f == first]) for first in fronts
        }
        self.front_of = [each[first] for first in fronts]
        self.heap: list[tuple[float, int, int]] = []  # instant; -1 arrival or replica deciding; request or turn
        self.arrival_s = np.array(requests.arrival_s, float)
        self.scheduled_s, self.first_token_s, self.finish_s = (np.full(n, np.nan) for _ in range(3))
        self.status = np.full(n, -1, np.int8)
        self.replica = np.full(n, -1, np.int64)
        self.num_cached_tokens, self.num_preemptions = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.next_request = n if requests.concurrency is None else min(requests.concurrency, n)
        for i in range(self.next_request):
            at_s = 0.0 if requests.concurrency is not None else float(requests.arrival_s[i])
            self.arrive(i, at_s)

    @property
    def num_originals(self) -> int:
        """Requests as they came; rows beyond are second halves of them."""
        return len(self.requests)

    def engine_of(self, spec: ReplicaSpec, r: int) -> Engine:
        return Engine(spec, self, r)

    def arrive(self, i: int, at_s: float) -> None:
        self.arrival_s[i] = at_s
        heapq.heappush(self.heap, (at_s, -1, i))

    def wake(self, group: Group, at_s: float) -> None:
        """Let a group decide at an instant, and not when it was to before."""
        group.wake_s = at_s
        group.turn += 1
        if at_s < np.inf:
            heapq.heappush(self.heap, (at_s, group.index, group.turn))

    def ended(self, _i: int, at_s: float) -> None:
        """In a closed loop the next request comes when one ends."""
        if self.requests.concurrency is not None and self.next_request < len(self.requests):
            self.next_request += 1
            self.arrive(self.next_request - 1, at_s)

    def play(self) -> None:
        while self.heap:
            now, who, i = heapq.heappop(self.heap)
            if who >= 0:
                if self.groups[who].turn == i:
                    self.groups[who].decide(self, now)
                continue
            self.happen(i, now)

    def happen(self, i: int, now: float) -> None:
        """A request arrives."""
        r = self.front_of[self.heads[self.router.choose(i, now)]].choose(now).index
        if not self.engines[r].accept(self.job(i, r, now)):
            self.status[i] = REJECTED
            self.ended(i, now)

    def job(self, i: int, r: int, now: float) -> Job:
        """A request inside a replica's engine, ready once its front end has tokenized it."""
        self.replica[i] = r
        table = self.engines[r].spec.step_table
        lengths = int(self.requests.input_tokens[i]), int(self.requests.output_tokens[i])
        self.front_s[r] = max(now, self.front_s[r]) + table.prompt_token_s * lengths[0]
        return Job(i, *lengths, self.front_s[r] + table.request_overhead_s)

    def records(self) -> Records:
        """What the run left behind."""
        engines = self.engines

        def column(name: str, kind: type = np.int64) -> np.ndarray:
            return np.array([getattr(engine, name) for engine in engines], kind)

        return Records(
            arrival_s=self.arrival_s,
            scheduled_s=self.scheduled_s,
            first_token_s=self.first_token_s,
            finish_s=self.finish_s,
            replica=self.replica,
            status=np.where(self.status < 0, FAILED, self.status).astype(np.int8),
            num_cached_tokens=self.num_cached_tokens,
            num_preemptions=self.num_preemptions,
            iterations=column("iterations"),
            preemptions=column("preemptions"),
            busy_s=column("busy_s", np.float64),
            prefix_queries=column("prefix_queries"),
            prefix_hits=column("prefix_hits"),
            num_gpu_blocks=np.array([engine.spec.num_gpu_blocks for engine in engines], np.int64),
            end_s=max(engine.last_end_s for engine in engines),
            copied_s=column("copied_s", np.float64),
            counts={name: column(name) for name in COUNTS},
        )


def simulate_plainly(
    requests: Requests,
    replicas: Sequence[ReplicaSpec],
    router: str = "round_robin",
    seed: int = 0,
    options: RouterOptions | None = None,
) -> Records:
    """What ``simulate_replicas`` computes, by walking every step."""
    run = Run(requests, replicas, router, seed, options or RouterOptions())
    run.play()
    return run.records()
