"""Pruned models: bytes by hand, speed only where kernels exist, new networks where the shape changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calibrate.memory import memory_plan
from calibrate.physics.compression import Compression, compressed, parse_compression
from calibrate.physics.precisions import on_gpu, precision, support
from calibrate.physics.work import num_parameters, weight_bytes
from calibrate.profiles import best_profile
from calibrate.step import StepShape
from calibrate.step_time import step_model
from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Replica
from simulator.scenario.spec import FleetLine

LLAMA, H100 = find_model("llama-3.1-8b"), find_gpu("H100-SXM")
DECODE, PREFILL = StepShape(0, 0, 8, 500, 8), StepShape(8192, 4096, 0, 0, 1)


def step_s(precision_name: str, shape: StepShape, model: str = "llama-3.1-8b") -> float:
    replica = Replica(find_model(model), H100, precision=precision_name)
    return step_model(replica, best_profile(replica)).step_time_s(shape)


@pytest.mark.parametrize(("name", "stored"), [("bf16", 1.125), ("fp8", 0.625), ("int8", 0.625)])
def test_two_of_four_by_hand(name: str, stored: float) -> None:
    """Of 16-bit weights four take 2 x 2 bytes and 4 bits: 4.5 bytes."""
    model, form = compressed(LLAMA, name, Compression("2:4"))
    assert model is LLAMA and precision(form).weight_bytes == stored
    linear = num_parameters(LLAMA) - 2 * LLAMA.vocab_size * LLAMA.hidden_size
    assert weight_bytes(LLAMA, form) == pytest.approx(
        linear * stored + 2 * 2 * LLAMA.vocab_size * LLAMA.hidden_size, rel=1e-4
    )


def test_two_of_four_speeds_up_less_than_nominally() -> None:
    decode, prefill = (step_s("fp8", s) / step_s("fp8-2of4", s) for s in (DECODE, PREFILL))
    assert 1.05 < decode < 1.6  # weights are 0.625 of the bytes; KV, head and overhead stay
    assert 1.05 < prefill < 1.22  # linear layers 1.22 times as fast, attention as before


def test_two_of_four_needs_ampere_and_dense_layers() -> None:
    for gpu, name, how in (
        ("T4", "fp16-2of4", "refused"), ("V100", "fp16-2of4", "refused"), ("A100-80GB", "bf16-2of4", "native"),
        ("A100-80GB", "int8-2of4", "native"), ("A100-80GB", "fp8-2of4", "refused"), ("H100-SXM", "fp8-2of4", "native"),
    ):  # fmt: skip
        assert support(name, find_gpu(gpu)) == how, (gpu, name)
    with pytest.raises(InputError, match="cannot run"):
        on_gpu("fp16-2of4", find_gpu("T4"))
    with pytest.raises(InputError, match="no 2:4 kernels for experts"):
        compressed(find_model("mixtral-8x7b"), "bf16", Compression("2:4"))
    with pytest.raises(InputError, match="unknown precision"):
        compressed(LLAMA, "int4-awq", Compression("2:4"))


def test_vllms_own_kernels_are_hoppers() -> None:
    ampere = Replica(LLAMA, find_gpu("A100-80GB"), precision="bf16-2of4")
    with pytest.raises(InputError, match="vLLM has no 2:4 kernels"):
        memory_plan(ampere)
    memory_plan(ampere.with_engine(framework="tensorrt-llm"))
    memory_plan(replace(ampere, precision="int4-gptq-2of4"))
    memory_plan(replace(ampere, gpu=H100))


def test_unstructured_zeros_change_nothing_but_a_bitmasks_memory() -> None:
    assert compressed(LLAMA, "bf16", Compression("unstructured", 0.5)) == (LLAMA, "bf16")
    _, form = compressed(LLAMA, "bf16", Compression("unstructured", 0.6, "bitmask"))
    assert precision(form).weight_bytes == pytest.approx(2 * 0.4 + 1 / 8)
    assert step_s(form, DECODE) == step_s("bf16", DECODE)
    more = memory_plan(Replica(LLAMA, H100, precision=form)).num_gpu_blocks
    assert more > memory_plan(Replica(LLAMA, H100)).num_gpu_blocks
    with pytest.raises(InputError, match="unstructured sparsity of int4-awq"):
        compressed(LLAMA, "int4-awq", Compression("unstructured", 0.5, "bitmask"))


def test_pruned_to_the_shape_of_published_models() -> None:
    """NVIDIA's Minitron models of Llama-3.1-8B: width to 4.51, depth to 4.54 billion parameters."""
    narrow, _ = compressed(LLAMA, "bf16", Compression("width", hidden_size=3072, intermediate_size=9216))
    assert num_parameters(narrow) == pytest.approx(4.51e9, rel=0.005)
    short, _ = compressed(LLAMA, "bf16", Compression("layers", num_layers=16))
    assert num_parameters(short) == pytest.approx(4.54e9, rel=0.005)
    replicas = [Replica(m, H100) for m in (LLAMA, narrow, short)]
    times = [step_model(r, best_profile(r)).step_time_s(DECODE) for r in replicas]
    assert times[1] < times[0] and times[2] < times[1]  # fewer layers also launch fewer kernels


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (Compression("quantum"), "no compression method"),
        (Compression("layers"), "num_layers is None"),
        (Compression("layers", num_layers=32), "num_layers is 32"),
        (Compression("width"), "width without"),
        (Compression("width", hidden_size=9000), "hidden_size is 9000"),
        (Compression("width", num_attention_heads=12), "over 8 KV heads"),
        (Compression("unstructured"), "sparsity is None"),
        (Compression("2:4", sparsity=0.5), "sparsity with method 2of4"),
        (Compression("layers", num_layers=8, hidden_size=64), "hidden_size with method layers"),
    ],
)
def test_refusals(spec: Compression, says: str) -> None:
    with pytest.raises(InputError, match=says):
        compressed(LLAMA, "bf16", spec)


def test_a_vision_model_is_refused() -> None:
    with pytest.raises(InputError, match="pruning of"):
        compressed(find_model("resnet50"), "fp16", Compression("2:4"))


def test_a_fleet_line_and_a_flag_say_it() -> None:
    line = FleetLine.model_validate({"gpu": "H100-SXM", "precision": "fp8", "compression": {"method": 124}})
    assert line.replica(LLAMA, H100).precision == "fp8-2of4"
    assert parse_compression("method=layers,num_layers=24", "") == Compression("layers", num_layers=24)
    for text in ("method", "layers=24", "method=layers,num_layers=many", "num_layers=3"):
        with pytest.raises(InputError):
            parse_compression(text, "--compression")


def test_a_distilled_model_is_a_model_of_its_own() -> None:
    student = find_model("llama-3.1-minitron-4b-width")
    pruned, _ = compressed(LLAMA, "bf16", Compression("width", hidden_size=3072, intermediate_size=9216))
    assert num_parameters(student) == num_parameters(replace(pruned, name=student.name))
