"""What each line of a fleet did in a run: load, batch, KV use, share of peak and bandwidth, and its bottleneck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibrate.bottleneck import StepCost, explain_bottleneck, step_cost
from calibrate.physics.precisions import precision
from calibrate.physics.work import flops_per_token, kv_bytes_per_token, replica_weight_bytes
from calibrate.step import StepShape
from catalogs.errors import PlanError
from catalogs.units import GIB
from simulator.engine.records import COMPLETED, Records
from simulator.workload.requests import Requests

if TYPE_CHECKING:
    from simulator.scenario.replicas import Line

QUEUEING = 0.5  # share of the requests' time from which on the queue is what bounds them
FULL = 0.8  # share of seats or KV that counts as full, on average over the run


@dataclass(frozen=True)
class Work:
    """Sums over the requests that a line served.

    Attributes:
        num_served: requests. num_computed: prompt tokens computed. num_decoded: tokens after the first.
        context, prompt_context: mean tokens that a decoded, a prompt token attends to.
        queue_s, running_s, kv_token_s: over all requests, time in the queue, time running, and tokens held times time.
    """

    num_served: int
    num_computed: float
    num_decoded: float
    context: float
    prompt_context: float
    queue_s: float
    running_s: float
    kv_token_s: float

    @classmethod
    def of(cls, served: NDArray[np.bool_], requests: Requests, records: Records) -> Work:
        """Sums over the requests where ``served`` is true."""
        inputs, outputs = requests.input_tokens[served], requests.output_tokens[served]
        computed, later = inputs - records.num_cached_tokens[served], np.maximum(outputs - 1, 0)
        num_computed, num_decoded = float(computed.sum()), float(later.sum())
        running = (records.finish_s - records.scheduled_s)[served]
        queue = (records.scheduled_s - records.arrival_s)[served]
        return cls(
            int(served.sum()), num_computed, num_decoded,
            float(later @ (inputs + outputs / 2)) / max(num_decoded, 1.0),
            float(computed @ (inputs - computed / 2)) / max(num_computed, 1.0),
            float(queue.sum()), float(running.sum()), float(running @ (inputs + outputs / 2)),
        )  # fmt: skip


def fleet_documents(
    lines: Sequence[Line], requests: Requests, records: Records, duration_s: float
) -> list[dict[str, Any]]:
    """A document for each line of the fleet."""
    answer, first = [], 0
    for line in lines:
        last = first + line.num_engines
        answer.append(_line_document(line, first, last, requests, records, duration_s))
        first = last
    return answer


def line_work(role: str, first: int, last: int, requests: Requests, records: Records) -> Work:
    """What replicas ``first`` to ``last`` computed: whole requests, or by their role prompts or what follows them."""
    way, finish_s, kv_until_s = records.handover, records.finish_s, records.finish_s
    if way is not None and role == "prefill":
        finish_s, kv_until_s = way.prefill_end_s, np.where(np.isnan(way.end_s), way.prefill_end_s, way.end_s)
        requests = replace(requests, output_tokens=np.minimum(requests.output_tokens, 1))
        records = replace(records, replica=way.prefill_replica, finish_s=finish_s)
    elif way is not None:
        records = replace(
            records, arrival_s=way.prefill_end_s, scheduled_s=way.decode_scheduled_s,
            num_cached_tokens=requests.input_tokens - 1,
        )  # fmt: skip
    served = (records.replica >= first) & (records.replica < last) & (records.status == COMPLETED)
    served &= ~np.isnan(records.scheduled_s)
    work = Work.of(served, requests, records)
    if way is None:
        return work
    held_from_s = records.scheduled_s if role == "prefill" else way.start_s
    tokens = requests.input_tokens + requests.output_tokens / 2
    return replace(work, kv_token_s=float((kv_until_s - held_from_s)[served] @ tokens[served]))


def _line_document(
    line: Line, first: int, last: int, requests: Requests, records: Records, duration_s: float
) -> dict[str, Any]:
    replica, model = line.replica, line.replica.model
    work = line_work(line.role, first, last, requests, records)
    iterations, busy_s = int(records.iterations[first:last].sum()), float(records.busy_s[first:last].sum())
    stages = line.count * replica.data_parallel_size * replica.pipeline_parallel_size  # each batch is in one of them
    engine_s = max(stages * duration_s, 1e-12)
    scheduler_s = max(line.num_schedulers * duration_s, 1e-12)
    running, kv_share = work.running_s / scheduler_s, work.kv_token_s / scheduler_s / max(_kv_tokens(line), 1)
    flops = work.num_computed * flops_per_token(model, work.prompt_context)
    flops += work.num_decoded * flops_per_token(model, work.context)
    gpu_busy_s = max(busy_s * replica.tensor_parallel_size, 1e-12)  # a micro-batch keeps one stage busy at a time
    peak = replica.gpu.peak_flops.get(precision(replica.precision).compute, 0.0)
    cost = _mean_step(line, work, iterations)
    bottleneck, why = _bottleneck(line, work, running, kv_share, cost)
    return {
        "gpu": replica.gpu.name,
        "count": line.count,
        **({} if line.role == "both" else {"role": line.role}),
        "gpus_per_replica": replica.num_gpus,
        "tensor_parallel_size": replica.tensor_parallel_size,
        "precision": replica.precision,
        "framework": replica.engine.framework,
        "num_gpu_blocks": line.spec.num_gpu_blocks,
        "requests_completed": work.num_served,
        "busy_share": busy_s / engine_s,
        "tokens_per_iteration": (work.num_computed + work.num_decoded) / max(iterations, 1),
        "decodes_per_iteration": work.num_decoded / max(iterations, 1),
        "running_mean": running,
        "waiting_mean": work.queue_s / scheduler_s,
        "kv_share_mean": kv_share,
        "preemptions": int(records.preemptions[first:last].sum()),
        "mfu": flops / (gpu_busy_s * peak) if peak else None,
        "mbu": _mbu(line, work, iterations, gpu_busy_s, cost),
        "bottleneck": bottleneck,
        "bottleneck_why": why,
        "memory_gib": {p.name: p.num_bytes / GIB for p in line.memory.parts},
    }


def _kv_tokens(line: Line) -> int:
    return line.spec.num_gpu_blocks * line.spec.block_size


def _mbu(line: Line, work: Work, iterations: int, gpu_busy_s: float, cost: StepCost | None) -> float | None:
    """Bytes read over what the bandwidth allows: the weights once a step, and each decode's context."""
    replica = line.replica
    if replica.model.moe is not None:  # a step reads the experts that its tokens chose: those of the mean step
        return None if cost is None else cost.mbu
    parallel = replica.tensor_parallel_size * replica.pipeline_parallel_size
    num_bytes = iterations * replica_weight_bytes(replica) * parallel
    num_bytes += work.num_decoded * work.context * kv_bytes_per_token(replica.model, replica.kv_cache_dtype)
    return num_bytes / (gpu_busy_s * replica.gpu.memory_bandwidth_bytes_per_s)


def _mean_step(line: Line, work: Work, iterations: int) -> StepCost | None:
    """The mean step of the run taken apart; None where the profile's tables cannot be."""
    prompts, decodes = round(work.num_computed / max(iterations, 1)), round(work.num_decoded / max(iterations, 1))
    sampled = max(1, decodes + round(work.num_served / max(iterations, 1)))
    shape = StepShape(prompts, work.prompt_context, max(decodes, 0 if prompts else 1), work.context, sampled)
    try:
        return step_cost(line.replica, line.profile, shape)
    except PlanError:
        return None


def _bottleneck(
    line: Line, work: Work, running: float, kv_share: float, cost: StepCost | None
) -> tuple[str | None, str | None]:
    """What bounds a line, and the numbers that say so."""
    spent_s = max(work.queue_s + work.running_s, 1e-12)
    if work.queue_s / spent_s > QUEUEING:
        waits = f"requests spent {work.queue_s / spent_s:.0%} of their time in the queue"
        if kv_share > FULL:
            return "memory capacity", f"{waits} while the KV cache was {kv_share:.0%} full on average"
        if running > FULL * line.spec.max_num_seqs:
            return (
                "seats",
                f"{waits} while {running:,.0f} of {line.spec.max_num_seqs:,} seats (max_num_seqs) were taken",
            )
        return (
            "queueing",
            f"{waits} while {running:,.1f} ran at once on average: the load comes in bursts or is too high",
        )
    if cost is None:
        return None, None
    batch = max(1, round(running))
    return explain_bottleneck(cost, line.memory, line.replica, batch, work.context)
