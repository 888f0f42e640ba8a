"""The whole table of precisions and GPUs: each runs natively, emulated, widened, or is refused with words."""

from __future__ import annotations

import pytest

from calibrate.physics.precisions import PRECISIONS, on_gpu, precision, support, support_words
from calibrate.profiles import best_profile
from calibrate.step import StepShape
from calibrate.step_time import step_model
from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model, gpus
from catalogs.schema import Replica

ISSUE = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4-gptq", "int4-awq", "int4-gptq-slow", "int4-awq-slow",
         "mxfp4", "nvfp4", "gguf-q4_k_m")  # fmt: skip
# From the vendors' data sheets and vLLM's own checks: n native, e emulated, w widened to 16 bit, - refused.
EXPECTED = {
    "V100":      "n - n e - - w - w - - - w",
    "T4":        "n - n e - n w w w w - - w",
    "A10G":      "n n n n w n w w w w w w w",
    "A100-80GB": "n n n n w n w w w w w w w",
    "L4":        "n n n n n n w w w w w w w",
    "L40S":      "n n n n n n w w w w w w w",
    "H100-SXM":  "n n n n n n w w w w w w w",
    "B200":      "n n n n n n w w w w w n w",
}  # fmt: skip
LETTER = {"native": "n", "emulated": "e", "weight_only": "w", "refused": "-"}


@pytest.mark.parametrize("gpu", EXPECTED)
def test_each_gpu_runs_what_it_has_kernels_for(gpu: str) -> None:
    found = " ".join(LETTER[support(name, find_gpu(gpu))] for name in ISSUE)
    assert found == EXPECTED[gpu]


@pytest.mark.parametrize("gpu", list(gpus().values()), ids=lambda g: g.name)
def test_every_format_on_every_gpu_is_run_or_refused_with_words(gpu) -> None:  # type: ignore[no-untyped-def]
    for name in PRECISIONS:
        how, words = support(name, gpu), support_words(name, gpu)
        if how == "refused":
            assert words.startswith("refused: ") and len(words) > 15
            with pytest.raises(InputError, match="cannot run") as refused:
                on_gpu(name, gpu)
            for other in str(refused.value.remedy).removeprefix("one of ").split(", "):
                assert support(other, gpu) != "refused"
            continue
        form = on_gpu(name, gpu)
        assert form.compute in gpu.peak_flops, (name, gpu.name)
        assert 0 < form.weight_bytes <= 4 and words
        if how == "weight_only":
            assert form.compute in ("bf16", "fp16") and form.activation_bytes == 2.0


def step_s(name: str, gpu: str, tokens: int) -> float:
    replica = Replica(find_model("llama-3.1-8b"), find_gpu(gpu), precision=name)
    return step_model(replica, best_profile(replica)).step_time_s(StepShape(0, 0, tokens, 100, tokens))


def test_slow_int4_kernels_read_widened_weights() -> None:
    """Packed weights are read, 16-bit ones written and read again: never faster than 16 bit."""
    for tokens in (1, 64):
        assert step_s("int4-awq", "L4", tokens) < step_s("bf16", "L4", tokens) < step_s("int4-awq-slow", "L4", tokens)
    assert on_gpu("int4-gptq", find_gpu("V100")).gemm == "int4_wo_slow"  # Marlin needs Turing
    assert on_gpu("int4-gptq", find_gpu("T4")).gemm == "int4_wo"
    assert precision("int4-awq-slow").weight_bytes == precision("int4-awq").weight_bytes


def test_every_format_that_runs_has_a_step_time() -> None:
    for gpu in ("T4", "A100-80GB", "B200"):
        for name in PRECISIONS:
            if support(name, find_gpu(gpu)) != "refused":
                assert 0 < step_s(name, gpu, 8) < 1.0, (name, gpu)
