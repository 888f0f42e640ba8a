"""What to change about a replica that does not fit its GPUs."""

from __future__ import annotations

from dataclasses import replace

from calibrate.physics.precisions import precision, support
from catalogs.load import gpus
from catalogs.schema import Replica


def length_is_asked(replica: Replica) -> bool:
    """Whether max_model_len was chosen, rather than being the model's own (resolved engines hold that)."""
    asked = replica.engine.max_model_len
    return asked is not None and asked < replica.model.max_position_embeddings


def changes(replica: Replica) -> list[tuple[str, Replica]]:
    """Changes to try, least first: a shorter context, an FP8 KV cache, more GPUs, lower precision, a bigger GPU."""
    gpu, tp = replica.gpu, replica.tensor_parallel_size
    changes: list[tuple[str, Replica]] = []
    if length_is_asked(replica):
        changes.append(("max_model_len {max_len}", replica.with_engine(max_model_len=None)))
    if replica.kv_cache_dtype.lower() in ("auto", "bf16", "fp16") and "fp8" in gpu.peak_flops:
        changes.append(("kv_cache_dtype fp8", replace(replica, kv_cache_dtype="fp8")))
    higher = [n for n in (2, 4, 8) if n > tp]
    changes += [(f"tensor_parallel_size {n}", replace(replica, tensor_parallel_size=n)) for n in higher]
    lower = _lower_precisions(replica)
    changes += [(f"precision {p}", replace(replica, precision=p)) for p in lower]
    changes += [
        (f"precision {p} with tensor_parallel_size {n}", replace(replica, precision=p, tensor_parallel_size=n))
        for n in higher
        for p in lower
    ]
    bigger = sorted((g for g in gpus().values() if g.memory_bytes > gpu.memory_bytes), key=lambda g: g.memory_bytes)
    changes += [(f"a bigger GPU: {g.name}", replace(replica, gpu=g)) for g in bigger]
    return changes


def _lower_precisions(replica: Replica) -> list[str]:
    now = precision(replica.precision).weight_bytes
    offered = ("fp8", "int8", "int4-awq")
    return [
        p for p in offered if precision(p).weight_bytes < now and support(p, replica.gpu) in ("native", "weight_only")
    ]
