"""What bounds a line of a plan at its load."""

from __future__ import annotations

from planner.explain import explain_line

LINE = {
    "instance_type": "g6e.12xlarge", "gpu": "L40S", "precision": "bf16", "pipeline_parallel_size": 2,
    "instances": [1], "replicas_per_instance": 1, "requests_per_s": [8.0],
}  # fmt: skip


def test_a_pipeline_whose_batches_follow_one_another_has_more_sequences_at_once() -> None:
    at_once = [
        explain_line({**LINE, "engine": {"version": version}}, {}, "llama-3.1-8b")["sequences_at_once"]
        for version in ("0.12.0", "0.19.0")
    ]
    assert at_once[1] > 1.5 * at_once[0]


def test_twice_the_machines_have_less_than_half_the_sequences_each() -> None:
    one, two = (explain_line({**LINE, "instances": [n]}, {}, "llama-3.1-8b")["sequences_at_once"] for n in (1, 2))
    assert 0.3 < two / one < 0.5  # fewer sequences make shorter steps, so less than half
