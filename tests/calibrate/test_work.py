"""Counts against published parameter numbers and hand-worked cases."""

import numpy as np
import pytest

from calibrate.physics import work
from calibrate.physics.precisions import on_gpu, precision, support
from catalogs.errors import InputError
from catalogs.schema import Gpu, Mla, Model, Moe

LLAMA_8B = Model("llama-3.1-8b", "decoder", 32, 4096, 32, 8, 128, 14336, 128256, 131072, "bf16")
LLAMA_70B = Model("llama-3.1-70b", "decoder", 80, 8192, 64, 8, 128, 28672, 128256, 131072, "bf16")
MIXTRAL = Model("mixtral", "decoder", 32, 4096, 32, 8, 128, 14336, 32000, 32768, "bf16", moe=Moe(8, 2, 14336))
DEEPSEEK = Model(
    "deepseek-v3", "decoder", 61, 7168, 128, 128, 128, 18432, 129280, 163840, "bf16",
    moe=Moe(256, 8, 2048, 1, 2048, 3), mla=Mla(512, 1536, 128, 64, 128),
)  # fmt: skip
BERT = Model("bert-large", "encoder", 24, 1024, 16, 16, 64, 4096, 30522, 512, "fp32", num_mlp_matrices=2, qkv_bias=True)
V100 = Gpu(
    "V100", "Volta", 7.0, 80, {"fp32": 15.7e12, "fp16": 125e12}, 16e9, 900e9, 6e6, 150e9, 16e9, 300, "s", "d", "high"
)


@pytest.mark.parametrize(
    ("model", "published", "within"),
    [(LLAMA_8B, 8.030e9, 0.001), (LLAMA_70B, 70.55e9, 0.001), (MIXTRAL, 46.7e9, 0.001), (DEEPSEEK, 671e9, 0.001),
     (BERT, 335e6, 0.01)],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(model, published, within):
    assert work.num_parameters(model) == pytest.approx(published, rel=within)


def test_active_parameters_are_the_published_ones():
    assert work.num_active_parameters(MIXTRAL) == pytest.approx(12.9e9, rel=0.02)
    assert work.num_active_parameters(DEEPSEEK) == pytest.approx(37e9, rel=0.02)


def test_kv_bytes_follow_gqa_mla_precision_and_tensor_parallelism():
    assert work.kv_bytes_per_token(LLAMA_8B) == 2 * 8 * 128 * 32 * 2
    assert work.kv_bytes_per_token(LLAMA_8B, "fp8") == 2 * 8 * 128 * 32
    assert work.kv_bytes_per_token(LLAMA_70B, tp=8) == 2 * 1 * 128 * 80 * 2
    assert work.kv_bytes_per_token(LLAMA_70B, tp=16) == work.kv_bytes_per_token(LLAMA_70B, tp=8)
    assert work.kv_bytes_per_token(DEEPSEEK) == (512 + 64) * 61 * 2
    assert work.kv_bytes_per_token(BERT) == 0


def test_sliding_layers_keep_only_their_window():
    model = Model("s", "decoder", 10, 64, 4, 4, 16, 128, 1000, 8192, "bf16", sliding_window=100, num_sliding_layers=5)
    each = work.kv_bytes_per_token(model)
    assert work.kv_bytes_per_sequence(model, 50) == 50 * each
    assert work.kv_bytes_per_sequence(model, 1000) == pytest.approx(0.5 * 1000 * each + 0.5 * 100 * each)


def test_expected_experts_hit_agrees_with_draws():
    rng = np.random.default_rng(0)
    draws = [len({e for _ in range(20) for e in rng.choice(64, 6, replace=False)}) for _ in range(400)]
    assert work.expected_experts_hit(20.0, 64, 6) == pytest.approx(np.mean(draws), rel=0.01)
    assert work.expected_experts_hit(1.0, 64, 6) == pytest.approx(6)


def test_quantized_weight_bytes_count_group_scales_and_leave_embeddings_wide():
    bf16, awq = work.weight_bytes(LLAMA_8B, "bf16"), work.weight_bytes(LLAMA_8B, "int4-awq")
    embeddings = 2 * 128256 * 4096
    assert bf16 == pytest.approx(2 * 8.03e9, rel=0.001)
    assert awq == pytest.approx(embeddings * 2 + (8.03e9 - embeddings) * (0.5 + 2.5 / 128), rel=0.001)
    assert work.weight_bytes(LLAMA_70B, "bf16", tp=8) == pytest.approx(2 * 70.55e9 / 8, rel=0.005)


def test_weights_of_a_pipeline_and_of_shared_experts_are_split():
    whole = work.weight_bytes(DEEPSEEK, "fp8")
    assert work.weight_bytes(DEEPSEEK, "fp8", tp=8, ep=8) == pytest.approx(whole / 8, rel=0.06)
    assert work.weight_bytes(LLAMA_70B, "bf16", pp=2) == pytest.approx(work.weight_bytes(LLAMA_70B, "bf16") / 2, 0.01)


def test_flops_per_token_is_twice_the_active_parameters_plus_attention():
    assert work.flops_per_token(LLAMA_8B) == pytest.approx(2 * 7.5e9, rel=0.01)
    extra = work.flops_per_token(LLAMA_8B, 1000) - work.flops_per_token(LLAMA_8B)
    assert extra == pytest.approx(4 * 1000 * 32 * 128 * 32)


def test_precision_names_are_forgiving_and_the_unknown_names_the_nearest():
    assert precision("FP8 E4M3").name == "fp8"
    assert precision("awq").name == "int4-awq"
    with pytest.raises(InputError, match="int4-gptq"):
        precision("int4-gptg")


def test_a_device_runs_what_it_has_units_for_and_refuses_the_rest():
    assert support("bf16", V100) == "emulated"
    assert on_gpu("bf16", V100).compute == "fp16"
    assert support("int8", V100) == "refused"
    with pytest.raises(InputError, match="fp16"):
        on_gpu("fp8", V100)
