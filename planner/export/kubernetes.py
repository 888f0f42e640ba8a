"""Kubernetes: a Deployment and Service for each line of the plan, scaled by the HPA or by KEDA.

Field names: Kubernetes ``apps/v1``, ``autoscaling/v2`` and KEDA ``keda.sh/v1alpha1`` references.
"""

from __future__ import annotations

from typing import Any

from planner.export.deployment import Deployment, Group, documents, header
from planner.export.engines import PORTS, assumptions_of, served_words, with_server

IMAGES = {
    "vllm": "vllm/vllm-openai:latest",
    "sglang": "lmsysorg/sglang:latest",
    "tensorrt-llm": "nvcr.io/nvidia/tensorrt-llm/release:latest",
    "tgi": "ghcr.io/huggingface/text-generation-inference:latest",
}
RUNNING = {
    "vllm": "vllm:num_requests_running",
    "sglang": "sglang:num_running_reqs",
    "tensorrt-llm": "trtllm_num_requests_running",
    "tgi": "tgi_batch_current_size",
}
TARGET_SHARE = 0.7  # of the seats of a replica, when the plan does not say how many run at its rated load


def workload(deployment: Deployment, group: Group) -> list[dict[str, Any]]:
    """The Deployment and Service of one group."""
    name = f"{deployment.label}-{group.name}"[:63].rstrip("-")
    labels = {"app": name, "plan/model": deployment.label, "plan/purchase": group.purchase.replace("_", "-")}
    selector: dict[str, str] = {"node.kubernetes.io/instance-type": group.instance_type}
    if group.purchase in ("spot", "on_demand"):
        selector["karpenter.sh/capacity-type"] = group.purchase.replace("_", "-")
    port = PORTS[group.framework]
    container = {
        "name": "engine",
        "image": IMAGES[group.framework],
        "command": served_words(deployment, group),
        "ports": [{"name": "http", "containerPort": port}],
        "resources": {"limits": {"nvidia.com/gpu": group.gpus_per_replica}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 5, "failureThreshold": 3},
        "startupProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10, "failureThreshold": 180},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    pod = {
        "terminationGracePeriodSeconds": 110 if group.purchase == "spot" else 300,
        "nodeSelector": selector,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    spec = {
        "replicas": group.max_replicas,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    service = {
        "selector": {"plan/model": deployment.label},
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
    }
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels}, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": deployment.label}, "spec": service},
    ]


def hpa(deployment: Deployment) -> str:
    """A Deployment and a HorizontalPodAutoscaler (autoscaling/v2) for each line of the plan."""

    def scaler(name: str, group: Group) -> dict[str, Any]:
        metric = {
            "type": "Pods",
            "pods": {
                "metric": {"name": RUNNING[group.framework].replace(":", "_")},
                "target": {"type": "AverageValue", "averageValue": str(_target_running(group))},
            },
        }
        spec = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": max(1, group.min_replicas),
            "maxReplicas": max(1, group.max_replicas),
            "metrics": [metric],
        }
        return {
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name}, "spec": spec,
        }  # fmt: skip

    note = "a metrics adapter serves the engine's running requests as a pod metric (colons become underscores)"
    return _documents(deployment, scaler, [note])


def keda(deployment: Deployment) -> str:
    """A Deployment and a KEDA ScaledObject for each line of the plan."""

    def scaler(name: str, group: Group) -> dict[str, Any]:
        trigger = {
            "type": "prometheus",
            "metadata": {
                "serverAddress": "http://prometheus.monitoring.svc:9090",
                "query": f'sum({RUNNING[group.framework]}{{pod=~"{name}-.*"}})',
                "threshold": str(_target_running(group)),
                "activationThreshold": "0",
            },
        }
        spec = {
            "scaleTargetRef": {"name": name},
            "pollingInterval": 30,
            "cooldownPeriod": 300,
            "minReplicaCount": group.min_replicas,
            "maxReplicaCount": max(1, group.max_replicas),
            "triggers": [trigger],
        }
        return {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": name}, "spec": spec}

    return _documents(deployment, scaler, ["Prometheus answers at prometheus.monitoring.svc:9090"])


def _target_running(group: Group) -> int:
    seats = int(group.engine.get("max_num_seqs") or 256)
    rated = group.engine.get("mean_running")
    return max(1, round(float(rated))) if rated else max(1, int(TARGET_SHARE * seats))


def _documents(deployment: Deployment, scaler: Any, assumed: list[str]) -> str:
    parts: list[dict[str, Any]] = []
    for group in with_server(deployment).groups:
        work, service = workload(deployment, group)
        if service not in parts:
            parts.append(service)
        parts += [work, scaler(work["metadata"]["name"], group)]
    if not all(g.engine.get("mean_running") for g in deployment.groups):
        assumed = [
            *assumed,
            f"a replica is full at {TARGET_SHARE:.0%} of its seats; set the target from `plan simulate`",
        ]
    text = header(deployment, [*assumptions_of(deployment), *assumed])
    return text + documents(parts)
