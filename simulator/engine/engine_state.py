"""What the compiled engine knows: a row a replica, a row a request, and the arrays around them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.engine import kv_cache, step_eval
from simulator.engine.transfers import Transfers

I64 = NDArray[np.int64]

UNSEEN, WAITING, PREFILLING, DECODING, FINISHING, DONE = range(6)
HELD = 6  # has blocks and no seat: its KV is on the way, here or from here (see ``handover``)
SWAPPED = 7  # preempted; its blocks are in host memory (see ``swapping``)
NEVER = np.inf
FAR = 2**62


# One row a replica: its settings, its state (instants are of decisions, not of results), its totals.
REPLICA = np.dtype(
    [
        ("table", np.int64),
        ("num_blocks", np.int64),  # that requests can hold
        ("block_size", np.int64),
        ("max_num_seqs", np.int64),
        ("max_tokens", np.int64),
        ("max_model_len", np.int64),
        ("prefix_caching", np.int64),
        ("chunked", np.int64),
        ("asynchronous", np.int64),
        ("policy", np.int64),
        ("reserve", np.int64),  # output tokens whose blocks are taken at admission; 0: blocks are taken as needed
        ("max_delay_s", np.float64),  # static batches: how long the first request waits for others
        ("rank_0", np.int64),  # of its lock-step group, and how many ranks that has
        ("num_ranks", np.int64),
        ("home", np.int64),  # of a pipeline's batches: the row that has their queue and KV cache; else its own
        ("num_stages", np.int64),
        ("stage_free_s", np.float64),  # until when the stage of that number is taken
        ("steps_since_sync", np.int64),  # of a lock-step group, in its first row (see lockstep)
        # Of static batches: whether rows are padded alike; tokens of a bucket; rows that are always there.
        ("pads", np.int64),
        ("bucket", np.int64),
        ("least_rows", np.int64),
        ("batch_rows", np.int64),  # of the batch under way, its length when it began, and ``steps`` then
        ("batch_tokens", np.int64),
        ("batch_steps", np.int64),
        ("graph_tokens", np.int64),  # of its largest CUDA graph, up to which the ranks of a group are padded alike
        ("front", np.int64),  # first of the ranks behind its front end, and how many they are
        ("num_front", np.int64),
        ("load", np.int64),  # after its last decision, in which 100 ms that was, and before these began (see front_end)
        ("noted_s", np.float64),
        ("load_before", np.int64),
        ("told_load", np.int64),  # what the front end takes its load to be, and (first rank) when it was last told
        ("told_s", np.float64),
        ("step_tokens", np.int64),  # of the step that a lock-step group is deciding
        ("step_work", np.float64),
        ("step_ending", np.int64),
        ("step_decodes", np.int64),
        ("next_s", np.float64),  # the next decision
        ("inflight_s", np.float64),  # end of the last step that was decided
        ("idle_since_s", np.float64),
        ("speed", np.float64),  # multiplies step times
        ("free", np.int64),  # blocks
        ("num_running", np.int64),
        ("num_decode", np.int64),
        ("sum_context", np.int64),  # of decoding sequences, in the next step
        ("steps", np.int64),  # decode steps so far: the clock that the counters refer to
        ("next_done", np.int64),  # ``steps`` at which the next decoding sequence has all its tokens
        ("shortest", np.int64),  # smallest and largest ``base`` of decoding sequences, where their skew matters
        ("longest", np.int64),
        ("num_finishing", np.int64),
        ("prefilling", np.int64),  # request in the middle of its prompt, or -1
        ("head", np.int64),  # waiting queue: first and last request, or -1
        ("tail", np.int64),
        ("num_waiting", np.int64),
        ("preempted_now", np.int64),  # 1 after a decision that preempted someone
        ("first", np.int64),  # free blocks (see kv_cache): first and last node, blocks after it
        ("last", np.int64),
        ("plain_after", np.int64),
        ("iterations", np.int64),
        ("preemptions", np.int64),
        ("busy_s", np.float64),
        ("front_s", np.float64),  # until when its one tokenizer is busy
        ("spec_tokens", np.int64),  # proposed for each sequence and step; 0: no speculation
        ("lookahead", np.int64),  # slots beyond them, for the drafter
        ("acceptance_rate", np.float64),
        ("draft_table", np.int64),  # step table of the drafter, or -1
        ("seed", np.int64),
        ("verify", np.int64),  # tokens of this step's decoding sequences, and the sum of their contexts
        ("contexts", np.int64),
        ("drafted", np.int64),
        ("accepted", np.int64),
        ("swap_space", np.int64),  # host blocks for preempted sequences; 0: they are computed again
        ("swap_free", np.int64),
        ("swap_head", np.int64),  # swapped sequences: first and last, or -1
        ("swap_tail", np.int64),
        ("block_copy_s", np.float64),  # of a block, one way
        ("copy_s", np.float64),  # for which the next step waits
        ("load_s", np.float64),  # which the next step lasts at least
        ("copied_s", np.float64),  # by which copies have made its steps longer
        ("num_adapters", np.int64),  # LoRA (see ``adapters``): that requests ask for
        ("lora_slots", np.int64),  # 0: no adapters
        ("lora_copy_s", np.float64),  # of one into its slot
        ("used_slots", np.int64),  # by running sequences, and slots that hold an adapter
        ("full_slots", np.int64),
        ("lora_clock", np.int64),
        ("lora_loads", np.int64),
        ("swap_outs", np.int64),
        ("swap_ins", np.int64),
        ("cpu_block_s", np.float64),  # of loading a block from host memory, from disk
        ("disk_block_s", np.float64),
        ("overlap", np.int64),  # loads overlap with the step
        ("cpu_hits", np.int64),  # prompt tokens found in host memory, on disk
        ("disk_hits", np.int64),
        ("prefix_queries", np.int64),
        ("prefix_hits", np.int64),
        ("num_held", np.int64),  # requests that hold blocks without a seat
        ("remote_head", np.int64),  # queue of requests whose KV lies elsewhere, and of those whose KV has come
        ("remote_tail", np.int64),
        ("arrived_head", np.int64),
        ("arrived_tail", np.int64),
        ("link_bytes_per_s", np.float64),  # over which KV comes and goes, and until when it is taken
        ("link_free_s", np.float64),
    ]
)

# One row a request: its lengths, its state, its results (as in ``Records``).
REQUEST = np.dtype(
    [
        ("input", np.int64),
        ("output", np.int64),  # tokens that it will generate
        ("phase", np.int64),
        ("generated", np.int64),  # tokens sampled, while waiting or prefilling
        ("computed", np.int64),  # tokens computed, while prefilling
        ("prefilled", np.int64),  # tokens computed as a prompt, before it decoded
        ("base", np.int64),  # while decoding: computed tokens - ``steps``
        ("done_at", np.int64),  # while decoding: ``steps`` at which all tokens are sampled
        ("slots", np.int64),  # speculating: tokens for which it holds blocks
        ("want", np.int64),  # tokens that this step computes
        ("known", np.int64),  # tokens computed and not proposed, when its step was decided
        ("draws", np.int64),  # steps in which proposals were made
        ("end_s", np.float64),  # while finishing: end of its last step
        ("ready_s", np.float64),  # in its replica's queue
        ("next", np.int64),  # in the waiting queue
        ("arrival_s", np.float64),
        ("scheduled_s", np.float64),
        ("first_token_s", np.float64),
        ("finish_s", np.float64),
        ("replica", np.int64),
        ("status", np.int64),
        ("num_cached_tokens", np.int64),
        ("num_preemptions", np.int64),
        ("stall_s", np.float64),  # preempted, waiting to be admitted again
        ("remote", np.int64),  # tokens whose KV is computed elsewhere
        ("hold", np.int64),  # 1: keeps its blocks when it has ended, until its KV has been fetched
    ]
)


class World(NamedTuple):
    """All that the compiled loop works on.

    Attributes:
        replicas, requests: rows of ``REPLICA`` and ``REQUEST``.
        nodes, shared: the KV caches (see ``kv_cache``).
        links, tiers: the tiers of KV offload (see ``kv_tiers``).
        adapters: (r, adapters, 2) of LoRA (see ``adapters``).
        crossing: (r, block size) decoding sequences that need a block where ``steps % block_size`` is the column.
        running: (r, seats) requests in order of admission.
        ended, num_ended: requests whose end was decided since the caller last looked (where someone does; else empty).
        transfers: KV under way from prefill to decode replicas (empty without).
    """

    tables: step_eval.Tables
    replicas: Any
    requests: Any
    nodes: Any
    shared: kv_cache.Shared
    links: NDArray[np.int32]
    tiers: I64
    adapters: I64
    crossing: I64
    running: I64
    ended: I64
    num_ended: I64
    transfers: Transfers
