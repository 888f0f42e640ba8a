"""The memory model against vLLM's own accounts, and its refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calibrate.memory import fits, memory_plan
from calibrate.physics.activations import activation_peak, layer_activation_bytes
from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica
from catalogs.units import GIB


def replica(model: str, gpu: str, **changes: object) -> Replica:
    engine = changes.pop("engine", Engine(version="0.19.0", max_num_seqs=256, max_num_batched_tokens=2048))
    return Replica(find_model(model), find_gpu(gpu), engine=engine, **changes)  # type: ignore[arg-type]


def test_blocks_are_those_that_vllm_logged_on_an_rtx_4090() -> None:
    """vLLM 0.19.0 on a device of 25,250,627,584 bytes derived 2,588 blocks of 16 tokens; the log says so."""
    gpu = replace(find_gpu("RTX4090"), memory_bytes=25250627584.0)
    plan = memory_plan(replace(replica("llama-3.1-8b", "RTX4090"), gpu=gpu).with_engine(gpu_memory_utilization=0.9))
    assert abs(plan.num_gpu_blocks - 2588) <= 5
    assert plan.kv_bytes_per_token == 131072


def test_parts_add_up_to_the_device() -> None:
    plan = memory_plan(replica("llama-3.1-70b", "H100-SXM", tensor_parallel_size=4))
    assert sum(p.num_bytes for p in plan.parts) == pytest.approx(plan.device_bytes)
    assert all(p.num_bytes >= 0 for p in plan.parts)
    assert plan.weight_bytes == pytest.approx(70.55e9 * 2 / 4, rel=0.01)


def test_more_sequences_leave_less_kv_by_their_logits() -> None:
    """Past the layer's peak each sequence costs 3.5 fp32 rows of the vocabulary, as vLLM 0.8.5 logged (3.58)."""
    few, many = (
        memory_plan(replica("llama-3.1-8b", "H100-SXM").with_engine(max_num_seqs=n)).kv_cache_bytes for n in (400, 1000)
    )
    per_sequence = (few - many) / 600
    assert per_sequence == pytest.approx((333248 - 324832) * 131072 / 600, rel=0.05)


def test_fp8_kv_cache_holds_twice_the_tokens() -> None:
    plain = memory_plan(replica("llama-3.1-8b", "H100-SXM"))
    fp8 = memory_plan(replica("llama-3.1-8b", "H100-SXM", kv_cache_dtype="fp8"))
    assert fp8.num_kv_tokens == pytest.approx(2 * plain.num_kv_tokens, rel=1e-3)


def test_kv_heads_are_repeated_beyond_their_number() -> None:
    tp4 = memory_plan(replica("qwen2.5-7b", "H100-SXM", tensor_parallel_size=4))
    tp2 = memory_plan(replica("qwen2.5-7b", "H100-SXM", tensor_parallel_size=2))
    assert tp4.kv_bytes_per_token == tp2.kv_bytes_per_token / 2


def test_mla_cache_is_small_and_whole_on_every_gpu() -> None:
    plan = memory_plan(replica("deepseek-v3", "H200", tensor_parallel_size=8, precision="fp8"))
    assert plan.kv_bytes_per_token == 61 * (512 + 64) * 2


def test_default_context_is_reduced_and_said() -> None:
    plan = memory_plan(replica("llama-3.1-8b", "RTX4090"))
    assert plan.max_model_len == plan.num_kv_tokens < 131072
    assert "max_model_len reduced" in plan.notes[0]


def test_given_blocks_are_kept() -> None:
    assert memory_plan(replica("llama-3.1-8b", "RTX4090").with_engine(num_gpu_blocks=100)).num_gpu_blocks == 100


@pytest.mark.parametrize(
    ("model", "gpu", "changes", "remedy"),
    [
        ("llama-3.1-70b", "H100-SXM", {}, "tensor_parallel_size 2"),
        ("llama-3.1-405b", "L4", {}, "bigger GPU|int4|no change"),
        ("llama-3.1-8b", "RTX4090", {"engine": Engine(max_model_len=100_000)}, "max_model_len"),
    ],
)
def test_what_does_not_fit_names_the_smallest_change(
    model: str, gpu: str, changes: dict[str, object], remedy: str
) -> None:
    with pytest.raises(InputError) as error:
        memory_plan(replica(model, gpu, **changes))
    assert any(word in error.value.remedy for word in remedy.split("|"))
    assert "GiB" in error.value.what


def test_the_named_change_does_fit() -> None:
    assert not fits(replica("llama-3.1-70b", "H100-SXM"))
    assert fits(replica("llama-3.1-70b", "H100-SXM", tensor_parallel_size=2))


def test_heads_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(InputError, match="attention heads"):
        memory_plan(replica("qwen2.5-7b", "H100-SXM", tensor_parallel_size=8))


def test_models_without_a_cache_give_their_largest_batch() -> None:
    plan = memory_plan(replica("bert-large", "T4", precision="fp16"))
    assert plan.num_gpu_blocks == 0
    assert plan.max_batch_size > 64


def test_smaller_chunks_need_less_activation_memory() -> None:
    model = find_model("llama-3.1-8b")
    whole, chunked = (layer_activation_bytes(model, 8192, chunk_tokens=c) for c in (None, 1024))
    assert chunked < whole / 2


def test_recomputation_trades_memory_for_work() -> None:
    model = find_model("llama-3.1-8b")
    kept = [activation_peak(model, 2048, 0, checkpoint_layers=n) for n in (1, 4, 8)]
    assert [k.compute_factor for k in kept] == [1.0, 2.0, 2.0]
    assert kept[1].kept_bytes != kept[2].kept_bytes
    assert activation_peak(model, 2048, 0).peak_bytes < 1 * GIB


def test_sglang_holds_weights_and_cache_in_its_static_share_and_activations_beside_it() -> None:
    """KV is mem_fraction_static of what is free before loading, less the weights (profile_max_num_token)."""
    plan = memory_plan(replica("qwen2.5-7b", "L4", precision="fp16", engine=Engine(framework="sglang")))
    free = plan.device_bytes - plan.part("CUDA context") - plan.part("NCCL and CUDA modules")
    static = plan.weight_bytes + plan.part("rotary table") + plan.kv_cache_bytes
    assert static == pytest.approx(0.834 * free, rel=1e-3)
    assert plan.part("unused") > 0
