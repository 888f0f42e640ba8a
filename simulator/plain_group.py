"""Engines that step together in plain Python, for the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from calibrate.cuda_graphs import GRAPH_SIZES
from simulator.plain_engine import Engine
from simulator.plain_job import Step
from simulator.plain_step_time import row

if TYPE_CHECKING:
    from simulator.reference import Run


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
        own = max(run.speed[engine.index] * engine.step_s(step) for engine, step in busy)
        experts = first.spec.step_table.experts_s
        if len(self.engines) == 1 or experts is None:
            return own
        each = [step.num_decode_tokens + sum(chunk[1] for chunk in step.chunks) for step in steps]
        tokens = sum(max(1, own_tokens) for own_tokens in each)  # a rank without work runs a dummy token
        if max(each) <= first.spec.graph_tokens:
            tokens = len(each) * int(GRAPH_SIZES[np.searchsorted(GRAPH_SIZES, max(each))])
        return own + run.speed[first.index] * row(experts, tokens)


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
