"""What techniques beyond an engine's common core do to its table of step times."""

from __future__ import annotations

import numpy as np

from calibrate.options import number_option, recomputation_of
from calibrate.physics.backends import backend_of
from calibrate.physics.lora import lora_of, lora_step_s
from calibrate.physics.precisions import on_gpu, precision
from calibrate.step import StepTable
from catalogs.errors import InputError
from catalogs.schema import Replica


def technique_notes(replica: Replica) -> list[str]:
    """What the costs of a replica's techniques rest on, a sentence each; none for the common core."""
    options, form = replica.engine.options, precision(replica.precision)
    notes = []
    if "attention_backend" in options:
        backend = backend_of(replica.engine, replica.gpu)
        notes.append(f"Attention backend {options['attention_backend']}: {backend.rests_on}.")
    if lora_of(replica.engine) is not None:
        notes.append("LoRA adapters: bytes, FLOPs and launches counted; no measured run stands behind them.")
    if form.sparse:
        notes.append("2:4 weights: arithmetic 1.22 times as fast, measured for FP8 on H100 and assumed elsewhere.")
    if "-bitmask" in form.name:
        notes.append(f"{form.name}: memory of an engine whose kernels read a bitmask; steps as with all weights.")
    if on_gpu(replica.precision, replica.gpu).gemm == "int4_wo_slow":
        notes.append(f"{form.name}: slow kernels, taken to widen all weights to memory first; an upper bound.")
    if "all2all_backend" in options:
        notes.append("Exchange of experts: the kernels of all2all_backend are timed as NCCL's.")
    return notes


def recomputation_factors(replica: Replica) -> tuple[float, float]:
    """How often the token-wise work and the attention of a step are computed."""
    again = recomputation_of(replica.engine)
    layers_twice = again == "full" or number_option(replica.engine, "activation_checkpoint_layers", 1, low=1) > 1
    return 2.0 if layers_twice else 1.0, 2.0 if layers_twice or again == "selective" else 1.0


def with_recomputation(replica: Replica, table: StepTable) -> StepTable:
    """The table of a replica that keeps a step's activations and computes some of them a second time."""
    layers, attention = recomputation_factors(replica)
    return table._replace(
        decode_tokens_s=layers * table.decode_tokens_s,
        mixed_tokens_s=layers * table.mixed_tokens_s,
        attention_s=attention * table.attention_s,
        experts_s=None if table.experts_s is None else layers * table.experts_s,
    )


def with_adapters(replica: Replica, table: StepTable) -> StepTable:
    """The table of a replica that serves LoRA adapters."""
    if lora_of(replica.engine) is None:
        return table
    if replica.model.kind != "decoder":
        raise InputError(f"LoRA adapters on {replica.model.name}", where="engine.lora",
                         why="engines serve them beside decoders", remedy="leave out lora")  # fmt: skip
    more = lora_step_s(replica, np.arange(max(len(table.decode_tokens_s), len(table.mixed_tokens_s)), dtype=np.float64))
    return table._replace(
        decode_tokens_s=table.decode_tokens_s + more[: len(table.decode_tokens_s)],
        mixed_tokens_s=table.mixed_tokens_s + more[: len(table.mixed_tokens_s)],
    )
