"""Writes docs/validation.md, its pictures and calibrate/accuracy.json from published measurements.

Run by ``make validation`` where the measurements are present. Tables keep what a fit saw apart from what it did not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from app.charts import Axis, Series, svg
from app.validation_sources import CLOSED_LOOP_NOTES, OTHER_ENGINES
from calibrate.fitting.serving import (
    FITTED,
    OF_AN_ENGINE,
    ServingPoint,
    fit_overheads,
    left_out_errors,
    read_closed_loop,
    read_tidy,
    relative_errors,
)
from calibrate.fitting.validate import Comparison, ErrorSummary, summarise
from calibrate.profiles import OVERHEADS, default_overheads
from catalogs.errors import MissingError
from catalogs.files import write_text
from simulator.serving_points import Predictor, compare_points

DEFAULT_DATA = "../shared/data"
RUNS = (("RTX4090_Llama-3.1-8B", "RTX4090", "RTX4090"), ("RTXPRO6000_Llama-3.1-8B", "RTXPRO6000", "RTX-PRO-6000"))


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        title, text: what was compared and how to read it.
        comparisons: the figures. seen: whether the fit saw them ("fitted", "unseen").
        slug: of the picture; empty for none.
        by_group: one row a group as well as one in all.
    """

    title: str
    text: str
    comparisons: Sequence[Comparison]
    seen: str
    slug: str = ""
    by_group: bool = True
    notes: Sequence[str] = field(default_factory=tuple)


def real_runs(data: Path) -> list[Section]:
    """The recorded vLLM runs, with profiles imported from the matching kernel tables."""
    from calibrate.fitting.importers.llmservingsim import import_profile
    from simulator.real_runs import compare_run, read_run

    compared: list[Comparison] = []
    for name, tables, gpu in RUNS:
        profile = import_profile(data / f"kernels/llmservingsim/{tables}/Llama-3.1-8B/bf16")
        compared += compare_run(read_run(data / f"vllm_runs/{name}.csv", gpu), profile)
    text = (
        "Two recorded runs of vLLM 0.19.0 (300 ShareGPT requests, Poisson arrivals), simulated with step times from "
        "kernel tables of the same GPU. Three constants of putting a step together (a step's overhead, that of a layer "
        "in steps with prompt tokens, the paid share of mixed attention's surplus) were read off single steps of these "
        "runs; nothing else is fitted. Rows are over mean, p50, p90, p95 and p99. What is left: "
        "on the RTX PRO 6000 decode steps of 33 to 64 sequences take 5 to 13 % longer than their kernels in the table "
        "(a longest context holds up a batch that fills the GPU once); on the RTX 4090, whose cache is full all the "
        "time, requests wait in turns of 13 s for blocks, and p95 of TTFT falls between two turns."
    )
    return [Section("Real vLLM runs", text, compared, "fitted", "real-runs")]


def closed_loops(data: Path) -> list[Section]:
    """Closed loops on H100: with the shipped overheads, and with overheads fitted without each group."""
    points = read_closed_loop(data / "serving/silicon_closed_loop_h100.csv")
    predictor = Predictor()
    shipped = compare_points(points, predictor, fitted=True)
    unseen: list[Comparison] = []
    for framework in sorted({p.framework for p in points}):
        start = {k: v for k, v in default_overheads()[framework].items() if isinstance(v, float)}
        mine = [p for p in points if p.framework == framework]
        for point, errors in left_out_errors(mine, predictor, start, _fitted_names(framework)):
            unseen += _from_errors(point, errors)
    text = (
        "217 closed loops on H100 (vLLM 0.12 and others, TensorRT-LLM 1.0; means of TTFT and TPOT, and the throughput "
        "that they imply). Kernels come from the shipped profile; per framework only "
        f"{len(FITTED)} constants are fitted ({', '.join(FITTED)}; the last once for all)."
    )
    left = "The same with the constants fitted on the other groups of the framework: another model, precision or TP."
    return [
        Section(
            "Closed loops, constants fitted on them", text, shipped, "fitted", "closed-loops", notes=CLOSED_LOOP_NOTES
        ),
        Section("Closed loops, group left out", left, unseen, "unseen", "closed-loops-left-out"),
    ]


def _fitted_names(framework: str) -> tuple[str, ...]:
    """A tokenizer's speed is fitted once, on vLLM's loops, which are the most; the rest is each engine's own."""
    return tuple(FITTED) if framework == "vllm" else OF_AN_ENGINE


def _from_errors(point: ServingPoint, errors: dict[str, float]) -> list[Comparison]:
    name = f"tp{point.tensor_parallel_size} {point.input_tokens}/{point.output_tokens} x{point.concurrency}"
    return [
        Comparison(m, point.group, name, (1.0 + e) * point.measured[m], point.measured[m])
        for m, e in errors.items()
        if e > -1.0
    ]


def other_engines(data: Path) -> list[Section]:
    """Serving points of other versions, GPUs and labs, that no fit saw."""
    predictor, sections = Predictor(), []
    for source in OTHER_ENGINES:
        compared = compare_points(read_tidy(data / f"serving/{source.stem}.csv"), predictor)
        compared = [each for each in compared if each.metric not in source.without]
        said = "No constant is fitted on these; settings that the source does not state are the engine's defaults."
        slug = source.stem.replace(".", "-")
        sections.append(Section(source.title, f"{said} {source.note}", compared, "unseen", slug))
    return sections


def static_batches(data: Path) -> list[Section]:
    """Encoder and vision batches on a GPU left out."""
    from calibrate.fitting.mlperf import left_out_errors as batches_left_out
    from calibrate.fitting.mlperf import read_points

    points = read_points(data / f"serving/mlperf_inference_v{v}.csv" for v in ("2.1", "3.0"))
    compared = [
        Comparison("batch_s", f"{p.model} {p.precision}", f"{p.gpu} ({p.origin})", p.seconds * (1 + e), p.seconds)
        for p, e in batches_left_out(points)
    ]
    text = (
        "MLPerf Inference 2.1 and 3.0, Offline, closed division: BERT-large and ResNet-50, per accelerator. Four "
        "constants for all GPUs, fitted without any point of the chip that is predicted (all A100 count as one chip)."
    )
    return [Section("Encoder and vision batches, GPU left out", text, compared, "unseen", "static-batches")]


def memory(data: Path) -> list[Section]:
    """KV tokens that engines logged."""
    from calibrate.memory import memory_plan
    from simulator.real_runs import read_run

    compared = []
    for name, _, gpu in RUNS:
        run = read_run(data / f"vllm_runs/{name}.csv", gpu)
        logged = run.replica.engine.num_gpu_blocks
        if logged:
            engine = replace(run.replica.engine, num_gpu_blocks=None)
            blocks = memory_plan(replace(run.replica, engine=engine)).num_gpu_blocks
            compared.append(Comparison("num_gpu_blocks", run.replica.gpu.name, name, float(blocks), float(logged)))
    text = (
        "KV blocks that the memory model derives against those that vLLM logged. One reserve (compiling inside vLLM's "
        "profiling step) is what this run leaves after all computed parts, so it is not an independent check."
    )
    return [Section("Memory", text, compared, "fitted")]


def gpu_choice(data: Path) -> list[Section]:
    """What choosing the GPU by simulation costs, in tokens for the money, against choosing by measurement."""
    from catalogs.load import instances, prices

    each: dict[str, float] = {}
    for price in prices():
        instance = instances()[price.instance]
        if price.region == "us-east-1" and price.purchase == "on_demand" and instance.gpu_fraction == 1.0:
            usd = price.usd_per_hour / instance.num_gpus
            each[instance.gpu] = min(usd, each.get(instance.gpu, usd))
    predictor = Predictor()
    compared = compare_points(read_tidy(data / "serving/trtllm_docs_v0.14_inflight.csv"), predictor)
    loads: dict[str, list[tuple[str, float, float]]] = {}
    for one in compared:
        gpu = next((g for g in sorted(each, key=len, reverse=True) if f" {g} " in f" {one.group} "), "")
        if gpu:
            key = one.name
            loads.setdefault(key, []).append((one.group, one.predicted / each[gpu], one.measured / each[gpu]))
    regrets = []
    for load, options in loads.items():
        if len(options) > 1:
            best, chosen = max(o[2] for o in options), max(options, key=lambda o: o[1])
            regrets.append(Comparison("tokens_per_usd", "TensorRT-LLM 0.14", load, chosen[2], best))
    lost = [1 - r.predicted / r.measured for r in regrets]
    same, mean = sum(share < 1e-9 for share in lost), sum(lost) / len(lost)
    text = (
        "For each model and length of TensorRT-LLM 0.14's table: the tokens for a dollar of the GPU and precision that "
        "simulation prefers (at on-demand prices, us-east-1), over those of the one that measurement prefers. An error "
        f"of 0 means the same choice, which {same} of {len(lost)} are; over all, the choice costs "
        f"{_percent(mean)} of the tokens that the same money would buy, {_percent(max(lost))} at worst."
    )
    return [Section("Choice of GPU", text, regrets, "unseen")]


def kernels(data: Path) -> list[Section]:
    """Kernel families on points that the fit did not see, as the shipped profiles record them."""
    from calibrate.profiles import shipped_profiles

    del data
    rows, carried = [], []
    for profile in shipped_profiles().values():
        for family, variants in profile.error.items():
            for variant, error in variants.items() if isinstance(variants, dict) else ():
                if isinstance(error, dict) and error.get("num_points"):
                    rows.append(f"| {profile.name} | {family} | {variant} | {error['num_points']:,} | "
                                f"{_percent(error['median'])} | {_percent(error.get('p90'))} | "
                                f"{_percent(error.get('worst'))} | {error.get('basis', '')} |")  # fmt: skip
                elif isinstance(error, dict) and family == "gemm" and variant == "bf16":
                    basis = error.get("basis", "")
                    size = f"{_percent(error.get('median'))} | {_percent(error.get('p90'))}"
                    carried.append(f"| {profile.name} | {size} | {basis} |")
    head = ["| profile | kernels | type | points | median | p90 | worst | basis |", "|---|---|---|---|---|---|---|---|"]
    notes = [*head, *rows] if rows else ["No profile records errors."]
    if carried:
        notes += ["", "Profiles without kernel tables of their own; errors of bf16 GEMMs stand for the rest:", ""]
        notes += ["| profile | median | p90 | basis |", "|---|---|---|---|", *carried]
    text = "Errors of the shipped profiles by kernel family, on points that their fit did not see."
    return [Section("Kernels", text, [], "unseen", notes=notes)]


SECTIONS: tuple[Callable[[Path], list[Section]], ...] = (
    kernels, real_runs, closed_loops, other_engines, static_batches, memory, gpu_choice,
)  # fmt: skip


def refit_overheads(data: Path, path: Path) -> None:
    """Fit each framework's overheads on all its closed loops; write them, with their errors, to the shipped table."""
    points, predictor = read_closed_loop(data / "serving/silicon_closed_loop_h100.csv"), Predictor()
    table: dict[str, dict[str, Any]] = {name: dict(known) for name, known in default_overheads().items()}
    for framework in sorted({p.framework for p in points}, reverse=True):  # vLLM first
        mine = [p for p in points if p.framework == framework]
        start = {k: v for k, v in table[framework].items() if isinstance(v, float)}
        start["prompt_token_s"] = float(table["vllm"].get("prompt_token_s", 0.0))
        fit = fit_overheads(mine, predictor, start, _fitted_names(framework))
        versions = sorted({p.version for p in mine if p.version})
        errors = [(p, relative_errors(p, predictor(p, fit))) for p in mine]
        medians = {
            s.metric: float(f"{s.median:.3g}")
            for s in summarise((c for p, e in errors for c in _from_errors(p, e)), by_group=False)
        }
        table[framework] = {name: float(f"{value:.4g}") for name, value in fit.items()} | {
            "source": f"fitted on {len(mine)} closed loops on H100, version {', '.join(versions) or 'not stated'}",
            "graphs": True,
            "async_scheduling": False,
            "error_median": medians,
        }
    table["vllm"]["asynchronous"] = _fit_asynchronous(points, table["vllm"])
    numbers = {k: v for k, v in table["vllm"].items() if isinstance(v, float)}
    table["default"] = numbers | {"async_scheduling": False, "source": "as vLLM's; not measured for this framework"}
    write_text(path, json.dumps(table, indent=1) + "\n")


def _fit_asynchronous(points: Sequence[ServingPoint], start: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's overheads where a step is prepared while the one before it runs.

    Fitted on the loops whose version is not stated (Llama-3.1-70B in FP8, another lab's): the host's work hardly shows
    in them, unlike in those of 0.12, which schedules synchronously.
    """
    mine = [
        replace(p, engine={**p.engine, "options": {"async_scheduling": True}})
        for p in points
        if p.framework == "vllm" and not p.version
    ]
    predictor = Predictor()
    begin = {k: v for k, v in start.items() if isinstance(v, float)} | {"step_overhead_s": 2e-4, "per_sequence_s": 1e-5}
    fit = fit_overheads(mine, predictor, begin, OF_AN_ENGINE)
    source = f"fitted on {len(mine)} closed loops on H100 that behave asynchronously, version not stated"
    return {name: float(f"{fit[name]:.4g}") for name in OF_AN_ENGINE} | {"async_scheduling": True, "source": source}


def _percent(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, (int, float)) else "–"


def _rows(section: Section) -> list[tuple[str, ErrorSummary]]:
    overall = [("all", s) for s in summarise(section.comparisons, by_group=False)]
    groups = summarise(section.comparisons)
    if not section.by_group or len({s.group for s in groups}) < 2:
        return overall
    return [*overall, *((s.group, s) for s in groups)]


def render(sections: Iterable[Section], figures: Path) -> str:
    """The page's text; pictures are written beside it."""
    lines = [
        "# Validation",
        "",
        "Generated by `make validation` from published measurements (`../shared/data`); do not edit by hand.",
        "Errors are absolute and relative to the measurement; bias is the median of the signed error.",
    ]
    for section in sections:
        lines += ["", f"## {section.title}", "", section.text, ""]
        if section.comparisons:
            lines += [f"Points the fit {'saw' if section.seen == 'fitted' else 'did not see'}.", ""]
            lines += ["| metric | group | points | median | p90 | worst | bias | worst point |"]
            lines += ["|---|---|---|---|---|---|---|---|"]
            for group, s in _rows(section):
                lines.append(
                    f"| {s.metric} | {group} | {s.num_points} | {_percent(s.median)} | {_percent(s.p90)} | "
                    f"{_percent(s.worst)} | {_percent(s.bias)} | {s.worst_name} |"
                )
        lines += list(section.notes)
        if section.slug and section.comparisons:
            write_text(figures / f"{section.slug}.svg", _scatter(section))
            lines += ["", f"![{section.title}: predicted against measured](figures/{section.slug}.svg)"]
    return "\n".join([*lines, ""])


def _scatter(section: Section) -> str:
    series = []
    low = 1.0
    for metric in dict.fromkeys(c.metric for c in section.comparisons):
        mine = [c for c in section.comparisons if c.metric == metric]
        top = max(c.measured for c in mine)
        low = min(low, *(c.measured / top for c in mine))
        series.append(Series(metric, [c.measured / top for c in mine], [c.predicted / top for c in mine], "points"))
    series.append(Series("equal", [low, 1.0], [low, 1.0], colour="#999999"))
    x = Axis("measured, share of the metric's largest", True)
    return svg(section.title, series, x, Axis("predicted", True), size=(720, 420))


def accuracy_rows(sections: Iterable[Section]) -> list[dict[str, Any]]:
    """What doctor and the app show: one row a section and metric."""
    return [
        {
            "what": section.title, "metric": s.metric, "points": s.num_points, "median": round(s.median, 4),
            "p90": round(s.p90, 4), "worst": round(s.worst, 4), "fit": section.seen,
        }
        for section in sections
        for s in summarise(section.comparisons, by_group=False)
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, the pictures and the table that the program ships.

    Raises:
        MissingError: the measurements are not there.
    """
    parser = argparse.ArgumentParser(prog="python -m app.validation", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(DEFAULT_DATA), help="folder of published measurements")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--accuracy", type=Path, default=Path("calibrate/accuracy.json"))
    parser.add_argument("--refit-overheads", action="store_true", help="fit the engine overheads anew, first")
    given = parser.parse_args(arguments)
    if not (given.data / "serving").is_dir():
        raise MissingError(f"no measurements in {given.data}", remedy="--data names the folder")
    if given.refit_overheads:
        refit_overheads(given.data, OVERHEADS)
        default_overheads.cache_clear()
    sections = [section for make in SECTIONS for section in make(given.data)]
    (given.docs / "figures").mkdir(parents=True, exist_ok=True)
    write_text(given.docs / "validation.md", render(sections, given.docs / "figures"))
    document = {"schema_version": 1, "rows": accuracy_rows(sections)}
    write_text(given.accuracy, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
