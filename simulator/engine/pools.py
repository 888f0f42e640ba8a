"""The two pools of prefill/decode disaggregation and what lies between them; every request in its two halves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError
from simulator.engine.replica_spec import ReplicaSpec
from simulator.workload.requests import Requests

FIRST_TOKEN = ("decode", "prefill")


@dataclass(frozen=True)
class Pools:
    """The two pools and what lies between them.

    Attributes:
        prefill, decode: replicas that compute prompts, and that decode.
        link_bytes_per_s: (replicas,) each replica's link, one direction, prefill replicas first.
        block_bytes: KV of one block, whole model.
        latency_s: of a transfer, before its first byte.
        first_token: who samples the token that the client sees first.
        hidden_share: of a transfer's bytes that can move while the prompt is computed; 0: it starts when that is done.
        decode_router: chooses the decode replica when the prompt is computed; one of ``ROUTERS``.
    """

    prefill: tuple[ReplicaSpec, ...]
    decode: tuple[ReplicaSpec, ...]
    link_bytes_per_s: tuple[float, ...]
    block_bytes: float
    latency_s: float = 0.0
    first_token: str = "decode"
    hidden_share: float = 0.0
    decode_router: str = "least_loaded"

    def __post_init__(self) -> None:
        specs = (*self.prefill, *self.decode)
        if not self.prefill or not self.decode:
            missing = "prefill" if not self.prefill else "decode"
            raise InputError(f"no {missing} replica", where="fleet", why="each request needs one of either role",
                             remedy=f"a fleet line with role: {missing}")  # fmt: skip
        if self.first_token not in FIRST_TOKEN:
            raise InputError(f"first_token is {self.first_token!r}", where="disaggregation.first_token",
                             remedy=" or ".join(FIRST_TOKEN))  # fmt: skip
        if len({s.block_size for s in specs}) > 1:
            raise InputError("replicas of different block_size", where="fleet",
                             why="KV moves by whole blocks (vLLM's connectors demand one size)",
                             remedy=f"block_size {specs[0].block_size} in every line")  # fmt: skip
        if any(s.policy in ("static", "dynamic") for s in specs) or any(s.lockstep_ranks > 1 for s in specs):
            raise InputError("a role needs an engine that batches continuously, each replica by itself", where="fleet",
                             why="static batches cannot take a request in the middle, lock-step ranks share a step",
                             remedy="policy continuous, and data_parallel_size 1 for a mixture of experts")  # fmt: skip
        for name, values in (("link_bytes_per_s", self.link_bytes_per_s), ("block_bytes", (self.block_bytes,))):
            if any(not 0 < v < np.inf for v in values):
                raise InputError(f"{name} is not a positive number", where="disaggregation", remedy="bytes, above 0")
        if not 0 <= self.hidden_share < 1:
            raise InputError(f"hidden_share is {self.hidden_share}", where="disaggregation",
                             why="the last layer's KV moves once it is computed", remedy="0 to below 1")  # fmt: skip
        if not 0 <= self.latency_s < np.inf or len(self.link_bytes_per_s) != len(specs):
            raise InputError("latency_s below 0, or not one link a replica", where="disaggregation",
                             remedy="latency_s of 0 or more")  # fmt: skip


def doubled(requests: Requests) -> Requests:
    """Every request twice: the prompt's half, then the decode half, with the same prefix blocks."""

    def twice(column: NDArray[Any] | None) -> NDArray[Any] | None:
        return None if column is None else np.concatenate([column, column])

    offsets = requests.hash_offsets
    return replace(
        requests,
        arrival_s=np.concatenate([requests.arrival_s, requests.arrival_s]),
        input_tokens=np.concatenate([requests.input_tokens, requests.input_tokens]),
        output_tokens=np.concatenate([np.minimum(requests.output_tokens, 1), requests.output_tokens]),
        hash_ids=twice(requests.hash_ids),
        hash_offsets=None if offsets is None else np.concatenate([offsets, offsets[1:] + offsets[-1]]),
        request_class=twice(requests.request_class),
        session=twice(requests.session),
    )
