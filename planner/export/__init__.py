"""A plan turned into what deploys it: launch commands, a Triton model, Kubernetes, Karpenter, SkyServe, Terraform.

Every exporter is a pure function of a `Deployment`; what it had to assume stands as comments at the top of its text.
"""

from __future__ import annotations

from collections.abc import Callable

from planner.export.deployment import Deployment, deployment_of
from planner.export.engines import sglang_command, tgi_command, trtllm_command, vllm_command
from planner.export.karpenter import karpenter
from planner.export.kubernetes import hpa, keda
from planner.export.skypilot import skypilot
from planner.export.terraform import terraform
from planner.export.triton import triton

EXPORTERS: dict[str, Callable[[Deployment], str]] = {
    "vllm": vllm_command,
    "sglang": sglang_command,
    "trtllm": trtllm_command,
    "tgi": tgi_command,
    "triton": triton,
    "skypilot": skypilot,
    "karpenter": karpenter,
    "terraform": terraform,
    "keda": keda,
    "hpa": hpa,
}

__all__ = ["EXPORTERS", "Deployment", "deployment_of"]
