"""Finds controllers that chase their own tail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Oscillation:
    """A stretch in which the target kept turning round."""

    start_s: float
    end_s: float
    num_turns: int
    lowest: int
    highest: int


def find_oscillation(
    times_s: Sequence[float],
    targets: Sequence[int],
    window_s: float = 3600.0,
    min_turns: int = 6,
    min_swing: float = 0.2,
) -> Oscillation | None:
    """The worst window in which the target changed direction at least ``min_turns`` times.

    Args:
        times_s, targets: the target's changes, in order of time.
        window_s: length of the window looked at.
        min_turns: changes of direction that count as oscillation.
        min_swing: highest minus lowest, as a share of the highest, below which turning does no harm.
    """
    turns: list[tuple[float, int, int]] = []
    direction, last = 0, None
    for time_s, target in zip(times_s, targets, strict=True):
        if last is not None and target != last:
            new = 1 if target > last else -1
            if direction and new != direction:
                turns.append((time_s, min(last, target), max(last, target)))
            direction = new
        last = target
    worst: Oscillation | None = None
    first = 0
    for i, (time_s, _, _) in enumerate(turns):
        while turns[first][0] < time_s - window_s:
            first += 1
        inside = turns[first : i + 1]
        low, high = min(t[1] for t in inside), max(t[2] for t in inside)
        if (
            len(inside) >= min_turns
            and (high - low) >= min_swing * high
            and (worst is None or len(inside) > worst.num_turns)
        ):
            worst = Oscillation(inside[0][0], time_s, len(inside), low, high)
    return worst
