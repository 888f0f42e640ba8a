"""Rows and arrays of ``World`` that belong to one replica: its settings and empty state, and room for one more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.engine import engine_state, kv_cache, kv_tiers, transfers
from simulator.engine.policies import POLICIES
from simulator.engine.replica_spec import ReplicaSpec
from simulator.engine.techniques import KvOffload


def new_tiers(specs: Sequence[ReplicaSpec]) -> NDArray[np.int64]:
    """Empty tiers of KV offload, two a replica."""
    tiers = np.full((2 * len(specs), 4), -1, np.int64)
    tiers[:, kv_tiers.USED] = 0
    none = KvOffload(0, 0.0)
    sizes = [(o.num_cpu_blocks, o.num_disk_blocks) for o in (spec.kv_offload or none for spec in specs)]
    tiers[:, kv_tiers.CAPACITY] = np.array(sizes, np.int64).ravel()
    return tiers


def num_adapters(spec: ReplicaSpec) -> int:
    """LoRA adapters that its requests ask for."""
    return 0 if spec.adapters is None else spec.adapters.num_adapters


def with_adapters(array: NDArray[np.int64], num_adapters: int) -> NDArray[np.int64]:
    """One more replica, with room for its adapters."""
    grown = np.zeros((len(array) + 1, max(array.shape[1], num_adapters), 2), np.int64)
    grown[:-1, : array.shape[1]] = array
    return grown


def with_nodes(world: engine_state.World) -> NDArray[np.void]:
    """The caches' nodes with those of one more replica."""
    num_slots = world.shared.content.shape[1]
    return np.concatenate([world.nodes, np.zeros(num_slots, kv_cache.NODE)]) if num_slots else world.nodes


def with_row(array: NDArray[np.int64], columns: int, fill: int) -> NDArray[np.int64]:
    """One more row, and as many columns as it needs."""
    grown = np.full((len(array) + 1, max(array.shape[1], columns)), fill, np.int64)
    grown[:-1, : array.shape[1]] = array
    return grown


def set_up(row: np.void, spec: ReplicaSpec, rank_0: int) -> None:
    """Write one replica's settings and empty state, but for its tables."""
    row["num_blocks"] = row["free"] = row["plain_after"] = spec.num_gpu_blocks - 1
    row["block_size"] = spec.block_size
    row["max_num_seqs"] = spec.max_num_seqs
    row["max_tokens"] = spec.max_num_batched_tokens
    row["max_model_len"] = spec.max_model_len
    row["prefix_caching"] = spec.enable_prefix_caching
    row["chunked"] = spec.enable_chunked_prefill
    row["asynchronous"] = spec.async_scheduling
    row["policy"] = POLICIES[spec.policy]
    row["max_delay_s"] = spec.max_queue_delay_s
    row["pads"] = spec.pad_to_longest or spec.pad_batch
    row["bucket"], row["least_rows"] = spec.length_bucket, spec.max_num_seqs if spec.pad_batch else 0
    row["reserve"] = spec.reserve_output_tokens
    row["rank_0"], row["num_ranks"] = rank_0, spec.lockstep_ranks
    row["num_stages"], row["stage_free_s"] = spec.pipeline_stages, 0.0
    row["graph_tokens"] = spec.graph_tokens
    row["next_s"] = np.inf
    row["speed"] = 1.0
    row["next_done"] = row["shortest"] = engine_state.FAR
    row["longest"] = -engine_state.FAR
    for name in ("prefilling", "head", "tail", "first", "last", "swap_head", "swap_tail", *transfers.QUEUES):
        row[name] = -1
    row["copy_s"] = row["load_s"] = 0.0
    if spec.adapters is not None:
        row["num_adapters"], row["lora_slots"] = spec.adapters.num_adapters, spec.adapters.max_loras
        row["lora_copy_s"] = spec.adapters.copy_s
    if spec.swap is not None:
        row["swap_space"] = row["swap_free"] = spec.swap.num_blocks
        row["block_copy_s"] = spec.swap.block_copy_s
    if spec.kv_offload is not None:
        row["cpu_block_s"], row["disk_block_s"] = spec.kv_offload.cpu_block_s, spec.kv_offload.disk_block_s
        row["overlap"] = spec.kv_offload.overlap
    if spec.speculation is not None:
        row["spec_tokens"] = spec.speculation.num_speculative_tokens
        row["lookahead"] = spec.speculation.num_lookahead_tokens
        row["acceptance_rate"] = spec.speculation.acceptance_rate
