"""Sums over requests at evenly spaced instants, in one compiled pass (see ``over_time``)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.engine.compiled import entry, inner

Float = NDArray[np.float64]
QUEUE, RUNNING, KV_TOKENS, GROWTH = range(4)  # rows of what ``add_up`` fills


class Stay(NamedTuple):
    """When each request was at some replicas, in seconds; (n,) each, NaN where it never came.

    Attributes:
        come_s: into their queue. seat_s: onto a seat. token_s, end_s: first and last token there.
        held_s, freed_s: since and until when it held KV.
        prompt, later: tokens of KV from ``held_s`` on, and that it gains evenly from ``token_s`` to ``end_s``.
    """

    come_s: Float
    seat_s: Float
    token_s: Float
    end_s: Float
    held_s: Float
    freed_s: Float
    prompt: Float
    later: Float


@inner
def _place(at_s: float, start_s: float, step_s: float, num: int) -> int:
    """The first instant after a time, ``num`` if there is none; a time that never comes is beyond the last."""
    if not at_s < np.inf:
        return num
    return max(0, min(num, int((at_s - start_s) / step_s)))


@entry
def add_up(stay: Any, start_s: float, step_s: float, spare: float, out: Any) -> None:
    """Fill ``out`` (4, instants + 1) with what changes before each instant; its running sums are the course.

    Args:
        spare: tokens of a request's last block that stay empty.
    """
    num = out.shape[1] - 1
    for i in range(len(stay.come_s)):
        come, seat = _place(stay.come_s[i], start_s, step_s, num), _place(stay.seat_s[i], start_s, step_s, num)
        token, end = _place(stay.token_s[i], start_s, step_s, num), _place(stay.end_s[i], start_s, step_s, num)
        held, freed = _place(stay.held_s[i], start_s, step_s, num), _place(stay.freed_s[i], start_s, step_s, num)
        out[QUEUE, come] += 1.0
        out[QUEUE, seat] -= 1.0
        out[RUNNING, seat] += 1.0
        out[RUNNING, end] -= 1.0
        out[KV_TOKENS, held] += stay.prompt[i] + spare
        out[KV_TOKENS, freed] -= stay.prompt[i] + spare + stay.later[i]
        out[KV_TOKENS, end] += stay.later[i]
        took_s = stay.end_s[i] - stay.token_s[i]
        if took_s > 0.0 and stay.later[i] > 0.0:
            rate = stay.later[i] / took_s
            begun = rate * (stay.token_s[i] - start_s)
            out[GROWTH, token] += rate
            out[GROWTH, end] -= rate
            out[KV_TOKENS, token] -= begun
            out[KV_TOKENS, end] += begun
