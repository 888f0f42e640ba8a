"""`plan catalog`: what the planner knows of GPUs, models and instances, and where each figure is from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from app.cli.output import Table, emit, format_option

DETAIL = ("as of", "confidence", "notes", "source")  # in csv and json; too wide to read in a terminal


@click.group()
def catalog() -> None:
    """GPUs, models and instances that are known.

    \b
    Example:
      plan catalog gpus
    """


@catalog.command()
@format_option
def gpus(form: str) -> None:
    """Every GPU: dense peak rates, memory, links, source.

    \b
    Example:
      plan catalog gpus --format csv
    """
    from catalogs import load
    from catalogs.units import GB, GIB, TERA

    found = list(load.gpus().values())
    columns = ("gpu", "architecture", "cc", "memory GiB", "GB/s", "bf16 TFLOPS", "fp16", "fp8", "int8", "fp4",
               "NVLink GB/s", "PCIe GB/s", "W", "as of", "confidence", "notes", "source")  # fmt: skip
    rows = [
        (g.name, g.architecture, g.compute_capability, round(g.memory_bytes / GIB, 2),
         g.memory_bandwidth_bytes_per_s / GB,
         *(None if d not in g.peak_flops else g.peak_flops[d] / TERA for d in ("bf16", "fp16", "fp8", "int8", "fp4")),
         None if g.nvlink_bytes_per_s is None else g.nvlink_bytes_per_s / GB, g.pcie_bytes_per_s / GB, g.tdp_w,
         g.as_of, g.confidence, g.notes, g.source)
        for g in found
    ]  # fmt: skip
    notes = ["Rates are dense. Links are one direction, per GPU. Memory is what CUDA reports."]
    document = {"schema_version": 1, "gpus": [_plain(g) for g in found]}
    emit(form, document, [_table("GPUs", columns, rows, form, ("architecture", "cc", "W", *DETAIL))], notes)


@catalog.command()
@click.option("--kind", type=click.Choice(["decoder", "encoder", "vision"]), help="Only models of this kind.")
@format_option
def models(kind: str | None, form: str) -> None:
    """Every model: its shape and its published size.

    \b
    Example:
      plan catalog models --kind decoder
    """
    from catalogs import load

    found = [m for m in load.models().values() if kind in (None, m.kind)]
    columns = ("model", "kind", "B params", "layers", "hidden", "heads", "kv heads", "head dim", "experts", "active",
               "window", "vocab", "max tokens", "dtype", "source")  # fmt: skip
    rows = [
        (m.name, m.kind, None if m.num_parameters is None else m.num_parameters / 1e9, m.num_layers, m.hidden_size,
         m.num_attention_heads, "MLA" if m.mla else m.num_kv_heads, m.head_dim, m.moe.num_experts if m.moe else None,
         m.moe.num_experts_per_token if m.moe else None, m.sliding_window, m.vocab_size, m.max_position_embeddings,
         m.quantization or m.dtype, m.source)
        for m in found
    ]  # fmt: skip
    notes = ["Any Hugging Face id of these, or a path to a config.json, is understood too."]
    document = {"schema_version": 1, "models": [_plain(m) for m in found]}
    emit(form, document, [_table("Models", columns, rows, form, ("kind", "head dim", "vocab", *DETAIL))], notes)


@catalog.command()
@click.option("--gpu", help="Only instances with this GPU.")
@click.option("--cloud", help="Only this cloud: aws, azure, gcp, lambda, runpod, coreweave.")
@format_option
def instances(gpu: str | None, cloud: str | None, form: str) -> None:
    """Every instance that is for sale.

    \b
    Example:
      plan catalog instances --gpu L40S --cloud aws
    """
    from catalogs import load
    from catalogs.names import resolve
    from catalogs.units import GB, GBIT_BYTES, GIB

    wanted = load.find_gpu(gpu, "--gpu").name if gpu else None
    clouds = sorted({i.cloud for i in load.instances().values()})
    seller = resolve(cloud, clouds, "cloud", "--cloud") if cloud else None
    found = [i for i in load.instances().values() if wanted in (None, i.gpu) and seller in (None, i.cloud)]
    columns = ("instance", "cloud", "GPU", "GPUs", "share", "vCPU", "memory GiB", "network Gbit/s", "NVMe GB", "fabric",
               "fabric GB/s", "as of", "notes", "source")  # fmt: skip
    rows = [
        (i.name, i.cloud, i.gpu, i.num_gpus, i.gpu_fraction, i.num_vcpus, _per(i.memory_bytes, GIB),
         _per(i.network_bytes_per_s, GBIT_BYTES), _per(i.local_nvme_bytes, GB), i.interconnect,
         _per(i.interconnect_bytes_per_s, GB), i.as_of, i.notes, i.source)
        for i in found
    ]  # fmt: skip
    notes = ["Fabric is one direction, per GPU. A dash is not known."]
    document = {"schema_version": 1, "instances": [_plain(i) for i in found]}
    emit(form, document, [_table("Instances", columns, rows, form, ("as of", *DETAIL))], notes)


@catalog.command()
@click.option("--gpu", "names", multiple=True, help="Only these GPUs; may be given again.")
@format_option
def precisions(names: tuple[str, ...], form: str) -> None:
    """Every precision, and how each GPU runs it: native, emulated, weight only (widened to 16 bit), or refused.

    \b
    Example:
      plan catalog precisions --gpu T4 --gpu H100-SXM
    """
    from calibrate.physics.precisions import PRECISIONS, support_words
    from catalogs import load

    chosen = [load.find_gpu(n, "--gpu") for n in names] or list(load.gpus().values())
    words = {p: {g.name: support_words(p, g) for g in chosen} for p in PRECISIONS}
    few = bool(names) or form == "csv"
    columns = ["precision", "bytes a weight", *[g.name for g in chosen]]
    rows = [
        [p, PRECISIONS[p].weight_bytes, *[text if few else _SHORT[text.split(":")[0]] for text in words[p].values()]]
        for p in PRECISIONS
    ]
    notes = [] if few else ["n native, e emulated, w weight only, - refused; `--gpu` says why."]
    document = {
        "schema_version": 1,
        "precisions": [
            {"precision": p, "weight_bytes": PRECISIONS[p].weight_bytes, "gpus": words[p]} for p in PRECISIONS
        ],
    }
    emit(form, document, [Table("Precisions", columns, rows)], notes)


_SHORT = {"native": "n", "emulated": "e", "weight only": "w", "refused": "-"}


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], form: str, hidden: Sequence[str]
) -> Table:
    """The whole table for csv; without ``hidden`` columns for people."""
    kept = [i for i, name in enumerate(columns) if form == "csv" or name not in hidden]
    return Table(title, [columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _per(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _plain(noun: Any) -> dict[str, Any]:
    """A frozen noun as JSON-ready fields, nested nouns included."""
    from collections.abc import Mapping
    from dataclasses import fields, is_dataclass

    out: dict[str, Any] = {}
    for f in fields(noun):
        value = getattr(noun, f.name)
        if is_dataclass(value):
            value = _plain(value)
        out[f.name] = dict(value) if isinstance(value, Mapping) else value
    return out
