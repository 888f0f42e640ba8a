"""Engines that step together in plain Python, for the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from simulator.plain_engine import Engine, Step
from simulator.plain_step_time import row

if TYPE_CHECKING:
    from simulator.reference import Run


GRAPHS = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))  # vLLM's captured sizes


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
            tokens = len(each) * next(size for size in GRAPHS if size >= max(each))
        return own + run.speed[first.index] * row(experts, tokens)
