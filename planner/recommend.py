"""The main job: the cheapest fleet that keeps its promise, and what the figures rest on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planner.inputs.problem import Problem

Progress = Callable[[str, float], None]


def recommend(
    problem: Problem,
    progress: Progress = lambda _what, _share: None,
    prove: bool = False,
    workers: int | None = None,
) -> dict[str, Any]:
    """Answer a problem in the contract's form.

    Args:
        problem: see ``planner.inputs.problem``.
        progress: told what is being done and which share of the work is done.
        prove: add a certificate of the optimum, under ``_certificate``.
        workers: simulations at a time; None: one a core. The answer does not depend on it.

    Raises:
        InputError: input that cannot be read or makes no sense. MissingError: no price, profile or catalogue entry.
        GateError: no plan keeps all limits; the message says which to relax.
    """
    if problem.capacity_table is not None:
        from planner.from_table import recommend_from_table

        return recommend_from_table(problem, progress, prove)
    from planner.from_simulation import recommend_by_simulation

    return recommend_by_simulation(problem, progress, prove, workers)
