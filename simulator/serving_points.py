"""What the simulator says of a measured serving point: the same load on the same replica."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from calibrate.fitting.serving import ServingPoint
from calibrate.fitting.validate import Comparison
from calibrate.profiles import Profile
from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica
from simulator.engine.records import COMPLETED
from simulator.engine.simulate import simulate_replicas
from simulator.scenario.replicas import Line, build_line, in_closed_loop
from simulator.workload.requests import Requests


@dataclass
class Predictor:
    """Simulates serving points; keeps each replica's step table, which overheads do not change.

    Attributes:
        profile: what step times rest on; None: the best shipped one for each GPU.
        lines: replicas with their step tables, filled as points come.
    """

    profile: Profile | None = None
    lines: dict[tuple[object, ...], Line] = field(default_factory=dict)

    def __call__(self, point: ServingPoint, overheads: Mapping[str, float] | None = None) -> dict[str, float]:
        """Mean TTFT, TPOT and E2E in seconds, medians, output tokens a second, duration.

        Args:
            point: the load and the replica.
            overheads: in place of the profile's.

        Raises:
            InputError: the model does not fit or a name is unknown.
        """
        requests = requests_of(point)
        line = self._line(point)
        spec = in_closed_loop(line, requests, line.num_schedulers)
        if overheads is not None:
            table = spec.step_table._replace(
                overhead_s=overheads["step_overhead_s"],
                overhead_per_sequence_s=overheads["per_sequence_s"],
                request_overhead_s=overheads["request_overhead_s"],
                output_overhead_s=overheads.get("output_overhead_s", 0.0),
                prompt_token_s=overheads.get("prompt_token_s", 0.0),
            )
            spec = replace(spec, step_table=table)
        records = simulate_replicas(requests, [spec] * line.num_engines)
        if not (records.status == COMPLETED).any():
            return {}
        ttft = records.first_token_s - records.arrival_s
        e2e = records.finish_s - records.arrival_s
        duration = float(np.nanmax(records.finish_s) - records.arrival_s.min())
        answer = {
            "ttft_s": float(np.nanmean(ttft)),
            "ttft_p50_s": float(np.nanmedian(ttft)),
            "e2e_s": float(np.nanmean(e2e)),
            "e2e_p50_s": float(np.nanmedian(e2e)),
            "duration_s": duration,
            "output_tokens_per_s": float(requests.output_tokens.sum()) / duration,
        }
        several = requests.output_tokens > 1
        if several.any():
            tpot = ((e2e - ttft) / np.maximum(requests.output_tokens - 1, 1))[several]
            answer |= {"tpot_s": float(np.nanmean(tpot)), "tpot_p50_s": float(np.nanmedian(tpot))}
        return answer

    def _line(self, point: ServingPoint) -> Line:
        key = (point.group, point.version, point.kv_cache_dtype, str(sorted(point.engine.items())))
        if key not in self.lines:
            self.lines[key] = build_line(replica_of(point), self.profile)
        return self.lines[key]


def replica_of(point: ServingPoint) -> Replica:
    """The replica that a point was measured on."""
    engine = Engine(framework=point.framework, version=point.version or None, **point.engine)
    return Replica(
        find_model(point.model),
        find_gpu(point.gpu),
        tensor_parallel_size=point.tensor_parallel_size,
        data_parallel_size=point.data_parallel_size,
        expert_parallel_size=point.expert_parallel_size,
        precision=point.precision,
        kv_cache_dtype=point.kv_cache_dtype,
        engine=engine,
    )


def requests_of(point: ServingPoint) -> Requests:
    """The point's closed loop; lengths uniform in [shortest, 1] times the longest where they vary."""
    num = point.num_requests
    rng = np.random.default_rng(0)

    def lengths(longest: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        if point.shortest >= 1.0:
            return np.full(num, longest, dtype=np.int64)
        return rng.integers(int(point.shortest * longest), longest + 1, num)

    return Requests(
        np.zeros(num), lengths(point.input_tokens), lengths(point.output_tokens), concurrency=point.concurrency
    )


def compare_points(points: Sequence[ServingPoint], predictor: Predictor, fitted: bool = False) -> list[Comparison]:
    """Every measured figure of the points beside the simulated one."""
    out = []
    for point in points:
        try:
            predicted = predictor(point)
        except InputError:  # the model did fit where it was measured: another memory size, or settings not said
            continue
        parallel = f"tp{point.tensor_parallel_size}" + (" dp" if point.data_parallel_size > 1 else "")
        name = f"{point.model} {parallel} {point.input_tokens}/{point.output_tokens} x{point.concurrency}"
        for metric, measured in point.measured.items():
            if metric in predicted and np.isfinite(predicted[metric]):
                out.append(Comparison(metric, point.group, name, predicted[metric], measured, fitted))
    return out
