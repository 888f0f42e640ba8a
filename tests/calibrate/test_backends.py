"""Attention backends: time, memory, and the GPUs that have them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibrate.fitting.backend_fit import fit_backends
from calibrate.kernel_sums import KernelSums
from calibrate.memory import MemoryPlan, memory_plan
from calibrate.physics.backends import BACKENDS, attention_workspace_bytes, backend_of, eager_decode_extra_s
from calibrate.profiles import best_profile
from calibrate.step import StepShape
from calibrate.step_time import step_model
from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica
from simulator.scenario.replicas import build_line
from simulator.scenario.spec import EngineSpec
from tests.shared_data import shared_data

LLAMA = find_model("llama-3.1-8b")


def plan(backend: str, **engine: int) -> MemoryPlan:
    options = {"attention_backend": backend}
    return memory_plan(Replica(LLAMA, find_gpu("A100-80GB"), engine=Engine(options=options, **engine)))  # type: ignore[arg-type]


def test_eager_scores_by_hand() -> None:
    """32 heads, 2,048 tokens of a step, 8,192 keys, 8 bytes a score; shared over tensor parallelism."""
    eager = BACKENDS["eager"]
    assert attention_workspace_bytes(eager, LLAMA, 2048, 8192) == 32 * 2048 * 8192 * 8
    assert attention_workspace_bytes(eager, LLAMA, 2048, 8192, tp=4) == 8 * 2048 * 8192 * 8
    assert attention_workspace_bytes(BACKENDS["flash2"], LLAMA, 2048, 8192) == 32 * 2048 * 4


def test_memory_of_eager_grows_with_the_square_and_of_the_others_with_the_length() -> None:
    def activations(backend: str, length: int) -> float:
        return plan(backend, max_model_len=length, max_num_batched_tokens=length, max_num_seqs=16).part("activations")

    assert activations("eager", 8192) / activations("eager", 4096) == pytest.approx(4.0, rel=0.1)
    for backend in ("flash2", "xformers"):
        assert activations(backend, 16384) / activations(backend, 8192) == pytest.approx(2.0, rel=0.05)


def test_eager_leaves_fewer_blocks_and_a_shorter_context() -> None:
    flash, eager = plan("flash2"), plan("eager")
    assert eager.num_gpu_blocks < 0.5 * flash.num_gpu_blocks
    assert eager.max_model_len < flash.max_model_len == 131072
    assert eager.num_kv_tokens >= eager.max_model_len  # the longest sequence fits what its scores leave
    assert any("eager" in note for note in eager.notes)
    with pytest.raises(InputError, match="does not fit"):
        plan("eager", max_model_len=120_000)


def test_eager_decode_reads_what_it_repeats() -> None:
    """One sequence of 1,000 keys: 8 KV heads repeated 4 times, written and read, and scores of 32 heads both ways."""
    replica = Replica(LLAMA, find_gpu("A100-80GB"))
    heads = KernelSums(replica, best_profile(replica)).heads(None, absorbed=True)
    extra = eager_decode_extra_s(replica.gpu, heads, np.array(1.0), np.array(1000.0))
    num_bytes = 2 * 4 * (1000 * 8 * 256 * 2) + 2 * 8 * 1000 * 32
    assert float(extra) == pytest.approx(num_bytes / replica.gpu.memory_bandwidth_bytes_per_s)


@pytest.mark.parametrize(
    ("gpu", "backend", "usable"),
    [
        ("V100", "flash1", False), ("T4", "flash1", True), ("T4", "flash2", False), ("A100-80GB", "flash2", True),
        ("A100-80GB", "flash3", False), ("H100-SXM", "flash3", True), ("H200", "fa3", True), ("B200", "flash3", False),
        ("V100", "FLASHINFER", False), ("V100", "xformers", True), ("V100", "eager", True),
    ],
)  # fmt: skip
def test_which_gpu_has_which_backend(gpu: str, backend: str, usable: bool) -> None:
    engine = Engine(options={"attention_backend": backend})
    if usable:
        backend_of(engine, find_gpu(gpu))
    else:
        with pytest.raises(InputError, match="compute capability") as refused:
            backend_of(engine, find_gpu(gpu))
        assert "xformers" in str(refused.value.remedy)


def test_flash_attention_2_on_hopper_is_slower_than_its_own() -> None:
    def prefill_s(gpu: str, backend: str) -> float:
        replica = Replica(LLAMA, find_gpu(gpu), engine=Engine(options={"attention_backend": backend}))
        return step_model(replica, best_profile(replica)).step_time_s(StepShape(8192, 4096, 0, 0, 1))

    assert prefill_s("H100-SXM", "flash2") > 1.05 * prefill_s("H100-SXM", "flash3")
    assert prefill_s("A100-80GB", "flash2") == prefill_s("A100-80GB", "auto")


def test_the_engine_section_has_the_backend_under_its_own_key() -> None:
    assert EngineSpec(attention_backend="eager").engine().options == {"attention_backend": "eager"}
    assert EngineSpec().engine().options == {}


def test_fits_hold_on_shapes_that_they_did_not_see() -> None:
    _, errors = fit_backends(shared_data("kernels/attention_a100_flash_sdpa_eager.csv"), find_gpu("A100-80GB"))
    assert errors["eager"]["median"] < 0.08
    assert errors["mem_efficient"]["median"] < 0.25 and errors["flash1"]["median"] < 0.30


def test_an_encoder_keeps_its_scores_too() -> None:
    bert = Replica(find_model("bert-large"), find_gpu("T4"), precision="fp16", engine=Engine(framework="onnxruntime"))
    eager = replace(bert, engine=replace(bert.engine, options={"attention_backend": "eager"}))
    assert memory_plan(eager).max_batch_size < memory_plan(bert).max_batch_size
    with pytest.raises(InputError, match="besides that of bert-large"):
        build_line(eager)  # its times were measured with one backend
