"""Number formats of weights and KV cache: bytes a value takes with its scales, and the arithmetic it runs in."""

from __future__ import annotations

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
    gemm: str = "bf16"
    min_compute_capability: float = 7.0


def _plain(name: str, min_cc: float = 7.0) -> Precision:
    size = DTYPE_BYTES[name]
    gemm = "bf16" if size == 2.0 else name
    return Precision(name, size, name, size, embeddings_too=True, gemm=gemm, min_compute_capability=min_cc)


def _gguf(name: str, bits: float) -> Precision:
    return Precision(name, bits / 8, "bf16", weight_only=True, embeddings_too=True, gemm="gguf")


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
    Precision("mxfp4", 0.5 + 1.0 / 32, "bf16", weight_only=True, experts_only=True, gemm="mxfp4"),
    Precision("nvfp4", 0.5 + 1.0 / 16, "fp4", 0.5 + 1.0 / 16, gemm="nvfp4", min_compute_capability=10.0),
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
PRECISIONS: dict[str, Precision] = {p.name: p for p in _ALL}
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
    if form.name in ("fp8", "fp8-block"):
        return "weight_only"
    if form.name == "bf16" and "fp16" in gpu.peak_flops:
        return "emulated"
    return "refused"


def on_gpu(name: str, gpu: Gpu) -> Precision:
    """The format as the GPU runs it: FP8 without FP8 units is widened to 16 bit; bf16 without units is run as fp16.

    Raises:
        InputError: the GPU has no kernels for the format.
    """
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
        gemm = form.gemm if form.weight_only else "int8_wo"
        return replace(form, compute=half, activation_bytes=2.0, weight_only=True, gemm=gemm)
    return replace(form, compute=half) if form.compute in ("bf16", "fp16") else form


def kv_cache_type(replica: Replica) -> str:
    """What the replica's KV cache holds; ``auto`` follows the checkpoint, as the engines do.

    FP8 checkpoints with one scale a tensor (NVIDIA's, whose ``hf_quant_config.json`` says ``kv_cache_quant_algo: FP8``)
    bring an FP8 cache where the GPU computes in FP8; all others, and models that are published quantized
    (DeepSeek's), a cache of the model's own type.
    """
    if normalise(replica.kv_cache_dtype) != "auto":
        return replica.kv_cache_dtype
    if replica.model.quantization or precision(replica.precision).name != "fp8":
        return "auto"
    return "fp8" if support("fp8", replica.gpu) == "native" else "auto"


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
