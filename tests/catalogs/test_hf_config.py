"""A Hugging Face config.json gives the same model as the catalogue, and says clearly when it cannot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from catalogs.errors import InputError, MissingError
from catalogs.hf_config import model_from_config, read_config
from catalogs.load import find_model, models
from catalogs.schema import Model

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_MOE: dict[str, Any] = {
    "model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "vocab_size": 151936, "max_position_embeddings": 40960, "torch_dtype": "bfloat16", "attention_bias": False,
    "use_sliding_window": False, "sliding_window": None, "tie_word_embeddings": False,
}  # fmt: skip
DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128,
    "num_key_value_heads": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 3, "moe_layer_freq": 1,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "vocab_size": 129280, "max_position_embeddings": 163840, "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}, "tie_word_embeddings": False,
}  # fmt: skip
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss", "num_hidden_layers": 24, "hidden_size": 2880, "num_attention_heads": 64,
    "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 2880, "num_local_experts": 32,
    "num_experts_per_tok": 4, "vocab_size": 201088, "max_position_embeddings": 131072, "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12, "attention_bias": True, "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "mxfp4"}, "tie_word_embeddings": False,
}  # fmt: skip
GEMMA3: dict[str, Any] = {
    "model_type": "gemma3", "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text", "num_hidden_layers": 62, "hidden_size": 5376, "num_attention_heads": 32,
        "num_key_value_heads": 16, "head_dim": 128, "intermediate_size": 21504, "vocab_size": 262208,
        "max_position_embeddings": 131072, "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
}  # fmt: skip
MAVERICK: dict[str, Any] = {
    "model_type": "llama4",
    "text_config": {
        "model_type": "llama4_text", "num_hidden_layers": 48, "hidden_size": 5120, "num_attention_heads": 40,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
        "num_local_experts": 128, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "vocab_size": 202048,
        "max_position_embeddings": 1048576, "attention_chunk_size": 8192, "torch_dtype": "bfloat16",
        "no_rope_layers": [1, 1, 1, 0] * 12, "tie_word_embeddings": False, "attention_bias": False,
    },
}  # fmt: skip
GEMMA3_SHORT: dict[str, Any] = {  # the published form leaves out what is its class's default
    "model_type": "gemma3", "torch_dtype": "bfloat16",
    "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
                    "num_hidden_layers": 34, "sliding_window": 1024},
}  # fmt: skip
BERT: dict[str, Any] = {
    "model_type": "bert", "num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16,
    "intermediate_size": 4096, "vocab_size": 30522, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LLAMA, "llama-3.1-8b"),
        (QWEN3_MOE, "qwen3-30b-a3b"),
        (DEEPSEEK, "deepseek-v3"),
        (GPT_OSS, "gpt-oss-20b"),
        (GEMMA3, "gemma-3-27b"),
        (GEMMA3_SHORT, "gemma-3-4b"),
        (MAVERICK, "llama-4-maverick"),
        (BERT, "bert-large"),
    ],
)
def test_a_config_gives_the_architecture_of_the_catalogue(config: dict[str, Any], name: str) -> None:
    def shape(model: Model) -> Model:
        return replace(model, name="", hf_ids=(), source="", as_of="", num_parameters=None)

    assert shape(model_from_config(config, name)) == shape(models()[name])


def test_a_path_to_a_config_or_its_folder_is_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "my-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert find_model(str(folder)).name == "my-llama"
    assert find_model(str(folder / "config.json")).num_kv_heads == 8


def test_nvidias_quantization_file_beside_the_config_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert read_config(tmp_path / "config.json").quantization == "fp8"


@pytest.mark.parametrize(
    ("quantization", "precision"),
    [
        ({"quant_method": "gptq", "bits": 4}, "int4-gptq"),
        ({"quant_method": "awq", "bits": 4}, "int4-awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {
                "group_0": {"weights": {"num_bits": 8, "type": "int"}, "input_activations": {"num_bits": 8}}}},
            "int8",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {
                "group_0": {"weights": {"num_bits": 8, "type": "float"}}}},
            "fp8",
        ),
    ],
)  # fmt: skip
def test_the_published_precision_is_read(quantization: dict[str, Any], precision: str) -> None:
    assert model_from_config(LLAMA | {"quantization_config": quantization}, "x").quantization == precision


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": -1}, "not a positive whole number"),
        ({"num_key_value_heads": 5}, "cannot share 5"),
        ({"num_local_experts": 8}, "num_experts_per_tok"),
        ({"kv_lora_rank": 512}, "qk_rope_head_dim"),
        ({"torch_dtype": "int3"}, "dtype"),
        ({"sliding_window": 128, "layer_types": ["full_attention"]}, "layer_types"),
        ({"hidden_size": 4097}, "not a multiple"),
        ({"num_key_value_heads": -2}, "config.json: num_key_value_heads"),
        ({"num_local_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 99}, "99 layers without experts"),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True, "max_window_layers": "all"},
         "max_window_layers is 'all'"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_a_model_is_refused_with_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model_from_config(LLAMA | change, "x")


@pytest.mark.parametrize(("first", "num_sliding"), [(0, 32), (20, 12), (32, 0), (None, 0)])
def test_qwen_slides_from_max_window_layers_on(first: int | None, num_sliding: int) -> None:
    change = {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True, "max_window_layers": first}
    assert model_from_config(LLAMA | change, "x").num_sliding_layers == num_sliding


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such model config"):
        find_model(str(tmp_path / "nothing.json"))
    broken = tmp_path / "config.json"
    broken.write_text('{"hidden_size": 4096,\n oops}')
    with pytest.raises(InputError, match=r"config.json:2"):
        find_model(str(broken))
    broken.write_text("[1]")
    with pytest.raises(InputError, match="JSON object"):
        find_model(str(broken))
