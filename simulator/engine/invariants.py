"""What must hold in any run of the engine; numbered in docs/invariants.md."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from simulator.engine import engine_state, kv_tiers, preemption
from simulator.engine.packed import Pack
from simulator.engine.records import COMPLETED, Records
from simulator.workload.requests import Requests

CHECKS = 64  # instants of a checked run at which the replicas are looked into


class BrokenInvariantError(AssertionError):
    """The engine broke one of its own rules: a fault of ours."""


def _demand(holds: bool | np.bool_, number: int, what: str) -> None:
    if not holds:
        raise BrokenInvariantError(f"invariant {number}: {what}")


def check_records(requests: Requests, records: Records) -> None:
    """Invariants of a finished run.

    Raises:
        BrokenInvariantError: one does not hold.
    """
    done = records.status == COMPLETED
    n = len(requests)
    lengths = {len(column) for column in (records.status, records.finish_s, records.replica, records.arrival_s)}
    _demand(lengths == {n}, 1, "requests are not conserved")
    _demand(bool((records.replica[done] >= 0).all()), 1, "a completed request has no replica")
    _demand(not np.isnan(records.finish_s[done]).any(), 1, "a completed request has no end")
    instants = (records.arrival_s, records.scheduled_s, records.first_token_s, records.finish_s)
    for before, after in pairwise(instants):
        _demand(bool((before[done] <= after[done]).all()), 3, "a request's instants are out of order")
    if records.handover is not None:
        moved = done & ~np.isnan(records.handover.end_s)
        way = records.handover
        on_the_way = (way.prefill_end_s, way.start_s, way.end_s, way.decode_scheduled_s)
        for before, after in pairwise((records.scheduled_s, *on_the_way, records.finish_s)):
            _demand(bool((before[moved] <= after[moved]).all()), 11, "KV came before it was computed or sent")
        _demand(bool((records.replica[moved] != way.prefill_replica[moved]).all()), 11, "KV moved to its own replica")
    _demand(bool((records.busy_s <= records.end_s + 1e-6).all()), 4, "a replica was busy longer than the run")
    _demand(bool((records.num_cached_tokens <= requests.input_tokens).all()), 2, "more cached tokens than prompt")


def check_world(world: engine_state.World, now_s: float) -> None:
    """Invariants of the replicas between two decisions.

    Raises:
        BrokenInvariantError: one does not hold.
    """
    rows = world.requests
    held_blocks = np.zeros(len(world.replicas), np.int64)  # by the row that has the cache
    num_running = np.zeros(len(world.replicas), np.int64)
    for r, me in enumerate(world.replicas):
        running = world.running[r, : me["num_running"]]
        _demand(len(set(running.tolist())) == len(running), 1, "a request runs twice")
        _demand(bool((rows["replica"][running] == r).all()), 1, "a request runs elsewhere than it was sent")
        _demand(me["num_running"] <= me["max_num_seqs"], 5, "more sequences than seats")
        _demand(me["next_s"] >= now_s, 4, "a decision lies in the past")
        decoding = running[rows["phase"][running] == engine_state.DECODING]
        computed = rows["computed"][running].copy()
        is_decoding = rows["phase"][running] == engine_state.DECODING
        if not me["spec_tokens"]:
            computed[is_decoding] = rows["base"][decoding] + me["steps"]
        _demand(len(decoding) == me["num_decode"], 2, "the decode counter is off")
        counted = not me["spec_tokens"]
        contexts = (computed[is_decoding] + 1).sum() if counted else 0
        _demand(contexts == me["sum_context"], 2, "the context counter is off")
        crossing = 0 if me["reserve"] or not counted else len(decoding)
        if me["spec_tokens"]:
            computed = rows["slots"][running]
        _demand(world.crossing[r].sum() == crossing, 2, "the block-crossing counters are off")
        _demand(_free_blocks(world, r) == me["free"], 2, "the free queue does not add up")
        kept = "slots" if me["spec_tokens"] else "computed"
        held = np.flatnonzero((rows["replica"] == r) & (rows["phase"] == engine_state.HELD))
        _demand(len(held) == me["num_held"], 11, "a request holds blocks without a seat and is not counted")
        holding, computed = np.concatenate([running, held]), np.concatenate([computed, rows[kept][held]])
        held_blocks[me["home"]] += _held_blocks(world, r, holding, computed)
        num_running[me["home"]] += me["num_running"]
        _check_tiers(world, r)
        spoken = rows["generated"][running]
        _demand(bool((spoken <= rows["output"][running]).all()), 14, "a sequence has more tokens than its answer")
        ended = spoken[rows["phase"][running] == engine_state.FINISHING] if me["spec_tokens"] else np.zeros(0)
        outputs = rows["output"][running][rows["phase"][running] == engine_state.FINISHING] if len(ended) else ended
        _demand(bool((ended == outputs).all()), 14, "a sequence ended before its last token")
        stuck = me["num_running"] == 0 and me["head"] >= 0 and me["inflight_s"] < now_s and me["next_s"] == np.inf
        stuck = stuck and me["num_held"] == 0  # else the end of a transfer frees blocks and wakes it
        _demand(not stuck, 7, "a replica idles while a request waits")
    for r, me in enumerate(world.replicas):
        if me["home"] == r:
            shared = int(np.maximum(world.shared.holders[r] - 1, 0).sum())
            _demand(held_blocks[r] - shared + me["free"] == me["num_blocks"], 2, "blocks leak")
            _demand(num_running[r] <= me["max_num_seqs"], 5, "more sequences than seats")


def _check_tiers(world: engine_state.World, r: int) -> None:
    """Host memory of preempted sequences, and the tiers of KV offload."""
    me, rows = world.replicas[r], world.requests
    swapped = np.flatnonzero((rows["replica"] == r) & (rows["phase"] == engine_state.SWAPPED))
    blocks = int((-(-rows["computed"][swapped] // me["block_size"])).sum())
    _demand(blocks + me["swap_free"] == me["swap_space"], 12, "host blocks of swapped sequences do not add up")
    _demand(me["swap_free"] >= 0, 12, "more swapped blocks than swap space")
    for tier in (2 * r, 2 * r + 1):
        first, _, used, capacity = world.tiers[tier].tolist()
        _demand(used <= capacity, 13, "a tier of the KV cache holds more than it can")
        held, place = 0, first
        while place >= 0:
            held, place = held + 1, int(world.links[tier, place, 1])
        present = int((world.links[tier, :, 0] != kv_tiers.ABSENT).sum())
        _demand(held == used == present, 13, "a tier of the KV cache does not add up")


def _free_blocks(world: engine_state.World, r: int) -> int:
    me = world.replicas[r]
    total, node = int(me["plain_after"]), int(me["first"])
    while node >= 0:
        total += int(world.nodes[node]["plain_before"] + world.nodes[node]["kept"])
        node = int(world.nodes[node]["next"])
    return total


def _held_blocks(world: engine_state.World, r: int, running: np.ndarray, computed: np.ndarray) -> int:
    """Blocks of running requests; those that several hold count for each."""
    pack = Pack(world)
    return sum(int(preemption.blocks_held(pack, r, int(i), int(c))) for i, c in zip(running, computed, strict=True))
