"""A Hugging Face ``config.json`` as a ``Model``: dense, GQA, MoE, MLA, sliding windows, quantized, encoders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from catalogs.errors import InputError, MissingError
from catalogs.files import parse_json, read_text
from catalogs.schema import Mla, Model, ModelKind, Moe

NAMES: dict[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "num_kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "intermediate_size": ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim"),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"),
    "num_experts": ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts"),
    "num_experts_per_token": ("num_experts_per_tok", "num_experts_per_token", "moe_top_k"),
    "expert_intermediate_size": ("moe_intermediate_size", "expert_ffn_hidden_size"),
}
MAX_COUNT = 1e12  # of layers, heads, tokens: beyond any model
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "half": "fp16", "float": "fp32"}
CLASSIC_MLP = ("gptj", "gpt2", "gpt_neox", "gpt_neo", "bert", "roberta", "xlm-roberta", "distilbert", "opt", "falcon",
               "bloom", "phi", "starcoder2", "gpt_bigcode", "mpt")  # fmt: skip
ENCODERS = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "deberta-v2", "modernbert", "camembert")
TIED_BY_DEFAULT = (*ENCODERS, "gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "falcon", "bloom", "opt")
BIASED = ("qwen2", "qwen2_moe", "gpt2", "gpt_neox", "bert", "roberta", "opt", "phi")

# what a config.json may leave out, since its class in transformers has it as a default (configuration_gemma*.py, ...)
CLASS_DEFAULTS: dict[str, dict[str, object]] = {
    "gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
                    "max_position_embeddings": 131072, "sliding_window": 4096},
    "gemma2": {"head_dim": 256, "sliding_window": 4096},
    "gemma": {"head_dim": 256},
    "qwen3": {"head_dim": 128},
    "qwen3_moe": {"head_dim": 128},
    "gpt_oss": {"head_dim": 64, "sliding_window": 128},
}  # fmt: skip


def read_config(path: Path) -> Model:
    """The model that a ``config.json`` describes; its name is its folder's, or ``_name_or_path``.

    Vision towers and multi-token prediction modules are left out: the text model decides the serving cost here.

    Raises:
        MissingError: no such file.
        InputError: not JSON, or a field that the size depends on is missing or impossible.
    """
    if not path.is_file():
        raise MissingError("no such model config", where=str(path), remedy="give the path of a config.json")
    try:
        config = parse_json(read_text(path, "a model config"))
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error}", where=f"{path}:{error.lineno}") from None
    if not isinstance(config, dict):
        raise InputError("a model config is a JSON object", where=str(path))
    return model_from_config(config, name=_name_of(config, path), where=str(path), quantization=_beside(path))


def model_from_config(
    config: Mapping[str, object], name: str, where: str = "config.json", quantization: str | None = None
) -> Model:
    """A parsed config as a ``Model``.

    Raises:
        InputError: a field that the size depends on is missing or impossible; the message names all of them.
    """
    nested = config.get("text_config") or config.get("llm_config") or config.get("language_config")
    text = {**config, **nested} if isinstance(nested, Mapping) else dict(config)
    kind_name = str(text.get("model_type", "")).lower()
    text = {**CLASS_DEFAULTS.get(kind_name, {}), **text}
    hidden, layers, heads = (_whole(text, f, where) for f in ("hidden_size", "num_layers", "num_attention_heads"))
    vocab = _whole(text, "vocab_size", where)
    mla = _mla(text, where)
    head_dim = _head_dim(text, hidden, heads, mla, where)
    kv_heads = _kv_heads(text, heads, mla, where)
    if kv_heads > heads or heads % kv_heads:
        raise InputError(
            f"{heads} attention heads cannot share {kv_heads} key-value heads", where=where,
            why="each key-value head serves the same number of query heads",
        )  # fmt: skip
    intermediate = _optional(text, "intermediate_size", where) or 4 * hidden
    window, num_sliding = _sliding(text, kind_name, layers, where)
    moe = _moe(text, kind_name, layers, intermediate, where)
    if kind_name in ("llama4", "llama4_text"):
        intermediate = _optional_key(text, "intermediate_size_mlp", where) or intermediate
    kind: ModelKind = "encoder" if kind_name in ENCODERS else "decoder"
    return Model(
        name=name,
        kind=kind,
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate,
        vocab_size=vocab,
        max_position_embeddings=_optional(text, "max_position_embeddings", where) or 2048,
        dtype=_dtype(text, config, where),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", kind_name in
                                                                            TIED_BY_DEFAULT))),
        num_mlp_matrices=2 if kind_name in CLASSIC_MLP else 3,
        qkv_bias=bool(text.get("attention_bias", text.get("qkv_bias", kind_name in BIASED))),
        sliding_window=window,
        num_sliding_layers=num_sliding,
        moe=moe,
        mla=mla,
        quantization=quantization or _quantization(config, text),
        source=where,
        as_of=date.today().isoformat(),
    )  # fmt: skip


def _name_of(config: Mapping[str, object], path: Path) -> str:
    given = str(config.get("_name_or_path") or "").rstrip("/").rsplit("/", 1)[-1]
    folder = path.resolve().parent.name
    return given or (folder if path.name == "config.json" else path.stem)


def _beside(path: Path) -> str | None:
    """The precision that NVIDIA's ``hf_quant_config.json`` beside the config names."""
    file = path.parent / "hf_quant_config.json"
    if not file.is_file():
        return None
    try:
        algorithm = str(parse_json(file.read_text(encoding="utf-8"))["quantization"]["quant_algo"]).lower()
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read the quantization: {error!r}", where=str(file)) from None
    known = {"fp8": "fp8", "nvfp4": "nvfp4", "w4a16_awq": "int4-awq", "w8a8_sq_per_channel": "int8", "mxfp4": "mxfp4"}
    return known.get(algorithm, algorithm)


def _number(value: object, field: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < MAX_COUNT or value % 1:
        raise InputError(f"{field} is {value!r}, not a positive whole number", where=where)
    return int(value)


def _optional(config: Mapping[str, object], noun: str, where: str) -> int | None:
    for field in NAMES[noun]:
        if config.get(field) is not None:
            return _number(config[field], field, where)
    return None


def _optional_key(config: Mapping[str, object], field: str, where: str) -> int | None:
    return None if not config.get(field) else _number(config[field], field, where)


def _whole(config: Mapping[str, object], noun: str, where: str) -> int:
    value = _optional(config, noun, where)
    if value is None:
        raise InputError(
            f"{' or '.join(NAMES[noun][:2])} is missing", where=where,
            why="the model's weights, KV cache and FLOPs follow from it",
            remedy="give the config.json of the whole model, not of an adapter or a diffusion part",
        )  # fmt: skip
    return value


def _head_dim(config: Mapping[str, object], hidden: int, heads: int, mla: Mla | None, where: str) -> int:
    if mla is not None:
        return mla.qk_nope_head_dim + mla.qk_rope_head_dim
    explicit = _optional_key(config, "head_dim", where)
    if explicit is None and hidden % heads:
        raise InputError(
            f"hidden_size {hidden} is not a multiple of {heads} heads and head_dim is missing", where=where
        )
    return explicit or hidden // heads


def _kv_heads(config: Mapping[str, object], heads: int, mla: Mla | None, where: str) -> int:
    if mla is not None:
        return heads
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    return _optional(config, "num_kv_heads", where) or heads


def _mla(config: Mapping[str, object], where: str) -> Mla | None:
    rank = _optional_key(config, "kv_lora_rank", where)
    if rank is None:
        return None
    missing = [f for f in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim") if not config.get(f)]
    if missing:
        raise InputError(f"kv_lora_rank is given but {', '.join(missing)} is missing", where=where)
    rope, nope, value = (
        _number(config[f], f, where) for f in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    )  # fmt: skip
    return Mla(rank, _optional_key(config, "q_lora_rank", where), nope, rope, value)


def _moe(config: Mapping[str, object], kind: str, layers: int, intermediate: int, where: str) -> Moe | None:
    experts = _optional(config, "num_experts", where)
    if experts is None or experts == 1:
        return None
    per_token = _optional(config, "num_experts_per_token", where)
    if per_token is None or per_token > experts:
        raise InputError(f"num_experts_per_tok is {per_token}, with {experts} experts", where=where)
    width = _optional(config, "expert_intermediate_size", where) or intermediate
    num_shared = _optional_key(config, "n_shared_experts", where) or 0
    shared_width = _optional_key(config, "shared_expert_intermediate_size", where) or num_shared * width
    if kind in ("llama4", "llama4_text"):
        num_shared, shared_width = 1, width
    steps = ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq")  # every so many layers has experts
    step = next((found for field in steps if (found := _optional_key(config, field, where))), 1)
    dense = _optional_key(config, "first_k_dense_replace", where) or 0
    dense += (layers - dense) - (layers - dense) // step
    only_dense = config.get("mlp_only_layers")
    if isinstance(only_dense, list):
        dense += len(only_dense)
    if dense > layers:
        raise InputError(f"{dense} layers without experts, of {layers}", where=where)
    return Moe(experts, per_token, width, num_shared or (1 if shared_width else 0), shared_width, dense)


def _sliding(config: Mapping[str, object], kind: str, layers: int, where: str) -> tuple[int | None, int]:
    window = _optional_key(config, "sliding_window", where) or _optional_key(config, "attention_chunk_size", where)
    if window is None or config.get("use_sliding_window") is False:
        return None, 0
    types, no_rope = config.get("layer_types"), config.get("no_rope_layers")
    if isinstance(types, list):
        if len(types) != layers:
            raise InputError(f"layer_types names {len(types)} layers of {layers}", where=where)
        num = sum(1 for t in types if "sliding" in str(t) or "chunked" in str(t))
    elif isinstance(no_rope, list):
        num = sum(1 for uses_rope in no_rope if uses_rope)
    elif config.get("sliding_window_pattern"):
        pattern = _number(config["sliding_window_pattern"], "sliding_window_pattern", where)
        num = layers - layers // pattern
    elif kind == "gemma2":
        num = (layers + 1) // 2
    elif kind in ("gemma3", "gemma3_text"):
        num = layers - layers // 6
    elif kind in ("llama4", "llama4_text"):
        num = layers - layers // 4
    elif kind in ("qwen2", "qwen3") and config.get("use_sliding_window"):
        given = _optional_key(config, "max_window_layers", where) or layers
        first = 0 if config.get("max_window_layers") == 0 else min(layers, given)
        num = layers - first
    else:
        num = layers
    longest = _optional(config, "max_position_embeddings", where)
    return (None, 0) if num == 0 or (longest is not None and window >= longest) else (window, num)


def _dtype(text: Mapping[str, object], config: Mapping[str, object], where: str) -> str:
    given = text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype")
    if given is None:
        return "fp32"  # what transformers loads when a config names none
    name = str(given).removeprefix("torch.")
    if name.startswith("float8"):
        return "bf16"  # stored in fp8, see quantization; computed outside its matrices in bf16
    if name not in DTYPES:
        raise InputError(f"dtype {given!r} is not known", where=where, remedy=f"one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _quantization(config: Mapping[str, object], text: Mapping[str, object]) -> str | None:
    """The precision of published weights: fp8, mxfp4, nvfp4, int8, int4-gptq, int4-awq, int4."""
    q = config.get("quantization_config") or text.get("quantization_config")
    if not isinstance(q, Mapping):
        return None
    method = str(q.get("quant_method", "")).lower()
    stated = str(q.get("bits") or q.get("w_bit") or "")
    bits = int(stated) if stated.isdecimal() else 4
    if method in ("gptq", "awq"):
        return f"int{bits}-{method}"
    if method == "bitsandbytes":
        return "int8" if q.get("load_in_8bit") else "int4"
    if method == "compressed-tensors":
        return _compressed(q)
    return {"fbgemm_fp8": "fp8", "modelopt": str(q.get("quant_algo", "fp8")).lower()}.get(method, method or None)


def _compressed(q: Mapping[str, object]) -> str | None:
    groups = q.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    bits, kind = weights.get("num_bits"), weights.get("type")
    if kind == "float":
        return "fp8" if bits == 8 else "nvfp4"
    acts = first.get("input_activations") if isinstance(first, Mapping) else None
    return "int8" if bits == 8 and acts else f"int{bits}-gptq"
