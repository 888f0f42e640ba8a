"""What the engine needs to know of a replica, and the combinations that the real engines refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from calibrate.step import StepTable
from catalogs.errors import InputError
from simulator.engine.policies import POLICIES, STATIC
from simulator.engine.techniques import Adapters, KvOffload, Speculation, SwapSpace
from simulator.workload.requests import Requests

GROUPS = {
    "lockstep_ranks": "lock-step ranks",
    "pipeline_stages": "batches of a pipeline",
    "front_end_ranks": "ranks behind a front end",
}


LONGEST_ANSWER = -1  # of ``reserve_output_tokens``


@dataclass(frozen=True)
class ReplicaSpec:
    """What the engine needs to know of one replica; settings are vLLM's, by their names.

    Attributes:
        step_table: how long steps take.
        num_gpu_blocks: KV blocks as vLLM logs them; one of them is its null block and never used.
        policy: ``continuous`` (vLLM V1: running requests first, chunks fill the budget) or ``prefill_first``
            (TGI, vLLM V0: a step computes prompts or decodes, prompts first) or ``static`` (alias ``dynamic``: a batch
            of ``max_num_seqs`` requests, or of those that came within ``max_queue_delay_s`` of the first; the next one
            when all of it has ended, as Triton's dynamic batcher and plain static batching do).
        max_queue_delay_s: of static batches.
        pad_to_longest: every row of a static batch is as long as its longest prompt, and a row whose answer has ended
            is computed on until the batch ends.
        length_bucket: tokens; a static batch holds requests of one bucket of lengths (1 to so many, the next so many
            ...), padded to its upper end where rows are padded; 0: of any length.
        pad_batch: a static batch always has ``max_num_seqs`` rows.
        reserve_output_tokens: the blocks of a prompt and so many output tokens are taken at admission, so that no one
            is preempted, and answers stop there (TensorRT-LLM's guaranteed-no-evict with that ``max_tokens``; with the
            model's whole context the contiguous caches before paged attention); 0: blocks are taken as needed;
            ``LONGEST_ANSWER``: what clients ask for is not known, and taken to be the longest answer of the workload.
        async_scheduling: a step is decided while the one before it runs (vLLM's default since 0.14).
        lockstep_ranks: data-parallel ranks that step together, since they share experts: that many equal specs in a
            row are one group.
        pipeline_stages: that many equal specs in a row are the batches under way in a pipeline of so many stages; they
            share one queue, ``max_num_seqs`` seats and ``num_gpu_blocks`` blocks. Steps are decided synchronously.
        front_end_ranks: data-parallel ranks behind one front end, which balances them (``front_end``): that many equal
            specs in a row.
        graph_tokens: tokens of the largest CUDA graph, up to which lock-step ranks are padded alike; 0: none.
        speculation: speculative decoding (see ``Speculation``).
        swap: preempted sequences go to host memory (see ``SwapSpace``); None: they are computed again.
        kv_offload: tiers of the prefix cache beyond the GPU (see ``KvOffload``).
        adapters: LoRA (see ``Adapters``).
        name: for people.
    """

    step_table: StepTable
    num_gpu_blocks: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 131072
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    policy: str = "continuous"
    async_scheduling: bool = True
    max_queue_delay_s: float = 0.1
    pad_to_longest: bool = False
    length_bucket: int = 0
    pad_batch: bool = False
    reserve_output_tokens: int = 0
    lockstep_ranks: int = 1
    pipeline_stages: int = 1
    front_end_ranks: int = 1
    graph_tokens: int = 0
    speculation: Speculation | None = None
    swap: SwapSpace | None = None
    kv_offload: KvOffload | None = None
    adapters: Adapters | None = None
    name: str = ""

    @property
    def longest_sequence(self) -> int:
        """Tokens of prompt and answer that a request may have: the context, or all of the KV cache."""
        return min(self.max_model_len, (self.num_gpu_blocks - 1) * self.block_size)  # one is the null block

    def __post_init__(self) -> None:
        for field in (*GROUPS, "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} is {getattr(self, field)}", where=field, remedy="a number of at least 1")
        if self.num_gpu_blocks < 2:
            raise InputError(
                f"num_gpu_blocks is {self.num_gpu_blocks}",
                where="num_gpu_blocks",
                why="one block is the null block, and a request needs at least one more",
                remedy="a larger GPU, a smaller model or a lower precision",
            )
        if self.max_num_seqs > self.max_num_batched_tokens:
            raise InputError(
                f"max_num_seqs {self.max_num_seqs} exceeds max_num_batched_tokens {self.max_num_batched_tokens}",
                where="engine",
                why="vLLM refuses this: each running sequence needs a token a step",
                remedy=f"max_num_batched_tokens of at least {self.max_num_seqs}",
            )
        if self.reserve_output_tokens < 0 and self.reserve_output_tokens != LONGEST_ANSWER:
            raise InputError(f"reserve_output_tokens is {self.reserve_output_tokens}", where="reserve_output_tokens",
                             remedy="0 (as needed) or more")  # fmt: skip
        if not 0 <= self.max_queue_delay_s < float("inf"):
            raise InputError(
                f"max_queue_delay_s is {self.max_queue_delay_s}",
                where="max_queue_delay_s",
                why="the last requests of a trace would never fill a batch",
                remedy="a number of seconds, 0 or more",
            )
        if self.policy not in POLICIES:
            raise InputError(f"no policy {self.policy!r}", where="policy", remedy=" or ".join(POLICIES))
        self._check_padding()
        if self.pipeline_stages > 1:
            self._check_pipeline()
        if self.speculation is not None:
            self._check_speculation()
        if self.swap is not None:
            self._check_swap()
        if self.kv_offload is not None and not self.enable_prefix_caching:
            raise InputError(
                "KV offload without enable_prefix_caching",
                where="kv_offload",
                why="a tier keeps blocks by the hash of what they hold, which prefix caching computes",
                remedy="enable_prefix_caching: true",
            )

    def _check_padding(self) -> None:
        if not (self.pad_to_longest or self.length_bucket or self.pad_batch):
            return
        if self.length_bucket < 0:
            raise InputError(
                f"length_bucket is {self.length_bucket}", where="length_bucket", remedy="tokens, 1 or more"
            )
        if POLICIES[self.policy] != STATIC:
            raise InputError(f"padding with policy {self.policy}", where="policy",
                             why="only static batches have rows of one length", remedy="policy: static")  # fmt: skip
        if self.enable_chunked_prefill:
            raise InputError("padding with enable_chunked_prefill", where="enable_chunked_prefill",
                             why="a padded batch computes whole prompts at once",
                             remedy="enable_chunked_prefill: false")  # fmt: skip

    def _check_pipeline(self) -> None:
        wrong = {
            "async_scheduling": self.async_scheduling,
            "lock-step ranks": self.lockstep_ranks > 1,
            "swap": self.swap is not None,
            f"policy: {self.policy}": POLICIES[self.policy] == STATIC,
        }
        why = "a scheduler that has several batches under way decides when one of them has come out"
        _refuse_beside("pipeline stages", "pipeline_parallel_size", wrong, why, "pipeline_parallel_size 1")

    def _check_swap(self) -> None:
        wrong = {
            "async_scheduling": self.async_scheduling,
            "enable_prefix_caching": self.enable_prefix_caching,
            "speculative": self.speculation is not None,
            "reserve_output_tokens": self.reserve_output_tokens != 0,
            "lock-step ranks": self.lockstep_ranks > 1,
            f"policy: {self.policy}": POLICIES[self.policy] == STATIC,
        }
        why = "swap is that of vLLM V0: synchronous steps, whole sequences of blocks that no other shares"
        _refuse_beside("preemption_mode: swap", "preemption_mode", wrong, why, "preemption_mode: recompute")

    def _check_speculation(self) -> None:
        if self.async_scheduling:
            raise InputError(
                "speculative decoding with async_scheduling",
                where="speculative",
                why="how many tokens a step keeps is known at its end only, and steps are decided then here",
                remedy="async_scheduling: false",
            )
        if POLICIES[self.policy] == STATIC:
            raise InputError(
                f"speculative decoding with policy {self.policy}",
                where="speculative",
                why="no engine with static batches verifies proposals",
                remedy="policy: continuous",
            )


def _refuse_beside(what: str, where: str, wrong: Mapping[str, bool], why: str, instead: str) -> None:
    """Raises ``InputError`` for the first of the settings that is on and has no place beside ``what``."""
    for flag, is_set in wrong.items():
        if is_set:
            raise InputError(f"{what} with {flag}", where=where, why=why, remedy=f"{instead}, or without {flag}")


def reserving(spec: ReplicaSpec, requests: Requests) -> ReplicaSpec:
    """The replica under a workload: what it reserves is known then."""
    if spec.reserve_output_tokens != LONGEST_ANSWER:
        return spec
    return replace(spec, reserve_output_tokens=int(requests.output_tokens.max(initial=0)))


def demand_alone(spec: ReplicaSpec) -> None:
    """A rank of a lock-step group does not come or go by itself; raises ``InputError``."""
    if spec.lockstep_ranks > 1 or spec.pipeline_stages > 1:
        raise InputError(
            "a rank of a lock-step group cannot come or go by itself",
            where="fleet",
            why="the ranks share experts (vLLM: of every mixture of experts), or a pipeline's scheduler",
            remedy="data_parallel_size and pipeline_parallel_size 1 for replicas that are scaled or fail",
        )


def first_ranks(specs: Sequence[ReplicaSpec], field: str = "lockstep_ranks") -> list[int]:
    """For each replica the first of its group: of ``lockstep_ranks``, or of ``front_end_ranks``.

    Raises:
        InputError: a group that is not complete.
    """
    firsts: list[int] = []
    while len(firsts) < len(specs):
        first = len(firsts)
        size = getattr(specs[first], field)
        group = specs[first : first + size]
        if len(group) < size or any(getattr(s, field) != size for s in group):
            raise InputError(
                f"a group of {size} {GROUPS[field]} is not complete",
                where="fleet",
                why="data-parallel ranks that share experts step together, and a front end knows all of its ranks",
                remedy=f"as many equal replicas in a row as {field} says",
            )
        firsts += [first] * size
    return firsts
