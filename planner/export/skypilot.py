"""SkyServe service YAML, one document for each line of the plan (SkyPilot 0.10's service form)."""

from __future__ import annotations

import shlex
from typing import Any

from planner.export.deployment import Deployment, Group, documents, header
from planner.export.engines import assumptions_of, launch_words
from planner.export.kubernetes import PORTS

SETUP = {
    "vllm": "pip install vllm",
    "sglang": "pip install 'sglang[all]'",
    "tensorrt-llm": "pip install tensorrt-llm",
    "tgi": "echo 'TGI runs from its container image: set resources.image_id'",
}
ACCELERATORS = {"A100-40GB": "A100", "H100-SXM": "H100", "H100-PCIe": "H100", "RTX-PRO-6000": "RTXPRO6000"}


def skypilot(deployment: Deployment) -> str:
    """One SkyServe service a line of the plan."""
    services = [_service(deployment, group) for group in deployment.groups]
    notes = [
        *assumptions_of(deployment),
        "one service a line of the plan: put a load balancer in front that splits traffic by planned capacity",
        "target_qps_per_replica is the plan's load a replica"
        if deployment.rate_rps
        else "the plan states no request rate: set target_qps_per_replica from `plan simulate`",
    ]
    return header(deployment, notes) + documents(services)


def _service(deployment: Deployment, group: Group) -> dict[str, Any]:
    policy: dict[str, Any] = {"min_replicas": group.min_replicas, "max_replicas": max(1, group.max_replicas)}
    total = sum(g.max_replicas for g in deployment.groups)
    if policy["max_replicas"] > policy["min_replicas"] and deployment.rate_rps:
        policy["target_qps_per_replica"] = round(deployment.rate_rps / max(1, total), 4)
    if group.purchase == "spot":
        policy["dynamic_ondemand_fallback"] = True
        policy["base_ondemand_fallback_replicas"] = 0
    port = PORTS[group.framework]
    accelerator = ACCELERATORS.get(group.gpu, group.gpu)
    words = [*launch_words(deployment, group), *(["--port", str(port)] if group.framework != "tgi" else [])]
    return {
        "name": f"{deployment.label}-{group.name}"[:63].rstrip("-"),
        "service": {
            "readiness_probe": {"path": "/health", "initial_delay_seconds": 1200},
            "replica_policy": policy,
        },
        "resources": {
            "infra": f"aws/{deployment.region}",
            "instance_type": group.instance_type,
            "accelerators": {accelerator: group.gpus_per_replica * group.replicas_per_instance},
            "use_spot": group.purchase == "spot",
            "ports": port,
        },
        "setup": SETUP[group.framework],
        "run": shlex.join(words),
    }
