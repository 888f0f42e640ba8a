"""Times single kernels with torch: linear layers in every number format, attention by backend, pointwise work.

Each builder gets a case and a device, allocates operands and returns the work to time. What a device or torch build
cannot run raises; the caller writes down the reason and goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from calibrate.device.case import Case
from calibrate.device.paged_decoder import paged_decode_attention, rms_norm, rope
from calibrate.device.probe import last_level_cache_bytes
from calibrate.device.timing import Work

Tensor = torch.Tensor
Builder = Callable[[Case, torch.device], Work]
TORCH_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
INT4_GROUP = 128  # weights that share a scale
_BACKENDS: dict[str, SDPBackend] = {
    "math": SDPBackend.MATH,
    "mem_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
}


class NotSupportedError(Exception):
    """This device or torch build does not run the case; the text says why."""


def build(case: Case, device: torch.device) -> Work:
    """The work of a case, operands allocated.

    Raises:
        NotSupportedError, RuntimeError, NotImplementedError: the device cannot run it.
        torch.OutOfMemoryError: the operands do not fit.
    """
    return _BUILDERS[case.family](case, device)


def _gemm(case: Case, device: torch.device) -> Work:
    m, n, k = (int(case.shape[name]) for name in ("m", "n", "k"))
    if case.variant == "sparse24":
        return _sparse_gemm(m, n, k, TORCH_DTYPES[case.dtype], device)
    return _GEMMS[case.dtype](case, m, n, k, device)


def _dense_gemm(case: Case, m: int, n: int, k: int, device: torch.device) -> Work:
    if case.dtype == "tf32" and device.type != "cuda":
        raise NotSupportedError("tf32 is a mode of NVIDIA tensor cores")
    dtype = TORCH_DTYPES[case.dtype]
    a = torch.randn(m, k, device=device, dtype=dtype)
    if device.type == "cpu":
        weights = itertools.cycle(_cold_weights(n, k, dtype))
        return lambda: F.linear(a, next(weights))
    weight = torch.randn(n, k, device=device, dtype=dtype)
    if device.type != "cuda" or case.dtype not in ("fp32", "tf32"):
        return lambda: F.linear(a, weight)
    if case.dtype == "tf32" and torch.cuda.get_device_capability(device) < (8, 0):
        raise NotSupportedError("tf32 needs compute capability 8.0 or later")
    precision = "high" if case.dtype == "tf32" else "highest"

    def work() -> Tensor:
        torch.set_float32_matmul_precision(precision)
        return F.linear(a, weight)

    return work


@cache
def _pool(dtype: torch.dtype) -> Tensor:
    """Random numbers of twice the CPU's last cache, to cut weights from."""
    return torch.randn(int(2 * last_level_cache_bytes()) // dtype.itemsize).to(dtype)


def _cold_weights(n: int, k: int, dtype: torch.dtype) -> list[Tensor]:
    """Matrices that together overflow the CPU's cache: used in turn, each is read from memory, as weights are."""
    pool = _pool(dtype)
    if n * k > pool.numel():
        return [torch.randn(n, k, dtype=dtype)]
    return [pool[i * n * k : (i + 1) * n * k].view(n, k) for i in range(pool.numel() // (n * k))]


def _fp8_gemm(case: Case, m: int, n: int, k: int, device: torch.device) -> Work:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise NotSupportedError("fp8 needs compute capability 8.9 or later")
    if m % 16 and device.type == "cuda":
        m += 16 - m % 16  # the kernel wants multiples of 16; engines pad in the same way
    a = torch.randn(m, k, device=device).to(torch.float8_e4m3fn)
    weight = torch.randn(n, k, device=device).to(torch.float8_e4m3fn).t()
    scale = torch.ones((), device=device)
    return lambda: torch._scaled_mm(a, weight, scale, scale, out_dtype=torch.bfloat16)


def _int8_gemm(case: Case, m: int, n: int, k: int, device: torch.device) -> Work:
    if device.type == "cuda" and m <= 16:
        m = 32  # torch._int_mm wants more than 16 rows on CUDA; engines pad in the same way
    a = torch.randint(-127, 127, (m, k), device=device, dtype=torch.int8)
    weight = torch.randint(-127, 127, (n, k), device=device, dtype=torch.int8).t()
    return lambda: torch._int_mm(a, weight)


def _int4_gemm(case: Case, m: int, n: int, k: int, device: torch.device) -> Work:
    if k % INT4_GROUP:
        raise NotSupportedError(f"int4 weight-only needs k in multiples of {INT4_GROUP}")
    a = torch.randn(m, k, device=device, dtype=torch.bfloat16)
    scales = torch.randn(k // INT4_GROUP, n, 2, device=device, dtype=torch.bfloat16)
    if device.type == "cuda":
        weight = torch.randint(0, 255, (n, k // 2), device=device, dtype=torch.uint8)
        packed = torch._convert_weight_to_int4pack(weight, 8)
        return lambda: torch._weight_int4pack_mm(a, packed, INT4_GROUP, scales)
    whole = torch.randint(0, 15, (n, k), dtype=torch.int32)
    on_cpu = torch._convert_weight_to_int4pack_for_cpu(whole, 1)
    return lambda: torch._weight_int4pack_mm_for_cpu(a, on_cpu, INT4_GROUP, scales)


def _sparse_gemm(m: int, n: int, k: int, dtype: torch.dtype, device: torch.device) -> Work:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise NotSupportedError("2:4 structured sparsity needs a GPU of compute capability 8.0 or later")
    pattern = torch.tensor([0, 0, 1, 1], device=device, dtype=dtype).tile((n, k // 4))
    weight = torch.sparse.to_sparse_semi_structured(torch.randn(n, k, device=device, dtype=dtype) * pattern)
    a = torch.randn(max(m, 8), k, device=device, dtype=dtype)
    return lambda: F.linear(a, weight)


_GEMMS: Mapping[str, Callable[[Case, int, int, int, torch.device], Work]] = {
    "fp32": _dense_gemm,
    "tf32": _dense_gemm,
    "fp16": _dense_gemm,
    "bf16": _dense_gemm,
    "fp8": _fp8_gemm,
    "int8": _int8_gemm,
    "int4": _int4_gemm,
}


def _prefill_attention(case: Case, device: torch.device) -> Work:
    batch, tokens, context, heads, kv_heads, dim = (int(v) for v in case.shape.values())
    dtype = TORCH_DTYPES[case.dtype]
    q = torch.randn(batch, heads, tokens, dim, device=device, dtype=dtype)
    k, v = torch.randn(2, batch, kv_heads, context + tokens, dim, device=device, dtype=dtype).unbind(0)
    grouped = kv_heads != heads
    mask = lower_right_mask(tokens, context, device) if context else None
    if case.variant == "paged":
        return lambda: F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
        )
    backend = _BACKENDS[case.variant]
    if mask is not None and case.variant == "flash" and device.type == "cuda":
        from torch.nn.attention.bias import causal_lower_right

        mask = causal_lower_right(tokens, context + tokens)  # flash takes no mask but knows this one

    def work() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)

    return work


def lower_right_mask(tokens: int, context: int, device: torch.device) -> Tensor:
    """(tokens, context + tokens) bool: token i sees the context and the tokens up to itself."""
    return torch.ones(tokens, context + tokens, dtype=torch.bool, device=device).tril(context)


def spread_contexts(batch: int, mean: int, largest: int) -> list[int]:
    """Contexts of a batch: all ``mean``, or spread evenly from 2 * mean - largest to largest."""
    if largest == mean or batch == 1:
        return [mean] * batch
    least = 2 * mean - largest
    return [round(least + (largest - least) * i / (batch - 1)) for i in range(batch)]


def _decode_attention(case: Case, device: torch.device) -> Work:
    batch, mean, largest, heads, kv_heads, dim = (int(v) for v in case.shape.values())
    dtype = TORCH_DTYPES[case.dtype]
    contexts = torch.tensor(spread_contexts(batch, mean, largest), device=device)
    q = torch.randn(batch, heads, 1, dim, device=device, dtype=dtype)
    if case.variant == "paged":
        return _paged_decode(q, contexts, largest, kv_heads, dtype)
    grouped, backend = kv_heads != heads, _BACKENDS[case.variant]
    if largest != mean and case.variant == "flash":
        return _varlen_decode(q, contexts, kv_heads)
    k, v = torch.randn(2, batch, kv_heads, largest, dim, device=device, dtype=dtype).unbind(0)
    mask = None
    if largest != mean:
        mask = (torch.arange(largest, device=device)[None] < contexts[:, None])[:, None, None]

    def work() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)

    return work


def _varlen_decode(q: Tensor, contexts: Tensor, kv_heads: int) -> Work:
    """FlashAttention over unequal contexts laid end to end; KV heads are repeated where torch cannot group them."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise NotSupportedError("unequal contexts with FlashAttention need torch.nn.attention.varlen") from None
    batch, heads, _, dim = q.shape
    keys = torch.randn(int(contexts.sum()), heads, dim, device=q.device, dtype=q.dtype)
    values = torch.randn_like(keys)
    queries = q.squeeze(2)
    starts_q = torch.arange(batch + 1, device=q.device, dtype=torch.int32)
    starts_k = F.pad(contexts.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(contexts.max())
    return lambda: varlen_attn(queries, keys, values, starts_q, starts_k, 1, longest)


def _paged_decode(q: Tensor, contexts: Tensor, largest: int, kv_heads: int, dtype: torch.dtype) -> Work:
    batch, _, _, dim = q.shape
    block_size = 16
    per_sequence = -(-largest // block_size)
    num_blocks = batch * per_sequence
    cache = torch.randn(2, num_blocks, block_size, kv_heads, dim, device=q.device, dtype=dtype)
    tables = torch.randperm(num_blocks, device=q.device).view(batch, per_sequence)
    return lambda: paged_decode_attention(q, cache[0], cache[1], tables, contexts)


def _elementwise(case: Case, device: torch.device) -> Work:
    tokens, width = int(case.shape["tokens"]), int(case.shape["width"])
    dtype = TORCH_DTYPES[case.dtype]
    x, y = torch.randn(2, tokens, width, device=device, dtype=dtype).unbind(0)
    if case.variant == "silu_mul":
        return lambda: F.silu(x) * y
    if case.variant == "gelu":
        return lambda: F.gelu(x)
    if case.variant == "argmax":
        return lambda: x.argmax(-1)
    if case.variant == "kv_write":
        cache = torch.zeros(tokens + 64, width, device=device, dtype=dtype)
        slots = torch.randperm(tokens + 64, device=device)[:tokens]
        return lambda: cache.index_copy_(0, slots, x)
    if case.variant == "rope":
        dim = 64 if width % 64 == 0 else 32
        heads = x.view(tokens, width // dim, dim)
        angles = torch.randn(tokens, dim // 2, device=device)
        return lambda: rope(heads, angles.cos(), angles.sin())
    return lambda: x + y


def _encoder_attention(case: Case, device: torch.device) -> Work:
    batch, tokens, heads, _, dim = (int(v) for v in case.shape.values())
    shape = (batch, heads, tokens, dim)
    q, k, v = torch.randn(3, *shape, device=device, dtype=TORCH_DTYPES[case.dtype]).unbind(0)
    return lambda: F.scaled_dot_product_attention(q, k, v)


def _conv(case: Case, device: torch.device) -> Work:
    batch, size, cin, cout, kernel, stride = (int(v) for v in case.shape.values())
    dtype = TORCH_DTYPES[case.dtype]
    x = torch.randn(batch, cin, size, size, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(cout, cin, kernel, kernel, device=device, dtype=dtype)
    weight = weight.to(memory_format=torch.channels_last)
    bias = torch.zeros(cout, device=device, dtype=dtype)
    return lambda: F.conv2d(x, weight, bias, stride=stride, padding=kernel // 2)


def _norm(case: Case, device: torch.device) -> Work:
    tokens, width = int(case.shape["tokens"]), int(case.shape["width"])
    x = torch.randn(tokens, width, device=device, dtype=TORCH_DTYPES[case.dtype])
    weight = torch.ones(width, device=device, dtype=x.dtype)
    if case.variant == "layer_norm":
        return lambda: F.layer_norm(x, (width,), weight, weight)
    return lambda: rms_norm(x, weight)


def _bandwidth(case: Case, device: torch.device) -> Work:
    num = int(case.shape["bytes"])
    if case.variant == "read":
        source = torch.ones(num // 4, device=device, dtype=torch.float32)
        return lambda: source.sum()
    half = torch.zeros(num // 2, device=device, dtype=torch.int8)
    target = torch.empty_like(half)
    return lambda: target.copy_(half)


def _launch(case: Case, device: torch.device) -> Work:
    num = int(case.shape["num_kernels"])
    x = torch.zeros(32, device=device)

    def kernels() -> None:
        for _ in range(num):
            x.add_(1.0)

    if case.variant == "eager":
        return kernels
    if device.type != "cuda":
        raise NotSupportedError("CUDA graphs need CUDA")
    kernels()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels()
    return graph.replay


_BUILDERS: Mapping[str, Builder] = {
    "gemm": _gemm,
    "prefill_attention": _prefill_attention,
    "decode_attention": _decode_attention,
    "elementwise": _elementwise,
    "norm": _norm,
    "encoder_attention": _encoder_attention,
    "conv": _conv,
    "bandwidth": _bandwidth,
    "launch": _launch,
}
