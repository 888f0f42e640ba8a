"""Triton's model configuration for plans of ONNX Runtime, one `config.pbtxt` for each line of the plan.

Field names: ModelConfig of triton-inference-server/common (model_config.proto). Inputs and outputs are left to the
server, which completes them from the ONNX file.
"""

from __future__ import annotations

from planner.export.deployment import Deployment, Group, header, only_framework

NOTES = (
    "each text below is MODELS/{name}/config.pbtxt, and the ONNX file is MODELS/{name}/1/model.onnx; "
    "`tritonserver --model-repository=MODELS` serves it",
    "inputs and outputs are completed from the ONNX file, whose first dimension is the batch",
)


def triton(deployment: Deployment) -> str:
    """A model configuration a line of the plan: its largest batch, and how long a batch may wait to fill."""
    only_framework(deployment, "onnxruntime")
    stored = sorted({group.precision for group in deployment.groups})
    notes = [note.format(name=deployment.label) for note in NOTES]
    notes.append(f"the ONNX file holds the model in {' or '.join(stored)}, as its line says")
    return header(deployment, notes) + "\n" + "\n".join(_config(deployment, group) for group in deployment.groups)


def _config(deployment: Deployment, group: Group) -> str:
    counts = ", ".join(map(str, group.instances[:24])) + (", ..." if len(group.instances) > 24 else "")
    delay_us = round(1e6 * float(group.engine.get("max_queue_delay_s", 0.0)))
    return (
        f"# {group.instance_type} ({group.gpu}), {group.purchase}: {counts} instance(s), {group.precision}, "
        f"{group.replicas_per_instance} GPU(s) on each\n"
        f'name: "{deployment.label}"\n'
        'backend: "onnxruntime"\n'
        f"max_batch_size: {int(group.engine['max_num_seqs'])}\n"
        f"dynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}\n"
        "instance_group [ { count: 1 kind: KIND_GPU } ]\n"
    )
