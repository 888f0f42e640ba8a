"""`plan calibrate run`: measure this machine's kernels and batches."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli.output import Table, emit, format_option, progress_bar
from catalogs.errors import InputError, MissingError

if TYPE_CHECKING:
    from calibrate.device.device_run import Plan
    from calibrate.device.measurements import MeasurementFile
    from calibrate.device.sweep import Scale


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    default="measurements.jsonl",
    show_default=True,
    help="File to write; an interrupted run resumes from it.",
)
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True)
@click.option("--budget", "budget_s", type=click.FloatRange(min=1), help="Seconds to spend (GPU 270, CPU 130).")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; left out: all, or one on a busy machine.")
@click.option("--quick", is_flag=True, help="Every family once, at tiny sizes; seconds.")
@click.option("--plan-only", is_flag=True, help="Say what would run and how long it would take, then stop.")
@click.option("--no-batches", is_flag=True, help="Single kernels alone.")
@click.option("--collectives", is_flag=True, help="All-reduce and send-receive too where there is one GPU or none.")
@format_option
def run(
    output: str,
    device: str,
    budget_s: float | None,
    threads: int | None,
    quick: bool,
    plan_only: bool,
    no_batches: bool,
    collectives: bool,
    form: str,
) -> None:
    """Measure this machine: kernels in every number format, then whole batches that the kernels must predict.

    Needs torch. A plan with the expected duration comes first; an interrupted run resumes when called again with the
    same file. `plan calibrate fit` turns the file into a profile.

    \b
    Example:
      plan calibrate run -o measurements.jsonl
      plan calibrate fit measurements.jsonl -o my-gpu.json
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingError(
            "torch is not installed",
            why="kernels are timed with it",
            remedy="pip install torch   (CPU only: --index-url https://download.pytorch.org/whl/cpu)",
        )
    import torch

    from calibrate.device import device_run
    from calibrate.device.collective_kernels import measure_collectives

    chosen, scale = _target(device, quick, budget_s)
    if chosen.type == "cpu":
        device_run.choose_threads(threads)
    path = Path(output)
    if not path.absolute().parent.is_dir():
        raise InputError(f"no directory {path.parent}", where="--output", remedy="make it first, or choose another")
    plan = device_run.make_plan(chosen, scale, path, batches=not no_batches)
    document, tables = _plan_answer(plan)
    if plan_only:
        emit(form, document, tables, [f"about {plan.predicted_s:.0f} s in all"])
        return
    click.echo(f"{plan.header['name']}: {len(plan.left)} cases, about {plan.predicted_s:.0f} s", err=True)
    with progress_bar("measuring") as progress:
        held = device_run.run(plan, chosen, scale, path, progress, device_run.now_s)
        if collectives or torch.cuda.device_count() > 1:
            held = measure_collectives(path, chosen, held)
    document, tables = _run_answer(held, scale, document)
    emit(form, document, tables, _notes(held, plan, output))


def _target(device: str, quick: bool, budget_s: float | None) -> tuple[Any, Scale]:
    from dataclasses import replace

    import torch

    from calibrate.device import sweep
    from calibrate.device.batches import torch_devices

    kinds = list(torch_devices())
    if device == "cuda" and "cuda" not in kinds:
        raise MissingError(
            "torch sees no CUDA device",
            where="--device",
            why=f"torch {torch.__version__} was built {'for CUDA' if torch.version.cuda else 'without CUDA'}",
            remedy="check nvidia-smi and the torch build, or pass --device cpu",
        )
    kind = kinds[0] if device == "auto" else device
    chosen = torch.device("cuda:0" if kind == "cuda" else "cpu")
    if quick:
        scale = sweep.quick_scale()
    elif kind == "cuda":
        scale = sweep.gpu_scale(torch.cuda.get_device_properties(chosen).total_memory)
    else:
        scale = sweep.cpu_scale()
    return chosen, replace(scale, budget_s=budget_s) if budget_s else scale


def _plan_answer(plan: Plan) -> tuple[dict[str, Any], list[Table]]:
    left = {c.key for c in plan.left}
    cases = [*plan.kernels, *plan.batches]
    groups = list(dict.fromkeys((c.family, c.dtype) for c in cases))
    rows = []
    for family, dtype in groups:
        own = [c for c in cases if (c.family, c.dtype) == (family, dtype)]
        todo = [c for c in own if c.key in left]
        dropped = sum((c.family, c.dtype) == (family, dtype) for c in plan.dropped)
        rows.append([family, dtype, len(own), len(own) - len(todo), dropped, sum(plan.cost_s[c.key] for c in todo)])
    columns = ["family", "dtype", "cases", "already done", "left out", "expected_s"]
    document = {
        "schema_version": 1,
        "device": plan.header,
        "plan": [dict(zip(columns, row, strict=True)) for row in rows],
        "expected_s": plan.predicted_s,
    }
    return document, [Table(f"Plan for {plan.header['name']}", columns, rows)]


def _run_answer(held: MeasurementFile, scale: Scale, document: dict[str, Any]) -> tuple[dict[str, Any], list[Table]]:
    import numpy as np

    from calibrate.device.compose import KernelTimes
    from calibrate.device.device_run import check_batches

    whole = ("step", "encoder_batch", "vision_batch")
    kernels = [p for p in held.points if p.family not in whole]
    peaks = [[d, rate / 1e12] for d, rate in held.header["achieved_peak_flops"].items()]
    peaks.append(["memory (TB/s)", held.header["achieved_bandwidth_bytes_per_s"] / 1e12])
    errors = KernelTimes(kernels).left_out_errors()
    summary = []
    for (family, dtype, variant), error in errors.items():
        spread = [(p.p90_s - p.p10_s) / p.median_s for p in held.family(family, dtype, variant)]
        size = np.abs(error)
        values = [float(np.median(size)), float(np.quantile(size, 0.9)), float(np.median(spread))]
        summary.append([family, dtype, variant, len(error), *values])
    batches = check_batches(held, scale)
    rows = [
        [
            b["batch"],
            b["measured_s"] * 1e3,
            (b["p90_s"] - b["p10_s"]) / b["measured_s"],
            b["predicted_s"] * 1e3,
            b["error"],
        ]
        for b in batches
    ]
    off = [abs(b["error"]) for b in batches]
    skipped = Counter((s["family"], s["dtype"], s["variant"], s["reason"]) for s in held.skipped)
    answer = document | {
        "num_points": len(held.points),
        "kernels": [
            dict(zip(("family", "dtype", "variant", "points", "median_error", "p90_error", "spread"), r, strict=True))
            for r in summary
        ],
        "batches": batches,
        "batch_error_median": float(np.median(off)) if off else None,
        "skipped": [dict(zip(("family", "dtype", "variant", "reason"), key, strict=True)) for key in skipped],
        "remarks": list(held.remarks),
        "file": held.path,
    }
    tables = [
        Table("Whole batches: their kernels' prediction", ["batch", "ms", "spread", "predicted ms", "error"], rows),
        Table("Achieved peak", ["dtype", "TFLOP/s"], peaks),
        Table(
            "Kernels, each point predicted by its neighbours",
            ["family", "dtype", "variant", "points", "median error", "p90 error", "spread"],
            summary,
        ),
        Table(
            "Skipped",
            ["family", "dtype", "variant", "cases", "why"],
            [[*key[:3], num, key[3]] for key, num in skipped.items()],
        ),
    ]
    return answer, [t for t in tables if t.rows]


def _notes(held: MeasurementFile, plan: Plan, output: str) -> list[str]:
    import statistics

    from catalogs.units import MHZ, MICROSECONDS_PER_SECOND

    notes = [f"note: {text}" for text in dict.fromkeys(held.remarks)]
    launches = {p.variant: p.median_s * MICROSECONDS_PER_SECOND for p in held.family("launch")}
    if launches:
        said = ", ".join(f"{variant} {us:.2f} µs" for variant, us in launches.items())
        notes.append(f"launch overhead a kernel: {said}")
    clocks = [p.clock_hz for p in held.points if p.clock_hz]
    warmth = [p.temperature_c for p in held.points if p.temperature_c]
    if clocks:
        warm = f", up to {max(warmth):.0f} °C" if warmth else ""
        notes.append(f"clock: median {statistics.median(clocks) / MHZ:.0f} MHz{warm}")
    if plan.dropped:
        notes.append(f"{len(plan.dropped)} dear cases were left out to keep the time budget; --budget raises it")
    notes.append(f"next: plan calibrate fit {output} -o profile.json")
    return notes
