"""LoRA adapters: memory by hand, cost in the limits, and what vLLM refuses."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.memory import memory_plan
from calibrate.physics.lora import copy_s, lora_bytes, lora_step_s, slot_bytes
from calibrate.profiles import best_profile
from calibrate.step import StepShape
from calibrate.step_time import step_model
from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica
from simulator.engine.techniques import Adapters
from simulator.scenario.replicas import build_line
from simulator.scenario.spec import EngineSpec


def replica(tp: int = 1, **lora: object) -> Replica:
    options = {"lora": lora} if lora else {}
    return Replica(find_model("llama-3.1-8b"), find_gpu("H100-SXM"), tp, engine=Engine(options=options))


def test_a_slot_by_hand() -> None:
    """Llama-3.1-8B at rank 16: q, k, v, o, gate, up, down with their A and B, 32 layers, 2 bytes."""
    hidden, kv, inter = 4096, 1024, 14336
    columns = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, inter), (hidden, inter)]
    rows = [(hidden, hidden), (inter, hidden)]
    assert slot_bytes(replica(), 16) == 32 * 2 * 16 * sum(k + n for k, n in columns + rows)
    assert slot_bytes(replica(), 16) == 83_886_080  # 42 million parameters, as PEFT counts them
    # over 2 GPUs: A whole and B halved where columns are split, A halved and B whole where rows are
    halves = sum(k + n / 2 for k, n in columns) + sum(k / 2 + n for k, n in rows)
    assert slot_bytes(replica(tp=2), 16) == 32 * 2 * 16 * halves


def test_slots_take_kv_blocks_whatever_the_adapters_rank() -> None:
    plain, eight = memory_plan(replica()), memory_plan(replica(max_loras=8, rank=8, max_lora_rank=64))
    taken = 8 * slot_bytes(replica(), 64)
    assert eight.part("LoRA adapters") == taken == lora_bytes(replica(max_loras=8, rank=8, max_lora_rank=64))
    assert (plain.num_gpu_blocks - eight.num_gpu_blocks) * 16 * 131072 == pytest.approx(taken, rel=0.001)


def test_a_step_costs_more_by_rank_and_by_adapters() -> None:
    batch = np.array([64.0])

    def cost(**lora: object) -> float:
        return float(lora_step_s(replica(**lora), batch)[0])

    assert cost(rank=64) > cost(rank=16) > 0
    assert cost(max_loras=32, num_adapters=32) > cost(max_loras=4, num_adapters=32) > cost(max_loras=1)
    # one token reads one adapter at most, and never costs less than its launches: 8 kernels a layer of 2.1 us
    one = float(lora_step_s(replica(max_loras=32, num_adapters=32), np.array([1.0]))[0])
    assert one >= 32 * 8 * 2.1e-6
    assert float(lora_step_s(replica(), batch)[0]) == 0.0


def test_the_step_model_and_the_engine_see_them() -> None:
    plain, with_them = replica(), replica(max_loras=4, num_adapters=16, rank=16)
    shape = StepShape(0, 0, 64, 1000, 64)
    times = [step_model(r, best_profile(r)).step_time_s(shape) for r in (plain, with_them)]
    assert times[1] - times[0] == pytest.approx(float(lora_step_s(with_them, np.array([64.0]))[0]), rel=1e-6)
    lines = [build_line(r) for r in (plain, with_them)]
    assert lines[0].spec.adapters is None
    assert lines[1].spec.adapters == Adapters(16, 4, copy_s(with_them))
    assert copy_s(with_them) == pytest.approx(83_886_080 / plain.gpu.pcie_bytes_per_s)


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ({"rank": 32, "max_lora_rank": 16}, "max_lora_rank"),
        ({"max_lora_rank": 24}, "max_lora_rank"),
        ({"rank": 600}, "rank 600"),
        ({"max_loras": 4, "max_cpu_loras": 2}, "max_cpu_loras"),
        ({"ranks": 8}, "keys"),
        ({"max_loras": 0}, "max_loras"),
    ],
)
def test_refusals(lora: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        memory_plan(replica(**lora))


def test_a_vision_model_has_none() -> None:
    resnet = Replica(find_model("resnet50"), find_gpu("T4"), precision="fp16", engine=Engine("onnxruntime"))
    with pytest.raises(InputError, match="LoRA"):
        build_line(resnet.with_engine(options={"lora": {}}))


def test_the_engine_section_has_them_under_vllms_names() -> None:
    spec = EngineSpec.model_validate({"lora": {"num_adapters": 8, "rank": 32, "max_loras": 4}})
    assert spec.engine().options["lora"] == {
        "num_adapters": 8, "rank": 32, "max_loras": 4, "max_lora_rank": None, "max_cpu_loras": None,
    }  # fmt: skip
