"""What FP8 layers cost beside their neighbours."""

from __future__ import annotations

import numpy as np

from calibrate.kernel_sums import KernelSums
from calibrate.physics.work import attention_gemms
from calibrate.profiles import best_profile
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica


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
