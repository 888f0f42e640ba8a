"""Serving engines' own defaults, and an engine with every setting filled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import cast

from catalogs.names import resolve
from catalogs.schema import Engine, Gpu, Model
from catalogs.units import GIB

DATA = Path(__file__).parent
ASYNC_SINCE = (0, 14)  # vLLM's --async-scheduling became the default
ASYNC_STAGES_SINCE = (0, 16)  # and over pipeline stages (pull request 32618)


@cache
def _engines() -> Mapping[str, Mapping[str, object]]:
    import yaml

    with (DATA / "engines.yaml").open(encoding="utf-8") as file:
        return cast(Mapping[str, Mapping[str, object]], yaml.safe_load(file))


def frameworks() -> tuple[str, ...]:
    """The serving frameworks that are known."""
    return tuple(_engines())


def engine_defaults(framework: str, gpu: Gpu | None = None, where: str = "") -> Mapping[str, object]:
    """A framework's own defaults under vLLM's names, for one GPU where they depend on it.

    Returns:
        ``max_num_seqs``, ``max_num_batched_tokens``, ``max_model_len``, ``block_size``, ``gpu_memory_utilization``,
        ``enable_prefix_caching``, ``enable_chunked_prefill``, ``version``, ``source``, ``as_of``, ``notes``; ``None``
        where the value follows from the model.

    Raises:
        InputError: the framework is not known.
    """
    entry = _engines()[resolve(framework, _engines(), "framework", where)]
    merged = dict(cast(Mapping[str, object], entry["defaults"]))
    if gpu is not None:
        for tier in cast(list[dict[str, object]], entry["tiers"]):
            if _tier_holds(tier, gpu):
                merged |= {k: v for k, v in tier.items() if k in merged}
                break
    return merged | {k: entry.get(k, "") for k in ("version", "source", "as_of", "notes")}


def _tier_holds(tier: Mapping[str, object], gpu: Gpu) -> bool:
    memory_gib = gpu.memory_bytes / GIB
    below, start, excluded = tier.get("memory_gib_below"), tier.get("memory_gib_from"), tier.get("not_gpu")
    if isinstance(below, (int, float)) and memory_gib >= below:
        return False
    if isinstance(start, (int, float)) and memory_gib < start:
        return False
    return not (isinstance(excluded, str) and gpu.name.startswith(excluded))


def resolve_engine(engine: Engine, model: Model, gpu: Gpu) -> Engine:
    """The engine with every ``None`` filled by its framework's default, but for ``version`` and ``num_gpu_blocks``.

    A stated vLLM version from 0.14 on schedules asynchronously unless told otherwise; where no version is stated, what
    was measured in closed loops stands (0.12, synchronous).

    As vLLM does: a batch never holds more tokens than ``max_num_seqs`` x ``max_model_len``, and never more sequences
    than tokens.

    Raises:
        InputError: the framework is not known.
    """
    framework = resolve(engine.framework, _engines(), "framework", "framework")
    defaults = engine_defaults(framework, gpu)
    engine = replace(engine, framework=framework)

    def pick(name: str) -> object:
        own = getattr(engine, name)
        return defaults[name] if own is None else own

    max_model_len = int(cast(int, pick("max_model_len") or model.max_position_embeddings or 1))
    max_num_seqs = int(cast(int, pick("max_num_seqs")))
    tokens = pick("max_num_batched_tokens")
    most = max_num_seqs * max_model_len
    max_num_batched_tokens = most if tokens is None else int(cast(int, tokens))
    if engine.max_num_batched_tokens is None:
        max_num_batched_tokens = min(max_num_batched_tokens, most)
    if engine.max_num_seqs is None:
        max_num_seqs = min(max_num_seqs, max_num_batched_tokens)
    return replace(
        engine,
        options=_with_async_scheduling(engine),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        block_size=int(cast(int, pick("block_size"))),
        gpu_memory_utilization=float(cast(float, pick("gpu_memory_utilization"))),
        enable_prefix_caching=bool(pick("enable_prefix_caching")),
        enable_chunked_prefill=bool(pick("enable_chunked_prefill")),
    )


def version_of(engine: Engine) -> str:
    """The version that was stated, else the one whose defaults the catalogue holds."""
    return engine.version or str(engine_defaults(engine.framework)["version"])


def version_numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, to compare: ``v0.8.5 (custom)`` is (0, 8); fewer where there are none."""
    found = re.match(r"v?(\d+)(?:\.(\d+))?", version)
    return tuple(int(part) for part in found.groups() if part) if found else ()


def _with_async_scheduling(engine: Engine) -> Mapping[str, object]:
    stated = version_numbers(engine.version or "")
    asked = {"async_scheduling", "speculative", "preemption_mode"} & set(engine.options)
    if engine.framework != "vllm" or stated < ASYNC_SINCE or asked:
        return engine.options
    return {**engine.options, "async_scheduling": True}
