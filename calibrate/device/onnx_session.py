"""Times an ONNX Runtime session over batch sizes, and serves it under dynamic batching, for real.

onnx and onnxruntime are imported here alone, and only when a function needs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.server.endpoint_client import Reply
from calibrate.server.endpoint_fit import Fitted, Observation, Steps, fit_step
from calibrate.server.load_points import statistics
from catalogs.errors import InputError, MissingError

Run = Callable[[int], float]  # items in a batch -> seconds that it took


@dataclass(frozen=True)
class EncoderShape:
    """A BERT-like encoder."""

    layers: int = 4
    hidden: int = 384
    heads: int = 6
    vocab: int = 8192


def needed(name: str) -> Any:
    """The module of an optional package.

    Raises:
        MissingError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingError(
            f"{name} is not installed", why="ONNX sessions are timed with it", remedy="pip install onnx onnxruntime"
        ) from None


def write_encoder(path: Path, shape: EncoderShape) -> None:
    """Write an encoder of random weights: ``input_ids`` (batch, tokens) int64 to ``hidden`` (batch, tokens, width)."""
    onnx = needed("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    rng = np.random.default_rng(0)
    width, heads = shape.hidden, shape.heads
    weights: list[Any] = []
    nodes: list[Any] = []

    def constant(name: str, value: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def random(name: str, rows: int, columns: int) -> str:
        return constant(name, (rng.standard_normal((rows, columns)) * rows**-0.5).astype(np.float32))

    def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    split = constant("split", np.array([0, 0, heads, width // heads], dtype=np.int64))
    join = constant("join", np.array([0, 0, width], dtype=np.int64))
    ones, zeros = constant("ones", np.ones(width, np.float32)), constant("zeros", np.zeros(width, np.float32))
    scale = constant("scale", np.array((width // heads) ** -0.5, dtype=np.float32))
    x = node("Gather", [random("embed", shape.vocab, width), "input_ids"], "embedded")
    for i in range(shape.layers):
        parts = {}
        for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            flat = node("MatMul", [x, random(f"w{part}{i}", width, width)], f"{part}{i}")
            apart = node("Reshape", [flat, split], f"{part}split{i}")
            parts[part] = node("Transpose", [apart], f"{part}heads{i}", perm=order)
        scores = node("Mul", [node("MatMul", [parts["q"], parts["k"]], f"scores{i}"), scale], f"scaled{i}")
        mixed = node("MatMul", [node("Softmax", [scores], f"shares{i}", axis=-1), parts["v"]], f"mixed{i}")
        together = node("Transpose", [mixed], f"back{i}", perm=[0, 2, 1, 3])
        flat = node("Reshape", [together, join], f"joined{i}")
        out = node("MatMul", [flat, random(f"wo{i}", width, width)], f"out{i}")
        added = node("Add", [x, out], f"added{i}")
        x = node("LayerNormalization", [added, ones, zeros], f"norm{i}")
        wide = node("Relu", [node("MatMul", [x, random(f"up{i}", width, 4 * width)], f"wide{i}")], f"relu{i}")
        down = node("MatMul", [wide, random(f"down{i}", 4 * width, width)], f"narrow{i}")
        last = "hidden" if i == shape.layers - 1 else f"final{i}"
        x = node("LayerNormalization", [node("Add", [x, down], f"sum{i}"), ones, zeros], last)
    value = helper.make_tensor_value_info
    inputs = [value("input_ids", onnx.TensorProto.INT64, ["batch", "tokens"])]
    outputs = [value("hidden", onnx.TensorProto.FLOAT, ["batch", "tokens", width])]
    graph = helper.make_graph(nodes, "encoder", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def open_session(path: Path, tokens: int, threads: int, device: str = "cpu") -> Run:
    """A session as a function of the batch size; inputs are made for each shape once.

    Raises:
        InputError: not a model that ONNX Runtime reads, or an input of a kind that is not known.
    """
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    wanted = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if wanted not in runtime.get_available_providers():
        raise MissingError(
            f"this ONNX Runtime has no {wanted}",
            where="--device",
            remedy="pip install onnxruntime-gpu, or --device cpu",
        )
    try:
        session = runtime.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise InputError(
            f"ONNX Runtime cannot read it: {str(error)[:160]}", where=str(path), remedy="export the model again"
        ) from None
    feeds: dict[int, dict[str, Any]] = {}

    def run(batch: int) -> float:
        if batch not in feeds:
            feeds[batch] = {i.name: _input(i, batch, tokens, str(path)) for i in session.get_inputs()}
        begin_s = time.perf_counter()
        session.run(None, feeds[batch])
        return time.perf_counter() - begin_s

    return run


def _input(spec: Any, batch: int, tokens: int, where: str) -> Any:
    sizes = [
        batch if axis == 0 else (size if isinstance(size, int) else tokens) for axis, size in enumerate(spec.shape)
    ]
    if spec.type in ("tensor(int64)", "tensor(int32)"):
        kind = np.int64 if spec.type == "tensor(int64)" else np.int32
        is_mask = "mask" in spec.name or "type" in spec.name
        return np.ones(sizes, kind) if is_mask else np.random.default_rng(0).integers(1, 100, sizes).astype(kind)
    if spec.type in ("tensor(float)", "tensor(float16)"):
        kind16 = np.float32 if spec.type == "tensor(float)" else np.float16
        return np.random.default_rng(0).standard_normal(sizes).astype(kind16)
    raise InputError(f"input {spec.name} is a {spec.type}", where=where, remedy="int or float tensors are known")


def time_batches(run: Run, sizes: Sequence[int], target_s: float = 1.0) -> dict[int, list[float]]:
    """Seconds of each batch size, by size: two runs to warm up, then at least 5 and about ``target_s`` of them."""
    found = {}
    for size in sizes:
        run(size)
        num = int(min(50, max(5, target_s / max(run(size), 1e-6))))
        found[size] = [run(size) for _ in range(num)]
    return found


def fit_batches(times: dict[int, list[float]], tokens: int) -> Fitted:
    """The step time of whole batches: floor and seconds a token; each batch size left out once."""
    observations = [
        Observation("decode", statistics(samples)["p50"], (Steps(1.0, size * tokens, tokens / 2, 0.0, 0.0),), index)
        for index, (size, samples) in enumerate(sorted(times.items()))
    ]
    return fit_step(observations)


def serve_dynamically(run: Run, arrivals_s: Sequence[float], max_batch: int, tokens: int) -> list[Reply]:
    """Serve arrivals in real time: as soon as a batch ends, the next takes all that wait, up to ``max_batch``.

    This is what a server with dynamic batching and no added delay does (Triton's ``max_queue_delay_microseconds: 0``).
    """
    begin_s = time.perf_counter()
    replies: list[Reply] = []
    done = 0
    while done < len(arrivals_s):
        now_s = time.perf_counter() - begin_s
        if arrivals_s[done] > now_s:
            time.sleep(arrivals_s[done] - now_s)
            now_s = time.perf_counter() - begin_s
        size = sum(1 for at in arrivals_s[done : done + max_batch] if at <= now_s)
        run(max(size, 1))
        end_s = time.perf_counter() - begin_s
        replies += [Reply(at, end_s, (end_s,), tokens, 1, True) for at in arrivals_s[done : done + max(size, 1)]]
        done += max(size, 1)
    return replies


def arrivals(rate_rps: float, num: int, seed: int) -> list[float]:
    """Poisson arrivals, seconds."""
    return [float(t) for t in np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate_rps, num))]
