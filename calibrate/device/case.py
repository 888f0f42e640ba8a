"""One case of a sweep: what it is, its FLOPs and bytes; and the shapes of the networks that batches run.

No torch here: a case is data; ``kernels.py`` and ``batches.py`` turn it into work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from calibrate.device.measurements import case_key
from catalogs.schema import Model
from catalogs.units import DTYPE_BYTES


@dataclass(frozen=True)
class Case:
    """One thing to time: what it is and the work it holds (FLOPs; bytes read and written once)."""

    family: str
    dtype: str
    shape: Mapping[str, float]
    variant: str = ""
    flops: float = 0.0
    num_bytes: float = 0.0

    @property
    def key(self) -> str:
        """As the measurement's key."""
        return case_key(self.family, self.dtype, self.variant, self.shape)


def decoder_model(name: str, layers: int, hidden: int, heads: tuple[int, int, int], mlp: int, vocab: int) -> Model:
    """A Llama-like decoder of random weights; ``heads`` is (query heads, KV heads, head dim)."""
    return Model(
        name=name,
        kind="decoder",
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=heads[2],
        intermediate_size=mlp,
        vocab_size=vocab,
        max_position_embeddings=131072,
        dtype="bf16",
    )


def encoder_model(name: str, layers: int, hidden: int, heads: int, vocab: int = 30522) -> Model:
    """A BERT-like encoder of random weights."""
    return Model(
        name=name,
        kind="encoder",
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=4 * hidden,
        vocab_size=vocab,
        max_position_embeddings=512,
        dtype="bf16",
        num_mlp_matrices=2,
    )


def decoder_widths(model: Model) -> list[tuple[int, int]]:
    """(n, k) of a decoder layer's GEMMs (qkv, output, gate and up, down) and of lm_head."""
    heads, kv = model.num_attention_heads * model.head_dim, model.num_kv_heads * model.head_dim
    return [
        (heads + 2 * kv, model.hidden_size),
        (model.hidden_size, heads),
        (2 * model.intermediate_size, model.hidden_size),
        (model.hidden_size, model.intermediate_size),
        (model.vocab_size, model.hidden_size),
    ]


def encoder_widths(model: Model) -> list[tuple[int, int]]:
    """(n, k) of an encoder layer's GEMMs."""
    hidden = model.hidden_size
    return [
        (3 * hidden, hidden),
        (hidden, hidden),
        (model.intermediate_size, hidden),
        (hidden, model.intermediate_size),
    ]


def make_case(family: str, dtype: str, shape: Mapping[str, float], variant: str = "") -> Case:
    """A case with its FLOPs and the bytes that it reads and writes once (0 where the family has none to speak of)."""
    flops, num_bytes = _WORK[family](shape, DTYPE_BYTES[dtype], variant) if family in _WORK else (0.0, 0.0)
    return Case(family, dtype, dict(shape), variant, flops, num_bytes)


def _gemm_work(shape: Mapping[str, float], size: float, variant: str) -> tuple[float, float]:
    m, n, k = shape["m"], shape["n"], shape["k"]
    activations = max(size, 2.0) if variant == "weight_only" else size
    return 2.0 * m * n * k, n * k * size + m * k * activations + max(size, 2.0) * m * n


def _prefill_work(shape: Mapping[str, float], size: float, variant: str) -> tuple[float, float]:
    batch, tokens, context = shape["batch"], shape["tokens"], shape["context"]
    heads, kv_heads, dim = shape["num_heads"], shape["num_kv_heads"], shape["head_dim"]
    moved = batch * size * dim * (2 * tokens * heads + 2 * (context + tokens) * kv_heads)
    return 4.0 * batch * tokens * (context + (tokens + 1) / 2) * heads * dim, moved


def _decode_work(shape: Mapping[str, float], size: float, variant: str) -> tuple[float, float]:
    batch, dim = shape["batch"], shape["head_dim"]
    context = shape["max_context"] if variant == "paged" else shape["context"]  # the gather pads to the longest
    copies = 3.0 if variant == "paged" else 1.0  # gathered: read, written, read again
    moved = copies * batch * context * 2.0 * shape["num_kv_heads"] * dim * size
    return 4.0 * batch * context * shape["num_heads"] * dim, moved


def _pointwise_work(shape: Mapping[str, float], size: float, variant: str) -> tuple[float, float]:
    passes = {"silu_mul": 3, "add": 3, "argmax": 1}.get(variant, 2)
    return 0.0, passes * shape["tokens"] * shape["width"] * size


def _conv_work(shape: Mapping[str, float], size: float, variant: str) -> tuple[float, float]:
    """Direct convolution, square kernel and image, padded so that the output is size / stride."""
    out = (shape["size"] / shape["stride"]) ** 2
    weights = shape["in_channels"] * shape["out_channels"] * shape["kernel"] ** 2
    pixels = shape["batch"] * (shape["size"] ** 2 * shape["in_channels"] + out * shape["out_channels"])
    return 2.0 * shape["batch"] * out * weights, size * (weights + pixels)


_WORK: dict[str, Callable[[Mapping[str, float], float, str], tuple[float, float]]] = {
    "gemm": _gemm_work,
    "prefill_attention": _prefill_work,
    "decode_attention": _decode_work,
    "elementwise": _pointwise_work,
    "norm": _pointwise_work,
    "conv": _conv_work,
    "encoder_attention": lambda shape, size, variant: (
        4.0 * shape["batch"] * shape["tokens"] ** 2 * shape["num_heads"] * shape["head_dim"],
        4.0 * shape["batch"] * shape["tokens"] * shape["num_heads"] * shape["head_dim"] * size,
    ),
    "bandwidth": lambda shape, size, variant: (0.0, shape["bytes"]),
}


def resnet50_convolutions(image_size: int) -> list[tuple[int, int, int, int, int]]:
    """(input size, in channels, out channels, kernel, stride) of ResNet-50's 53 convolutions (He et al. 2015).

    The stride of a stage's first block sits on its 3x3 convolution, as in the common v1.5 variant.
    """
    size = image_size // 4
    layers, width_in = [(image_size, 3, 64, 7, 2)], 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers += [(size, width_in, width, 1, 1), (size, width, width, 3, stride)]
            layers += [(size // stride, width, 4 * width, 1, 1)]
            if block == 0:
                layers.append((size, width_in, 4 * width, 1, stride))
            width_in, size = 4 * width, size // stride
    return layers


def step_chunks(shape: Mapping[str, float]) -> list[tuple[int, int]]:
    """The prompt chunk (tokens, context) of a step case, or none."""
    tokens = int(shape["num_prefill_tokens"])
    return [(tokens, round(shape["prefill_mean_context"] - tokens / 2))] if tokens else []
