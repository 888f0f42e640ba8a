"""One replica in plain Python, one step at a time, for the reference."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING

import numpy as np

from simulator.engine.plain.adapters import AdapterSlots
from simulator.engine.plain.blocks import Block, BlockPool, Tier
from simulator.engine.plain.job import Job, Step
from simulator.engine.plain.step_time import Rectangle, engine_step_s, uniform
from simulator.engine.records import COMPLETED
from simulator.engine.replica_spec import ReplicaSpec

if TYPE_CHECKING:
    from simulator.engine.plain.group import Group
    from simulator.engine.plain.reference import Run


class Engine:
    """One replica: a queue, running sequences, blocks, and the steps in flight."""

    def __init__(self, spec: ReplicaSpec, run: Run, index: int) -> None:
        self.spec, self.run, self.index = spec, run, index
        self.pool = BlockPool(spec.num_gpu_blocks - 1)
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.inflight: deque[Step] = deque()
        self.depth = 2 if spec.async_scheduling else 1
        self.iterations = self.preemptions = self.prefix_queries = self.prefix_hits = 0
        self.drafted = self.accepted = 0
        self.copied_s, self.lora_loads = 0.0, 0
        self.rectangle = Rectangle()
        self.slots = AdapterSlots(spec.adapters, run.seed, run.num_originals)
        self.swap_outs = self.swap_ins = self.cpu_hits = self.disk_hits = 0
        self.swapped: deque[Job] = deque()
        self.swap_free = 0 if spec.swap is None else spec.swap.num_blocks
        self.copy_s = self.load_s = 0.0  # for which the next step waits; which it lasts at least
        offload = spec.kv_offload
        self.tiers = (Tier(offload.num_cpu_blocks), Tier(offload.num_disk_blocks)) if offload else ()
        self.busy_s = self.last_end_s = 0.0
        self.group: Group
        self.batches: list[Engine] = [self]  # that share its queue, seats and blocks: those of a pipeline
        self.preempted_now = False
        self.loads: list[tuple[float, int]] = [(-np.inf, 0)]  # (decision, load after it), where a front end asks

    @property
    def longest(self) -> int:
        return self.spec.longest_sequence

    @property
    def load(self) -> float:
        own = len(self.waiting) if self.batches[0] is self else 0
        return own + len(self.swapped) + len(self.running)

    @property
    def has_seat(self) -> bool:
        return sum(len(batch.running) for batch in self.batches) < self.spec.max_num_seqs

    @property
    def kv_share(self) -> float:
        return 1.0 - len(self.pool.free) / self.pool.num_blocks

    def accept(self, sequence: Job) -> bool:
        """Queue a request; False: the engine refuses it."""
        spec = self.spec
        if sequence.max_tokens < 1 or sequence.num_prompt_tokens >= self.longest:
            return False
        if not spec.enable_chunked_prefill and sequence.num_prompt_tokens > spec.max_num_batched_tokens:
            return False
        sequence.max_tokens = min(sequence.max_tokens, self.longest - sequence.num_prompt_tokens)
        if spec.reserve_output_tokens:
            sequence.max_tokens = min(sequence.max_tokens, spec.reserve_output_tokens)
        self.waiting.append(sequence)
        group = self.group
        at_s = group.free_at_s(self.run, max(self.due_s(), group.idle_since_s))
        if group.idle and at_s < group.wake_s:
            self.run.wake(group, at_s)
        return True

    def due_s(self) -> float:
        """When an empty engine starts on its queue."""
        if self.spec.policy not in ("static", "dynamic"):
            return self.waiting[0].ready_s
        overdue_s = self.waiting[0].ready_s + self.spec.max_queue_delay_s
        alike = [job for job in self.waiting if self.bucket_of(job) == self.bucket_of(self.waiting[0])]
        if len(alike) < self.spec.max_num_seqs:
            return overdue_s
        return min(overdue_s, alike[self.spec.max_num_seqs - 1].ready_s)

    def bucket_of(self, job: Job) -> int:
        """The bucket of lengths that a request belongs to; all to one without."""
        return -(-job.num_prompt_tokens // self.spec.length_bucket) if self.spec.length_bucket else 0

    def take_in(self, now: float) -> None:
        """Take in the results that are out."""
        while self.inflight and self.inflight[0].end_s <= now:
            self.take_results(self.inflight.popleft())

    def put_in_flight(self, step: Step, duration: float, end_s: float) -> None:
        step.end_s = self.last_end_s = end_s
        self.busy_s += duration
        self.iterations += 1
        self.inflight.append(step)
        self.note(step)

    def step_s(self, step: Step) -> float:
        """Seconds of a step at full speed, with the copies that it waits for."""
        pads = self.spec.pad_to_longest or self.spec.pad_batch
        alone = self.rectangle.step_s(self.spec, step) if pads else engine_step_s(self.spec, step)
        seconds = max(alone, self.load_s) + self.copy_s
        self.copied_s += self.run.speed[self.index] * (seconds - alone)
        self.load_s = self.copy_s = 0.0
        return seconds

    def note(self, step: Step) -> None:
        """Write down when tokens will come."""
        for sequence in step.sampling:
            out_s = step.end_s + self.spec.step_table.output_overhead_s
            if sequence.num_sampled == 1:
                self.run.first_token_s[sequence.index] = out_s
            if sequence.all_sampled:
                self.slots.give_back(sequence.index)
                self.run.finish_s[sequence.index] = out_s
                self.run.status[sequence.index] = COMPLETED
                self.run.ended(sequence.index, out_s)

    def take_results(self, step: Step) -> None:
        """The step's tokens are out; finished sequences leave."""
        for sequence in step.sampling:
            sequence.num_returned += step.emitted.get(sequence.index, 1)
            if sequence.num_returned >= sequence.max_tokens and not sequence.finished:
                sequence.finished = True
                if sequence in self.running:
                    self.running.remove(sequence)
                    self.leave(sequence)

    def leave(self, sequence: Job) -> None:
        """An ended sequence, which runs no longer, gives its blocks back."""
        self.pool.give_back(sequence.blocks)

    def next_start_s(self, now: float) -> float:
        """When an engine that has nothing to do looks again; infinity: when it is woken."""
        return max(now, self.due_s()) if self.waiting else np.inf

    def schedule(self, now: float) -> Step:
        """Choose what the next step computes."""
        step = Step()
        self.preempted_now = False
        budget = self.spec.max_num_batched_tokens
        if self.spec.policy == "prefill_first":
            if not self.swapped or any(s.prefilling for s in self.running):
                self.schedule_prefills(step, now, budget)
            if not step.chunks:
                self.schedule_decodes(step)
        else:
            self.schedule_decodes(step)
            self.schedule_prefills(step, now, budget - step.num_decode_tokens)
        for sequence in step.decodes:
            sequence.num_sampled += step.emitted.get(sequence.index, 1)
        for sequence, _tokens, _before in step.chunks:
            if sequence.num_computed_tokens == sequence.num_tokens:
                sequence.prefilling = False
                sequence.num_sampled += 1
                step.sampling.append(sequence)
        step.sampling = step.decodes + step.sampling
        if self.spec.front_end_ranks > 1:
            self.loads.append((now, 4 * (len(self.waiting) + len(self.swapped)) + len(self.running)))
        return step

    def schedule_decodes(self, step: Step) -> None:
        place = 0
        while place < len(self.running):
            sequence = self.running[place]
            if not sequence.prefilling and not sequence.all_sampled:
                tokens = self.decode_tokens(sequence, step)
                if tokens < 1:
                    return
                while not self.grow(sequence, tokens):
                    if self.preempt() is sequence:
                        return
                step.decodes.append(sequence)
                step.contexts.append(sequence.num_computed_tokens)
                step.num_decode_tokens += tokens
                if self.spec.speculation is not None:
                    self.verify(sequence, step, tokens)
            place += 1
        if not self.preempted_now and not any(s.prefilling for s in self.running):
            self.swap_in(step)

    def swap_in(self, step: Step) -> None:
        """Bring back swapped sequences in order; they decode in this step."""
        spec = self.spec
        seats = min(spec.max_num_seqs, spec.max_num_batched_tokens)
        while self.swapped and len(self.running) < spec.max_num_seqs and len(step.decodes) < seats:
            sequence = self.swapped[0]
            held = self.blocks_for(sequence, sequence.num_computed_tokens)
            spare = self.pool.num_blocks // 100 if self.running else 0
            if self.blocks_for(sequence, sequence.num_computed_tokens + 1) + spare > len(self.pool.free):
                return
            assert spec.swap is not None
            self.swapped.popleft()
            self.swap_free += held
            self.copy_s += held * spec.swap.block_copy_s
            self.swap_ins += 1
            self.running.append(sequence)
            grown = self.grow(sequence, 1)
            assert grown
            step.decodes.append(sequence)
            step.contexts.append(sequence.num_computed_tokens)
            step.num_decode_tokens += 1

    def decode_tokens(self, sequence: Job, step: Step) -> int:
        """Tokens that a decoding sequence computes: one, and those proposed, within budget and context."""
        if self.spec.speculation is None:
            return 1
        left = self.spec.max_num_batched_tokens - step.num_decode_tokens
        most = self.longest - 1 - sequence.num_computed_tokens
        return min(1 + self.spec.speculation.num_speculative_tokens, left, most)

    def verify(self, sequence: Job, step: Step, tokens: int) -> None:
        """Keep what is accepted of a sequence's proposals, and one token more."""
        speculation = self.spec.speculation
        assert speculation is not None
        u = uniform(self.run.seed, sequence.index, sequence.num_draws)
        accepted = 0
        while accepted < tokens - 1 and u < speculation.acceptance_rate ** (accepted + 1):
            accepted += 1
        sequence.num_draws += 1
        self.drafted += tokens - 1
        self.accepted += accepted
        emitted = min(accepted + 1, sequence.max_tokens - sequence.num_sampled)
        sequence.num_computed_tokens -= tokens - emitted
        step.emitted[sequence.index] = emitted

    def schedule_prefills(self, step: Step, now: float, budget: int) -> None:
        for sequence in [s for s in self.running if s.prefilling]:
            tokens = min(budget, sequence.num_tokens - sequence.num_computed_tokens)
            if tokens > 0:
                before = sequence.num_computed_tokens
                if not self.grow(sequence, tokens):
                    self.preempt()
                    return
                step.chunks.append((sequence, tokens, before))
                budget -= tokens
        if self.preempted_now:
            return
        if self.spec.policy in ("static", "dynamic") and (self.running or not self.waiting or now < self.due_s()):
            return
        self.admit_waiting(step, now, budget)

    def admit_waiting(self, step: Step, now: float, budget: int) -> int:
        """Seats for waiting requests in order; returns what is left of the budget."""
        place, leader = 0, self.bucket_of(self.waiting[0]) if self.waiting else 0
        while budget > 0 and place < len(self.waiting) and self.has_seat:
            sequence = self.waiting[place]
            if sequence.ready_s > now:
                return budget
            if not self.slots.fit(sequence.index) or self.bucket_of(sequence) != leader:
                place += 1
                continue
            hit = self.find_cached(sequence)
            loads = self.find_in_tiers(sequence, len(hit))
            before = (len(hit) + len(loads)) * self.spec.block_size
            tokens = min(budget, sequence.num_tokens - before)
            alone = budget == self.spec.max_num_batched_tokens
            if not self.spec.enable_chunked_prefill and sequence.num_sampled and alone:
                tokens = sequence.num_tokens - before  # it may have outgrown the budget
            if tokens < sequence.num_tokens - before and not self.spec.enable_chunked_prefill:
                return budget
            held = sum(block.num_holders > 0 for block in hit)
            if self.blocks_for(sequence, sequence.num_tokens) - held > len(self.pool.free):
                return budget
            del self.waiting[place]
            self.take_slot(sequence)
            self.admit(sequence, now, hit, loads)
            grown = self.grow(sequence, tokens, admitted=True)
            assert grown
            step.chunks.append((sequence, tokens, before))
            budget -= tokens
        return budget

    def take_slot(self, sequence: Job) -> None:
        """A request gets a seat: its adapter is copied if it is in no slot."""
        copies = self.slots.take(sequence.index)
        self.lora_loads += copies
        self.copy_s += copies * (self.spec.adapters.copy_s if self.spec.adapters else 0.0)

    def find_in_tiers(self, sequence: Job, first: int) -> list[int]:
        """For each block of the prompt after those in the GPU's cache the tier that holds it, without a gap."""
        found: list[int] = []
        prefix = self.run.prefix[self.spec.block_size]
        for place in range(first, (sequence.num_tokens - 1) // self.spec.block_size):
            content = prefix.content(sequence.index, place)
            tiers = [t for t, tier in enumerate(self.tiers) if content >= 0 and content in tier.contents]
            if not tiers:
                break
            found.append(tiers[0])
        return found

    def admit(self, sequence: Job, now: float, hit: list[Block], loads: list[int]) -> None:
        run, i, size = self.run, sequence.index, self.spec.block_size
        offload = self.spec.kv_offload
        if offload is not None:
            seconds = loads.count(0) * offload.cpu_block_s + loads.count(1) * offload.disk_block_s
            self.load_s += seconds if offload.overlap else 0.0
            self.copy_s += 0.0 if offload.overlap else seconds
        self.pool.hold(hit)
        self.pool.forget(("own", i), len(hit))
        sequence.blocks = list(hit)
        sequence.num_remembered = len(hit)
        sequence.num_computed_tokens = (len(hit) + len(loads)) * size
        sequence.prefilling = True
        self.running.append(sequence)
        run.replica[i] = self.index
        if np.isnan(run.scheduled_s[i]):
            run.scheduled_s[i] = now
            run.num_cached_tokens[i] = sequence.num_computed_tokens
            if self.spec.enable_prefix_caching:
                self.prefix_queries += sequence.num_prompt_tokens
                self.prefix_hits += sequence.num_computed_tokens
                self.cpu_hits += loads.count(0) * size
                self.disk_hits += loads.count(1) * size

    def blocks_for(self, sequence: Job, num_tokens: int) -> int:
        if self.spec.reserve_output_tokens:
            num_tokens = min(sequence.num_prompt_tokens + self.spec.reserve_output_tokens, self.longest)
        return -(-num_tokens // self.spec.block_size)

    def find_cached(self, sequence: Job) -> list[Block]:
        """The longest prefix of full blocks in the cache; at least the last token is computed again."""
        hit: list[Block] = []
        if self.spec.enable_prefix_caching:
            for place in range((sequence.num_tokens - 1) // self.spec.block_size):
                block = self.pool.cached.get(self.content_of(sequence, place))
                if block is None:
                    break
                hit.append(block)
        return hit

    def content_of(self, sequence: Job, place: int) -> Hashable:
        shared = self.run.prefix[self.spec.block_size].content(sequence.index, place)
        return ("own", sequence.index, place) if shared < 0 else shared

    def grow(self, sequence: Job, tokens: int, admitted: bool = False) -> bool:
        """Give a sequence the blocks for its next tokens (and a drafter's, unless just admitted), if there are."""
        num_slots = sequence.num_computed_tokens + tokens
        num_known = num_slots
        if self.spec.speculation is not None and not admitted:
            num_slots = min(num_slots + self.spec.speculation.num_lookahead_tokens, self.longest)
            num_known = num_known if sequence.prefilling else sequence.num_computed_tokens + 1
        need = max(0, self.blocks_for(sequence, num_slots) - len(sequence.blocks))
        if need > len(self.pool.free):
            return False
        sequence.blocks += self.pool.take(need)
        sequence.num_computed_tokens += tokens
        if self.spec.enable_prefix_caching:
            in_flight = 1 if self.spec.async_scheduling and not sequence.prefilling else 0
            num_full = (num_known - in_flight) // self.spec.block_size
            for place in range(sequence.num_remembered, num_full):
                content = self.content_of(sequence, place)
                self.pool.remember(sequence.blocks[place], content)
                for tier in self.tiers if isinstance(content, int) else ():
                    tier.store(content)
            sequence.num_remembered = max(sequence.num_remembered, num_full)
        return True

    def preempt(self) -> Job:
        """Take the last running sequence's blocks; it waits in host memory, or heads the queue to be computed anew."""
        sequence = self.running.pop()
        if not sequence.all_sampled:
            self.slots.give_back(sequence.index)
        self.pool.give_back(sequence.blocks)
        num_blocks, sequence.blocks = len(sequence.blocks), []
        swap = self.spec.swap
        if swap is not None and not sequence.prefilling and num_blocks <= self.swap_free and not sequence.all_sampled:
            self.swap_free -= num_blocks
            self.copy_s += num_blocks * swap.block_copy_s
            self.swap_outs += 1
            self.swapped.append(sequence)
        elif not sequence.all_sampled:
            sequence.num_computed_tokens = 0
            sequence.prefilling = False
            self.waiting.appendleft(sequence)
        self.preemptions += 1
        self.preempted_now = True
        self.run.num_preemptions[sequence.index] += 1
        return sequence
