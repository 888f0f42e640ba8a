"""What the catalogues promise: known names, sourced rows, dense rates, parameter counts that follow from the shapes."""

from __future__ import annotations

import pytest

from calibrate.physics.work import num_parameters
from catalogs import load
from catalogs.errors import InputError
from catalogs.schema import Engine
from catalogs.tables import first_day
from catalogs.units import GIB, TERA

CONTRACT_GPUS = [
    "T4",
    "V100",
    "A10G",
    "A10",
    "L4",
    "L40S",
    "A100-40GB",
    "A100-80GB",
    "A100-80GB-PCIe",
    "H100-PCIe",
    "H100-SXM",
    "H200",
    "B200",
    "B300",
    "RTX4090",
    "RTX-PRO-6000",
]
CONTRACT_MODELS = [
    "llama-2-7b",
    "llama-2-70b",
    "llama-3.1-8b",
    "llama-3.1-70b",
    "llama-3.1-405b",
    "llama-3.3-70b",
    "qwen2.5-7b",
    "qwen3-8b",
    "qwen3-14b",
    "qwen3-32b",
    "qwen3-30b-a3b",
    "mistral-7b",
    "mixtral-8x7b",
    "mixtral-8x22b",
    "gemma-3-27b",
    "phi-4",
    "deepseek-v3",
    "gpt-oss-20b",
    "gpt-oss-120b",
    "bert-large",
    "resnet50",
]


def test_every_name_of_the_contract_is_known() -> None:
    assert [g for g in CONTRACT_GPUS if g not in load.gpus()] == []
    assert [m for m in CONTRACT_MODELS if m not in load.models()] == []
    assert len(load.models()) >= 30


def test_every_row_has_its_source_and_date() -> None:
    rows = [*load.gpus().values(), *load.models().values(), *load.instances().values(), *load.prices()]
    assert all(row.source and first_day(row.as_of) for row in rows)


@pytest.mark.parametrize("name", [n for n, m in load.models().items() if m.kind == "decoder"])
def test_parameters_counted_from_the_shape_agree_with_the_published_number(name: str) -> None:
    model = load.models()[name]
    assert model.num_parameters is not None
    assert num_parameters(model) == pytest.approx(model.num_parameters, rel=0.02)


@pytest.mark.parametrize(
    ("spelling", "name", "precision"),
    [
        ("TheBloke/Mistral-7B-v0.1-AWQ", "mistral-7b", "int4-awq"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "qwen2.5-7b", "int4-gptq"),
        ("neuralmagic/Meta-Llama-3.1-8B-Instruct-FP8", "llama-3.1-8b", "fp8"),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "llama-3.3-70b", "fp8"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "llama-3.1-8b", "int8"),
        ("Qwen/Qwen3-8B", "qwen3-8b", None),
    ],
)
def test_a_quantized_checkpoint_is_its_model_in_that_precision(spelling: str, name: str, precision: str | None) -> None:
    model = load.find_model(spelling)
    assert (model.name, model.quantization) == (name, precision)


def test_rates_are_dense_and_the_a10g_is_not_an_a10() -> None:
    assert load.gpus()["A10G"].peak_flops["bf16"] == 70 * TERA
    assert load.gpus()["H100-SXM"].peak_flops["bf16"] == pytest.approx(989.5 * TERA)
    assert "fp8" not in load.gpus()["A100-80GB"].peak_flops
    assert "bf16" not in load.gpus()["T4"].peak_flops


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("rtx pro 6000", "RTX-PRO-6000"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("a100 80gb", "A100-80GB"),
        ("V100-SXM2-16GB", "V100"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("Tesla T4", "T4"),
        ("Tesla V100-PCIE-32GB", "V100-32GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA RTX4090", "RTX4090"),
    ],
)
def test_a_gpu_is_found_under_the_names_people_write(spelling: str, name: str) -> None:
    assert load.find_gpu(spelling).name == name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b"),
        ("Llama 3.1 8B", "llama-3.1-8b"),
        ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
        ("google/gemma-3-27b-it", "gemma-3-27b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("someone/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek-v3"),
    ],
)
def test_a_hugging_face_id_means_the_same_model(spelling: str, name: str) -> None:
    assert load.find_model(spelling).name == name


@pytest.mark.parametrize(("find", "name", "near"), [
    (load.find_gpu, "H100", "H100-PCIe or H100-SXM"),
    (load.find_gpu, "L40", "L40S"),
    (load.find_model, "lama-3.1-8b", "llama-3.1-8b"),
    (load.find_model, "~nobody-lives-here/llama-3.1-8", "llama-3.1-8b"),
    (load.find_model, "llama-3.1-8b" * 500, "unknown model"),
    (load.find_instance, "g6e.xlrge", "g6e.xlarge"),
    (load.find_region, "us-est-1", "us-east-1"),
])  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest(find, name: str, near: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=near):
        find(name)


def test_a_price_that_is_not_known_is_absent() -> None:
    assert load.price_of("g6e.xlarge", "us-east-1", "reserved_1yr") is None
    assert load.price_of("g6e.xlarge", "us-east-1", "on_demand") is not None
    assert not [p for p in load.prices() if p.confidence == "inferred"]


def test_reserved_and_capacity_block_prices_are_below_on_demand() -> None:
    for price in load.prices():
        whole = load.price_of(price.instance, price.region, "on_demand")
        if whole is not None and price.purchase in ("reserved_3yr", "capacity_block", "spot"):
            assert price.usd_per_hour <= whole.usd_per_hour, price


def test_a_seller_with_one_price_everywhere_has_it_in_each_region() -> None:
    assert load.price_of("lambda-8x-h100-sxm5", "us-east-1", "on_demand") is not None


def test_an_instance_fabric_is_no_faster_than_its_gpu() -> None:
    for instance in load.instances().values():
        gpu = load.gpus()[instance.gpu]
        speed = instance.interconnect_bytes_per_s
        if instance.num_gpus == 1:
            assert (instance.interconnect, speed) == ("none", None)
        else:
            assert speed is not None
            nvlink = instance.interconnect in ("nvlink", "nvswitch")
            assert speed <= ((gpu.nvlink_bytes_per_s or 0) if nvlink else gpu.pcie_bytes_per_s)


def test_vllm_gives_large_batches_to_large_gpus_but_not_to_the_a100() -> None:
    model = load.find_model("llama-3.1-8b")
    sizes = {
        gpu: (engine.max_num_seqs, engine.max_num_batched_tokens)
        for gpu in ("H100-SXM", "A100-80GB", "L40S")
        for engine in [load.resolve_engine(Engine(), model, load.gpus()[gpu])]
    }
    assert sizes == {"H100-SXM": (1024, 2048), "A100-80GB": (256, 2048), "L40S": (256, 2048)}


@pytest.mark.parametrize("framework", load.frameworks())
def test_resolving_an_engine_fills_every_setting_but_version_and_blocks(framework: str) -> None:
    model, gpu = load.find_model("bert-large"), load.find_gpu("T4")
    engine = load.resolve_engine(Engine(framework=framework), model, gpu)
    assert [name for name, value in vars(engine).items() if value is None] == ["version", "num_gpu_blocks"]
    assert engine.max_model_len == 512


def test_what_the_user_sets_is_kept() -> None:
    engine = load.resolve_engine(
        Engine(framework="vLLM", max_num_seqs=7, block_size=32), load.find_model("qwen3-8b"), load.find_gpu("L4")
    )
    assert (engine.framework, engine.max_num_seqs, engine.block_size) == ("vllm", 7, 32)


def test_an_unknown_framework_is_refused() -> None:
    with pytest.raises(InputError, match="framework"):
        load.resolve_engine(Engine(framework="vlm"), load.find_model("qwen3-8b"), load.find_gpu("L4"))


def test_memory_is_what_cuda_reports_not_the_label() -> None:
    assert load.gpus()["A100-80GB"].memory_bytes < 80 * GIB
