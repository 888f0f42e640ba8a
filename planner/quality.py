"""How much of the unquantized model's score a precision keeps: sourced evaluations, or the user's own; else unknown."""

from __future__ import annotations

from planner.problem import Problem

EXACT = frozenset({"bf16", "fp16", "fp32"})  # the published weights' own width or wider


def score_of(problem: Problem, precision: str, kv_cache_dtype: str = "auto") -> float | None:
    """Share of the unquantized model's score; None: nobody measured it for this model, size or task."""
    return 1.0 if precision in EXACT and kv_cache_dtype in ("auto", *EXACT) else None
