"""What a simulated plan assumes, in words."""

from __future__ import annotations

from catalogs.load import find_model
from planner.inputs.horizon import Horizon, zone_availability
from planner.inputs.market import TERM_YEARS
from planner.inputs.problem import Problem


def assumptions_of(problem: Problem, horizon: Horizon) -> list[str]:
    """Each a sentence, for the answer."""
    notes = [
        "a replica's capacity for part of the sizes scales with the work of each size (time in a perfectly packed "
        "replica); the whole fleet is then simulated, and corrected until it holds",
        "a gateway sends requests to lines by class and prompt length, in turns by weight, and within a line by "
        f"{problem.router}; it never knows the output length",
    ]
    if problem.candidates.precision is None:
        tried = "the published weights', and fp8 where the GPU computes in it"
        if find_model(problem.model).kind != "decoder":
            tried = "fp16"
        notes.append(f"precisions considered: {tried}; candidates.precision adds others")
    if True in problem.candidates.disaggregated:
        between = problem.disaggregation
        speed = (
            f"{between.link_bytes_per_s:g} bytes a second, as given"
            if between.link_bytes_per_s
            else f"the {between.link}'s data sheet times {between.link_efficiency:g} (fitted on RDMA, or as given)"
        )
        notes.append(f"KV goes from prefill to decode replicas at {speed}, each transfer after {between.latency_s:g} s")
    if "spot" in problem.candidates.purchase:
        share, source = zone_availability(problem)
        notes.append(
            f"spot: {problem.spot.zones} zones, each up {share:.0%} of the time ({source}), correlation "
            f"{problem.spot.zone_correlation:g}; replacements on demand boot in {problem.time.boot_s:g} s, and their "
            "number is a mean over outages"
        )
    if "capacity_block" in problem.candidates.purchase:
        notes.append(
            "Capacity Blocks are whole days, counted from the start of the horizon; a real one ends at 11:30 UTC and "
            "its machines stop 30 minutes before: start the horizon then, with others ready for its last half-hour"
        )
    longest = max((TERM_YEARS.get(form, 0.0) * 12 for form in problem.candidates.purchase), default=0.0)
    if problem.commitments.horizon_months < longest:
        notes.append(
            f"a commitment longer than the horizon of {problem.commitments.horizon_months:g} months "
            "(commitments.horizon_months) is paid for whole within it"
        )
    if horizon.num_periods > 1:
        notes.append(
            "over time, request sizes are not parted between lines; each period's busiest sight is planned for"
        )
    if horizon.full.requests.hash_ids is not None:
        notes.append("prefixes are shared as in the trace; each replica keeps its own prefix cache")
    return notes
