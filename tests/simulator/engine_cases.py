"""Random workloads and replicas for the engine's tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from calibrate.step import SkewTable, StepTable
from simulator.engine.replica_spec import LONGEST_ANSWER
from simulator.engine.simulate import ROUTERS, ReplicaSpec, RouterOptions
from simulator.engine.techniques import Adapters, KvOffload, Speculation, SwapSpace
from simulator.workload.requests import Requests


def step_table(rng: np.random.Generator, skew: bool = False, most_tokens: int = 64, most_seqs: int = 16) -> StepTable:
    """A table of made-up but plausible times: growing in everything, no two alike."""
    tokens, seqs = np.arange(most_tokens + 1), np.arange(most_seqs + 1)
    base, per_token = rng.uniform(0.5, 2.0), rng.uniform(0.001, 0.1)
    axes = [
        np.concatenate([[0.0], np.cumsum(rng.uniform(3.0, 30.0, num))])
        for num in (int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(1, 6)))
    ]
    shape = [len(axis) for axis in axes]
    attention = np.cumsum(rng.uniform(0.0, 0.2, shape), axis=3)
    attention = np.cumsum(np.cumsum(attention, axis=2), axis=0)
    edges = [np.array([0.0, 8.0]), np.array([2.0, 4.0, 100.0]), np.array([0.3, 1.0]), np.array([20.0, 45.0, 1e9])]
    return StepTable(
        base + per_token * tokens, 1.1 * base + 2 * per_token * tokens, 0.05 + rng.uniform(0.0, 0.02) * seqs, *axes,
        attention, rng.uniform(0.0, 0.3), rng.uniform(0.0, 0.05),
        float(rng.choice([0.0, 0.7])), float(rng.choice([0.0, 0.2])),
        SkewTable(*edges, rng.uniform(0.0, 1.0, (2, 3, 2, 3))) if skew else None,
        float(rng.choice([0.0, 0.01])),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One run: what is served, by whom."""

    requests: Requests
    specs: tuple[ReplicaSpec, ...]
    router: str
    options: RouterOptions
    seed: int


def requests(
    rng: np.random.Generator, num: int, rate: float, concurrency: int | None = None, hashes: bool = False
) -> Requests:
    """Short requests at a rate; a few are too long or ask for nothing."""
    input_tokens = rng.integers(1, 60, num)
    output_tokens = np.where(rng.random(num) < 0.03, 0, rng.integers(1, 50, num))
    made = Requests(
        np.cumsum(rng.exponential(1.0 / rate, num)), input_tokens, output_tokens,
        session=rng.integers(0, 5, num), concurrency=concurrency,
    )  # fmt: skip
    if not hashes:
        return made
    unit = 8
    chains = [rng.integers(0, 3, 8) for _ in range(3)]  # a few common beginnings
    ids, offsets = [], [0]
    for length in input_tokens:
        num_units = -(-int(length) // unit)
        common = int(rng.integers(0, num_units + 1))
        chain = chains[int(rng.integers(0, 3))][:common]
        keys = np.cumprod(np.concatenate([[7], chain + 2]))[1:] if len(chain) else np.zeros(0, np.int64)
        own = rng.integers(10**6, 10**9, num_units - len(keys))
        ids.append(np.concatenate([keys, own]).astype(np.int64))
        offsets.append(offsets[-1] + num_units)
    return replace(made, hash_ids=np.concatenate(ids), hash_offsets=np.array(offsets, np.int64), hash_block_tokens=unit)


ADAPTERS = (Adapters(1, 1, 0.1), Adapters(3, 1, 0.3), Adapters(7, 2, 0.02), Adapters(4, 4, 0.5), Adapters(20, 3, 0.0))


@st.composite
def speculations(draw: st.DrawFn, rng: np.random.Generator) -> Speculation:
    """A drafter of any eagerness and luck, with or without a cost."""
    k = draw(st.sampled_from([1, 2, 5]))
    drafts = draw(st.booleans())
    return Speculation(
        k, draw(st.sampled_from([0.0, 0.3, 0.8, 1.0])), k if drafts else 0, step_table(rng) if drafts else None
    )


@st.composite
def cases(
    draw: st.DrawFn,
    hashes: bool = False,
    speculating: bool = False,
    swapping: bool = False,
    tiers: bool = False,
    adapting: bool = False,
    pipelined: bool = False,
) -> Case:
    """A run of up to 60 requests on up to three unequal replicas, often short of blocks."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num = draw(st.integers(1, 60))
    closed = draw(st.sampled_from([None, None, 1, 4, 20]))
    block_size = draw(st.sampled_from([1, 4, 16]))
    policies = ["continuous", "continuous", "prefill_first"]
    policies += [] if speculating or swapping or pipelined else ["static"]
    specs = []
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        seats = draw(st.sampled_from([1, 3, 8, 16]))
        speculation = draw(speculations(rng)) if speculating else None
        swap = SwapSpace(draw(st.sampled_from([0, 5, 30, 1000])) // block_size, 0.07) if swapping else None
        if tiers:
            sizes = draw(st.sampled_from([(0, 8), (5, 0), (5, 20), (1000, 1000)]))
            offload = KvOffload(sizes[0], 0.02, sizes[1], 0.05, draw(st.booleans()))
        specs.append(
            ReplicaSpec(
                step_table(rng, skew=draw(st.booleans())),
                num_gpu_blocks=draw(st.integers(70, 300)) // block_size + 2,
                block_size=block_size,
                max_num_seqs=seats,
                max_num_batched_tokens=draw(st.sampled_from([seats, seats + 7, 64])),
                max_model_len=draw(st.sampled_from([80, 1000])),
                enable_prefix_caching=tiers or (not swapping and draw(st.booleans())),
                enable_chunked_prefill=draw(st.sampled_from([True, True, False])),
                policy=draw(st.sampled_from(policies)),
                reserve_output_tokens=0 if swapping else draw(st.sampled_from([0, 0, 0, 30, LONGEST_ANSWER])),
                max_queue_delay_s=draw(st.sampled_from([0.0, 12.3])),
                async_scheduling=not speculating and not swapping and not pipelined and draw(st.booleans()),
                speculation=speculation,
                swap=swap,
                kv_offload=offload if tiers else None,
                adapters=draw(st.sampled_from(ADAPTERS)) if adapting else None,
            )
        )
        if specs[-1].policy == "static" and draw(st.booleans()):
            padded = replace(
                specs[-1], enable_chunked_prefill=False, pad_to_longest=draw(st.booleans()),
                length_bucket=draw(st.sampled_from([0, 7, 30])), pad_batch=draw(st.booleans()),
            )  # fmt: skip
            specs[-1] = padded
    ranks = 1 if swapping else draw(st.sampled_from([1, 1, 1, 2, 3]))
    if ranks > 1:
        experts = np.cumsum(rng.uniform(0.0, 0.02, 64))
        one = replace(specs[0], lockstep_ranks=ranks)
        specs = [one] * ranks
        if draw(st.booleans()):
            shared = one.step_table._replace(experts_s=experts)
            specs = [replace(one, step_table=shared, graph_tokens=draw(st.sampled_from([0, 10, 512])))] * ranks
    elif draw(st.booleans()):
        specs = [specs[0]] * draw(st.sampled_from([1, 2, 3]))
    if pipelined:
        one = replace(specs[0], lockstep_ranks=1, pipeline_stages=draw(st.sampled_from([2, 3, 4])))
        specs = [one] * (one.pipeline_stages * draw(st.sampled_from([1, 1, 2])))
    elif specs[0] is specs[-1] and draw(st.booleans()):
        specs = [replace(specs[0], front_end_ranks=len(specs))] * len(specs)
    router = draw(st.sampled_from(sorted(ROUTERS)))
    options = RouterOptions(
        weights=draw(st.sampled_from([None, rng.uniform(0.1, 2.0, len(specs))])),
        staleness_s=draw(st.sampled_from([0.0, 10.0])),
    )
    rate = draw(st.sampled_from([0.02, 0.2, 2.0]))
    return Case(requests(rng, num, rate, closed, hashes), tuple(specs), router, options, draw(st.integers(0, 9)))
