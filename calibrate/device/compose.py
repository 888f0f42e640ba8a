"""Predicts whole batches from single kernels: what kernels a step consists of, and each one's time from its neighbours.

The time of a kernel that was not measured itself is a roofline fitted to its family (Williams et al. 2009, plus a
floor for the launch), times what the nearest measured shapes deviate from that roofline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.device.case import Case, decoder_widths, encoder_widths, make_case, resnet50_convolutions, step_chunks
from calibrate.device.measurements import Measurement
from catalogs.errors import MissingError
from catalogs.schema import Model

Parts = list[tuple[Case, int]]  # kernels and how often each runs
SMALL_KERNELS_PER_LAYER = 12  # of the paged decoder beside the timed ones: slices, concatenations, copies
NEIGHBOURS = 4


@dataclass(frozen=True)
class Curve:
    """A family's roofline and its measured points.

    Attributes:
        flops_per_s, bytes_per_s, launch_s: t = max(flops / flops_per_s, bytes / bytes_per_s) + launch_s.
        shapes: (N, S) logarithms of the measured shapes. residuals: (N,) log of measured over roofline.
    """

    flops_per_s: float
    bytes_per_s: float
    launch_s: float
    shapes: NDArray[np.float64]
    residuals: NDArray[np.float64]

    def time_s(self, case: Case, without: int | None = None) -> float:
        """Seconds of a case; ``without`` leaves the point of that index out (to check the curve on itself)."""
        base = max(case.flops / self.flops_per_s, case.num_bytes / self.bytes_per_s) + self.launch_s
        distance = np.abs(self.shapes - _coordinates(case.shape)).sum(axis=1)
        if without is not None:
            distance[without] = np.inf
        nearest = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        weights = 1.0 / (distance[nearest] + 1e-3) ** 2
        return float(base * np.exp(np.sum(weights * self.residuals[nearest]) / np.sum(weights)))


class KernelTimes:
    """Curves of every measured family, by (family, dtype, variant)."""

    def __init__(self, points: Iterable[Measurement]) -> None:
        groups: dict[tuple[str, str, str], list[Measurement]] = {}
        for point in points:
            groups.setdefault((point.family, point.dtype, point.variant), []).append(point)
        self.points = groups
        self.curves = {key: fit_curve(group) for key, group in groups.items()}

    def time_s(self, case: Case) -> float:
        """Seconds of a case.

        Raises:
            MissingError: nothing of its family, type and variant was measured.
        """
        curve = self.curves.get((case.family, case.dtype, case.variant))
        if curve is None:
            raise MissingError(
                f"no {case.family} kernels ({case.dtype} {case.variant}) were measured",
                why="the batch cannot be predicted without them",
                remedy="plan calibrate run",
            )
        return curve.time_s(case)

    def left_out_errors(self) -> dict[tuple[str, str, str], NDArray[np.float64]]:
        """Relative errors of each point as its neighbours predict it, by family, dtype and variant."""
        errors = {}
        for key, group in self.points.items():
            curve = self.curves[key]
            if len(group) > NEIGHBOURS:
                told = [curve.time_s(_case(p), without=i) for i, p in enumerate(group)]
                measured = np.array([p.median_s for p in group])
                errors[key] = np.array(told) / measured - 1.0
        return errors


def fit_curve(points: Sequence[Measurement]) -> Curve:
    """Fit a family's roofline by least squares on log times, robust to outliers."""
    from scipy.optimize import least_squares

    cases = [_case(p) for p in points]
    flops, moved = np.array([c.flops for c in cases]), np.array([c.num_bytes for c in cases])
    times = np.array([p.median_s for p in points])
    start = [
        max(float(np.max(flops / times)), 1.0),
        max(float(np.max(moved / times)), 1.0),
        float(times.min()) / 2,
    ]

    def roofline(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        rate, bandwidth, launch_s = np.exp(logs)
        return np.asarray(np.maximum(flops / rate, moved / bandwidth) + launch_s)

    def misfit(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.log(roofline(logs) / times))

    found = np.log(start)
    if len(points) >= 4:
        found = least_squares(misfit, found, loss="soft_l1", f_scale=0.1).x
    rate, bandwidth, launch_s = np.exp(found)
    return Curve(
        flops_per_s=float(rate),
        bytes_per_s=float(bandwidth),
        launch_s=float(launch_s),
        shapes=np.array([_coordinates(p.shape) for p in points]),
        residuals=np.log(times / roofline(found)),
    )


def batch_parts(case: Case, decoder: Model, encoder: Model) -> Parts:
    """The kernels of a batch case."""
    if case.family == "step":
        return step_parts(decoder, case)
    if case.family == "encoder_batch":
        return encoder_parts(encoder, int(case.shape["batch"]), int(case.shape["tokens"]), case.dtype)
    return resnet_parts(int(case.shape["batch"]), int(case.shape["image_size"]), case.dtype)


def step_parts(model: Model, case: Case) -> Parts:
    """The kernels of a step of the paged decoder."""
    dtype, shape, layers = case.dtype, case.shape, model.num_layers
    tokens = int(shape["num_prefill_tokens"] + shape["num_decode"])
    sampled = int(shape["num_sampled"])
    heads = {"num_heads": model.num_attention_heads, "num_kv_heads": model.num_kv_heads, "head_dim": model.head_dim}
    rotated = (model.num_attention_heads + model.num_kv_heads) * model.head_dim

    def pointwise(name: str, rows: int, width: int, family: str = "elementwise") -> Case:
        return make_case(family, dtype, {"tokens": rows, "width": width}, name)

    *widths, head = decoder_widths(model)
    parts = [(_gemm(dtype, tokens, n, k), layers) for n, k in widths]
    parts += [
        (pointwise("rms_norm", tokens, model.hidden_size, "norm"), 2 * layers),
        (pointwise("rope", tokens, rotated), layers),
        (pointwise("kv_write", tokens, model.num_kv_heads * model.head_dim), 2 * layers),
        (pointwise("silu_mul", tokens, model.intermediate_size), layers),
        (pointwise("add", tokens, model.hidden_size), 2 * layers),
    ]
    for num, context in step_chunks(shape):
        chunk = {"batch": 1, "tokens": num, "context": context, **heads}
        parts.append((make_case("prefill_attention", dtype, chunk, "paged"), layers))
    if shape["num_decode"]:
        keys = shape["decode_mean_context"]
        decode = {"batch": shape["num_decode"], "context": keys, "max_context": keys, **heads}
        parts.append((make_case("decode_attention", dtype, decode, "paged"), layers))
    return [
        *parts,
        (pointwise("rms_norm", sampled, model.hidden_size, "norm"), 1),
        (_gemm(dtype, sampled, *head), 1),
        (pointwise("argmax", sampled, model.vocab_size), 1),
    ]


def encoder_parts(model: Model, batch: int, tokens: int, dtype: str) -> Parts:
    """The kernels of an encoder batch."""
    rows, layers, heads = batch * tokens, model.num_layers, model.num_attention_heads
    attention = {
        "batch": batch,
        "tokens": tokens,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": model.head_dim,
    }
    hidden = {"tokens": rows, "width": model.hidden_size}
    return [
        *((_gemm(dtype, rows, n, k), layers) for n, k in encoder_widths(model)),
        (make_case("encoder_attention", dtype, attention), layers),
        (make_case("norm", dtype, hidden, "layer_norm"), 2 * layers),
        (make_case("elementwise", dtype, hidden, "add"), 2 * layers),
        (make_case("elementwise", dtype, {"tokens": rows, "width": model.intermediate_size}, "gelu"), layers),
    ]


def resnet_parts(batch: int, image_size: int, dtype: str) -> Parts:
    """The kernels of a ResNet-50 batch: convolutions, and a pass over each one's output for ReLU or the shortcut."""
    parts: Parts = []
    for size, cin, cout, kernel, stride in resnet50_convolutions(image_size):
        columns = {"in_channels": cin, "out_channels": cout, "kernel": kernel, "stride": stride}
        parts.append((make_case("conv", dtype, {"batch": batch, "size": size, **columns}), 1))
        pixels = batch * (size // stride) ** 2
        parts.append((make_case("elementwise", dtype, {"tokens": pixels, "width": cout}, "add"), 1))
    return parts


def predicted_batch_s(case: Case, parts: Parts, times: KernelTimes, launch_s: float, is_cuda: bool) -> float:
    """Seconds of a batch: its kernels one after another.

    On a GPU the host submits ahead, so that an eager batch takes the longer of device work and launches; on a CPU the
    small operations between kernels add to it. ``launch_s`` is 0 under a graph.
    """
    kernels_s = sum(num * times.time_s(part) for part, num in parts)
    layers = max((num for part, num in parts if part.family == "gemm"), default=1)
    num_small = SMALL_KERNELS_PER_LAYER * layers if case.family == "step" else 0
    if is_cuda:
        return max(kernels_s, (sum(num for _, num in parts) + num_small) * launch_s)
    return kernels_s + num_small * launch_s


def _gemm(dtype: str, m: int, n: int, k: int) -> Case:
    return make_case("gemm", dtype, {"m": m, "n": n, "k": k}, "dense")


def _case(point: Measurement) -> Case:
    return make_case(point.family, point.dtype, point.shape, point.variant)


def _coordinates(shape: Mapping[str, float]) -> NDArray[np.float64]:
    return np.log(np.array([shape[name] for name in sorted(shape)], dtype=np.float64) + 1.0)
