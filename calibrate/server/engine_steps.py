"""Finds an engine's steps in the instants at which its clients' tokens came.

All sequences of a step get their token together, so tokens that come together are a step's, and a sequence that got
one in the step before says how long the step took. Prompts are computed in the order in which their first tokens
come, in what the decoding sequences leave of the step's token budget (as vLLM and transformers schedule them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from calibrate.server.endpoint_client import Reply

TOGETHER = 0.3  # of the median gap between a sequence's tokens: tokens closer than this came together


@dataclass
class EngineStep:
    """One step as clients saw it.

    Attributes:
        at_s: when its tokens came. duration_s: since the step before; None where no sequence spans both,
            or where it cannot be told which prompts ran in it.
        decoding: (reply, its context) of the sequences that decoded. prefill_tokens, prefill_keys: of the prompts
            computed in it, and the keys that these tokens attended to in sum.
    """

    at_s: float
    duration_s: float | None = None
    decoding: list[tuple[int, int]] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    prefill_tokens: float = 0.0
    prefill_keys: float = 0.0


def engine_steps(replies: Sequence[Reply], token_budget: int) -> list[EngineStep]:
    """The steps of one load point, in order. ``replies``: those that came whole."""
    events = sorted((at, i, k) for i, r in enumerate(replies) for k, at in enumerate(r.token_at_s))
    gaps = [b - a for r in replies for a, b in zip(r.token_at_s, r.token_at_s[1:], strict=False)]
    if not gaps:
        return []
    apart_s = TOGETHER * float(np.median(gaps))
    steps: list[EngineStep] = []
    members: set[int] = set()
    spans: list[float] = []
    last_s, before = -np.inf, set[int]()
    for at, i, k in events:
        if at - last_s > apart_s or i in members:
            _close(steps, spans)
            steps.append(EngineStep(at))
            before, members, spans = members, set(), []
        members.add(i)
        last_s = at
        if k == 0:
            steps[-1].first.append(i)
        else:
            steps[-1].decoding.append((i, replies[i].input_tokens + k))
            if i in before:
                spans.append(at - replies[i].token_at_s[k - 1])
    _close(steps, spans)
    _place_prompts(steps, replies, token_budget)
    return steps


def _close(steps: list[EngineStep], spans: Sequence[float]) -> None:
    if steps and spans:
        steps[-1].duration_s = float(np.median(spans))


def _place_prompts(steps: Sequence[EngineStep], replies: Sequence[Reply], token_budget: int) -> None:
    """Hand each step's free tokens to the prompts that were there when it began; a first token ends its prompt."""
    left = {i: replies[i].input_tokens for i in range(len(replies))}
    order = sorted(left, key=lambda i: (replies[i].token_at_s[0], replies[i].sent_at_s))
    begin_s = -np.inf
    for step in steps:
        budget = max(token_budget - len(step.decoding), 0)
        for i in order:
            if not left[i]:
                continue
            ends_here = i in step.first
            if not ends_here and (replies[i].sent_at_s >= begin_s or budget <= 0):
                continue
            take = left[i] if ends_here else min(left[i], budget)
            if take > budget:  # part of the prompt ran in a step that nobody saw: how much, cannot be told
                step.duration_s = None
            done = replies[i].input_tokens - left[i]
            step.prefill_tokens += take
            step.prefill_keys += take * (done + take / 2)
            left[i] -= take
            budget -= take
        begin_s = step.at_s
