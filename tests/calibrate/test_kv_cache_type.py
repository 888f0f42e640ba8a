"""What ``kv_cache_dtype: auto`` means, and what FP8 layers cost beside their neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.precisions import kv_cache_type
from calibrate.profiles import best_profile
from calibrate.step_time import KernelSums
from calibrate.work import attention_gemms
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica


@pytest.mark.parametrize(
    ("model", "gpu", "precision", "asked", "holds"),
    [
        ("llama-3.1-70b", "H100-SXM", "fp8", "auto", "fp8"),
        ("llama-3.1-70b", "H100-SXM", "fp8", "bf16", "bf16"),
        ("llama-3.1-70b", "H100-SXM", "bf16", "auto", "auto"),
        ("llama-3.1-70b", "H100-SXM", "int4-awq", "auto", "auto"),
        ("llama-3.1-70b", "A100-80GB", "fp8", "auto", "auto"),  # FP8 is a storage form there
        ("deepseek-v3", "H200", "fp8", "auto", "auto"),  # published in FP8 blocks, with a 16-bit cache
    ],
)
def test_auto_follows_the_checkpoint(model: str, gpu: str, precision: str, asked: str, holds: str) -> None:
    replica = Replica(find_model(model), find_gpu(gpu), precision=precision, kv_cache_dtype=asked)
    assert kv_cache_type(replica) == holds


def test_a_compiler_rounds_on_the_way_and_other_engines_pay_for_it() -> None:
    def qkv_s(framework: str) -> float:
        replica = Replica(
            find_model("llama-3.1-70b"), find_gpu("H100-SXM"), precision="fp8", engine=Engine(framework=framework),
            tensor_parallel_size=2,
        )  # fmt: skip
        profile = best_profile(Replica(replica.model, replica.gpu, engine=Engine()))
        qkv = next(g for g in attention_gemms(replica.model, 2) if g.name == "qkv")
        return float(KernelSums(replica, profile).gemm_s(qkv, np.array([2048.0]))[0])

    assert 0.3 * qkv_s("sglang") <= qkv_s("vllm") < qkv_s("sglang")
