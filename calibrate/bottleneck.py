"""Where a step's time goes, where it stands against the roofline, and which resource holds it back.

Each part of a step (linear layers, attention, exchanges between GPUs, engine) is put to the resource that bounds it:
compute, memory bandwidth, interconnect or launch overhead. The resource with the largest share is the bottleneck; when
the KV cache cannot hold the batch asked for, it is memory capacity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from calibrate import static_batches
from calibrate.kernel_sums import KernelSums
from calibrate.memory import MemoryPlan
from calibrate.physics import work
from calibrate.physics.cuda_graphs import padded_tokens
from calibrate.physics.expert_layout import expert_slices, ranks_sharing_experts
from calibrate.physics.lora import lora_of, lora_step_s
from calibrate.physics.precisions import kv_cache_bytes, on_gpu
from calibrate.physics.roofline import gemm_bytes, gemm_flops, peak_flops
from calibrate.profiles import Profile
from calibrate.step import StepShape
from calibrate.step_time import attention_of, step_table, token_wise_s
from calibrate.techniques import recomputation_factors
from catalogs.schema import Replica

_LINEAR_NAMES = {"compute": "linear layers", "launch overhead": "small linear layers"}
RESOURCES = ("compute", "memory bandwidth", "interconnect", "launch overhead")


@dataclass(frozen=True)
class Part:
    """One part of a step on one GPU.

    Attributes:
        name: weights (linear layers that wait for them), linear layers, small linear layers, KV cache (decode
            attention), prefill attention, collectives, other, overhead.
        seconds: its time.
        flops, num_bytes: arithmetic and DRAM traffic of it.
        resource: what bounds it.
    """

    name: str
    seconds: float
    flops: float
    num_bytes: float
    resource: str


@dataclass(frozen=True)
class StepCost:
    """A step taken apart.

    Attributes:
        parts: by kind of work; their seconds add up to ``seconds``.
        seconds: the step's time.
        peak_flops: the GPU's, in the type of its arithmetic. bandwidth_bytes_per_s: the GPU's.
    """

    parts: tuple[Part, ...]
    seconds: float
    peak_flops: float
    bandwidth_bytes_per_s: float

    @property
    def flops(self) -> float:
        """Arithmetic that the step's tokens ask for, on one GPU."""
        return sum(p.flops for p in self.parts)

    @property
    def num_bytes(self) -> float:
        """DRAM traffic of the step on one GPU."""
        return sum(p.num_bytes for p in self.parts)

    @property
    def intensity(self) -> float:
        """FLOPs a byte of DRAM traffic."""
        return self.flops / self.num_bytes if self.num_bytes else 0.0

    @property
    def ridge(self) -> float:
        """FLOPs a byte above which the GPU is bound by compute."""
        return self.peak_flops / self.bandwidth_bytes_per_s

    @property
    def mfu(self) -> float:
        """Share of the peak arithmetic rate that the step reaches."""
        return self.flops / self.seconds / self.peak_flops

    @property
    def mbu(self) -> float:
        """Share of the peak memory bandwidth that the step reaches."""
        return self.num_bytes / self.seconds / self.bandwidth_bytes_per_s

    def share(self, resource: str) -> float:
        """Share of the step's time that a resource bounds."""
        return sum(p.seconds for p in self.parts if p.resource == resource) / self.seconds

    @property
    def bottleneck(self) -> str:
        """The resource that bounds most of the step."""
        return max(RESOURCES, key=self.share)


def step_cost(replica: Replica, profile: Profile, shape: StepShape) -> StepCost:
    """A step taken apart into the parts that bound it.

    Raises:
        InputError: the GPU cannot run the precision. MissingError: the profile lacks a kernel family.
    """
    if profile.kind == "kernels":
        parts = _with_techniques(replica, _kernel_parts(replica, profile, shape), shape)
    else:
        parts = _table_parts(replica, profile, shape)
    parts = [p for p in parts if p.seconds > 0.0]
    peak = peak_flops(replica.gpu, KernelSums(replica, profile).form.compute)
    total = sum(p.seconds for p in parts)
    return StepCost(tuple(parts), total, peak, replica.gpu.memory_bandwidth_bytes_per_s)


def _with_techniques(replica: Replica, parts: list[Part], shape: StepShape) -> list[Part]:
    """The parts of a step that computes some of its work again, or beside LoRA adapters."""
    layers, attention = recomputation_factors(replica)
    again = {"engine overhead": 1.0, "head and sampling": 1.0, "prefill attention": attention}
    again["KV cache (decode attention)"] = attention
    parts = [replace(p, seconds=p.seconds * again.get(p.name, layers)) for p in parts]
    if lora_of(replica.engine) is not None:
        tokens = float(shape.num_prefill_tokens + shape.num_decode)
        seconds = float(lora_step_s(replica, np.array([tokens]))[0])
        parts.append(Part("LoRA adapters", seconds, 0.0, 0.0, "launch overhead"))
    return parts


def prefill_shape(num_tokens: int, prompt_tokens: int) -> StepShape:
    """A step of whole prompts: ``num_tokens`` in all, each prompt ``prompt_tokens`` long."""
    sampled = max(1, num_tokens // max(1, prompt_tokens))
    return StepShape(num_tokens, min(num_tokens, prompt_tokens) / 2.0, 0, 0.0, sampled)


def decode_shape(batch: int, context: float) -> StepShape:
    """A step in which ``batch`` sequences of ``context`` tokens each get one more."""
    return StepShape(0, 0.0, batch, context, batch)


def _kernel_parts(replica: Replica, profile: Profile, shape: StepShape) -> list[Part]:
    kernels, model = KernelSums(replica, profile), replica.model
    if model.kind != "decoder":
        return [*_batch_parts(kernels, shape), Part("engine overhead", _overhead_s(kernels, shape), 0.0, 0.0,
                "launch overhead")]  # fmt: skip
    one = np.ones(1)
    asked = float(shape.num_prefill_tokens + shape.num_decode)
    tokens = float(padded_tokens(replica, one * asked)[0])
    positionwise = float(kernels.positionwise_s(one * tokens)[0]) if tokens else 0.0
    exchange = _collectives_s(kernels, tokens)
    useful = asked / tokens if tokens else 0.0  # what a CUDA graph is filled up with is no work that was asked for
    linear = [replace(p, flops=p.flops * useful) for p in _linear_parts(kernels, tokens)]
    linear_s = min(sum(p.seconds for p in linear), positionwise - exchange)
    other = positionwise - exchange - linear_s
    moved = tokens * work.elementwise_bytes_per_token(model, replica.tensor_parallel_size) * model.num_layers
    parts = [*linear, Part("collectives", exchange, 0.0, 0.0, "interconnect")]
    parts.append(Part("norms, routing, exchange of experts", other, 0.0, moved, _bound(replica, 0.0, moved, other)))
    parts += _attention_parts(kernels, shape)
    sampled = float(kernels.sampled_s(one * float(shape.num_sampled))[0])
    head = work.lm_head(model, replica.tensor_parallel_size)
    if head is not None:
        size, flops = 2.0 * head.n * head.k, float(gemm_flops(shape.num_sampled, head.n, head.k))
        parts.append(Part("head and sampling", sampled, flops, size, _bound(replica, flops, size, sampled)))
    parts.append(Part("engine overhead", _overhead_s(kernels, shape), 0.0, 0.0, "launch overhead"))
    return parts


def _linear_parts(kernels: KernelSums, tokens: float) -> Iterable[Part]:
    """The linear layers, one part for each resource that bounds some of them; experts by the weights they read."""
    replica, model = kernels.replica, kernels.replica.model
    tp = replica.tensor_parallel_size
    sums: dict[str, list[float]] = {r: [0.0, 0.0, 0.0] for r in RESOURCES}
    for gemm in (*work.attention_gemms(model, tp), *work.mlp_gemms(model, tp)):
        count = gemm.share * gemm.count * model.num_layers
        seconds = float(kernels.gemm_s(gemm, np.ones(1) * tokens)[0])
        flops, size = float(gemm_flops(tokens, gemm.n, gemm.k)), float(gemm_bytes(kernels.form, tokens, gemm.n, gemm.k))
        for i, value in enumerate((seconds, flops, size)):
            sums[_bound(replica, flops, size, seconds)][i] += count * value
    for resource, (seconds, flops, size) in sums.items():
        yield Part(_LINEAR_NAMES.get(resource, "weights"), seconds, flops, size, resource)
    if model.moe is not None:
        yield _experts_part(kernels, tokens)


def _batch_parts(kernels: KernelSums, shape: StepShape) -> list[Part]:
    """A batch of an encoder or a vision model: its layers and, for encoders, attention."""
    replica, model, one = kernels.replica, kernels.replica.model, np.ones(1)
    items = float(shape.num_prefill_tokens)
    context = 2.0 * shape.prefill_mean_context  # which counts keys up to each token; an encoder's tokens see all
    seconds = float(kernels.positionwise_s(one * items)[0])
    flops = items * work.flops_per_token(model) / replica.tensor_parallel_size
    size = static_batches.activation_bytes(replica, items) + work.replica_weight_bytes(replica)
    parts = [Part("weights", seconds, flops, size, _bound(replica, flops, size, seconds))]
    if model.kind == "encoder":
        attention = float(kernels.prefill_s(one * items, one * context)[0])
        work_done = model.num_layers * work.attention_flops(model, items, context, replica.tensor_parallel_size)
        parts.append(Part("attention", attention, work_done, 0.0, "compute"))
    return parts


def _experts_part(kernels: KernelSums, tokens: float) -> Part:
    replica, model = kernels.replica, kernels.replica.model
    assert model.moe is not None
    over = replica.expert_parallel_size * expert_slices(replica)
    layers, each = work.num_moe_layers(model), work.expert_parameters(model)
    together = tokens * ranks_sharing_experts(replica)
    hit = float(work.expected_experts_hit(together, model.moe.num_experts, model.moe.num_experts_per_token))
    size = layers * hit * each * kernels.form.weight_bytes / over
    flops = layers * 2.0 * together * model.moe.num_experts_per_token * each / over
    seconds = kernels.layers * float(kernels.expert_kernels_s(np.ones(1) * tokens)[0])
    return Part("experts", seconds, flops, size, _bound(replica, flops, size, seconds))


def _attention_parts(kernels: KernelSums, shape: StepShape) -> list[Part]:
    replica, model, one = kernels.replica, kernels.replica.model, np.ones(1)
    tp, tokens, context = replica.tensor_parallel_size, float(shape.num_prefill_tokens), shape.prefill_mean_context
    prefill = float(kernels.prefill_s(one * tokens, one * context)[0])
    windows = work.layer_windows(model) if model.kind != "vision" else ()
    flops = sum(n * work.attention_flops(model, tokens, min(context, float(w or np.inf)), tp) for w, n in windows)
    parts = [Part("prefill attention", prefill, flops, 0.0, "compute")]
    if model.kind == "decoder" and shape.num_decode:
        seconds = float(kernels.decode_s(one * float(shape.num_decode), one * shape.decode_mean_context)[0])
        each = work.kv_bytes_per_sequence(model, shape.decode_mean_context, replica.kv_cache_dtype, tp)
        size = shape.num_decode * each
        flops = sum(
            n * work.attention_flops(model, shape.num_decode, min(shape.decode_mean_context, float(w or np.inf)), tp)
            for w, n in windows
        )
        parts.append(Part("KV cache (decode attention)", seconds, flops, size, _bound(replica, 0.0, size, seconds)))
    return parts


def _table_parts(replica: Replica, profile: Profile, shape: StepShape) -> list[Part]:
    """Parts of a step whose time stands in tables of one model, techniques included."""
    tokens = shape.num_prefill_tokens + shape.num_decode
    table = step_table(replica, profile, max(tokens, 1), max(1, shape.num_decode, shape.num_sampled))
    size, flops = work.replica_weight_bytes(replica), tokens * work.flops_per_token(replica.model)
    flops /= replica.tensor_parallel_size * replica.pipeline_parallel_size
    seconds = token_wise_s(table, replica, shape)
    kv = shape.num_decode * shape.decode_mean_context * work.kv_bytes_per_token(
        replica.model, replica.kv_cache_dtype, replica.tensor_parallel_size
    )  # fmt: skip
    attention = attention_of(table, shape)
    return [
        Part("weights", seconds, flops, size, _bound(replica, flops, size, seconds)),
        Part("attention", attention, 0.0, kv, _bound(replica, 0.0, kv, attention)),
        Part("head and sampling", float(table.sampled_s[shape.num_sampled]), 0.0, 0.0, "launch overhead"),
        Part("engine overhead", table.overhead_s + table.overhead_per_sequence_s * shape.num_sequences, 0.0, 0.0,
             "launch overhead"),
    ]  # fmt: skip


def _collectives_s(kernels: KernelSums, tokens: float) -> float:
    """Exchanges of a step: all-reduces after attention, MLP and embedding, tokens on their way to experts and back."""
    model, one = kernels.replica.model, np.ones(1)
    if not tokens or model.kind != "decoder":
        return 0.0
    once = kernels.all_reduce_s(one * tokens)
    layer = once + kernels.after_mlp_s(one * tokens) + kernels.exchange_s(one * tokens)
    return float(model.num_layers * layer[0] + once[0])


def _overhead_s(kernels: KernelSums, shape: StepShape) -> float:
    known = kernels.profile.overheads(kernels.replica.engine)
    each = float(known.get("per_sequence_s", 0.0))
    return float(known.get("step_overhead_s", 0.0)) + each * shape.num_sequences


def _bound(replica: Replica, flops: float, num_bytes: float, seconds: float) -> str:
    """The resource that bounds a part: its data-sheet floor's, or launching when the floor is under a third of it."""
    compute = flops / peak_flops(replica.gpu, on_gpu(replica.precision, replica.gpu).compute)
    traffic = num_bytes / replica.gpu.memory_bandwidth_bytes_per_s
    if seconds > 3.0 * max(compute, traffic):
        return "launch overhead"
    return "compute" if compute > traffic else "memory bandwidth"


def explain_bottleneck(
    cost: StepCost, plan: MemoryPlan, replica: Replica, batch: int, context: float
) -> tuple[str, str]:
    """The bottleneck's name, and the sentence with the numbers that say so."""
    needed = batch * context
    if replica.model.kind == "decoder" and needed > plan.num_kv_tokens:
        size = kv_cache_bytes(replica.kv_cache_dtype, replica.model.dtype)
        return "memory capacity", (
            f"{batch:,} sequences of {context:,.0f} tokens need KV for {needed:,.0f} tokens and the cache holds "
            f"{plan.num_kv_tokens:,} ({plan.kv_bytes_per_token / 1024:.0f} KiB a token, {size:g} bytes a value): "
            f"{int(plan.num_kv_tokens // max(1.0, context)):,} sequences run at once"
        )
    name = cost.bottleneck
    share = f"{cost.share(name):.0%} of the step's {cost.seconds * 1e3:.2f} ms"
    numbers = {
        "compute": f"{cost.flops / 1e12:.2f} TFLOP a GPU at {cost.mfu:.0%} of {cost.peak_flops / 1e12:.0f} TFLOP/s",
        "memory bandwidth": f"{cost.num_bytes / 1e9:.2f} GB a GPU at {cost.mbu:.0%} of "
        f"{cost.bandwidth_bytes_per_s / 1e9:,.0f} GB/s",
        "interconnect": "all-reduces between the GPUs of the replica",
        "launch overhead": "kernel launches and the engine's own work between steps",
    }
    at = f"{cost.intensity:.0f} FLOP/byte against a ridge of {cost.ridge:.0f}"
    return name, f"{share}: {numbers[name]}; {at}"
