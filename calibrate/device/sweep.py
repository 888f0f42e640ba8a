"""Which cases a device calibration measures, how long they will take, and how the list is thinned to a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from calibrate.device.case import (
    Case,
    decoder_model,
    decoder_widths,
    encoder_model,
    encoder_widths,
    make_case,
    resnet50_convolutions,
)
from catalogs.schema import Model
from catalogs.units import DTYPE_BYTES

GPU_DTYPES = ("bf16", "fp16", "fp32", "tf32", "fp8", "int8", "int4")
CPU_DTYPES = ("fp32", "bf16", "int8", "int4", "fp16", "fp8", "tf32")
BACKENDS = ("math", "mem_efficient", "flash", "paged")
MAX_KV_BYTES = 16e9  # of one decode attention case
ENCODER_TOKENS = 128  # of a sequence in the encoder's batches
SETUP_S = 0.02  # allocating and filling a case's operands, measured on a CPU; larger operands add to it


@dataclass(frozen=True)
class Scale:
    """How large the sweep is: model widths, tokens, contexts and time."""

    decoder: Model
    encoder: Model
    num_tokens: Sequence[int]  # m of the GEMMs
    batches: Sequence[int]  # decode batches
    contexts: Sequence[int]
    prompt_tokens: Sequence[int]
    static_batches: Sequence[int]  # encoder and vision
    image_size: int
    extra_widths: Sequence[tuple[int, int]]  # (n, k) beyond the decoder's own, so that a fit sees other shapes
    target_s: float  # of timed runs a case
    max_samples: int
    main_dtype: str  # of attention, elementwise work and the batches
    budget_s: float
    kv_tokens: int  # room for the paged KV cache of the batches
    bandwidth_bytes: Sequence[int] = field(default_factory=tuple)


@dataclass(frozen=True)
class Rates:
    """What a first probe achieved, used to predict how long the sweep takes."""

    flops_per_s: Mapping[str, float]  # by dtype; absent: the device cannot run it
    bytes_per_s: float
    per_case_s: float = SETUP_S


def gpu_scale(memory_bytes: float) -> Scale:
    """The default on a GPU: the shapes of an 8B decoder; fewer layers of it where 16-bit weights would not fit."""
    layers = 32 if memory_bytes > 30e9 else 8
    kv_room_bytes = max(0.4 * memory_bytes - 4e9, 2e9) if layers == 32 else 0.3 * memory_bytes
    name = "llama-8b-shape" if layers == 32 else f"llama-8b-shape-{layers}-layers"
    return Scale(
        decoder=decoder_model(name, layers, 4096, (32, 8, 128), 14336, 128256),
        encoder=encoder_model("bert-large-shape", 24, 1024, 16),
        num_tokens=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
        batches=(1, 4, 16, 64, 256),
        contexts=(256, 1024, 4096, 16384),
        prompt_tokens=(128, 512, 2048, 8192),
        static_batches=(1, 4, 16, 64),
        image_size=224,
        extra_widths=((2048, 2048), (1280, 8192), (8192, 1024), (5120, 5120), (8192, 8192), (8192, 28672)),
        target_s=0.06,
        max_samples=40,
        main_dtype="bf16",
        budget_s=270.0,
        kv_tokens=int(kv_room_bytes / 131072),  # 32 layers x 8 heads x 128 x keys and values x 2 bytes a token
        bandwidth_bytes=(2**24, 2**27, 2**30, 2**32),
    )


def cpu_scale() -> Scale:
    """The default on a CPU: a decoder of some 30 million weights; minutes on two cores."""
    return Scale(
        decoder=decoder_model("small-llama-shape", 6, 512, (8, 4, 64), 1536, 8192),
        encoder=encoder_model("small-bert-shape", 4, 384, 6),
        num_tokens=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
        batches=(1, 4, 16, 32),
        contexts=(64, 256, 768),  # gathered KV beyond 32 MiB would time the C library's mmap, not attention
        prompt_tokens=(32, 128, 512),
        static_batches=(1, 2, 4, 8),
        image_size=96,
        extra_widths=((512, 512), (2048, 512), (1024, 1024), (2048, 2048)),
        target_s=0.12,
        max_samples=15,
        main_dtype="fp32",
        budget_s=130.0,
        kv_tokens=40_000,
        bandwidth_bytes=(2**24, 2**26, 2**28),
    )


def quick_scale() -> Scale:
    """Seconds on a CPU: enough to see every family once; for tests and a first look."""
    return Scale(
        decoder=decoder_model("tiny-llama-shape", 2, 128, (4, 2, 32), 256, 512),
        encoder=encoder_model("tiny-bert-shape", 2, 64, 2, vocab=512),
        num_tokens=(1, 16, 128),
        batches=(1, 8),
        contexts=(64, 256),
        prompt_tokens=(32, 128),
        static_batches=(1, 4),
        image_size=32,
        extra_widths=((256, 256),),
        target_s=0.01,
        max_samples=5,
        main_dtype="fp32",
        budget_s=20.0,
        kv_tokens=4_096,
        bandwidth_bytes=(2**20, 2**22),
    )


def kernel_cases(scale: Scale, dtypes: Sequence[str], is_cuda: bool) -> list[Case]:
    """Every kernel case of a sweep, the dtypes that the device lacks left out by the caller."""
    cases = list(_bandwidth(scale))
    for dtype in dtypes:
        cases += _gemms(scale, dtype, "weight_only" if dtype == "int4" else "dense")
    if is_cuda:
        cases += [c for dtype in ("bf16", "fp16") if dtype in dtypes for c in _gemms(scale, dtype, "sparse24")]
    for backend in BACKENDS:
        cases += _attention(scale, backend)
    cases += _pointwise(scale)
    cases += _convolutions(scale)
    cases += [Case("launch", "fp32", {"num_kernels": 200}, v) for v in ("eager", "graph")]
    return cases


def _gemms(scale: Scale, dtype: str, variant: str) -> Iterator[Case]:
    in_full = dtype in (scale.main_dtype, "bf16", "fp8") and variant == "dense"
    widths = [*decoder_widths(scale.decoder), *encoder_widths(scale.encoder), *scale.extra_widths]
    for n, k in dict.fromkeys(widths):  # ordered, once each
        for m in scale.num_tokens if in_full else scale.num_tokens[::3]:
            if n != scale.decoder.vocab_size or m <= 512:  # lm_head runs on sampled positions alone
                yield make_case("gemm", dtype, {"m": m, "n": n, "k": k}, variant)


def _attention(scale: Scale, backend: str) -> Iterator[Case]:
    model, dtype = scale.decoder, scale.main_dtype
    # xFormers' kernel has no grouped heads: it is timed as plain multi-head attention
    kv_heads = model.num_attention_heads if backend == "mem_efficient" else model.num_kv_heads
    common = {"num_heads": model.num_attention_heads, "num_kv_heads": kv_heads, "head_dim": model.head_dim}
    chunk = scale.prompt_tokens[len(scale.prompt_tokens) // 2]
    prompts = [(1, t, 0) for t in scale.prompt_tokens] + [(4, scale.prompt_tokens[0], 0)]
    for batch, tokens, context in [*prompts, *((1, chunk, c) for c in scale.contexts)]:
        shape = {"batch": batch, "tokens": tokens, "context": context, **common}
        yield make_case("prefill_attention", dtype, shape, backend)
    unequal = (scale.batches[-1], scale.contexts[-2], round(1.5 * scale.contexts[-2]))  # over [0.5, 1.5] of the mean
    for batch, context, longest in [*((b, c, c) for b in scale.batches for c in scale.contexts), unequal]:
        shape = {"batch": batch, "context": context, "max_context": longest, **common}
        case = make_case("decode_attention", dtype, shape, backend)
        if case.num_bytes <= MAX_KV_BYTES:
            yield case
    hidden, encoder_heads = scale.encoder.hidden_size, scale.encoder.num_attention_heads
    heads = {"num_heads": encoder_heads, "num_kv_heads": encoder_heads, "head_dim": hidden // encoder_heads}
    for batch in scale.static_batches if backend == "paged" else ():
        shape = {"batch": batch, "tokens": ENCODER_TOKENS, **heads}
        yield make_case("encoder_attention", dtype, shape)


def _pointwise(scale: Scale) -> Iterator[Case]:
    model, dtype = scale.decoder, scale.main_dtype
    qk = (model.num_attention_heads + model.num_kv_heads) * model.head_dim
    kv = model.num_kv_heads * model.head_dim
    for tokens in [t for t in scale.num_tokens if t in (1, 16, 128, 1024, 8192)]:
        for name, width in (
            ("silu_mul", model.intermediate_size),
            ("add", model.hidden_size),
            ("gelu", scale.encoder.intermediate_size),
            ("rope", qk),
            ("kv_write", kv),
            ("argmax", model.vocab_size),
        ):
            if name != "argmax" or tokens <= 512:
                yield make_case("elementwise", dtype, {"tokens": tokens, "width": width}, name)
        for name, width in (("rms_norm", model.hidden_size), ("layer_norm", scale.encoder.hidden_size)):
            yield make_case("norm", dtype, {"tokens": tokens, "width": width}, name)


def _convolutions(scale: Scale) -> Iterator[Case]:
    for batch in (scale.static_batches[0], scale.static_batches[-1]):
        for shape in dict.fromkeys(resnet50_convolutions(scale.image_size)):
            size, cin, cout, kernel, stride = shape
            columns = {"in_channels": cin, "out_channels": cout, "kernel": kernel, "stride": stride}
            yield make_case("conv", scale.main_dtype, {"batch": batch, "size": size, **columns})


def _bandwidth(scale: Scale) -> Iterator[Case]:
    for num_bytes in scale.bandwidth_bytes:
        for variant in ("copy", "read"):
            yield make_case("bandwidth", "int8", {"bytes": num_bytes}, variant)


def batch_cases(scale: Scale, is_cuda: bool) -> list[Case]:
    """Whole prefill, decode and mixed steps, encoder and vision batches; steps also as CUDA graphs where there are."""
    chunk, context = scale.prompt_tokens[len(scale.prompt_tokens) // 2], scale.contexts[len(scale.contexts) // 2]
    prefills = [(t, 0, 0, 0) for t in scale.prompt_tokens] + [(chunk, context, 0, 0)]
    decodes = [(0, 0, b, c) for b in scale.batches for c in scale.contexts]
    mixed = [(chunk, 0, b, context) for b in scale.batches[1:]] + [(chunk, context, scale.batches[1], context)]
    cases = []
    for tokens, past, num, keys in [*prefills, *decodes, *mixed]:
        if num * keys + tokens + past <= scale.kv_tokens:
            cases.append(step_case(scale, (tokens, past), (num, keys)))
            if is_cuda and tokens == 0:
                cases.append(step_case(scale, (0, 0), (num, keys), graph=True))
    for batch in scale.static_batches:
        shape = {"batch": batch, "tokens": ENCODER_TOKENS}
        flops = batch * ENCODER_TOKENS * scale.encoder.num_layers * 2.0 * _products(encoder_widths(scale.encoder))
        cases.append(Case("encoder_batch", scale.main_dtype, shape, scale.encoder.name, flops))
    per_image = sum(_conv_flops(layer) for layer in resnet50_convolutions(scale.image_size))
    for batch in scale.static_batches:
        shape = {"batch": batch, "image_size": scale.image_size}
        cases.append(Case("vision_batch", scale.main_dtype, shape, "resnet50", batch * per_image))
    return cases


def step_case(scale: Scale, chunk: tuple[int, int], decodes: tuple[int, int], graph: bool = False) -> Case:
    """A step of one prompt chunk (tokens, context) and some decodes (number, context), either possibly empty."""
    (tokens, past), (num, keys) = chunk, decodes
    model = scale.decoder
    shape = {
        "num_prefill_tokens": tokens,
        "prefill_mean_context": past + tokens / 2 if tokens else 0,
        "num_decode": num,
        "decode_mean_context": keys,
        "num_sampled": num + bool(tokens),
    }
    weights = model.num_layers * _products(decoder_widths(model)[:-1])
    flops = 2.0 * (tokens + num) * weights
    moved = weights * DTYPE_BYTES[scale.main_dtype]
    variant = model.name + ("/graph" if graph else "")
    return Case("step", scale.main_dtype, shape, variant, flops, moved)


def _products(widths: Sequence[tuple[int, int]]) -> float:
    return float(sum(n * k for n, k in widths))


def _conv_flops(layer: tuple[int, int, int, int, int]) -> float:
    size, cin, cout, kernel, stride = layer
    return 2.0 * (size / stride) ** 2 * cin * cout * kernel**2


def predicted_s(case: Case, rates: Rates, scale: Scale, flush_s: float) -> float:
    """Rough seconds that a case takes: set-up, two runs before timing, then timed runs up to the target."""
    rate = rates.flops_per_s.get(case.dtype) or max(rates.flops_per_s.values(), default=1e9)
    share = 0.3 if case.family.endswith("attention") else 1.0  # of a GEMM's rate
    once = case.flops / (share * rate) + 2.0 * case.num_bytes / rates.bytes_per_s + 20e-6
    num = min(scale.max_samples, max(3.0, scale.target_s / (once + flush_s)))
    return rates.per_case_s + 4.0 * case.num_bytes / rates.bytes_per_s + (num + 2) * (once + flush_s)


def thin(cases: Sequence[Case], cost_s: Callable[[Case], float], budget_s: float) -> tuple[list[Case], list[Case]]:
    """(kept, dropped) so that the kept cost at most the budget: each family and type gives up its dearest cases first.

    Families share the budget in proportion to what they would cost, but none falls below its three cheapest cases.
    """
    total = sum(cost_s(c) for c in cases)
    if total <= budget_s:
        return list(cases), []
    groups: dict[tuple[str, str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.family, case.dtype, case.variant), []).append(case)
    kept: set[str] = set()
    for group in groups.values():
        left = budget_s / total * sum(cost_s(c) for c in group)
        for num, case in enumerate(sorted(group, key=cost_s)):
            left -= cost_s(case)
            if left < 0 and num >= 3 and case.variant != "paged":  # the batches rest on these
                break
            kept.add(case.key)
    return [c for c in cases if c.key in kept], [c for c in cases if c.key not in kept]
