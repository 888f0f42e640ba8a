"""Why a run came out as it did: what bounds each replica at its load, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from calibrate.bottleneck import decode_shape, explain_bottleneck, prefill_shape, step_cost
from calibrate.profiles import best_profile
from calibrate.step import StepShape
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Model, Replica
from simulator.scenario.replicas import build_line

ENGINE_FIELDS = {f.name for f in fields(Engine)} - {"options"}


def replica_of(line: Mapping[str, Any], model: str) -> Replica:
    """The replica that a line of an answer describes.

    Raises:
        InputError: its model or GPU is not in the catalogue.
    """
    engine = dict(line.get("engine") or {})
    engine.setdefault("framework", line.get("framework", "vllm"))
    return Replica(
        find_model(model),
        find_gpu(str(line["gpu"])),
        tensor_parallel_size=int(line.get("tensor_parallel_size") or 1),
        pipeline_parallel_size=int(line.get("pipeline_parallel_size") or 1),
        data_parallel_size=int(line.get("data_parallel_size") or 1),
        expert_parallel_size=int(line.get("expert_parallel_size") or 1),
        precision=str(line.get("precision") or "bf16"),
        kv_cache_dtype=str(engine.pop("kv_cache_dtype", "auto")),
        engine=Engine(**{k: v for k, v in engine.items() if k in ENGINE_FIELDS}),
    )


def explain_lines(answer: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
    """What bounds each line of a plan at the load it was bought for.

    The number of sequences that decode at once follows from Little's law: a replica that produces r tokens a second
    with steps of s(n) seconds holds n = r s(n) of them, found by iteration.

    Returns:
        A row a line: what it is, sequences at once, step time, bottleneck and the sentence that says so; MFU and MBU.

    Raises:
        InputError: the plan names what the catalogue does not know (a capacity table's own GPU).
    """
    return [explain_line(line, answer, model) for line in answer["plan"]["lines"]]


def explain_line(line: Mapping[str, Any], answer: Mapping[str, Any], model: str) -> dict[str, Any]:
    """As ``explain_lines``, for one line."""
    replica = replica_of(line, model)
    profile = best_profile(replica)
    inputs, outputs = _mean_tokens(answer.get("buckets") or [], line.get("share_by_size") or [])
    rates: Sequence[float] = line.get("requests_per_s") or [0.0]
    busiest = max(range(len(rates)), key=lambda i: rates[i])
    counts = line["instances"]
    replicas = max(1, counts[min(busiest, len(counts) - 1)] * int(line.get("replicas_per_instance") or 1))
    if line.get("roles"):  # those that decode
        replicas = line["roles"]["decode"][min(busiest, len(counts) - 1)]
    built = build_line(replica, profile, replicas)
    tokens_per_s = rates[busiest] / built.num_engines * outputs  # of each that steps beside the others
    context = inputs + outputs / 2.0
    batch = 1.0
    for _ in range(50):
        cost = step_cost(replica, profile, _shape_of(replica.model, round(batch), inputs, context))
        batch = max(1.0, tokens_per_s * cost.seconds)
    cost = step_cost(replica, profile, _shape_of(replica.model, round(batch), inputs, context))
    name, why = explain_bottleneck(cost, built.memory, replica, round(batch), context)
    return {
        "line": f"{line['instance_type']} ({line['gpu']}, TP {replica.tensor_parallel_size}, {replica.precision}"
        + (", decode replicas)" if line.get("roles") else ")"),
        "replicas": replicas,
        "sequences_at_once": round(batch),
        "context_tokens": round(context),
        "step_s": cost.seconds,
        "bottleneck": name,
        "why": why,
        "mfu": cost.mfu,
        "mbu": cost.mbu,
        "profile": profile.name,
    }


def _shape_of(model: Model, batch: int, inputs: float, context: float) -> StepShape:
    """The step of so many sequences: each decodes; of a model that answers at once, each is computed whole."""
    if model.kind == "decoder":
        return decode_shape(batch, context)
    return prefill_shape(round(batch * inputs), round(inputs))


def _mean_tokens(buckets: Sequence[Mapping[str, Any]], shares: Sequence[float]) -> tuple[float, float]:
    """Mean input and output tokens of the sizes that a line serves."""
    weights = list(shares) if len(shares) == len(buckets) else [1.0] * len(buckets)
    total = sum(weights)
    if not total:
        return 1000.0, 200.0
    means = [
        sum(w * float(b.get(f"mean_{key}", b.get(key))) for w, b in zip(weights, buckets, strict=True)) / total
        for key in ("input_tokens", "output_tokens")  # of a capacity table a size is a point, with no mean
    ]
    return means[0], means[1]
