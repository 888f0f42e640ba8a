"""Engines that step together in plain Python, for the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from calibrate.physics.cuda_graphs import GRAPH_SIZES
from simulator.engine.lockstep import SYNC_STEPS
from simulator.engine.plain.job import Step
from simulator.engine.plain.replica import Engine
from simulator.engine.plain.step_time import experts_s, token_wise_s

if TYPE_CHECKING:
    from simulator.engine.plain.reference import Run


class Group:
    """Engines that step together: data-parallel ranks that share experts; else a single one."""

    def __init__(self, engines: list[Engine]) -> None:
        self.engines = engines
        self.index = engines[0].index
        self.idle, self.idle_since_s, self.wake_s, self.turn = True, 0.0, np.inf, 0
        self.steps_since_sync = 0
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
            self.count_step(run, now)
            start = max(now, first.inflight[-1].end_s) if first.inflight else now
            duration = self.duration_s(run, steps)
            for engine, step in zip(self.engines, steps, strict=True):
                engine.put_in_flight(step, duration, start + duration)
            run.wake(self, now if len(first.inflight) < first.depth else first.inflight[0].end_s)
        elif first.inflight:
            run.wake(self, first.inflight[0].end_s)
        else:
            self.idle, self.idle_since_s = True, now
            run.wake(self, self.free_at_s(run, min(engine.next_start_s(now) for engine in self.engines)))

    def duration_s(self, run: Run, steps: Sequence[Step]) -> float:
        """The slowest rank's own layers, and the experts at the tokens of all."""
        first = self.engines[0]
        if len(self.engines) == 1:
            return run.speed[first.index] * first.step_s(steps[0])
        each = [step.num_decode_tokens + step.num_prefill_tokens for step in steps]
        tokens = sum(max(1, own_tokens) for own_tokens in each)  # a rank without work runs a dummy token
        graph = 0
        if max(each) <= first.spec.graph_tokens:
            graph = int(GRAPH_SIZES[np.searchsorted(GRAPH_SIZES, max(each))])
            tokens = len(each) * graph
        mixed, slowest = any(step.chunks for step in steps), 0.0
        for engine, step, own_tokens in zip(self.engines, steps, each, strict=True):
            if own_tokens:
                own, table = engine.step_s(step), engine.spec.step_table
                if graph:
                    own += token_wise_s(table, graph, mixed) - token_wise_s(table, own_tokens, bool(step.chunks))
                slowest = max(slowest, run.speed[engine.index] * own)
        return slowest + run.speed[first.index] * experts_s(first.spec.step_table, tokens)

    def dummy_step_s(self, run: Run) -> float:
        """A step in which every rank computes a dummy token."""
        first = self.engines[0]
        table = first.spec.step_table
        own = token_wise_s(table, 1, False) + table.overhead_s
        return run.speed[first.index] * (own + experts_s(table, len(self.engines)))

    @property
    def steps_to_sync(self) -> int:
        """Steps until the ranks ask each other whether all are idle."""
        return -self.steps_since_sync % SYNC_STEPS

    def free_at_s(self, run: Run, at_s: float) -> float:
        """When idle ranks take up work that comes at ``at_s``: between two dummy steps, until they stop."""
        if len(self.engines) == 1 or self.steps_to_sync == 0 or at_s == np.inf:
            return at_s
        num = np.ceil((at_s - self.idle_since_s) / self.dummy_step_s(run) - 1e-9)
        if num > self.steps_to_sync:
            return at_s
        return float(max(at_s, self.idle_since_s + num * self.dummy_step_s(run)))

    def count_step(self, run: Run, now: float) -> None:
        """Count a step, and the dummy steps that idle ranks ran before it."""
        if len(self.engines) == 1:
            return
        if self.steps_to_sync and self.engines[0].last_end_s <= self.idle_since_s:
            num = int(np.rint((now - self.idle_since_s) / self.dummy_step_s(run)))
            self.steps_since_sync = 0 if num >= self.steps_to_sync else self.steps_since_sync + num
        self.steps_since_sync = (self.steps_since_sync + 1) % SYNC_STEPS


class Pipeline(Group):
    """Batches of one scheduler that pass the stages one after another; they share queue, seats and blocks."""

    def __init__(self, engines: list[Engine]) -> None:
        super().__init__(engines)
        self.stage_free_s = [0.0] * len(engines)
        for engine in engines:
            engine.batches = engines
            engine.waiting, engine.pool = engines[0].waiting, engines[0].pool
            engine.tiers, engine.slots = engines[0].tiers, engines[0].slots

    def decide(self, run: Run, now: float) -> None:
        """Put in the batch that has come out, or an empty one for what waits; say when to look again."""
        self.idle = False
        come_out = [e for e in self.engines if e.last_end_s <= now]
        full = sorted((e for e in come_out if e.running), key=lambda e: e.last_end_s)
        empty = [e for e in come_out if not e.running] if self.engines[0].waiting else []
        planned = False
        for engine in [*full, *empty][:1]:
            engine.take_in(now)
            step = engine.schedule(now)
            planned = bool(step.chunks or step.decodes)
            if planned:
                duration, at_s = run.speed[engine.index] * engine.step_s(step), now
                for stage, free_s in enumerate(self.stage_free_s):
                    at_s = self.stage_free_s[stage] = max(at_s, free_s) + duration / len(self.engines)
                engine.put_in_flight(step, duration, at_s)
        waiting = self.engines[0].waiting
        under_way = [e.last_end_s for e in self.engines if e.last_end_s > now]
        more = planned and len(under_way) < len(self.engines) and waiting and waiting[0].ready_s <= now
        if more or any(e.running and e.last_end_s <= now for e in self.engines):
            run.wake(self, now)
        elif under_way:
            run.wake(self, min(under_way))
        else:
            self.idle, self.idle_since_s = True, now
            run.wake(self, self.engines[0].next_start_s(now))
