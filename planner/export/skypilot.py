"""SkyServe service YAML, one document for each line of the plan (SkyPilot 0.10's service form)."""

from __future__ import annotations

import shlex
from typing import Any

from planner.export.deployment import Deployment, Group, documents, header
from planner.export.engines import PORTS, assumptions_of, served_words, with_server

SETUP = {
    "vllm": "pip install vllm",
    "sglang": "pip install 'sglang[all]'",
    "tensorrt-llm": "pip install tensorrt-llm",
    "tgi": "echo 'TGI runs from its container image: set resources.image_id'",
}
ACCELERATORS = {"A100-40GB": "A100", "H100-SXM": "H100", "H100-PCIe": "H100", "RTX-PRO-6000": "RTXPRO6000"}


def skypilot(deployment: Deployment) -> str:
    """One SkyServe service a line of the plan."""
    services = [_service(deployment, group) for group in with_server(deployment).groups]
    stated = all(g.requests_per_s_a_replica for g in deployment.groups)
    notes = [
        *assumptions_of(deployment),
        "one service a line of the plan, one document each: `sky serve up` takes a file for each, and a load balancer"
        " in front splits traffic by planned capacity",
        "target_qps_per_replica is the most that the plan asks of one replica"
        if stated
        else "the plan states no request rate, so replicas stay at the busiest period's number:"
        " SkyServe scales by target_qps_per_replica alone",
    ]
    return header(deployment, notes) + documents(services)


def _replica_policy(group: Group) -> dict[str, Any]:
    """SkyServe refuses a span of replicas without a target to scale by, and a service that may not have one."""
    most = max(1, group.max_replicas)
    rate = group.requests_per_s_a_replica
    policy: dict[str, Any] = {"min_replicas": group.min_replicas if rate else most, "max_replicas": most}
    if rate and policy["min_replicas"] < most:
        policy["target_qps_per_replica"] = round(rate, 4)
    if group.purchase == "spot":
        policy |= {"dynamic_ondemand_fallback": True, "base_ondemand_fallback_replicas": 0}
    return policy


def _service(deployment: Deployment, group: Group) -> dict[str, Any]:
    accelerator = ACCELERATORS.get(group.gpu, group.gpu)
    return {
        "name": f"{deployment.label}-{group.name}"[:63].rstrip("-"),
        "service": {
            "readiness_probe": {"path": "/health", "initial_delay_seconds": 1200},
            "replica_policy": _replica_policy(group),
        },
        "resources": {
            "infra": f"aws/{deployment.region}",
            "instance_type": group.instance_type,
            "accelerators": {accelerator: group.gpus_per_replica * group.replicas_per_instance},
            "use_spot": group.purchase == "spot",
            "ports": PORTS[group.framework],
        },
        "setup": SETUP[group.framework],
        "run": shlex.join(served_words(deployment, group)),
    }
