"""How long a replica takes from the request for a machine to its first request, part by part.

Each part is a log-normal distribution whose logarithm has the mean and the standard deviation of the published
measurements in ``catalogs/boot_times.csv`` (a source a row); the user may set any of them. Parts given as a rate are
divided into a size: the container image, the weights.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

import numpy as np

from catalogs.errors import InputError
from catalogs.units import GB

PARTS = ("instance_boot", "image_pull", "weight_load", "engine_start", "engine_warm_up", "graph_capture")
MACHINE_PARTS = ("instance_boot", "image_pull")  # what a stopped machine in a warm pool has behind it
IMAGE_BYTES = 12.6 * GB  # vllm/vllm-openai:latest (github.com/vllm-project/vllm issue 27154, 2025-10-18)


@dataclass(frozen=True)
class LogNormal:
    """A positive quantity: its median and the standard deviation of its natural logarithm."""

    median: float
    sigma: float = 0.0

    def sample(self, rng: np.random.Generator) -> float:
        """One draw."""
        return self.median * math.exp(self.sigma * float(rng.standard_normal()))

    @property
    def mean(self) -> float:
        """The distribution's mean."""
        return self.median * math.exp(self.sigma**2 / 2)


@cache
def measured(part: str) -> LogNormal:
    """The distribution of the published measurements of one part (seconds, or bytes a second)."""
    with resources.files("catalogs").joinpath("boot_times.csv").open(encoding="utf-8") as file:
        logs = np.array([math.log(float(r["value"])) for r in csv.DictReader(file) if r["part"] == part])
    return LogNormal(float(np.exp(logs.mean())), float(logs.std(ddof=1)) if len(logs) > 1 else 0.0)


@dataclass(frozen=True)
class ColdStart:
    """The parts of a cold start.

    Attributes:
        weight_bytes: the model's weights, over all GPUs of the replica.
        image_bytes: the container image; 0 when it is part of the machine image.
        compile_cached: the engine finds its compile cache (kept on a volume or in the image).
        enforce_eager: no CUDA graphs are captured and nothing is compiled.
        parts: what replaces the measured distributions, by part; seconds, whatever the default's unit.
        total: replaces all parts (a distribution of the whole).
    """

    weight_bytes: float = 0.0
    image_bytes: float = IMAGE_BYTES
    compile_cached: bool = False
    enforce_eager: bool = False
    parts: Mapping[str, LogNormal] = field(default_factory=dict)
    total: LogNormal | None = None

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise InputError(f"no cold start part {part!r}", where="cold_start", remedy=", ".join(PARTS))

    def distribution(self, part: str) -> LogNormal:
        """Seconds that a part takes."""
        if part in self.parts:
            return self.parts[part]
        if part in ("image_pull", "weight_load"):
            rate = measured(part)
            size = self.image_bytes if part == "image_pull" else self.weight_bytes
            return LogNormal(size / rate.median, rate.sigma if size else 0.0)
        if part == "graph_capture" and self.enforce_eager:
            return LogNormal(0.0)
        if part == "engine_warm_up":
            if self.enforce_eager:
                return LogNormal(0.0)
            return measured("engine_warm_up_cached" if self.compile_cached else part)
        return measured(part)

    def sample(self, rng: np.random.Generator, *, warm: bool = False) -> dict[str, float]:
        """Seconds of each part, in order; ``warm``: the machine and the image are there already."""
        if self.total is not None:
            whole = self.total.sample(rng)
            return {"instance_boot": 0.0 if warm else whole}
        draws = {part: self.distribution(part).sample(rng) for part in PARTS}
        return {part: s for part, s in draws.items() if not (warm and part in MACHINE_PARTS)}

    @property
    def mean_s(self) -> float:
        """Mean of the whole."""
        return self.total.mean if self.total is not None else sum(self.distribution(p).mean for p in PARTS)

    @property
    def median_s(self) -> float:
        """Sum of the parts' medians (the median of the whole where one is given)."""
        return self.total.median if self.total is not None else sum(self.distribution(p).median for p in PARTS)


def check_fits_run(cold_start: ColdStart, duration_s: float, where: str = "cold_start") -> None:
    """Refuse a cold start that no replica could finish within the run.

    Raises:
        InputError: the median cold start is longer than the run.
    """
    if cold_start.median_s >= duration_s:
        raise InputError(
            f"a cold start takes {cold_start.median_s:.0f} s, the run lasts {duration_s:.0f} s",
            where=where,
            why="no replica that is started would ever serve",
            remedy="a longer workload, a shorter cold start (image in the machine image, warm pool) or no autoscaling",
        )
