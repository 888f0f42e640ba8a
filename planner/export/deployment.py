"""What an exporter needs to know of a plan, read from the answer of `plan recommend`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from catalogs.errors import InputError
from catalogs.load import find_model, instances


@dataclass(frozen=True)
class Group:
    """One line of the purchase list: the same replica on the same instance type, bought the same way."""

    instance_type: str
    gpu: str
    gpus_per_replica: int
    replicas_per_instance: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    precision: str
    kv_cache_dtype: str
    framework: str
    purchase: str
    instances: tuple[int, ...]  # one number a planning period
    requests_per_s: tuple[float, ...] = ()  # what the line serves, one number a period; empty: not stated
    engine: Mapping[str, Any] = field(default_factory=dict)
    data_parallel_size: int = 1
    expert_parallel_size: int = 1

    @property
    def name(self) -> str:
        """A DNS label: ``g6e-xlarge-fp8-tp1-spot``."""
        others = {"pp": self.pipeline_parallel_size, "dp": self.data_parallel_size, "ep": self.expert_parallel_size}
        more = [f"{name}{size}" for name, size in others.items() if size > 1]
        parts = (self.instance_type, self.precision, f"tp{self.tensor_parallel_size}", *more, self.purchase)
        return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")[:63].rstrip("-")

    @property
    def min_replicas(self) -> int:
        """Replicas in the quietest period."""
        return min(self.instances) * self.replicas_per_instance

    @property
    def requests_per_s_a_replica(self) -> float | None:
        """The most that the plan asks of one replica in any period; None where it states no rate."""
        rates = [
            rate / (count * self.replicas_per_instance)
            for rate, count in zip(self.requests_per_s, self.instances, strict=False)
            if count
        ]
        return max(rates, default=0.0) or None

    @property
    def max_replicas(self) -> int:
        """Replicas in the busiest period."""
        return max(self.instances) * self.replicas_per_instance


@dataclass(frozen=True)
class Deployment:
    """A plan as its exporters see it."""

    model: str
    model_id: str  # Hugging Face id, or the catalogue name where none is known
    region: str
    groups: tuple[Group, ...]
    slo: Mapping[str, float]
    prices_as_of: str

    @property
    def label(self) -> str:
        """The model's name as a DNS label."""
        return re.sub(r"[^a-z0-9]+", "-", self.model.lower()).strip("-")[:40].rstrip("-")


def deployment_of(inputs: Mapping[str, Any], answer: Mapping[str, Any]) -> Deployment:
    """The deployment that a recommend run describes.

    Args:
        inputs: the run's settings (``model``, ``region``, ...).
        answer: the run's JSON answer.

    Raises:
        InputError: the run holds no plan to deploy.
    """
    lines: Sequence[Mapping[str, Any]] = (answer.get("plan") or {}).get("lines") or []
    if any(line.get("roles") for line in lines):
        raise InputError(
            "the plan has prefill and decode replicas of their own, which are not exported", where="RUN",
            why="each engine pairs them through a connector and a proxy of its own, which the plan does not know",
            remedy="candidates.disaggregated: [false]; or write them from the line's `roles` and `engine`",
        )  # fmt: skip
    groups = tuple(_group(line) for line in lines if any(line.get("instances") or [0]))
    if not groups:
        raise InputError(
            "this run holds no plan", where="RUN", why="only the answer of `plan recommend` can be deployed",
            remedy="`plan runs list --kind recommend`",
        )  # fmt: skip
    name = str(inputs.get("model") or answer.get("model") or "")
    return Deployment(
        model=name,
        model_id=_model_id(name),
        region=str(inputs.get("region") or answer.get("region") or "us-east-1"),
        groups=groups,
        slo={key: float(value["limit"]) for key, value in (answer.get("slo") or {}).items() if "limit" in value},
        prices_as_of=str(answer.get("prices_as_of") or "unknown"),
    )


def only_framework(deployment: Deployment, framework: str) -> Deployment:
    """The deployment, if all its groups run ``framework``.

    Raises:
        InputError: the plan is for another engine, whose capacity the plan did not check under this one.
    """
    others = sorted({g.framework for g in deployment.groups} - {framework})
    if others:
        target = {"tensorrt-llm": "trtllm", "onnxruntime": "triton"}.get(others[0], others[0])
        raise InputError(
            f"the plan is for {', '.join(others)}, not {framework}", where="RUN",
            why="the plan's capacity was checked under that engine alone",
            remedy=f"`plan recommend` with candidates.frameworks: [{framework}], or `plan export {target}`",
        )  # fmt: skip
    return deployment


def header(deployment: Deployment, assumptions: Sequence[str], comment: str = "#") -> str:
    """The comment lines at the top of every export: what it deploys and what it assumed."""
    slo = ", ".join(f"{k} <= {v:g}" for k, v in deployment.slo.items()) or "none stated"
    lines = [f"{deployment.model} in {deployment.region}; SLO: {slo}; prices as of {deployment.prices_as_of}."]
    lines += [f"Assumed: {text}" for text in assumptions]
    return "".join(f"{comment} {line}\n" for line in lines)


def documents(parts: Sequence[Mapping[str, Any]]) -> str:
    """YAML documents in the order of their keys' making, without anchors: people read and edit them."""

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump_all(parts, Dumper=Plain, sort_keys=False)


def _group(line: Mapping[str, Any]) -> Group:
    gpus_per_replica = int(line.get("gpus_per_replica") or 1)
    engine = dict(line.get("engine") or {})
    instance = instances().get(str(line["instance_type"]))
    num_gpus = max(1, instance.num_gpus) if instance else gpus_per_replica
    return Group(
        instance_type=str(line["instance_type"]),
        gpu=str(line["gpu"]),
        gpus_per_replica=gpus_per_replica,
        replicas_per_instance=int(line.get("replicas_per_instance") or max(1, num_gpus // gpus_per_replica)),
        tensor_parallel_size=int(line.get("tensor_parallel_size") or 1),
        pipeline_parallel_size=int(line.get("pipeline_parallel_size") or 1),
        precision=str(line.get("precision") or "bf16"),
        kv_cache_dtype=str(engine.get("kv_cache_dtype") or "auto"),
        framework=str(line.get("framework") or "vllm"),
        purchase=str(line.get("purchase") or "on_demand"),
        instances=tuple(int(n) for n in line["instances"]),
        requests_per_s=tuple(float(rate) for rate in line.get("requests_per_s") or ()),
        engine=engine,
        data_parallel_size=int(line.get("data_parallel_size") or 1),
        expert_parallel_size=int(line.get("expert_parallel_size") or 1),
    )


def _model_id(name: str) -> str:
    try:
        ids = find_model(name).hf_ids
    except InputError:
        return name
    return ids[0] if ids else name
