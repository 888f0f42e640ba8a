"""Number formats of weights and KV cache: bytes a value takes with its scales, and the arithmetic it runs in."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from catalogs.errors import InputError
from catalogs.names import normalise, resolve
from catalogs.schema import Gpu, Replica
from catalogs.units import DTYPE_BYTES

Support = Literal["native", "weight_only", "emulated", "refused"]


@dataclass(frozen=True)
class Precision:
    """How weights are stored and in what type they are multiplied.

    Attributes:
        name: as in a scenario (``int4-awq``).
        weight_bytes: bytes a weight, scales and zero points included.
        compute: dtype of the multiplication, a key of ``Gpu.peak_flops``.
        activation_bytes: bytes an activation that enters a GEMM.
        weight_only: weights are widened to 16 bit before they are multiplied.
        experts_only: only the experts of a mixture are stored so; the rest stays in 16 bit (gpt-oss).
        embeddings_too: embeddings and lm_head are stored so as well (GGUF; unquantized formats).
        sparse: two of four weights are zero and not stored (2:4).
        gemm: key of the fitted GEMM family in a profile.
        min_compute_capability: the oldest device with kernels for it.
    """

    name: str
    weight_bytes: float
    compute: str
    activation_bytes: float = 2.0
    weight_only: bool = False
    experts_only: bool = False
    embeddings_too: bool = False
    sparse: bool = False
    gemm: str = "bf16"
    min_compute_capability: float = 7.0


def _plain(name: str, min_cc: float = 7.0) -> Precision:
    size = DTYPE_BYTES[name]
    gemm = "bf16" if size == 2.0 else name
    return Precision(name, size, name, size, embeddings_too=True, gemm=gemm, min_compute_capability=min_cc)


def _gguf(name: str, bits: float) -> Precision:
    return Precision(name, bits / 8, "bf16", weight_only=True, embeddings_too=True, gemm="gguf")


# Oldest devices, by vLLM's own checks (``get_min_capability`` of each quantization): GPTQ Volta; AWQ, INT8, fast INT4
# (Marlin) Turing; MXFP4, NVFP4 and FP8 weights (Marlin) Ampere. Older GPUs run INT4 by the slow kernels; ``-slow`` asks
# for them anywhere (vLLM's ``--quantization awq`` or ``gptq`` in place of ``awq_marlin``, ``gptq_marlin``).
# Group scales: GPTQ and AWQ keep a 16-bit scale and a 4-bit zero point for 128 weights; MXFP4 an 8-bit scale for 32
# (OCP MX 1.0); NVFP4 an 8-bit scale for 16; fp8-block a 32-bit scale for 128 x 128. GGUF: bits a weight of the whole
# file, as llama.cpp's quantize table gives them for 8B models.
_ALL = (
    _plain("fp32"),
    _plain("tf32", 8.0),
    _plain("fp16"),
    _plain("bf16", 8.0),
    Precision("fp8", 1.0, "fp8", 1.0, gemm="fp8", min_compute_capability=8.0),
    Precision("fp8-block", 1.0 + 4.0 / 128**2, "fp8", 1.0 + 4.0 / 128, gemm="fp8_block", min_compute_capability=8.0),
    Precision("int8", 1.0, "int8", 1.0, gemm="int8", min_compute_capability=7.5),
    Precision("int8-weight-only", 1.0 + 2.0 / 128, "bf16", weight_only=True, gemm="int8_wo"),
    Precision("int4-gptq", 0.5 + 2.5 / 128, "bf16", weight_only=True, gemm="int4_wo"),
    Precision("int4-awq", 0.5 + 2.5 / 128, "bf16", weight_only=True, gemm="int4_wo", min_compute_capability=7.5),
    Precision("int4-gptq-slow", 0.5 + 2.5 / 128, "bf16", weight_only=True, gemm="int4_wo_slow"),
    Precision(
        "int4-awq-slow", 0.5 + 2.5 / 128, "bf16", weight_only=True, gemm="int4_wo_slow", min_compute_capability=7.5
    ),
    Precision(
        "mxfp4", 0.5 + 1.0 / 32, "bf16", weight_only=True, experts_only=True, gemm="mxfp4", min_compute_capability=8.0
    ),
    Precision("nvfp4", 0.5 + 1.0 / 16, "fp4", 0.5 + 1.0 / 16, gemm="nvfp4", min_compute_capability=8.0),
    Precision("bitsandbytes-nf4", 0.5 + 1.0 / 64, "bf16", weight_only=True, gemm="int4_wo_slow"),
    Precision("bitsandbytes-int8", 1.0, "int8", 1.0, gemm="int8", min_compute_capability=7.5),
    _gguf("gguf-q2_k", 3.16),
    _gguf("gguf-q3_k_m", 4.00),
    _gguf("gguf-q4_0", 4.66),
    _gguf("gguf-q4_k_s", 4.67),
    _gguf("gguf-q4_k_m", 4.89),
    _gguf("gguf-q5_k_m", 5.70),
    _gguf("gguf-q6_k", 6.56),
    _gguf("gguf-q8_0", 8.50),
)
# 2:4: half of the values, and two bits for the place of each of them (NVIDIA A100 white paper); embeddings stay dense.
PLACES_BYTES = 2 * 2 / 4 / 8
_SPARSE = ("bf16", "fp16", "fp8", "int8", "int4-gptq")


def _two_of_four(form: Precision) -> Precision:
    return replace(
        form, name=f"{form.name}-2of4", weight_bytes=form.weight_bytes / 2 + PLACES_BYTES, sparse=True,
        embeddings_too=False, min_compute_capability=9.0 if form.name == "fp8" else 8.0,
    )  # fmt: skip


FAST_INT4_SINCE = 7.5  # Marlin's kernels, Turing since vLLM 0.14 (vllm-project/vllm pull request 29901)
WIDENED_WITHOUT_UNITS = ("fp8", "fp8-block", "nvfp4")  # Marlin reads their weights and multiplies in 16 bit
PRECISIONS: dict[str, Precision] = {p.name: p for p in (*_ALL, *(_two_of_four(p) for p in _ALL if p.name in _SPARSE))}
_BITMASK = re.compile(r"(.+)-bitmask([1-9][0-9]?)")
_ALIASES = {
    "float32": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16", "fp8e4m3": "fp8", "float8": "fp8",
    "w8a8": "int8", "w8a16": "int8-weight-only", "int4": "int4-awq", "w4a16": "int4-awq", "awq": "int4-awq",
    "gptq": "int4-gptq", "awqmarlin": "int4-awq", "gptqmarlin": "int4-gptq", "fp4": "nvfp4", "gguf": "gguf-q4_k_m",
    "nf4": "bitsandbytes-nf4", "fp8block": "fp8-block",
}  # fmt: skip


def precision(name: str, where: str = "") -> Precision:
    """The format that ``name`` means.

    Raises:
        InputError: no format has that name; the message gives the nearest.
    """
    pruned = _BITMASK.fullmatch(name.lower())
    if pruned is not None:  # a bit a weight says which of them are there
        dense, share = precision(pruned[1], where), int(pruned[2]) / 100
        if dense.weight_only or dense.sparse:
            raise InputError(f"unstructured sparsity of {dense.name}", where=where, remedy="bf16, fp16, fp8 or int8")
        return replace(dense, name=name.lower(), weight_bytes=dense.weight_bytes * (1 - share) + 1 / 8,
                       embeddings_too=False)  # fmt: skip
    key = _ALIASES.get(normalise(name), name)
    return PRECISIONS[resolve(key, PRECISIONS, "precision", where)]


def support(name: str, gpu: Gpu) -> Support:
    """How a GPU runs a format: in its own units, widened to 16 bit, slowly without units, or not at all."""
    form = precision(name)
    if gpu.compute_capability < form.min_compute_capability and form.name != "bf16":
        return "refused"
    if form.weight_only:
        return "weight_only"
    if form.compute in gpu.peak_flops:
        return "native"
    if form.name in WIDENED_WITHOUT_UNITS:
        return "weight_only"
    if form.name == "bf16" and "fp16" in gpu.peak_flops:
        return "emulated"
    return "refused"


def on_gpu(name: str, gpu: Gpu) -> Precision:
    """The format as the GPU runs it: FP8 without FP8 units is widened to 16 bit; bf16 without units is run as fp16.

    Raises:
        InputError: the GPU has no kernels for the format.
    """
    pruned = _BITMASK.fullmatch(name.lower())
    if pruned is not None:  # widened tile by tile: a step takes as long as with all weights
        return on_gpu(pruned[1], gpu)
    form = precision(name)
    how = support(name, gpu)
    if how == "refused":
        usable = [p for p in ("bf16", "fp16", "fp8", "int8", "int4-awq", "int4-gptq") if support(p, gpu) != "refused"]
        raise InputError(
            f"{gpu.name} (compute capability {gpu.compute_capability:g}) cannot run {form.name}",
            why=f"its kernels need compute capability {form.min_compute_capability:g} or units for {form.compute}",
            remedy=f"one of {', '.join(usable)}",
        )
    half = "bf16" if "bf16" in gpu.peak_flops else "fp16"
    if how == "weight_only":
        gemm = form.gemm if form.weight_only else _WIDENED.get(form.name, "int8_wo")
        if gemm == "int4_wo" and gpu.compute_capability < FAST_INT4_SINCE:
            gemm = "int4_wo_slow"
        return replace(form, compute=half, activation_bytes=2.0, weight_only=True, gemm=gemm)
    return replace(form, compute=half) if form.compute in ("bf16", "fp16") else form


_WIDENED = {"nvfp4": "int4_wo"}  # GEMM family of a format whose weights are widened; else INT8's


def check_sparse_kernels(replica: Replica) -> None:
    """Refuse 2:4 weights where the engine has no kernels for them.

    Raises:
        InputError: vLLM on a GPU before Hopper (``CompressedTensors24``: CUTLASS 3 kernels of compute capability 9.0),
            INT4 excepted (Marlin).
    """
    form, gpu = precision(replica.precision), replica.gpu
    if form.sparse and not form.weight_only and replica.engine.framework == "vllm" and gpu.compute_capability < 9.0:
        raise InputError(
            f"vLLM has no 2:4 kernels for {form.name} on {gpu.name}", where="precision",
            why="its kernels need compute capability 9.0 (Hopper)",
            remedy=f"{form.name.removesuffix('-2of4')}, int4-gptq-2of4, or framework tensorrt-llm",
        )  # fmt: skip


def support_words(name: str, gpu: Gpu) -> str:
    """How a GPU runs a format, in words: what it computes in, or why it does not."""
    how, form = support(name, gpu), precision(name)
    if how == "refused":
        if gpu.compute_capability < form.min_compute_capability:
            return f"refused: kernels need compute capability {form.min_compute_capability:g}"
        return f"refused: no units for {form.compute}"
    runs = on_gpu(name, gpu)
    if how == "emulated":
        return f"emulated: no {form.compute} units, run as {runs.compute}"
    if how == "native":
        return f"native: {form.compute} units" + (", 2:4 sparse" if form.sparse else "")
    slow = ", slow kernels" if runs.gemm == "int4_wo_slow" else ""
    return f"weight only: widened to {runs.compute}{slow}"


def kv_cache_bytes(kv_cache_dtype: str, model_dtype: str = "bf16") -> float:
    """Bytes of one value in the KV cache; ``auto`` follows the model's own dtype (16 bit for quantized weights).

    Raises:
        InputError: unknown KV cache type.
    """
    name = normalise(kv_cache_dtype)
    if name == "auto":
        return 4.0 if normalise(model_dtype) in ("fp32", "float32") else 2.0
    known = {"bf16": 2.0, "bfloat16": 2.0, "fp16": 2.0, "float16": 2.0, "half": 2.0, "fp8": 1.0, "fp8e4m3": 1.0,
             "fp8e5m2": 1.0, "int8": 1.0, "int4": 0.5, "fp32": 4.0, "float32": 4.0}  # fmt: skip
    if name not in known:
        raise InputError(f"unknown kv_cache_dtype {kv_cache_dtype!r}", remedy="auto, bf16, fp16, fp8, int8 or int4")
    return known[name]
