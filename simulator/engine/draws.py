"""Random numbers that depend on what they are drawn for, and not on when: compiled and plain draw the same."""

from __future__ import annotations

import numpy as np

from simulator.engine.compiled import inner


@inner
def uniform(seed: int, i: int, draw: int) -> float:
    """A uniform number in [0, 1) for a request's nth step: splitmix64's mixing of the three (Steele et al., 2014)."""
    z = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(i + 1) * np.uint64(0xD1342543DE82EF95)
    z += np.uint64(draw + 1) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * (1.0 / 9007199254740992.0)
