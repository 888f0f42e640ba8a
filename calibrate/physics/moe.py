"""Time of a layer's routed experts: two grouped GEMMs over the experts that the step's tokens reach.

Rows are padded to blocks of an expert's own; blocks run in waves over the multiprocessors; the weights of each expert
that is hit are read once. Where experts are spread over GPUs, each still passes over all (token, expert) pairs of the
group: it sorts them, and its activation and sum run over their rows (vLLM's ``fused_moe``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.physics import residual, trees
from calibrate.physics.expert_layout import expert_slices
from calibrate.physics.precisions import Precision
from calibrate.physics.roofline import peak_flops
from calibrate.physics.work import expected_experts_hit, split
from catalogs.schema import Gpu, Replica

FloatArray = NDArray[np.float64]
BLOCK_COLUMNS = 128.0


@dataclass(frozen=True)
class Experts:
    """Routed experts as one GPU runs them (numbers, or arrays for many shapes at once).

    Attributes:
        num_experts: of the layer, over all GPUs. num_local: on this GPU. per_token: chosen by each token.
        hidden, inter: widths on this GPU. num_matrices: 3 for gated MLPs.
    """

    num_experts: Any
    num_local: Any
    per_token: Any
    hidden: Any
    inter: Any
    num_matrices: Any = 3


def experts_of(replica: Replica) -> Experts:
    """The experts as one GPU of a replica runs them; the replica's model has some."""
    model, moe = replica.model, replica.model.moe
    assert moe is not None
    return Experts(
        moe.num_experts, split(moe.num_experts, replica.expert_parallel_size), moe.num_experts_per_token,
        model.hidden_size, split(moe.expert_intermediate_size, expert_slices(replica)), model.num_mlp_matrices,
    )  # fmt: skip


@dataclass(frozen=True)
class Load:
    """What a step sends to the experts of one GPU (arrays).

    Attributes:
        rows: (token, expert) pairs on this GPU. hit: distinct experts that they reach.
        pairs: (token, expert) pairs over all GPUs of the group.
    """

    rows: FloatArray
    hit: FloatArray
    pairs: FloatArray


def experts_physics_s(
    fit: Mapping[str, Any],
    gpu: Gpu,
    form: Precision,
    experts: Experts,
    load: Load,
    cold: bool = False,
) -> FloatArray:
    """Seconds before the corrections.

    Args:
        fit: launch_s: floor; eff_sm_flops: share of a multiprocessor's peak; block_depth: depth of k that starting and
            ending a block costs; eff_bandwidth: share of DRAM's; row_bytes: traffic a row and value (gathering,
            scaling); pair_bytes: traffic a pair of the whole group and value (activation, summing);
            l2_bytes_per_flop, l2_copies: as of a GEMM; sharpness: of the corner.
    """
    rows, hit = load.rows, load.hit
    per_expert = rows / hit
    block = np.clip(2.0 ** np.ceil(np.log2(np.maximum(per_expert, 1.0))), 16.0, 128.0)
    row_blocks = hit * np.ceil(per_expert / block)
    sm_flops = fit["eff_sm_flops"] * peak_flops(gpu, form.compute) / gpu.num_sms
    compute = np.zeros(np.shape(row_blocks))
    for width, depth in (((experts.num_matrices - 1) * experts.inter, experts.hidden), (experts.hidden, experts.inter)):
        waves = np.maximum(row_blocks * np.ceil(width / BLOCK_COLUMNS) / gpu.num_sms, 1.0)
        compute = compute + waves * 2.0 * block * BLOCK_COLUMNS * (depth + fit.get("block_depth", 0.0)) / sm_flops
    bandwidth = gpu.memory_bandwidth_bytes_per_s
    weights = hit * experts.num_matrices * experts.hidden * experts.inter * form.weight_bytes
    traffic = weights / (fit["eff_bandwidth"] * bandwidth)
    if not cold:
        hit_l2 = 1.0 / (1.0 + (weights * fit["l2_copies"] / gpu.l2_bytes) ** 4)
        near = weights / (fit["l2_bytes_per_flop"] * peak_flops(gpu, "bf16"))
        traffic = traffic * (1.0 - hit_l2) + np.minimum(traffic, near) * hit_l2
    moved = fit["row_bytes"] * rows * (experts.hidden + experts.inter)
    moved = moved + fit.get("pair_bytes", 0.0) * load.pairs * (experts.hidden + experts.num_matrices * experts.inter)
    q = fit["sharpness"]
    return np.asarray(fit["launch_s"] + moved / bandwidth + (compute**q + traffic**q) ** (1.0 / q))


def experts_axes(experts: Experts, load: Load) -> dict[str, FloatArray]:
    """What the smooth correction depends on."""
    return {
        "rows_per_expert": np.asarray(load.rows / load.hit, dtype=np.float64),
        "experts_hit": np.asarray(load.hit, dtype=np.float64),
        "inter": np.asarray(experts.inter, dtype=np.float64),
        "hidden": np.asarray(experts.hidden, dtype=np.float64),
    }


def experts_features(gpu: Gpu, form: Precision, experts: Experts, load: Load) -> dict[str, FloatArray]:
    """What the trees ask about a layer's experts and their load, sizes in log2."""
    rows, hit, pairs = load.rows, load.hit, load.pairs
    weights = hit * experts.num_matrices * experts.hidden * experts.inter
    flops = 2.0 * rows / hit * weights / peak_flops(gpu, form.compute)
    traffic = weights * form.weight_bytes / gpu.memory_bandwidth_bytes_per_s
    asked = {
        "rows_per_expert": rows / hit, "experts_hit": hit, "inter": experts.inter, "hidden": experts.hidden,
        "num_local": experts.num_local, "num_experts": experts.num_experts, "rows": rows, "pairs": pairs,
        "pairs/rows": pairs / rows, "tokens": pairs / experts.per_token, "pairs*hidden": pairs * experts.hidden,
        "weights_l2": weights * form.weight_bytes / gpu.l2_bytes, "intensity": flops / traffic,
        "share_hit": hit / experts.num_local,
    }  # fmt: skip
    for size in (16, 64, 128):
        blocks = hit * np.ceil(rows / hit / size) / gpu.num_sms
        asked[f"up_waves_{size}"] = blocks * np.ceil((experts.num_matrices - 1) * experts.inter / BLOCK_COLUMNS)
        asked[f"down_waves_{size}"] = blocks * np.ceil(experts.hidden / BLOCK_COLUMNS)
    return {name: np.broadcast_to(np.log2(value), np.shape(rows)) for name, value in asked.items()}


def experts_time_of_s(fit: Mapping[str, Any], gpu: Gpu, form: Precision, experts: Experts, load: Load) -> FloatArray:
    """Seconds of a load, weights read from DRAM; never above the GPU's peak."""
    correction = residual.evaluate_all(fit.get("residual"), (experts_axes(experts, load),))
    if "trees" in fit:
        correction = correction + trees.evaluate(fit["trees"], experts_features(gpu, form, experts, load))
    time = experts_physics_s(fit, gpu, form, experts, load, cold=True) * np.exp(correction)
    flops = 2.0 * load.rows * experts.num_matrices * experts.hidden * experts.inter
    return np.asarray(np.maximum(time, flops / peak_flops(gpu, form.compute)))


def experts_time_s(
    fit: Mapping[str, Any], gpu: Gpu, form: Precision, experts: Experts, tokens: FloatArray, skew: float = 0.0
) -> FloatArray:
    """Seconds of one layer's experts for each number of tokens that enter the layer (over all its GPUs).

    Args:
        fit: a profile's parameters of the family. tokens: ascending. skew: power of the experts' popularity; with
            whole experts a GPU (``num_local`` < ``num_experts``) the busiest GPU sets the time.
    """
    share = experts.num_local / experts.num_experts
    tokens = np.maximum(tokens, 1.0)
    hit = np.maximum(expected_experts_hit(tokens, experts.num_experts, experts.per_token, skew) * share, 1.0)
    rows = np.maximum(tokens * experts.per_token * share * busiest_share(experts, skew, tokens), hit)
    load = Load(rows, hit, np.maximum(tokens * experts.per_token, rows))
    return np.maximum.accumulate(experts_time_of_s(fit, gpu, form, experts, load))


def busiest_share(experts: Experts, skew: float, tokens: FloatArray) -> FloatArray:
    """Rows of the busiest GPU over the mean, for each number of tokens that enter the layer; 1 for one GPU.

    The experts' popularity falls as rank^-skew and they are dealt in turn. Chance adds to it, also where they are
    equally popular: of R GPUs the busiest has the expected maximum of R normal variates (Blom 1958) above the mean,
    where a GPU's rows of one token are hypergeometric (its experts are distinct).
    """
    ways = max(1, round(experts.num_experts / experts.num_local))
    if ways == 1:
        return np.ones(np.shape(tokens))
    weight = np.arange(1, experts.num_experts + 1, dtype=np.float64) ** -skew
    popular = float(weight[::ways].sum() / weight.sum() * ways)
    num, chosen = float(experts.num_experts), float(experts.per_token)
    variance = chosen / ways * (1.0 - 1.0 / ways) * (num - chosen) / max(num - 1.0, 1.0)  # of one token's rows on a GPU
    above = NormalDist().inv_cdf((ways - 0.375) / (ways + 0.25))
    rows = np.maximum(tokens, 1.0) * chosen / ways
    by_chance = above * np.sqrt(np.maximum(tokens, 1.0) * variance) / rows
    return np.asarray(np.minimum(popular + by_chance, ways))
