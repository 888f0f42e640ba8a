"""The engine in plain Python, one step at a time: what the compiled loop must equal.

One object a concept (request, block pool, engine), no shortcut. Instants are kept as absolute numbers in one heap, in
which arrivals come before decisions of the same instant; a process kernel that adds delays would move them by rounding.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from calibrate.step import StepTable
from simulator.plain_routing import PlainRouter
from simulator.plane import ReplicaSpec, first_ranks
from simulator.records import COMPLETED, FAILED, REJECTED, Records
from simulator.routing import RouterOptions
from simulator.shared_prefix import SharedPrefix
from simulator.workload import Requests


@dataclass(eq=False)
class Block:
    """A KV block: how many requests hold it, and what it holds that another could use."""

    num_holders: int = 0
    content: Hashable = None


class BlockPool:
    """All blocks of a replica; free ones wait in the order in which they will be taken."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.free: OrderedDict[Block, None] = OrderedDict((Block(), None) for _ in range(num_blocks))
        self.cached: dict[Hashable, Block] = {}

    def take(self, count: int) -> list[Block]:
        """Take the first free blocks; what they held is lost."""
        taken = []
        for _ in range(count):
            block, _none = self.free.popitem(last=False)
            if block.content is not None:
                del self.cached[block.content]
                block.content = None
            block.num_holders = 1
            taken.append(block)
        return taken

    def hold(self, blocks: Sequence[Block]) -> None:
        """One more request holds these cached blocks."""
        for block in blocks:
            if block.num_holders == 0:
                del self.free[block]
            block.num_holders += 1

    def give_back(self, blocks: Sequence[Block]) -> None:
        """A request lets its blocks go, the last first."""
        for block in reversed(blocks):
            block.num_holders -= 1
            if block.num_holders == 0:
                self.free[block] = None

    def remember(self, block: Block, content: Hashable) -> None:
        """A full block can be found by its content from now on, unless another one already is."""
        if block.content is None and content not in self.cached:
            block.content = content
            self.cached[content] = block

    def forget(self, owner: tuple[str, int], first: int) -> None:
        """What a request's own blocks held from place ``first`` on is of no use: it computes them again."""
        for content in [c for c in self.cached if isinstance(c, tuple) and c[:2] == owner and c[2] >= first]:
            self.cached.pop(content).content = None


@dataclass(eq=False)
class Job:
    """A request inside an engine."""

    index: int
    num_prompt_tokens: int
    max_tokens: int
    ready_s: float
    num_computed_tokens: int = 0
    num_sampled: int = 0  # output tokens, those in flight too
    num_returned: int = 0  # output tokens that have come out
    prefilling: bool = False
    finished: bool = False
    num_remembered: int = 0  # full blocks that were put into the cache, or equal ones were there
    blocks: list[Block] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_sampled

    @property
    def all_sampled(self) -> bool:
        return self.num_sampled >= self.max_tokens


@dataclass
class Step:
    """What one step computes: (sequence, tokens, tokens before), and when."""

    chunks: list[tuple[Job, int, int]] = field(default_factory=list)
    decodes: list[Job] = field(default_factory=list)
    sampling: list[Job] = field(default_factory=list)
    end_s: float = 0.0


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
        self.busy_s = self.last_end_s = 0.0
        self.group: Group
        self.preempted_now = False

    @property
    def longest(self) -> int:
        return min(self.spec.max_model_len, self.pool.num_blocks * self.spec.block_size)

    @property
    def load(self) -> float:
        return len(self.waiting) + len(self.running)

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
        at_s = max(self.due_s(), group.idle_since_s)
        if group.idle and at_s < group.wake_s:
            self.run.wake(group, at_s)
        return True

    def due_s(self) -> float:
        """When an empty engine starts on its queue."""
        if self.spec.policy not in ("static", "dynamic"):
            return self.waiting[0].ready_s
        overdue_s = self.waiting[0].ready_s + self.spec.max_queue_delay_s
        if len(self.waiting) < self.spec.max_num_seqs:
            return overdue_s
        return min(overdue_s, self.waiting[self.spec.max_num_seqs - 1].ready_s)

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

    def note(self, step: Step) -> None:
        """Write down when tokens will come."""
        for sequence in step.sampling:
            out_s = step.end_s + self.spec.step_table.output_overhead_s
            if sequence.num_sampled == 1:
                self.run.first_token_s[sequence.index] = out_s
            if sequence.all_sampled:
                self.run.finish_s[sequence.index] = out_s
                self.run.status[sequence.index] = COMPLETED
                self.run.ended(sequence.index, out_s)

    def take_results(self, step: Step) -> None:
        """The step's tokens are out; finished sequences leave."""
        for sequence in step.sampling:
            sequence.num_returned += 1
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
            self.schedule_prefills(step, now, budget)
            if not step.chunks:
                self.schedule_decodes(step)
        else:
            self.schedule_decodes(step)
            self.schedule_prefills(step, now, budget - len(step.decodes))
        for sequence in step.decodes:
            sequence.num_sampled += 1
        for sequence, _tokens, _before in step.chunks:
            if sequence.num_computed_tokens == sequence.num_tokens:
                sequence.prefilling = False
                sequence.num_sampled += 1
                step.sampling.append(sequence)
        step.sampling = step.decodes + step.sampling
        return step

    def schedule_decodes(self, step: Step) -> None:
        place = 0
        while place < len(self.running):
            sequence = self.running[place]
            if not sequence.prefilling and not sequence.all_sampled:
                while not self.grow(sequence, 1):
                    if self.preempt() is sequence:
                        return
                step.decodes.append(sequence)
            place += 1

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
        while budget > 0 and self.waiting and len(self.running) < self.spec.max_num_seqs:
            sequence = self.waiting[0]
            if sequence.ready_s > now:
                return budget
            hit = self.find_cached(sequence)
            before = len(hit) * self.spec.block_size
            tokens = min(budget, sequence.num_tokens - before)
            alone = budget == self.spec.max_num_batched_tokens
            if not self.spec.enable_chunked_prefill and sequence.num_sampled and alone:
                tokens = sequence.num_tokens - before  # it may have outgrown the budget
            if tokens < sequence.num_tokens - before and not self.spec.enable_chunked_prefill:
                return budget
            held = sum(block.num_holders > 0 for block in hit)
            if self.blocks_for(sequence, sequence.num_tokens) - held > len(self.pool.free):
                return budget
            self.waiting.popleft()
            self.admit(sequence, now, hit)
            grown = self.grow(sequence, tokens)
            assert grown
            step.chunks.append((sequence, tokens, before))
            budget -= tokens
        return budget

    def admit(self, sequence: Job, now: float, hit: list[Block]) -> None:
        run, i = self.run, sequence.index
        self.pool.hold(hit)
        self.pool.forget(("own", i), len(hit))
        sequence.blocks = list(hit)
        sequence.num_remembered = len(hit)
        sequence.num_computed_tokens = len(hit) * self.spec.block_size
        sequence.prefilling = True
        self.running.append(sequence)
        if np.isnan(run.scheduled_s[i]):
            run.scheduled_s[i] = now
            run.num_cached_tokens[i] = sequence.num_computed_tokens
            if self.spec.enable_prefix_caching:
                self.prefix_queries += sequence.num_prompt_tokens
                self.prefix_hits += sequence.num_computed_tokens

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

    def grow(self, sequence: Job, tokens: int) -> bool:
        """Give a sequence the blocks for its next tokens, if there are."""
        need = self.blocks_for(sequence, sequence.num_computed_tokens + tokens) - len(sequence.blocks)
        if need > len(self.pool.free):
            return False
        sequence.blocks += self.pool.take(need)
        sequence.num_computed_tokens += tokens
        if self.spec.enable_prefix_caching:
            in_flight = 1 if self.spec.async_scheduling and not sequence.prefilling else 0
            num_full = (sequence.num_computed_tokens - in_flight) // self.spec.block_size
            for place in range(sequence.num_remembered, num_full):
                self.pool.remember(sequence.blocks[place], self.content_of(sequence, place))
            sequence.num_remembered = max(sequence.num_remembered, num_full)
        return True

    def preempt(self) -> Job:
        """Take the last running sequence's blocks; it waits at the head of the queue to be computed again."""
        sequence = self.running.pop()
        self.pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed_tokens = 0
        sequence.prefilling = False
        if not sequence.all_sampled:
            self.waiting.appendleft(sequence)
        self.preemptions += 1
        self.preempted_now = True
        self.run.num_preemptions[sequence.index] += 1
        return sequence


class Group:
    """Engines that step together: data-parallel ranks that share experts; else a single one."""

    def __init__(self, engines: list[Engine]) -> None:
        self.engines = engines
        self.index = engines[0].index
        self.idle, self.idle_since_s, self.wake_s, self.turn = True, 0.0, np.inf, 0
        for engine in engines:
            engine.group = self

    def decide(self, run: Run, now: float) -> None:
        """Take in results, put the next step in flight, and say when to look again."""
        first = self.engines[0]
        for engine in self.engines:
            engine.take_in(now)
        steps = [engine.schedule(now) for engine in self.engines]
        self.idle = False
        if any(step.chunks or step.decodes for step in steps):
            start = max(now, first.inflight[-1].end_s) if first.inflight else now
            duration = self.duration_s(run, steps)
            for engine, step in zip(self.engines, steps, strict=True):
                engine.put_in_flight(step, duration, start + duration)
            run.wake(self, now if len(first.inflight) < first.depth else first.inflight[0].end_s)
        elif first.inflight:
            run.wake(self, first.inflight[0].end_s)
        else:
            self.idle, self.idle_since_s = True, now
            run.wake(self, min(engine.next_start_s(now) for engine in self.engines))

    def duration_s(self, run: Run, steps: Sequence[Step]) -> float:
        """The slowest rank's own layers, and the experts at the tokens of all."""
        first = self.engines[0]
        busy = [(engine, step) for engine, step in zip(self.engines, steps, strict=True) if step.chunks or step.decodes]
        own = max(run.speed[engine.index] * step_time_s(engine.spec.step_table, step) for engine, step in busy)
        experts = first.spec.step_table.experts_s
        if len(self.engines) == 1 or experts is None:
            return own
        tokens = sum(len(step.decodes) + sum(chunk[1] for chunk in step.chunks) for step in steps)
        return own + run.speed[first.index] * row(experts, tokens)


def interpolate(axis: np.ndarray, x: float) -> tuple[int, float]:
    """Cell of an axis and place in it; the outermost cells extend to infinity."""
    cell = int(np.clip(np.searchsorted(axis, x, side="right") - 1, 0, len(axis) - 2))
    return cell, float((x - axis[cell]) / (axis[cell + 1] - axis[cell]))


def attention_time_s(table: StepTable, point: Sequence[float]) -> float:
    """Multilinear interpolation of ``attention_s``."""
    axes = (table.prefill_tokens_axis, table.prefill_context_axis, table.num_decode_axis, table.decode_context_axis)
    values = table.attention_s
    for axis, x in zip(axes, point, strict=True):
        cell, share = interpolate(axis, x)
        values = values[cell] * (1.0 - share) + values[cell + 1] * share
    return float(values)


def row(values: np.ndarray, i: int) -> float:
    """``values[i]``, extended linearly beyond the end."""
    last = len(values) - 1
    return float(values[i] if i <= last else values[last] + (values[last] - values[last - 1]) * (i - last))


def step_time_s(table: StepTable, step: Step) -> float:
    """Seconds of a step (see ``StepTable``)."""
    prefill = sum(tokens for _, tokens, _ in step.chunks)
    work = sum(tokens * (before + 0.5 * tokens) for _, tokens, before in step.chunks)
    contexts = [s.num_computed_tokens for s in step.decodes]  # the token of this step is among them
    decode = len(contexts)
    point = [prefill, work / prefill if prefill else 0.0, decode, float(np.mean(contexts)) if decode else 0.0]
    time = row(table.mixed_tokens_s if prefill else table.decode_tokens_s, prefill + decode)
    time += row(table.sampled_s, len(step.sampling))
    at_mean = attention_time_s(table, point)
    time += at_mean + skew_time_s(table, point, contexts, at_mean)
    sequences = len(step.decodes) + len(step.chunks)
    return time + table.overhead_s + table.overhead_per_sequence_s * sequences


def skew_time_s(table: StepTable, point: Sequence[float], contexts: Sequence[int], at_mean: float) -> float:
    """What unequal contexts add (see ``SkewTable``)."""
    skew = table.skew
    if skew is None or len(contexts) < 2 or max(contexts) == min(contexts):
        return 0.0
    low, high = min(contexts), max(contexts)
    values = (point[0], len(contexts), (point[3] - low) / (high - low), high)
    place = tuple(
        min(int(np.searchsorted(edges, x)), len(edges) - 1) for edges, x in zip(skew[:4], values, strict=True)
    )
    return float(skew.alpha[place]) * (attention_time_s(table, [*point[:3], high]) - at_mean)


class Run:
    """Requests, engines and a heap of what happens when."""

    def __init__(
        self, requests: Requests, specs: Sequence[ReplicaSpec], router: str, seed: int, options: RouterOptions
    ) -> None:
        n = len(requests)
        self.requests = requests
        self.prefix = {size: SharedPrefix.of(requests, size) for size in {s.block_size for s in specs}}
        self.speed = [1.0] * len(specs)
        self.front_s = [0.0] * len(specs)  # until when a replica's tokenizer is busy
        self.engines = [self.engine_of(spec, r) for r, spec in enumerate(specs)]
        firsts = first_ranks(specs)
        self.groups = {
            first: Group([e for e, f in zip(self.engines, firsts, strict=True) if f == first]) for first in set(firsts)
        }
        self.router = PlainRouter(router, self.engines, requests, options, seed)
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
        r = self.router.choose(i, now)
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
