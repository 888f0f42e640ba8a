"""Terraform: an Auto Scaling group with a mixed-instances policy for each instance type of the plan.

Argument names: the AWS provider's ``aws_autoscaling_group`` reference.
"""

from __future__ import annotations

import json
from collections import defaultdict

from planner.export.deployment import Deployment, Group, header


def terraform(deployment: Deployment) -> str:
    """HCL: one ``aws_autoscaling_group`` an instance type, its on-demand base and spot share from the plan."""
    by_type: dict[str, list[Group]] = defaultdict(list)
    for group in deployment.groups:
        by_type[group.instance_type].append(group)
    notes = [
        "the variables launch_template_id (an AMI with driver and engine) and subnet_ids are given by you",
        "committed lines count as on-demand here: the commitment discounts them on the bill",
    ]
    return header(deployment, notes) + _VARIABLES + "\n".join(_group(deployment, t, g) for t, g in by_type.items())


_VARIABLES = """
variable "launch_template_id" {
  type = string
}

variable "subnet_ids" {
  type = list(string)
}

"""


def _group(deployment: Deployment, instance_type: str, groups: list[Group]) -> str:
    firm = [g for g in groups if g.purchase != "spot"]
    periods = max(len(g.instances) for g in groups)

    def total(chosen: list[Group]) -> list[int]:
        return [sum(g.instances[p % len(g.instances)] for g in chosen) for p in range(periods)]

    name = f"{deployment.label}-{instance_type.replace('.', '-')}"
    counts, on_demand = total(groups), total(firm) if firm else [0]
    quoted = json.dumps
    return f"""resource "aws_autoscaling_group" {quoted(name.replace("-", "_"))} {{
  name                = {quoted(name)}
  min_size            = {min(counts)}
  max_size            = {max(counts)}
  desired_capacity    = {counts[0]}
  vpc_zone_identifier = var.subnet_ids
  capacity_rebalance  = {str(any(g.purchase == "spot" for g in groups)).lower()}

  mixed_instances_policy {{
    instances_distribution {{
      on_demand_base_capacity                  = {max(on_demand)}
      on_demand_percentage_above_base_capacity = {0 if any(g.purchase == "spot" for g in groups) else 100}
      spot_allocation_strategy                 = "price-capacity-optimized"
    }}

    launch_template {{
      launch_template_specification {{
        launch_template_id = var.launch_template_id
        version            = "$Latest"
      }}

      override {{
        instance_type     = {quoted(instance_type)}
        weighted_capacity = "1"
      }}
    }}
  }}

  tag {{
    key                 = "plan-model"
    value               = {quoted(deployment.label)}
    propagate_at_launch = true
  }}
}}
"""
