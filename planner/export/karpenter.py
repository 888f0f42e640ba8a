"""Karpenter NodePools (``karpenter.sh/v1``), one for each line of the plan."""

from __future__ import annotations

from typing import Any

from planner.export.deployment import Deployment, Group, documents, header

CAPACITY_TYPES = {"spot": "spot", "on_demand": "on-demand"}


def karpenter(deployment: Deployment) -> str:
    """A NodePool for each line of the plan, limited to the GPUs that the plan buys."""
    notes = [
        "an EC2NodeClass named gpu exists (AMI, subnets, security groups, role)",
        "reserved lines: the Savings Plan or reservation applies by itself to on-demand nodes of its type;"
        " Capacity Blocks need capacityReservationSelectorTerms in the EC2NodeClass",
    ]
    pools = [_pool(deployment, group) for group in deployment.groups]
    return header(deployment, notes) + documents(pools)


def _pool(deployment: Deployment, group: Group) -> dict[str, Any]:
    def one_of(key: str, *values: str) -> dict[str, Any]:
        return {"key": key, "operator": "In", "values": list(values)}

    capacity_type = (
        "reserved" if group.purchase == "capacity_block" else CAPACITY_TYPES.get(group.purchase, "on-demand")
    )
    requirements = [
        one_of("node.kubernetes.io/instance-type", group.instance_type),
        one_of("karpenter.sh/capacity-type", capacity_type),
        one_of("topology.kubernetes.io/region", deployment.region),
    ]
    spec = {
        "requirements": requirements,
        "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"},
        "taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}],
        "expireAfter": "720h",
    }
    gpus = max(group.instances) * group.replicas_per_instance * group.gpus_per_replica
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": f"{deployment.label}-{group.name}"[:63].rstrip("-")},
        "spec": {
            "template": {"metadata": {"labels": {"plan-model": deployment.label}}, "spec": spec},
            "limits": {"nvidia.com/gpu": str(gpus)},
            "disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "5m"},
        },
    }
