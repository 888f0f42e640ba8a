"""Activation memory by hand: the peak, its chunks, and recomputation."""

from __future__ import annotations

import pytest

from calibrate.device.case import decoder_model
from calibrate.memory import memory_plan
from calibrate.physics.activations import activation_peak, kept_bytes, layer_activation_bytes
from calibrate.physics.backends import BACKENDS, attention_workspace_bytes
from calibrate.profiles import best_profile
from calibrate.step import StepShape
from calibrate.step_time import step_model
from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica

# 2 layers of width 8, 2 query and 1 KV heads of 4, MLP 32, 100 words
TINY = decoder_model("tiny", 2, 8, (2, 1, 4), 32, 100)


def test_the_peak_of_a_tiny_layer_by_hand() -> None:
    """10 tokens, 16 bit: residual and hidden 2 x 8, and the wider of MLP (3 x 32) and attention (16 + 8)."""
    assert layer_activation_bytes(TINY, 10) == 10 * 2 * (16 + 96)
    # over 2 GPUs the MLP is 16 wide: 48 values
    assert layer_activation_bytes(TINY, 10, tp=2) == 10 * 2 * (16 + 48)


def test_chunks_bound_the_inner_tensors_only() -> None:
    assert layer_activation_bytes(TINY, 10, chunk_tokens=4) == 10 * 2 * 16 + 4 * 2 * 96
    assert layer_activation_bytes(TINY, 10, chunk_tokens=99) == layer_activation_bytes(TINY, 10)


def test_what_a_layer_keeps_by_hand() -> None:
    """10 tokens: four tensors of 8, Q, K and V of 16, attention output of 8, MLP of 96, and the scores."""
    scores = attention_workspace_bytes(BACKENDS["eager"], TINY, 10, 10)
    assert scores == 2 * 10 * 10 * 8
    assert kept_bytes(TINY, 10, "none", workspace_bytes=scores) == 10 * 2 * (4 * 8 + 16 + 8 + 96) + scores
    assert kept_bytes(TINY, 10, "selective", workspace_bytes=scores) == 10 * 2 * (4 * 8 + 16 + 8 + 96)
    assert kept_bytes(TINY, 10, "full") == 10 * 2 * 8
    peak = activation_peak(TINY, 10, 0, recomputation="full")
    assert (peak.kept_bytes, peak.compute_factor) == (2 * 160, 2.0)


def plan_and_step(recompute: str | None) -> tuple[float, float]:
    options = {} if recompute is None else {"activation_recomputation": recompute}
    replica = Replica(find_model("llama-3.1-8b"), find_gpu("H100-SXM"), engine=Engine(options=options))
    step_s = step_model(replica, best_profile(replica)).step_time_s(StepShape(2048, 1024, 0, 0, 1))
    return memory_plan(replica).part("activations"), step_s


def test_memory_against_compute_as_the_granularity_is_set() -> None:
    kept = {name: plan_and_step(name) for name in (None, "none", "selective", "full")}
    memory, time = ({name: pair[i] for name, pair in kept.items()} for i in (0, 1))
    assert memory["none"] >= memory["selective"] > memory["full"] > memory[None]
    assert time[None] == time["none"] < time["selective"] < time["full"] < 2 * time["none"]


def test_what_cannot_be_is_refused() -> None:
    def plan(**options: object) -> None:
        memory_plan(Replica(find_model("llama-3.1-8b"), find_gpu("H100-SXM"), engine=Engine(options=options)))

    for options, says in (
        ({"activation_recomputation": "some"}, "activation_recomputation is 'some'"),
        ({"activation_recomputation": "full", "activation_checkpoint_layers": 2}, "beside"),
        ({"activation_chunk_tokens": "many"}, "activation_chunk_tokens is 'many'"),
        ({"activation_chunk_tokens": 0}, "activation_chunk_tokens is 0"),
    ):
        with pytest.raises(InputError, match=says):
            plan(**options)
