"""Step times: positive, monotone, table equal to model, every precision and parallelism of a catalogue model."""

from dataclasses import replace

import numpy as np
import pytest

from calibrate.physics.gemm import gemm_time_s
from calibrate.physics.precisions import on_gpu
from calibrate.profiles import best_profile, load_profile
from calibrate.step import StepShape
from calibrate.step_time import step_model, step_table
from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model, resolve_engine
from catalogs.schema import Engine, Gpu, Replica
from tests.calibrate.test_work import BERT, DEEPSEEK, LLAMA_8B, LLAMA_70B, MIXTRAL

H100 = Gpu(
    "H100-SXM", "Hopper", 9.0, 132,
    {"fp32": 67e12, "fp16": 989.5e12, "bf16": 989.5e12, "fp8": 1979e12, "int8": 1979e12},
    80e9, 3350e9, 50e6, 450e9, 64e9, 700, "data sheet", "2026", "high",
)  # fmt: skip
CASES = [
    Replica(LLAMA_8B, H100),
    Replica(LLAMA_8B, H100, precision="fp8", kv_cache_dtype="fp8"),
    Replica(LLAMA_8B, H100, precision="int4-awq"),
    Replica(LLAMA_70B, H100, tensor_parallel_size=4, pipeline_parallel_size=2),
    Replica(MIXTRAL, H100, tensor_parallel_size=2),
    Replica(DEEPSEEK, H100, tensor_parallel_size=8, expert_parallel_size=8, precision="fp8"),
    Replica(BERT, H100, precision="fp16"),
]


@pytest.mark.parametrize("replica", CASES, ids=lambda r: f"{r.model.name}-{r.precision}-tp{r.tensor_parallel_size}")
def test_step_table_agrees_with_the_model_and_is_monotone(replica):
    profile = best_profile(replica)
    table, model = step_table(replica, profile, 512, 128), step_model(replica, profile)
    assert (np.diff(table.decode_tokens_s) >= -1e-12).all()
    assert (np.diff(table.attention_s, axis=0) >= -1e-12).all()
    assert (np.diff(table.attention_s, axis=3) >= -1e-12).all()
    c, p, n, k = 8, 5, 4, 6
    shape = StepShape(
        int(table.prefill_tokens_axis[c]), float(table.prefill_context_axis[p]), int(table.num_decode_axis[n]),
        float(table.decode_context_axis[k]), 9,
    )  # fmt: skip
    tokens = shape.num_prefill_tokens + shape.num_decode
    summed = table.mixed_tokens_s[tokens] + table.sampled_s[9] + table.attention_s[c, p, n, k] + table.overhead_s
    summed += table.overhead_per_sequence_s * (shape.num_decode + 1)
    assert model.step_time_s(shape) == pytest.approx(summed, rel=1e-9)


def test_prefill_never_outruns_the_hardware():
    replica = CASES[0]
    model = step_model(replica, best_profile(replica))
    tokens = 8192
    flops = tokens * (2 * 7.5e9 + 4 * tokens / 2 * 32 * 128 * 32)
    assert model.step_time_s(StepShape(tokens, tokens / 2, 0, 0, 1)) > flops / H100.peak_flops["bf16"]


def test_decode_is_bound_by_reading_the_weights():
    replica = CASES[0]
    model = step_model(replica, best_profile(replica))
    floor = 15e9 / H100.memory_bandwidth_bytes_per_s
    assert floor < model.step_time_s(StepShape(0, 0, 1, 100, 1)) < 2.5 * floor


def test_quantized_weights_speed_up_small_batches_only():
    wide, narrow = CASES[0], replace(CASES[0], precision="int4-awq")
    small, large = StepShape(0, 0, 1, 100, 1), StepShape(4096, 2048, 0, 0, 1)
    models = [step_model(r, best_profile(r)) for r in (wide, narrow)]
    assert models[1].step_time_s(small) < 0.7 * models[0].step_time_s(small)
    assert models[1].step_time_s(large) > 0.9 * models[0].step_time_s(large)


def test_attention_backends_differ_as_measured_and_the_unknown_is_refused():
    def prefill_s(backend: str) -> float:
        replica = CASES[0].with_engine(options={"attention_backend": backend})
        return step_model(replica, best_profile(replica)).step_time_s(StepShape(4096, 2048, 0, 0, 1))

    own, flash1, efficient, eager = map(prefill_s, ("auto", "flash_attention_1", "XFORMERS", "eager"))
    assert own < flash1 < eager and own < efficient < eager
    with pytest.raises(InputError, match="attention_backend"):
        prefill_s("quantum")


def test_weight_only_kernels_read_weights_as_they_are_stored_in_small_batches():
    """Marlin (arXiv 2408.11743): near four times as fast up to 16 rows, no faster than 16 bit in large batches."""
    gpu = find_gpu("A100-80GB")
    fit = load_profile("a100-80gb").family("gemm", "bf16")
    tokens = np.array([1.0, 16.0, 2048.0])
    plain, stored = (gemm_time_s(fit, gpu, on_gpu(form, gpu), tokens, 28672, 4096) for form in ("bf16", "int4-awq"))
    speedup = plain / stored
    assert (speedup[:2] > 2.7).all() and speedup[2] == pytest.approx(1.0, abs=0.05)


def test_a_tighter_power_limit_slows_kernels_near_the_peak_and_no_others():
    """The A100 on PCIe is the SXM's chip with 300 W in place of 400."""
    shapes = (np.array([1.0, 8192.0]), 8192, 8192)
    slower = [
        gemm_time_s(load_profile(name).family("gemm", "bf16"), find_gpu(gpu), on_gpu("bf16", find_gpu(gpu)), *shapes)
        for name, gpu in (("a100-80gb-pcie", "A100-80GB"), ("a100-80gb", "A100-80GB"))
    ]
    ratio = slower[0] / slower[1]
    assert ratio[0] == pytest.approx(1.0, abs=0.01) and 1.1 < ratio[1] < 1.35


def test_a_stated_version_that_schedules_asynchronously_hides_the_hosts_work():
    def overhead_s(**engine):
        replica = Replica(find_model("llama-3.1-8b"), find_gpu("H100-SXM"), engine=Engine(**engine))
        resolved = replace(replica, engine=resolve_engine(replica.engine, replica.model, replica.gpu))
        again = replace(resolved, engine=resolve_engine(resolved.engine, replica.model, replica.gpu))
        return [step_table(r, best_profile(r), 512, 64).overhead_s for r in (resolved, again)]

    unstated, old, new = overhead_s(), overhead_s(version="0.12.0"), overhead_s(version="0.16.0")
    told = overhead_s(version="0.16.0", options={"async_scheduling": False})
    assert unstated == old == told and new[0] == new[1] < 0.7 * old[0]
