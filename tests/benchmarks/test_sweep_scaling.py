"""What a sweep costs in CPU time, from which docs/scale-out.md reckons larger ones; printed, not asserted.

The least of some repetitions, since a machine that is shared makes each instruction dearer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest

from simulator.sweep import Point, play_point, read_sweep, run_sweep
from tests.shared_data import shared_data

pytestmark = pytest.mark.bench

SCALES = (0.5, 1, 2, 4)


def points(folder: Path, grid: dict[str, list[Any]], workload: dict[str, Any]) -> list[Point]:
    """Points of a fleet of four replicas of Llama-3.1-8B."""
    scenario = {"model": "llama-3.1-8b", "workload": workload, "fleet": [{"gpu": "H100-SXM", "count": 4}]}
    path = folder / "sweep.yaml"
    path.write_text(json.dumps({"scenario": scenario, "grid": grid}))
    return read_sweep(path)


@lru_cache(maxsize=1)
def one_answer(scenario: str) -> dict[str, Any]:
    del scenario
    return json.loads((Path(__file__).parents[2] / "out" / "bench-answer.json").read_text())  # type: ignore[no-any-return]


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of this process for a piece of work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def no_simulation(point: Point) -> dict[str, Any]:
    """The answer of another point, at once: what is left is handing out points and writing rows."""
    return one_answer(point.folder)


def test_cpu_time_of_a_point(tmp_path: Path) -> None:
    trace = str(shared_data("traces/azure_llm_2023_conv.csv"))
    asked = points(tmp_path, {"workload.scale": list(SCALES)}, {"trace": trace})
    for point in asked:
        play_point(point)  # compiles, and reads the trace
    print()
    for scale, point in zip(SCALES, asked, strict=True):
        num = play_point(point)["requests"]["completed"]
        seconds = min(cpu_s(partial(play_point, point)) for _ in range(9))
        print(
            f"Azure conversations x {scale:<4} {num:>8,} requests {seconds:8.3f} s {seconds / num * 1e6:6.2f} us each"
        )


def test_cpu_time_of_handing_out_points(tmp_path: Path) -> None:
    arrivals = {"process": "poisson", "rate_rps": 5, "num_requests": 200}
    lengths = {"distribution": "fixed", "value": 100}
    workload = {"arrivals": arrivals, "input_tokens": lengths, "output_tokens": lengths}
    asked = points(tmp_path, {"seed": list(range(1000))}, workload)
    answer = Path(__file__).parents[2] / "out" / "bench-answer.json"
    answer.parent.mkdir(exist_ok=True)
    answer.write_text(json.dumps(play_point(asked[0])))
    print()
    sweep = partial(run_sweep, asked, tmp_path / "o.parquet", function=no_simulation, workers=2, restart=True)
    seconds = min(cpu_s(sweep) for _ in range(5))
    print(f"handing out and writing: {seconds / len(asked) * 1e3:.3f} ms a point")
