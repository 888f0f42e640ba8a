"""CUDA graphs of vLLM (0.19): a step runs the smallest captured one that holds its tokens, padding included."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibrate.physics.expert_exchange import WITHOUT_GRAPHS, exchange_backend
from calibrate.physics.expert_layout import ranks_sharing_experts
from catalogs.schema import Replica

FloatArray = NDArray[np.float64]
# 1, 2, 4, then every 8, from 256 every 16 (``vllm/config/compilation.py``, ``cudagraph_capture_sizes``)
GRAPH_SIZES = np.array([1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)], np.float64)


def largest_graph(replica: Replica) -> int:
    """Tokens of the largest graph that vLLM captures; 0: none.

    Twice ``max_num_seqs`` (times the tokens that a sequence verifies), at most 512 and the token budget
    (``vllm/config/vllm.py``, ``_set_cudagraph_sizes``).
    """
    engine = replica.engine
    if ranks_sharing_experts(replica) > 1 and exchange_backend(replica) == WITHOUT_GRAPHS:
        return 0
    if engine.framework != "vllm" or engine.enforce_eager or replica.model.kind != "decoder":
        return 0
    speculative = engine.options.get("speculative")
    verified = 1 + int(speculative["num_speculative_tokens"]) if isinstance(speculative, dict) else 1
    most = min(512, 2 * (engine.max_num_seqs or 256) * verified, engine.max_num_batched_tokens or 512)
    return int(GRAPH_SIZES[most >= GRAPH_SIZES][-1])


def padded_tokens(replica: Replica, tokens: FloatArray) -> FloatArray:
    """Tokens that a step computes; beyond the largest graph there is no padding."""
    place = np.minimum(np.searchsorted(GRAPH_SIZES, tokens), len(GRAPH_SIZES) - 1)
    return np.where(tokens <= largest_graph(replica), np.where(tokens > 0, GRAPH_SIZES[place], 0.0), tokens)
