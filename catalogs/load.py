"""The catalogues in memory: GPUs, models, instances, prices and engine defaults, each read once, checked whole.

Data lie beside this file as CSV and YAML with units in the column names, ``source`` and ``as_of`` on each row. Prices
fetched from AWS (``plan prices refresh``) take the place of the catalogue's where they are newer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import cast, get_args

from catalogs.engines import engine_defaults as engine_defaults
from catalogs.engines import frameworks as frameworks
from catalogs.engines import resolve_engine as resolve_engine
from catalogs.errors import InputError
from catalogs.names import nearest, normalise, resolve
from catalogs.schema import Gpu, Instance, Mla, Model, ModelKind, Moe, Price, Purchase
from catalogs.tables import Row, read_table, scaled
from catalogs.units import GB, GBIT_BYTES, GIB, MIB, TERA

DATA = Path(__file__).parent
PEAK_COLUMNS = {
    "fp32": "fp32_tflops", "tf32": "tf32_tflops", "fp16": "fp16_tflops", "bf16": "bf16_tflops",
    "fp8": "fp8_tflops", "int8": "int8_tops", "int4": "int4_tops", "fp4": "fp4_tflops",
}  # fmt: skip
PURCHASES: tuple[str, ...] = get_args(Purchase)
CONFIDENCES = ("high", "medium", "low")
ANY_REGION = "any"  # a seller with one price everywhere


@cache
def _gpu_rows() -> tuple[tuple[Gpu, tuple[str, ...]], ...]:
    return tuple(read_table(DATA / "gpus.csv", _gpu, lambda pair: pair[0].name))


@cache
def gpus() -> Mapping[str, Gpu]:
    """Every GPU by name, in the order of the file.

    Raises:
        InputError: a row is bad.
    """
    return MappingProxyType({gpu.name: gpu for gpu, _ in _gpu_rows()})


@cache
def models() -> Mapping[str, Model]:
    """Every model by name, in the order of the file.

    Raises:
        InputError: a row is bad.
    """
    return MappingProxyType({m.name: m for m in read_table(DATA / "models.csv", _model, lambda m: m.name)})


@cache
def instances() -> Mapping[str, Instance]:
    """Every instance that is for sale, by name, in the order of the file.

    Raises:
        InputError: a row is bad, or names a GPU that is not in ``gpus.csv``.
    """
    rows = read_table(DATA / "instances.csv", _instance, lambda i: i.name)
    unknown = [f"{i.name} ({i.gpu})" for i in rows if i.gpu not in gpus()]
    if unknown:
        raise InputError(f"instances with an unknown GPU: {', '.join(unknown)}", where=str(DATA / "instances.csv"))
    return MappingProxyType({i.name: i for i in rows})


@cache
def catalogue_prices() -> tuple[Price, ...]:
    """The prices that come with the project, one for each instance, region and purchase form.

    Raises:
        InputError: a row is bad, or names an instance that is not in ``instances.csv``.
    """
    rows = read_table(DATA / "prices.csv", _price, lambda p: (p.instance, p.region, p.purchase))
    unknown = sorted({p.instance for p in rows if p.instance not in instances()})
    if unknown:
        raise InputError(f"prices of unknown instances: {', '.join(unknown)}", where=str(DATA / "prices.csv"))
    return tuple(rows)


@cache
def prices() -> tuple[Price, ...]:
    """The best known prices, one for each instance, region and purchase form.

    What ``plan prices refresh`` fetched stands where it is as new as the catalogue or newer; each price's ``source``
    says so. A combination that is absent is not known; it is never guessed.

    Raises:
        InputError: a row is bad, or the store of fetched prices cannot be read.
    """
    from catalogs.price_store import PriceStore, as_prices, merge

    store = PriceStore()
    if not store.exists():
        return catalogue_prices()
    return merge(catalogue_prices(), [p for p in as_prices(store.quotes()) if p.instance in instances()])


def find_gpu(name: str, where: str = "") -> Gpu:
    """The GPU that ``name`` means; case, spaces and punctuation do not count, and drivers' long names are known.

    Such as ``NVIDIA H100 80GB HBM3`` or ``Tesla T4``.

    Raises:
        InputError: no GPU has this name; the message gives the nearest.
    """
    known, key = _gpu_keys(), normalise(name)
    found = known.get(key) or known.get(key.removeprefix("nvidia").removeprefix("tesla"))
    return gpus()[found or resolve(name, gpus(), "GPU", where)]


def known_gpu(name: str) -> Gpu | None:
    """The GPU that a driver's device name means; ``None`` where the catalogue has none of that name."""
    try:
        return find_gpu(name)
    except InputError:
        return None


def find_model(name_or_path: str, where: str = "") -> Model:
    """The model that is meant: a catalogue name, a Hugging Face id, or a path to a ``config.json`` or its folder.

    Raises:
        InputError: no model has this name (the message gives the nearest), or the config cannot be used.
    """
    path = _config_path(name_or_path)
    if path is not None:
        from catalogs.hf_config import read_config

        return read_config(path)
    by_key = _model_keys()
    for key, quantization in _model_spellings(name_or_path):
        if key in by_key:
            found = models()[by_key[key]]
            return replace(found, quantization=quantization) if quantization else found
    close = nearest(name_or_path.rsplit("/", 1)[-1], models())
    raise InputError(
        f"unknown model {name_or_path!r}",
        where=where,
        why="a model's size and shape decide everything else",
        remedy=f"did you mean {' or '.join(close)}? or give the path of a Hugging Face config.json"
        if close
        else "`plan catalog models` lists what is known; or give the path of a Hugging Face config.json",
    )


def _config_path(text: str) -> Path | None:
    """The ``config.json`` that ``text`` names, itself or by its folder; ``None`` where it is no path."""
    try:
        path = Path(text).expanduser()
        if path.is_dir() and (path / "config.json").is_file():
            return path / "config.json"
    except (OSError, RuntimeError):  # longer than any file's name; the home of nobody
        return None
    return path if text.endswith(".json") else None


def find_instance(name: str, where: str = "") -> Instance:
    """The instance that ``name`` means.

    Raises:
        InputError: no instance has this name; the message gives the nearest.
    """
    return instances()[resolve(name, instances(), "instance type", where)]


@cache
def regions() -> tuple[str, ...]:
    """Every region with at least one price, sorted; ``any`` left out."""
    return tuple(sorted({p.region for p in prices()} - {ANY_REGION}))


def find_region(name: str, where: str = "") -> str:
    """The region that ``name`` means.

    Raises:
        InputError: no price is known there; the message gives the nearest.
    """
    return resolve(name, regions(), "region", where)


@cache
def _price_index() -> Mapping[tuple[str, str, str], Price]:
    return {(p.instance, p.region, p.purchase): p for p in prices()}


def price_of(instance: str, region: str, purchase: str) -> Price | None:
    """The best known price; a seller with one price everywhere counts in each region; ``None`` when not known."""
    index = _price_index()
    return index.get((instance, region, purchase)) or index.get((instance, ANY_REGION, purchase))


def forget() -> None:
    """Read every table afresh at the next call (after a refresh of prices, or in tests)."""
    for cached in (
        _gpu_rows, gpus, models, instances, catalogue_prices, prices, regions, _price_index, _gpu_keys, _model_keys,
    ):  # fmt: skip
        cached.cache_clear()


# Rows to nouns


def _gpu(row: Row) -> tuple[Gpu, tuple[str, ...]]:
    peaks = {dtype: row.optional_number(column, minimum=0.1) for dtype, column in PEAK_COLUMNS.items()}
    gpu = Gpu(
        name=row.text("name"),
        architecture=row.text("architecture"),
        compute_capability=row.number("compute_capability", minimum=1),
        num_sms=row.whole("num_sms", minimum=1),
        peak_flops=MappingProxyType({dtype: peak * TERA for dtype, peak in peaks.items() if peak is not None}),
        memory_bytes=row.number("memory_gib", minimum=1) * GIB,
        memory_bandwidth_bytes_per_s=row.number("memory_bandwidth_gb_per_s", minimum=1) * GB,
        l2_bytes=row.number("l2_mib", minimum=0.1) * MIB,
        nvlink_bytes_per_s=scaled(row.optional_number("nvlink_gb_per_s_one_direction", minimum=1), GB),
        pcie_bytes_per_s=row.number("pcie_gb_per_s_one_direction", minimum=1) * GB,
        tdp_w=row.number("tdp_w", minimum=1),
        source=row.text("source"),
        as_of=row.day("as_of"),
        confidence=row.text("confidence", allowed=CONFIDENCES),
        notes=row.text("notes", required=False),
    )
    return gpu, tuple(a for a in row.text("aliases", required=False).split(";") if a)


def _model(row: Row) -> Model:
    kind = cast(ModelKind, row.text("kind", allowed=("decoder", "encoder", "vision")))
    moe = None
    if row.optional_whole("num_experts"):
        moe = Moe(
            row.whole("num_experts", minimum=1),
            row.whole("num_experts_per_token", minimum=1),
            row.whole("expert_intermediate_size", minimum=1),
            row.whole("num_shared_experts"),
            row.whole("shared_intermediate_size"),
            row.whole("num_dense_layers"),
        )
    mla = None
    if row.optional_whole("kv_lora_rank"):
        mla = Mla(
            row.whole("kv_lora_rank"),
            row.optional_whole("q_lora_rank"),
            row.whole("qk_nope_head_dim"),
            row.whole("qk_rope_head_dim"),
            row.whole("v_head_dim"),
        )
    least = 0 if kind == "vision" else 1
    return Model(
        name=row.text("name"),
        kind=kind,
        num_layers=row.whole("num_layers", minimum=1),
        hidden_size=row.whole("hidden_size", minimum=1),
        num_attention_heads=row.whole("num_attention_heads", minimum=least),
        num_kv_heads=row.whole("num_kv_heads", minimum=least),
        head_dim=row.whole("head_dim", minimum=least),
        intermediate_size=row.whole("intermediate_size", minimum=least),
        vocab_size=row.whole("vocab_size", minimum=least),
        max_position_embeddings=row.whole("max_position_embeddings", minimum=least),
        dtype=row.text("dtype", allowed=("fp32", "fp16", "bf16")),
        tie_word_embeddings=row.flag("tie_word_embeddings"),
        num_mlp_matrices=row.whole("num_mlp_matrices"),
        qkv_bias=row.flag("qkv_bias"),
        sliding_window=row.optional_whole("sliding_window"),
        num_sliding_layers=row.optional_whole("num_sliding_layers") or 0,
        moe=moe,
        mla=mla,
        num_parameters=scaled(row.optional_number("num_parameters_billion", minimum=1e-6), 1e9),
        flops_per_item=scaled(row.optional_number("gflops_per_item", minimum=1e-6), 1e9),
        quantization=row.text("quantization", required=False) or None,
        hf_ids=tuple(i for i in row.text("hf_ids", required=False).split(";") if i),
        source=row.text("source"),
        as_of=row.day("as_of"),
    )


def _instance(row: Row) -> Instance:
    return Instance(
        name=row.text("name"),
        cloud=row.text("cloud"),
        gpu=row.text("gpu"),
        num_gpus=row.whole("num_gpus", minimum=1),
        gpu_fraction=row.number("gpu_fraction", minimum=0.01, maximum=1),
        num_vcpus=row.optional_whole("num_vcpus"),
        memory_bytes=scaled(row.optional_number("memory_gib"), GIB),
        network_bytes_per_s=scaled(row.optional_number("network_gbit_per_s"), GBIT_BYTES),
        local_nvme_bytes=scaled(row.optional_number("local_nvme_gb"), GB),
        interconnect=row.text("interconnect", allowed=("nvlink", "nvswitch", "pcie", "none")),
        interconnect_bytes_per_s=scaled(row.optional_number("interconnect_gb_per_s_one_direction", minimum=0.1), GB),
        source=row.text("source"),
        as_of=row.day("as_of"),
        notes=row.text("notes", required=False),
    )


def _price(row: Row) -> Price:
    return Price(
        instance=row.text("instance"),
        region=row.text("region"),
        purchase=cast(Purchase, row.text("purchase", allowed=PURCHASES)),
        usd_per_hour=row.number("usd_per_hour", minimum=1e-6),
        source=row.text("source"),
        as_of=row.day("as_of"),
        confidence=row.text("confidence", allowed=CONFIDENCES),
        notes=row.text("notes", required=False),
    )


# Other spellings


@cache
def _gpu_keys() -> Mapping[str, str]:
    return {normalise(spelling): gpu.name for gpu, aliases in _gpu_rows() for spelling in (*aliases, gpu.name)}


@cache
def _model_keys() -> Mapping[str, str]:
    keys: dict[str, str] = {}
    for name, model in models().items():
        for hf_id in model.hf_ids:
            for spelling in (hf_id, hf_id.rsplit("/", 1)[-1]):
                keys.setdefault(normalise(spelling), name)
    return keys | {normalise(name): name for name in models()}


# how publishers end the name of a quantized checkpoint, and the precision it stands for
QUANTIZED_ENDINGS = {
    "awq": "int4-awq", "gptq": "int4-gptq", "fp8": "fp8", "w8a8": "int8", "int8": "int8", "w4a16": "int4-gptq",
    "nvfp4": "nvfp4", "fp4": "nvfp4", "int4": "int4-gptq",
}  # fmt: skip


def _model_spellings(name: str) -> list[tuple[str, str | None]]:
    """The name as it may stand in the catalogue, and the precision that its ending says.

    Without its organisation; without its tuning suffix (``-Instruct``, ``-chat``, ``-it``); without the ending of a
    quantized checkpoint (``-AWQ``, ``-GPTQ-Int4``, ``-FP8-dynamic``).
    """
    plain = name.strip().rsplit("/", 1)[-1]
    tuned = re.compile(r"([-_](instruct|chat|it|hf|base|pt))+$", re.IGNORECASE)
    found: list[tuple[str, str | None]] = [(normalise(n), None) for n in (name, plain, tuned.sub("", plain))]
    endings = "|".join(QUANTIZED_ENDINGS)
    match = re.search(
        rf"[-_.](?:quantized[-_.])?({endings})(?:[-_.](?:int[48]|dynamic|block|kv|\d+bit|g128))*$", plain, re.I
    )
    if match:
        bare = plain[: match.start()]
        precision = QUANTIZED_ENDINGS[match.group(1).lower()]
        found += [(normalise(n), precision) for n in (bare, tuned.sub("", bare))]
    return found
