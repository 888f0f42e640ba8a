"""Prefill/decode disaggregation in plain Python, one step at a time: what the compiled loop must equal."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.engine.plain.group import Group
from simulator.engine.plain.job import Job, Step
from simulator.engine.plain.reference import Run
from simulator.engine.plain.replica import Engine
from simulator.engine.plain.routing import PlainRouter
from simulator.engine.pools import Pools, doubled
from simulator.engine.records import REJECTED, Handover, Records
from simulator.engine.replica_spec import ReplicaSpec
from simulator.engine.routing import RouterOptions
from simulator.workload.requests import Requests


class RoleEngine(Engine):
    """An engine some of whose blocks belong to requests without a seat."""

    run: TwoPools
    num_held = 0

    def next_start_s(self, now: float) -> float:
        """It waits for a transfer to end if that is what holds its blocks."""
        start_s = super().next_start_s(now)
        return np.inf if self.num_held and start_s <= now and not self.preempted_now else start_s

    def wake(self, at_s: float) -> None:
        at_s = max(at_s, self.group.idle_since_s)
        if self.group.idle and at_s < self.group.wake_s:
            self.run.wake(self.group, at_s)


class PrefillEngine(RoleEngine):
    """Computes prompts; a computed prompt's blocks stay until its KV has been fetched."""

    def __init__(self, spec: ReplicaSpec, run: TwoPools, index: int) -> None:
        super().__init__(spec, run, index)
        self.held: dict[int, Job] = {}
        self.fetched: set[int] = set()

    def leave(self, sequence: Job) -> None:
        if self.run.goes_on[sequence.index] and sequence.index not in self.fetched:
            self.held[sequence.index] = sequence
            self.num_held += 1
        else:
            self.pool.give_back(sequence.blocks)

    def let_go(self, i: int, now: float) -> None:
        self.fetched.add(i)
        if i in self.held:
            self.pool.give_back(self.held.pop(i).blocks)
            self.num_held -= 1
            if self.waiting:
                self.wake(now)


class DecodeEngine(RoleEngine):
    """Fetches the KV of prompts and decodes."""

    def __init__(self, spec: ReplicaSpec, run: TwoPools, index: int) -> None:
        super().__init__(spec, run, index)
        self.remote: deque[Job] = deque()
        self.arrived: deque[Job] = deque()

    @property
    def load(self) -> float:
        return super().load + len(self.remote) + self.num_held

    def next_start_s(self, now: float) -> float:
        later = self.remote[0].ready_s if self.remote and self.remote[0].ready_s > now else np.inf
        return min(super().next_start_s(now), later)

    def admit_waiting(self, step: Step, now: float, budget: int) -> int:
        for sequence in tuple(self.arrived):
            if budget <= 0 or len(self.running) >= self.spec.max_num_seqs:
                break
            if not self.slots.fit(sequence.index):
                continue
            self.take_slot(sequence)
            self.arrived.remove(sequence)
            self.num_held -= 1
            sequence.prefilling = True
            self.running.append(sequence)
            self.run.scheduled_s[sequence.index] = now
            step.chunks.append((sequence, 1, sequence.num_tokens - 1))
            sequence.num_computed_tokens = sequence.num_tokens
            self.remember_prompt(sequence, sequence.num_tokens)
            budget -= 1
        budget = super().admit_waiting(step, now, budget)
        if budget > 0 and not self.waiting and len(self.running) < self.spec.max_num_seqs:
            self.fetch(now)
        return budget

    def fetch(self, now: float) -> None:
        """Start the transfers for which there are blocks, in order."""
        for sequence in tuple(self.remote):
            if sequence.ready_s > now:
                return
            if not self.slots.fit(sequence.index):
                continue
            hit = self.find_cached(sequence)
            need = self.blocks_for(sequence, sequence.num_tokens)
            if need - sum(block.num_holders > 0 for block in hit) > len(self.pool.free):
                return
            self.remote.remove(sequence)
            self.num_held += 1
            self.pool.hold(hit)
            sequence.blocks = [*hit, *self.pool.take(need - len(hit))]
            sequence.num_remembered = len(hit)
            if self.spec.enable_prefix_caching:
                self.prefix_queries += sequence.num_prompt_tokens
                self.prefix_hits += len(hit) * self.spec.block_size
            num_blocks = -(-self.run.remote_tokens(sequence) // self.spec.block_size) - len(hit)
            self.run.send(sequence, self.index, now, max(0, num_blocks))

    def take_kv(self, sequence: Job, now: float) -> None:
        """A request's KV has come."""
        self.remember_prompt(sequence, self.run.remote_tokens(sequence))
        self.arrived.append(sequence)
        self.wake(now)

    def remember_prompt(self, sequence: Job, num_tokens: int) -> None:
        if self.spec.enable_prefix_caching:
            for place in range(sequence.num_remembered, num_tokens // self.spec.block_size):
                self.pool.remember(sequence.blocks[place], self.content_of(sequence, place))
            sequence.num_remembered = max(sequence.num_remembered, num_tokens // self.spec.block_size)


class TwoPools(Run):
    """Two pools; request i is job i on a prefill replica, then job n + i on a decode replica.

    Events of the heap: i arrives, n + i: its prompt is computed, 2 n + i: its KV has come.
    """

    def __init__(self, requests: Requests, pools: Pools, router: str, seed: int, options: RouterOptions) -> None:
        self.n, self.pools, self.now_s = len(requests), pools, 0.0
        specs = (*pools.prefill, *pools.decode)
        self.link_free_s = [0.0] * len(specs)
        self.first = 1 if pools.first_token == "prefill" else 0  # tokens that come from the prefill replica
        self.goes_on = requests.output_tokens > self.first
        self.jobs: dict[int, Job] = {}
        self.start_s, self.end_s, self.num_bytes = np.full(self.n, np.nan), np.full(self.n, np.nan), np.zeros(self.n)
        super().__init__(doubled(requests), specs, "round_robin", seed, RouterOptions())
        self.next_request = min(self.next_request, self.n)
        num = len(pools.prefill)
        self.router = PlainRouter(router, self.engines[:num], requests, options, seed)
        self.decode_router = PlainRouter(pools.decode_router, self.engines[num:], requests, RouterOptions(), seed)

    @property
    def num_originals(self) -> int:
        return self.n

    def engine_of(self, spec: ReplicaSpec, r: int) -> Engine:
        return PrefillEngine(spec, self, r) if r < len(self.pools.prefill) else DecodeEngine(spec, self, r)

    def arrive(self, i: int, at_s: float) -> None:
        if i < self.n:
            super().arrive(i, at_s)

    def wake(self, group: Group, at_s: float) -> None:
        super().wake(group, max(at_s, self.now_s))

    def remote_tokens(self, sequence: Job) -> int:
        return sequence.num_tokens - 1

    def ended(self, i: int, at_s: float) -> None:
        if i < self.n and self.goes_on[i]:
            heapq.heappush(self.heap, (at_s, -1, self.n + i))
        else:
            self.send_next(at_s)

    def send_next(self, at_s: float) -> None:
        if self.requests.concurrency is not None and self.next_request < self.n:
            self.next_request += 1
            self.arrive(self.next_request - 1, at_s)

    def happen(self, i: int, now: float) -> None:
        self.now_s = now
        kind, i = divmod(i, self.n)
        if kind == 1:
            self.hand_over(i, now)
        elif kind == 2:
            self.engine_at(self.n + i).take_kv(self.jobs.pop(i), now)
            self.engine_at(i).let_go(i, now)
        else:
            r = self.router.choose(i, now)
            if not self.engines[r].accept(self.job(i, r, now)):
                self.status[i] = REJECTED
                self.send_next(now)

    def engine_at(self, job: int) -> Any:
        return self.engines[self.replica[job]]

    def hand_over(self, i: int, now: float) -> None:
        r = len(self.pools.prefill) + self.decode_router.choose(i, now)
        engine = self.engines[r]
        assert isinstance(engine, DecodeEngine)
        most = min(int(self.requests.output_tokens[self.n + i]), engine.longest - int(self.requests.input_tokens[i]))
        if engine.spec.reserve_output_tokens:
            most = min(most, engine.spec.reserve_output_tokens)
        if most <= self.first:
            self.replica[self.n + i], self.status[self.n + i] = r, REJECTED
            self.engine_at(i).let_go(i, now)
            self.send_next(now)
            return
        job = replace(self.job(self.n + i, r, now), max_tokens=most, num_sampled=self.first, num_returned=self.first)
        engine.remote.append(job)
        engine.wake(job.ready_s)

    def send(self, job: Job, r: int, now: float, num_blocks: int) -> None:
        """Put a transfer on both ends' links."""
        i, links = job.index - self.n, self.pools.link_bytes_per_s
        source = int(self.replica[i])
        num_bytes = num_blocks * self.pools.block_bytes
        start_s = max(now, self.link_free_s[source], self.link_free_s[r])
        bytes_per_s = min(links[source], links[r])
        ahead_s = max(0.0, float(self.finish_s[i] - max(self.scheduled_s[i], self.link_free_s[source])))
        ahead = min(self.pools.hidden_share * num_bytes, bytes_per_s * ahead_s)  # moved while the prompt was computed
        end_s = start_s + self.pools.latency_s + (num_bytes - ahead) / bytes_per_s
        self.link_free_s[source] = self.link_free_s[r] = end_s
        self.start_s[i], self.end_s[i], self.num_bytes[i] = start_s, end_s, num_bytes
        self.jobs[i] = job
        heapq.heappush(self.heap, (end_s, -1, 2 * self.n + i))

    def records(self) -> Records:
        """One row a request."""
        both, n = super().records(), self.n
        here = (both.status[:n] != 0) | ~self.goes_on
        first = both.first_token_s[:n] if self.first else np.where(here, both.first_token_s[:n], both.first_token_s[n:])
        return replace(
            both,
            arrival_s=both.arrival_s[:n],
            scheduled_s=both.scheduled_s[:n],
            first_token_s=first,
            finish_s=np.where(here, both.finish_s[:n], both.finish_s[n:]),
            replica=np.where(here, both.replica[:n], both.replica[n:]),
            status=np.where(here, both.status[:n], both.status[n:]),
            num_cached_tokens=both.num_cached_tokens[:n],
            num_preemptions=both.num_preemptions[:n] + both.num_preemptions[n:],
            handover=Handover(
                both.replica[:n], both.finish_s[:n], self.start_s, self.end_s, both.scheduled_s[n:], self.num_bytes
            ),
        )


def simulate_plainly(
    requests: Requests, pools: Pools, router: str = "round_robin", seed: int = 0, options: RouterOptions | None = None
) -> Records:
    """What ``simulate_disaggregated`` computes, by walking every step."""
    run = TwoPools(requests, pools, router, seed, options or RouterOptions())
    run.play()
    return run.records()
