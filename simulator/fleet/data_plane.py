"""The seam between the control plane and the replicas that serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.engine.records import UNDECIDED


@dataclass
class Outcome:
    """What is known of each request; NaN and -1 where it has not happened."""

    scheduled_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    replica: NDArray[np.int64]
    status: NDArray[np.int8]
    num_cached_tokens: NDArray[np.int64]
    num_preemptions: NDArray[np.int64]

    @staticmethod
    def empty(n: int) -> Outcome:
        """Nothing has happened."""
        return Outcome(
            np.full(n, np.nan),
            np.full(n, np.nan),
            np.full(n, np.nan),
            np.full(n, -1, np.int64),
            np.full(n, UNDECIDED, np.int8),
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
        )

    def forget(self, ids: NDArray[np.int64]) -> None:
        """Take back what a lost attempt had achieved."""
        for name in ("scheduled_s", "first_token_s", "finish_s"):
            getattr(self, name)[ids] = np.nan
        self.replica[ids] = -1
        self.status[ids] = UNDECIDED


@dataclass(frozen=True)
class Load:
    """The replicas at one instant, by slot.

    Attributes:
        running, waiting: requests; kv_share: 0 to 1; busy_s: time in steps since the slot was filled.
    """

    running: NDArray[np.int64]
    waiting: NDArray[np.int64]
    kv_share: NDArray[np.float64]
    busy_s: NDArray[np.float64]


class DataPlane(Protocol):
    """Replicas that serve requests and can come and go.

    A slot is a place for a replica; it is filled by ``add`` and free again after ``remove`` or ``kill``.
    """

    outcome: Outcome

    def add(self, kind: int) -> int:
        """A new, empty replica of a kind at the present instant; its slot."""
        ...

    def drain(self, slot: int) -> None:
        """Send it no more requests."""
        ...

    def is_empty(self, slot: int) -> bool:
        """Whether it holds no request."""
        ...

    def remove(self, slot: int) -> None:
        """Free the slot of an empty replica."""
        ...

    def kill(self, slot: int) -> NDArray[np.int64]:
        """Free the slot; the requests that had not ended, in order of admission and queue, forgotten."""
        ...

    def set_speed(self, slot: int, factor: float) -> None:
        """Multiply its step times; infinity: it hangs."""
        ...

    def send(self, ids: NDArray[np.int64], at_s: NDArray[np.float64]) -> None:
        """Route requests at instants that ascend and are not before the present one."""
        ...

    def withdraw(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Take back what was sent and has not reached a replica: (requests, instants)."""
        ...

    def open_until(self, index: int) -> None:
        """Let all requests below ``index`` come at their own arrival (now, if that has passed)."""
        ...

    def cancel(self, i: int) -> bool:
        """Take a request out; False if it had ended (its outcome then stands)."""
        ...

    def advance(self, until_s: float) -> None:
        """Deliver and serve up to an instant."""
        ...

    def load(self) -> Load:
        """How the slots stand."""
        ...
