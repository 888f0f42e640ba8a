"""A step taken apart: its parts add up to the step's time, techniques counted once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibrate.bottleneck import decode_shape, step_cost
from calibrate.fitting.importers.llmservingsim import import_profile
from calibrate.profiles import best_profile
from calibrate.step_time import step_model
from catalogs.load import find_gpu, find_model, resolve_engine
from catalogs.schema import Engine, Replica
from tests.calibrate.test_llmservingsim_import import write_tables

LORA = {"lora": {"num_adapters": 4, "max_loras": 4}}
TWICE = {"activation_recomputation": "full"}


def replica(model: str, gpu: str, options: dict[str, Any], **kw: Any) -> Replica:
    bare = Replica(find_model(model), find_gpu(gpu), engine=Engine(options=options), **kw)
    return replace(bare, engine=resolve_engine(bare.engine, bare.model, bare.gpu))


@pytest.mark.parametrize("options", [{}, LORA, TWICE], ids=["plain", "lora", "recomputed"])
@pytest.mark.parametrize("batch", [13, 64])  # 13 sequences run in the CUDA graph of 16
def test_a_decode_steps_parts_add_up_to_its_time(options: dict[str, Any], batch: int) -> None:
    for model, tp in (("llama-3.1-8b", 1), ("llama-3.1-70b", 4), ("qwen3-30b-a3b", 1)):
        served = replica(model, "H100-SXM", options, tensor_parallel_size=tp)
        profile, shape = best_profile(served), decode_shape(batch, 512.0)
        told = step_model(served, profile).step_time_s(shape)
        assert step_cost(served, profile, shape).seconds == pytest.approx(told, rel=0.01)


@pytest.mark.parametrize("options", [{}, LORA, TWICE], ids=["plain", "lora", "recomputed"])
def test_a_table_of_one_model_holds_its_techniques_once(options: dict[str, Any], tmp_path: Path) -> None:
    profile = import_profile(write_tables(tmp_path, {"embedding": 1.0, "layernorm": 2.0, "qkv_proj": 3.0}))
    served, shape = replica("llama-3.1-8b", "RTX-PRO-6000", options), decode_shape(8, 64.0)
    told = step_model(served, profile).step_time_s(shape)
    assert step_cost(served, profile, shape).seconds == pytest.approx(told, rel=1e-9)


def test_what_fills_up_a_cuda_graph_is_no_work_of_the_steps_tokens() -> None:
    served = replica("llama-3.1-8b", "H100-SXM", {})
    profile = best_profile(served)
    few, full = (step_cost(served, profile, decode_shape(n, 512.0)) for n in (9, 16))
    assert few.flops == pytest.approx(9 / 16 * full.flops)
