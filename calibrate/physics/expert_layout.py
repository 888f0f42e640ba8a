"""How a replica's GPUs share its routed experts.

vLLM (0.19, ``FusedMoEParallelConfig.make`` in ``model_executor/layers/fused_moe/config.py``) flattens tensor and data
parallelism in its mixture-of-experts layers: all GPUs of a stage share the experts, whole ones each with
``--enable-expert-parallel``, else a slice of every expert's width; so its data-parallel ranks step together either way
(``DPEngineCoreProc`` in ``v1/engine/core.py``). Other engines share experts within the tensor-parallel group, unless
``expert_parallel_size`` reaches beyond it (SGLang's ``--enable-dp-attention``).
"""

from __future__ import annotations

from catalogs.errors import InputError
from catalogs.schema import Replica


def ranks_sharing_experts(replica: Replica) -> int:
    """Data-parallel ranks that share a replica's experts, and therefore step together; 1 without."""
    if replica.model.moe is None:
        return 1
    beyond = replica.expert_parallel_size > replica.tensor_parallel_size
    return replica.data_parallel_size if beyond or replica.engine.framework == "vllm" else 1


def expert_slices(replica: Replica) -> int:
    """GPUs over which each expert's width is sliced; 1 where every GPU has whole experts."""
    sharing = replica.tensor_parallel_size * ranks_sharing_experts(replica)
    return max(1, sharing // replica.expert_parallel_size)


def splits_tokens(replica: Replica) -> bool:
    """Whether the GPUs of a tensor-parallel group send a share of their tokens each to the experts, and gather the
    results (vLLM's ``use_sequence_parallel_moe``: experts whole, over several ranks); else each sends all of them."""
    over_ranks = replica.expert_parallel_size > 1 and ranks_sharing_experts(replica) > 1
    return over_ranks and replica.tensor_parallel_size > 1


def check_experts(replica: Replica) -> None:
    """Raises ``InputError`` where the engine cannot share a replica's experts out so."""
    model, tp, dp, ep = (
        replica.model, replica.tensor_parallel_size, replica.data_parallel_size, replica.expert_parallel_size,
    )  # fmt: skip
    if model.moe is None and ep > 1:
        raise InputError(
            f"expert_parallel_size {ep} for {model.name}",
            why="it has no experts, which engines refuse beside expert parallelism",
            remedy="expert_parallel_size 1",
        )
    if model.moe is None:
        return
    everywhere = replica.engine.framework == "vllm"
    fitting = sorted({1, tp * dp} if everywhere else {*(n for n in range(1, tp + 1) if tp % n == 0), tp * dp})
    if ep not in fitting:
        raise InputError(
            f"expert_parallel_size {ep} with tensor_parallel_size {tp} and data_parallel_size {dp}",
            why="--enable-expert-parallel spreads the experts over all GPUs of a stage" if everywhere else
            "experts are shared within the tensor-parallel group, or over all GPUs",
            remedy=f"expert_parallel_size {' or '.join(map(str, fitting))}",
        )  # fmt: skip
    if ep > model.moe.num_experts:
        raise InputError(
            f"expert_parallel_size {ep} exceeds {model.name}'s {model.moe.num_experts} experts",
            why="each GPU holds whole experts",
            remedy=f"expert_parallel_size {model.moe.num_experts} or less",
        )
    width, slices = model.moe.expert_intermediate_size, expert_slices(replica)
    if width % slices:
        raise InputError(
            f"{slices} GPUs cannot share the width {width} of {model.name}'s experts",
            why="each GPU computes an equal slice of every expert",
            remedy=f"expert_parallel_size {tp * dp}, which gives each GPU whole experts",
        )
