"""`plan estimate`: does a model fit a GPU, what bounds it, and how fast is it?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli.output import Table, emit, format_option

if TYPE_CHECKING:
    from calibrate.bottleneck import StepCost
    from calibrate.memory import MemoryPlan
    from calibrate.profiles import Profile
    from calibrate.step import StepShape
    from catalogs.schema import Replica


@click.command()
@click.argument("model")
@click.option("--gpu", required=True, help="Catalogue name, as in `plan catalog gpus`.")
@click.option("--tp", "--tensor-parallel-size", "tp", type=click.IntRange(1), default=1, show_default=True)
@click.option("--pp", "--pipeline-parallel-size", "pp", type=click.IntRange(1), default=1, show_default=True)
@click.option("--ep", "--expert-parallel-size", "ep", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--precision", default=None, help="bf16, fp8, int4-awq ...; default: what the GPU runs natively in 16 bit."
)
@click.option("--kv-cache-dtype", default="auto", show_default=True)
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Sequences (or images) at once.")
@click.option(
    "--context", type=click.IntRange(1), default=None, help="Tokens in a sequence; default 2048, encoders 384."
)
@click.option("--framework", default=None, help="vllm, tensorrt-llm, tgi, sglang, onnxruntime.")
@click.option("--max-num-seqs", type=click.IntRange(1), default=None)
@click.option("--max-num-batched-tokens", type=click.IntRange(1), default=None)
@click.option("--max-model-len", type=click.IntRange(1), default=None)
@click.option("--gpu-memory-utilization", type=click.FloatRange(0, 1, min_open=True), default=None)
@click.option("--attention-backend", default=None, help="auto, eager, xformers, flash1, flash2, flash3, FLASHINFER ...")
@click.option(
    "--activation-chunk-tokens",
    type=click.IntRange(1),
    default=None,
    help="Compute a layer's inner tensors for so many tokens at a time.",
)
@click.option(
    "--recompute",
    type=click.Choice(["none", "selective", "full"]),
    default=None,
    help="Keep a step's activations, and compute again: nothing, attention, or all but each layer's input.",
)
@click.option(
    "--compression",
    default=None,
    metavar="KEY=VALUE,...",
    help="Pruning: method=2of4; method=layers,num_layers=24; method=width,...; method=unstructured,sparsity=0.5",
)
@click.option("--enable-lora", is_flag=True, help="Serve LoRA adapters; implied by the flags that follow.")
@click.option("--lora-adapters", type=click.IntRange(1), default=None, help="Adapters that requests ask for.")
@click.option("--lora-rank", type=click.IntRange(1), default=None, help="Their rank; default 16.")
@click.option("--max-loras", type=click.IntRange(1), default=None, help="Slots, and adapters in one batch.")
@click.option("--max-lora-rank", type=click.IntRange(1), default=None)
@click.option("--max-cpu-loras", type=click.IntRange(1), default=None)
@click.option("--profile", "profile_name", default=None, help="A profile file or name; default: the best shipped one.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write the roofline as SVG."
)
@format_option
def estimate(**flags: Any) -> None:
    """Does MODEL fit a GPU? Memory by part, KV tokens, step time by part, roofline, bottleneck.

    MODEL is a catalogue name, a Hugging Face id or the path of a config.json.

    \b
    Example:
      plan estimate llama-3.1-8b --gpu L4 --precision fp8 --batch 64 --context 1500
    """
    from calibrate.bottleneck import explain_bottleneck, step_cost
    from calibrate.memory import memory_plan
    from calibrate.profiles import best_profile, load_profile

    replica = _replica(flags)
    name = flags["profile_name"]
    profile = load_profile(name, "--profile") if name else best_profile(replica)
    plan = memory_plan(replica)
    batch, context = flags["batch"], flags["context"] or (2048 if replica.model.kind == "decoder" else 384)
    context = min(context, plan.max_model_len or context)
    shape = _shape(replica, batch, context)
    cost = step_cost(replica, profile, shape)
    bottleneck, why = explain_bottleneck(cost, plan, replica, batch, float(context))
    rates = _rates(replica, profile, plan, cost, batch, context)
    if flags["plot"]:
        from catalogs.files import write_text

        write_text(flags["plot"], _roofline_svg(replica, cost))
    _show(flags["form"], replica, profile, plan, (cost, bottleneck, why), rates)


def _replica(flags: dict[str, Any]) -> Replica:
    from calibrate.physics.compression import compressed, parse_compression
    from calibrate.physics.precisions import on_gpu
    from catalogs.load import find_gpu, find_model, resolve_engine
    from catalogs.schema import Engine, Replica

    model, gpu = find_model(flags["model"], "MODEL"), find_gpu(flags["gpu"], "--gpu")
    precision = flags["precision"] or model.quantization or ("bf16" if "bf16" in gpu.peak_flops else "fp16")
    if flags["compression"]:
        pruned = parse_compression(flags["compression"], "--compression")
        model, precision = compressed(model, precision, pruned, "--compression")
    on_gpu(precision, gpu)
    framework = flags["framework"] or ("vllm" if model.kind == "decoder" else "onnxruntime")
    engine = Engine(
        framework=framework,
        max_num_seqs=flags["max_num_seqs"],
        max_num_batched_tokens=flags["max_num_batched_tokens"],
        max_model_len=flags["max_model_len"],
        gpu_memory_utilization=flags["gpu_memory_utilization"],
        options=_techniques(flags),
    )
    return Replica(
        model,
        gpu,
        tensor_parallel_size=flags["tp"],
        pipeline_parallel_size=flags["pp"],
        expert_parallel_size=flags["ep"],
        precision=precision,
        kv_cache_dtype=flags["kv_cache_dtype"],
        engine=resolve_engine(engine, model, gpu),
    )


def _techniques(flags: dict[str, Any]) -> dict[str, object]:
    """What goes beyond an engine's common core, as a scenario's ``engine`` section has it."""
    own = {
        "attention_backend": "attention_backend",
        "activation_chunk_tokens": "activation_chunk_tokens",
        "recompute": "activation_recomputation",
    }
    techniques: dict[str, object] = {name: flags[flag] for flag, name in own.items() if flags[flag] is not None}
    names = {"lora_adapters": "num_adapters", "lora_rank": "rank"}
    flags_of_lora = (*names, "max_loras", "max_lora_rank", "max_cpu_loras")
    lora = {names.get(flag, flag): flags[flag] for flag in flags_of_lora if flags[flag] is not None}
    if lora or flags["enable_lora"]:
        techniques["lora"] = lora
    return techniques


def _shape(replica: Replica, batch: int, context: int) -> StepShape:
    from calibrate.bottleneck import decode_shape, prefill_shape
    from calibrate.step import StepShape

    if replica.model.kind == "decoder":
        return decode_shape(batch, context)
    if replica.model.kind == "vision":
        return StepShape(batch, 0.0, 0, 0.0, 0)
    shape = prefill_shape(batch * context, context)
    return StepShape(shape.num_prefill_tokens, float(context), 0, 0.0, 0)  # encoders attend both ways


def _rates(
    replica: Replica, profile: Profile, plan: MemoryPlan, cost: StepCost, batch: int, context: int
) -> dict[str, float]:
    from calibrate.bottleneck import prefill_shape, step_cost

    if replica.model.kind != "decoder":
        return {"step_s": cost.seconds, "items_per_s": batch / cost.seconds, "max_batch_size": plan.max_batch_size}
    tokens = replica.engine.max_num_batched_tokens or 2048
    prefill = step_cost(replica, profile, prefill_shape(tokens, min(tokens, context)))
    return {
        "step_s": cost.seconds,
        "output_tokens_per_s": batch / cost.seconds,
        "prefill_step_tokens": tokens,
        "prefill_tokens_per_s": tokens / prefill.seconds,
        "prefill_mfu": prefill.mfu,
    }


def _show(
    form: str,
    replica: Replica,
    profile: Profile,
    plan: MemoryPlan,
    step: tuple[StepCost, str, str],
    rates: dict[str, float],
) -> None:
    from calibrate.techniques import technique_notes
    from catalogs.units import GIB

    cost, bottleneck, why = step
    memory = Table(
        f"Memory of one {replica.gpu.name} ({plan.device_bytes / GIB:.1f} GiB)",
        ["part", "GiB", "source", "what it rests on"],
        [[p.name, p.num_bytes / GIB, p.source, p.note] for p in plan.parts],
    )
    parts = Table(
        f"One step, {cost.seconds * 1e3:.3f} ms",
        ["part", "ms", "share", "bound by"],
        [[p.name, p.seconds * 1e3, p.seconds / cost.seconds, p.resource] for p in cost.parts],
    )
    figures: list[list[object]] = [[name, value] for name, value in rates.items()]
    figures += [["MFU", cost.mfu], ["MBU", cost.mbu], ["FLOP per byte", cost.intensity], ["ridge", cost.ridge]]
    if replica.model.kind == "decoder":
        figures += [["num_gpu_blocks", plan.num_gpu_blocks], ["KV tokens", plan.num_kv_tokens]]
        figures += [["max_model_len", plan.max_model_len]]
    techniques = technique_notes(replica)
    document = {
        "schema_version": 1,
        "model": replica.model.name,
        "gpu": replica.gpu.name,
        "precision": replica.precision,
        "gpus": replica.num_gpus,
        "fits": True,
        "memory": [vars(p) for p in plan.parts],
        "num_gpu_blocks": plan.num_gpu_blocks,
        "num_kv_tokens": plan.num_kv_tokens,
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "max_model_len": plan.max_model_len,
        "step": {"seconds": cost.seconds, "parts": [vars(p) for p in cost.parts]},
        "roofline": {"flop_per_byte": cost.intensity, "ridge": cost.ridge, "mfu": cost.mfu, "mbu": cost.mbu},
        "rates": rates,
        "bottleneck": {"name": bottleneck, "why": why},
        "profile": {"name": profile.name, "source": profile.source, "error": profile.error},
        "notes": [*plan.notes, *techniques],
    }
    notes = [
        f"Bottleneck: {bottleneck} ({why})",
        f"Profile: {profile.name} ({profile.source})",
        *techniques,
        *plan.notes,
    ]
    emit(form, document, [memory, parts, Table("Rates", ["figure", "value"], figures)], notes)


def _roofline_svg(replica: Replica, cost: StepCost) -> str:
    from app.charts import Axis, Series, svg

    low, high = min(0.5, cost.intensity / 4 or 0.5), max(4 * cost.ridge, 4 * cost.intensity)
    roof_x = [low, cost.ridge, high]
    roof_y = [min(cost.peak_flops, x * cost.bandwidth_bytes_per_s) / 1e12 for x in roof_x]
    series = [Series("roofline (data sheet)", roof_x, roof_y)]
    for part in cost.parts:
        if part.flops and part.num_bytes:
            at, reached = part.flops / part.num_bytes, part.flops / part.seconds / 1e12
            series.append(Series(part.name, [at], [reached], "points"))
    series.append(Series("whole step", [cost.intensity], [cost.flops / cost.seconds / 1e12], "points"))
    title = f"{replica.model.name} {replica.precision} on {replica.gpu.name}"
    x, y = Axis("FLOP per byte of DRAM traffic", True), Axis("TFLOP/s a GPU", True)
    return svg(title, series, x, y, size=(720, 420))
