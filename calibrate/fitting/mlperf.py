"""MLPerf Inference rows as batch points, the fit of the static-batch constants on them, and its error on GPUs left out.

Rows of the closed division: BERT-large (99 % in INT8; 99.9 % in FP16, or FP8 where a GPU has it) and ResNet-50 in
INT8. Offline gives seconds an item in large batches; SingleStream and MultiStream the latency of 1 and 8. Power-capped
(MaxQ), partitioned (MIG) and Triton variants are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.static_batches import batch_time_s, fitted_constants
from catalogs.load import find_gpu, find_model
from catalogs.names import normalise
from catalogs.schema import Gpu, Replica

SQUAD_TOKENS = 177.0  # mean tokens of a SQuAD v1.1 question and passage; the harness packs them without padding
OFFLINE_BATCH = 2048
_GPU_NAMES = {
    "a1024q": "A10", "a100pcie80gb": "A100-80GB-PCIe", "a100sxm40gb": "A100-40GB", "a100sxm80gb": "A100-80GB",
    "a100sxm80gbcts": "A100-80GB", "a100sxm480gbcts": "A100-80GB", "h100pcie80gb": "H100-PCIe",
    "h100sxm80gb": "H100-SXM", "t4": "T4", "a30": "A30", "l4": "L4", "l40s": "L40S", "h200sxm141gb": "H200",
}  # fmt: skip
_SAME_CHIP = {"A100-80GB": "A100", "A100-40GB": "A100", "A100-80GB-PCIe": "A100"}  # left out together


@dataclass(frozen=True)
class BatchPoint:
    """A measured batch.

    Attributes:
        model, gpu, precision: catalogue names.
        batch: items at once (``OFFLINE_BATCH`` where only the rate is known). tokens: in an item; 1 for images.
        seconds: of the whole batch, on one GPU.
        scenario: Offline, SingleStream or MultiStream. origin: version and how many rows the median is of.
    """

    model: str
    gpu: str
    precision: str
    batch: int
    tokens: float
    seconds: float
    scenario: str
    origin: str


def a30() -> Gpu:
    """NVIDIA's A30, by its data sheet: half an A100 and a bit, at 165 W; measured here, not for sale on AWS."""
    peaks = {"fp32": 10.3e12, "tf32": 82e12, "fp16": 165e12, "bf16": 165e12, "int8": 330e12, "int4": 661e12}
    return replace(
        find_gpu("A100-40GB"), name="A30", num_sms=56, peak_flops=peaks, memory_bytes=24e9,
        memory_bandwidth_bytes_per_s=933e9, l2_bytes=24e6, tdp_w=165.0, source="NVIDIA A30 data sheet",
    )  # fmt: skip


def gpu_of(name: str) -> Gpu:
    """A catalogue GPU, or the A30."""
    return a30() if name == "A30" else find_gpu(name)


def read_points(paths: Iterable[Path]) -> list[BatchPoint]:
    """Batch points of files of published MLPerf rows: the median over submitters for each GPU, model and version.

    Raises:
        InputError: a model or GPU of the catalogue is missing. KeyError: a column is.
    """
    import pandas as pd

    points = []
    for path in paths:
        rows = pd.read_csv(path)
        plain = ~(rows.notes + rows.gpu).str.contains("MaxQ|MIG|Triton", case=False, regex=True)
        nodes = pd.to_numeric(rows.notes.str.extract(r"nodes=(\d+)")[0]).fillna(1)
        rows = rows.assign(each=rows.value / rows.gpu_count / nodes, name=[_gpu_name(g) for g in rows.gpu])[plain]
        for (model, gpu, scenario), group in rows.groupby(["model", "name", "concurrency_or_rate"]):
            point = _point(str(model), str(gpu), str(scenario), group, path.stem)
            if point is not None:
                points.append(point)
    return points


def _gpu_name(name: str) -> str:
    return _GPU_NAMES.get(normalise(name), "")


def _point(model: str, gpu: str, scenario: str, rows: Any, origin: str) -> BatchPoint | None:
    if not gpu or model not in ("bert-99", "bert-99.9", "resnet50"):
        return None
    precision = "int8" if model != "bert-99.9" else "fp8" if "fp8" in gpu_of(gpu).peak_flops else "fp16"
    name, tokens = ("resnet50", 1.0) if model == "resnet50" else ("bert-large", SQUAD_TOKENS)
    if scenario == "Offline":
        rate = rows[rows.metric == "throughput"].each
        batch, seconds = OFFLINE_BATCH, OFFLINE_BATCH / float(rate.median()) if len(rate) else 0.0
    else:
        batch = {"SingleStream": 1, "MultiStream": 8}.get(scenario, 0)
        seconds = float(rows[rows.metric == "latency_mean"].value.median()) / 1e3 if batch else 0.0
    if not batch or not seconds > 0:
        return None
    return BatchPoint(name, gpu, precision, batch, tokens, seconds, scenario, f"{origin}, {len(rows)} rows")


def predicted_s(point: BatchPoint, fit: Mapping[str, Any] | None = None) -> float:
    """Seconds that the model gives for a point."""
    replica = Replica(find_model(point.model), gpu_of(point.gpu), precision=point.precision)
    return batch_time_s(replica, point.batch, point.tokens, fit)


def fit_constants(points: Sequence[BatchPoint], start: Mapping[str, Any] | None = None) -> dict[str, float]:
    """The constants that fit large batches best (log errors, outliers damped), then the launch time from small ones."""
    from scipy.optimize import least_squares

    known = dict(start or fitted_constants())
    names = ("encoder_bytes_per_width_byte", "vision_bytes_per_flop_byte", "energy_j_per_flop_byte_nm")
    large = [p for p in points if p.scenario == "Offline"]

    def errors(logs: Any) -> list[float]:
        fit = known | dict(zip(names, np.exp(logs), strict=True))
        return [float(np.log(predicted_s(p, fit) / p.seconds)) for p in large]

    found = least_squares(errors, np.log([known[n] for n in names]), loss="soft_l1", f_scale=0.1)
    fit = {k: float(v) for k, v in known.items() if isinstance(v, float)} | {
        n: float(v) for n, v in zip(names, np.exp(found.x), strict=True)
    }
    small = [p for p in points if p.scenario != "Offline"]
    if small:
        bare = [predicted_s(p, fit | {"launch_s": 0.0}) for p in small]
        launches = [predicted_s(p, fit | {"launch_s": 1.0}) - b for p, b in zip(small, bare, strict=True)]
        each = [(p.seconds - b) / n for p, b, n in zip(small, bare, launches, strict=True)]
        fit["launch_s"] = float(np.median(each))
    return fit


def left_out_errors(points: Sequence[BatchPoint]) -> list[tuple[BatchPoint, float]]:
    """Each large-batch point with its relative error under a fit that saw no point of its chip (A100s count as one)."""
    chips = sorted({_SAME_CHIP.get(p.gpu, p.gpu) for p in points})
    out = []
    for chip in chips:
        fit = fit_constants([p for p in points if _SAME_CHIP.get(p.gpu, p.gpu) != chip])
        mine = [p for p in points if _SAME_CHIP.get(p.gpu, p.gpu) == chip and p.scenario == "Offline"]
        out += [(p, predicted_s(p, fit) / p.seconds - 1.0) for p in mine]
    return out
