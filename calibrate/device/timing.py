"""Times one callable on a torch device: estimate, warm up, flush the cache, device events, quantiles."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calibrate.device.probe import DeviceState, last_level_cache_bytes, read_state

Work = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds: best, median, 10th and 90th percentile of ``num_samples`` runs."""

    best_s: float
    median_s: float
    p10_s: float
    p90_s: float
    num_samples: int


class Timer:
    """Times work on one device, cold cache, within a budget for each case.

    On a CPU with one thread the thread's own CPU time counts, so that other processes' work does not; with several
    threads the wall clock does.

    Args:
        device: torch device of type cuda or cpu.
        target_s: seconds to spend on one case's timed runs.
        max_samples: at most this many runs.
    """

    def __init__(self, device: torch.device, target_s: float = 0.15, max_samples: int = 30) -> None:
        self.device, self.target_s, self.max_samples = device, target_s, max_samples
        self.states: list[DeviceState] = []
        self._is_cuda = device.type == "cuda"
        if self._is_cuda:
            cache_bytes = 2 * int(torch.cuda.get_device_properties(device).L2_cache_size)
        else:
            cache_bytes = int(last_level_cache_bytes())
        self._flush = torch.zeros(max(cache_bytes, 2**22) // 4, dtype=torch.float32, device=device)
        self._last_state_at_s = 0.0

    def time(self, work: Work, name: str, cold: bool = True) -> Timing:
        """Time ``work`` under an NVTX range called ``name``.

        The first run is not counted (it compiles, allocates, picks a kernel); a second one estimates the cost, and the
        number of samples follows from it: at least 3, at most ``max_samples``.

        Args:
            cold: flush the last-level cache before each run, as weights and KV are read cold while serving.
        """
        with self._range(name):
            self._once(work, cold)
            estimate_s = self._once(work, cold)
            each_s = estimate_s + (self._flush_s() if cold else 0.0)
            num = int(min(self.max_samples, max(3, self.target_s / max(each_s, 1e-9))))
            samples = self._cuda_samples(work, num, cold) if self._is_cuda else self._samples(work, num, cold)
        self._note_state()
        p10, mid, p90 = np.percentile(samples, [10, 50, 90])
        return Timing(float(min(samples)), float(mid), float(p10), float(p90), num)

    def _range(self, name: str) -> AbstractContextManager[object]:
        return torch.cuda.nvtx.range(name) if self._is_cuda else nullcontext()

    def _once(self, work: Work, cold: bool) -> float:
        return (self._cuda_samples(work, 1, cold) if self._is_cuda else self._samples(work, 1, cold))[0]

    def _cuda_samples(self, work: Work, num: int, cold: bool) -> list[float]:
        event: Any = torch.cuda.Event
        starts = [event(enable_timing=True) for _ in range(num)]
        ends = [event(enable_timing=True) for _ in range(num)]
        for start, end in zip(starts, ends, strict=True):
            if cold:
                self._flush.zero_()  # also keeps the device busy while the host submits, which hides launch latency
            start.record()
            work()
            end.record()
        torch.cuda.synchronize(self.device)
        return [s.elapsed_time(e) / 1e3 for s, e in zip(starts, ends, strict=True)]  # torch gives milliseconds

    def _samples(self, work: Work, num: int, cold: bool) -> list[float]:
        samples = []
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        for _ in range(num):
            if cold:
                self._flush.add_(1.0)
            begin = clock()
            work()
            samples.append(max(clock() - begin, 1e-9))
        return samples

    def _flush_s(self) -> float:
        """Rough cost of one flush, so that the budget counts it: the buffer is read and written once."""
        return self._flush.numel() * 8 / (1.5e12 if self._is_cuda else 15e9)

    def _note_state(self) -> None:
        if time.monotonic() - self._last_state_at_s >= 1.0:  # a reading costs tens of milliseconds
            self.states.append(read_state(self.device.type, self.device.index or 0))
            self._last_state_at_s = time.monotonic()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was submitted."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
