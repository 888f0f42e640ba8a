"""`plan estimate`: memory, roofline, bottleneck, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli.estimate import estimate
from catalogs.errors import PlanError


def run(*args: str) -> Result:
    return CliRunner().invoke(estimate, list(args))


def answer(*args: str) -> dict[str, object]:
    result = run(*args, "--format", "json")
    assert result.exit_code == 0, result.output
    document: dict[str, object] = json.loads(result.stdout)
    return document


def test_memory_parts_and_step_parts_add_up() -> None:
    document = answer("llama-3.1-8b", "--gpu", "H100-SXM", "--batch", "64")
    step = document["step"]
    assert isinstance(step, dict)
    assert sum(p["seconds"] for p in step["parts"]) == pytest.approx(step["seconds"])
    assert document["fits"] is True


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (("llama-3.1-8b", "--gpu", "H100-SXM", "--batch", "8"), "memory bandwidth"),
        (("llama-3.1-8b", "--gpu", "RTX4090", "--batch", "128", "--context", "4096"), "memory capacity"),
        (("bert-large", "--gpu", "A10", "--batch", "64"), "compute"),
    ],
)
def test_bottleneck_is_named_with_numbers(args: tuple[str, ...], name: str) -> None:
    bottleneck = answer(*args)["bottleneck"]
    assert isinstance(bottleneck, dict)
    assert bottleneck["name"] == name
    assert any(c.isdigit() for c in bottleneck["why"])


def test_vision_gives_items_per_second() -> None:
    rates = answer("resnet50", "--gpu", "T4", "--precision", "int8", "--batch", "64")["rates"]
    assert isinstance(rates, dict)
    assert rates["items_per_s"] > 1000
    assert rates["max_batch_size"] > 64


def test_no_step_outruns_the_data_sheet() -> None:
    for batch in ("1", "64", "512"):
        roofline = answer("llama-3.1-8b", "--gpu", "A100-80GB", "--batch", batch, "--context", "512")["roofline"]
        assert isinstance(roofline, dict)
        assert roofline["mfu"] <= 1.0
        assert roofline["mbu"] <= 1.05


def test_roofline_picture_is_written(tmp_path: Path) -> None:
    out = tmp_path / "roofline.svg"
    result = run("llama-3.1-8b", "--gpu", "H100-SXM", "--plot", str(out))
    assert result.exit_code == 0, result.output
    assert out.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("llama-3.1-70b", "--gpu", "L4"), "tensor_parallel_size"),
        (("lama-3.1-8b", "--gpu", "L4"), "llama-3.1-8b"),
        (("llama-3.1-8b", "--gpu", "H1000"), "H100"),
        (("llama-3.1-8b", "--gpu", "T4", "--precision", "fp4"), "compute capability"),
        (("llama-3.1-8b", "--gpu", "H100-SXM", "--tp", "3"), "attention heads"),
    ],
)
def test_bad_input_says_what_would_work(args: tuple[str, ...], word: str) -> None:
    result = run(*args)
    assert isinstance(result.exception, PlanError)
    assert result.exception.exit_code == 2
    assert word in str(result.exception)


@pytest.mark.parametrize(
    ("args", "note"),
    [
        (("--attention-backend", "eager"), "Attention backend eager: fitted on one table"),
        (("--max-loras", "4", "--lora-adapters", "9"), "LoRA adapters: bytes, FLOPs and launches counted"),
        (("--compression", "method=2of4", "--precision", "fp8"), "2:4 weights"),
        (("--compression", "method=unstructured,sparsity=0.5,storage=bitmask"), "bf16-bitmask50"),
        (("--precision", "int4-awq-slow"), "an upper bound"),
    ],
)
def test_a_technique_says_what_its_cost_rests_on(args: tuple[str, ...], note: str) -> None:
    document = answer("llama-3.1-8b", "--gpu", "H100-SXM", *args)
    notes = document["notes"]
    assert isinstance(notes, list)
    assert any(note in text for text in notes), notes
    plain = answer("llama-3.1-8b", "--gpu", "H100-SXM")
    assert plain["notes"] == []
    assert plain["step"] != document["step"] or plain["num_gpu_blocks"] != document["num_gpu_blocks"]


def test_recomputation_trades_memory_for_time() -> None:
    def figures(*args: str) -> tuple[float, float]:
        document = answer("llama-3.1-8b", "--gpu", "H100-SXM", *args)
        step, blocks = document["step"], document["num_gpu_blocks"]
        assert isinstance(step, dict) and isinstance(blocks, int)
        return float(step["seconds"]), blocks

    (none_s, none_blocks), (full_s, full_blocks) = figures("--recompute", "none"), figures("--recompute", "full")
    assert full_s > 1.5 * none_s and full_blocks > none_blocks


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("--attention-backend", "flash3"), "Hopper"),
        (("--max-lora-rank", "24"), "max_lora_rank"),
        (("--compression", "method=layers,num_layers=99"), "num_layers"),
        (("--compression", "layers"), "KEY=VALUE"),
    ],
)
def test_techniques_that_cannot_be(args: tuple[str, ...], word: str) -> None:
    result = run("llama-3.1-8b", "--gpu", "A100-80GB", *args)
    assert isinstance(result.exception, PlanError)
    assert result.exception.exit_code == 2
    assert word in str(result.exception)
