"""`plan calibrate profiler`: kernel families of a trace, DCGM counters against the roofline."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from app.cli.output import Table, emit, format_option
from catalogs.errors import InputError, MissingError
from catalogs.files import read_text


@click.command()
@click.argument("trace", required=False, type=click.Path())
@click.option("--dcgm", help="URL of dcgm-exporter (http://host:9400/metrics) or a file with its text.")
@click.option("--gpu", help="Data sheet to set the counters against; left out: by the name in them.")
@click.option("--dtype", default="bf16", show_default=True, help="Number format of the peak.")
@format_option
def profiler(trace: str | None, dcgm: str | None, gpu: str | None, dtype: str, form: str) -> None:
    """Say what a device spends its time on.

    TRACE is a Chrome trace of the PyTorch profiler (.json, .json.gz) or an Nsight Systems export (.sqlite). With
    --dcgm: the counters of dcgm-exporter against the roofline.

    \b
    Example:
      nsys profile -t cuda,nvtx -o run plan calibrate run && nsys export --type sqlite run.nsys-rep
      plan calibrate profiler run.sqlite
    """
    if bool(trace) == bool(dcgm):
        raise InputError("give either a trace or --dcgm", remedy="plan calibrate profiler trace.json")
    if trace:
        _families(trace, form)
    else:
        assert dcgm is not None
        _counters(dcgm, gpu, dtype, form)


def _families(path: str, form: str) -> None:
    from calibrate.device.profilers import families, read_trace

    trace = read_trace(path)
    rows = families(trace)
    columns = ["family", "num", "total_s", "share", "median_s", "p90_s", "most"]
    busy = f"{trace.device}: {trace.span_s:.4g} s, idle {trace.idle_share:.0%} of it"
    if trace.device != "CPU" and trace.idle_share > 0.3:
        busy += ": launch overhead or a slow host bound it; CUDA graphs help"
    document = {
        "schema_version": 1,
        "source": trace.source,
        "device": trace.device,
        "span_s": trace.span_s,
        "idle_share": trace.idle_share,
        "families": rows,
    }
    emit(form, document, [Table(trace.source, columns, [[r[c] for c in columns] for r in rows])], [busy])


def _counters(source: str, gpu: str | None, dtype: str, form: str) -> None:
    from calibrate.device.dcgm import against_roofline, read_counters
    from calibrate.server.prometheus_text import parse
    from catalogs.load import find_gpu, known_gpu

    counters = read_counters(parse(_text(source), source), source)
    given = find_gpu(gpu, "--gpu") if gpu else None
    answers = [against_roofline(c, given or known_gpu(c.model), dtype) for c in counters]
    columns = ["gpu", "model", "tensor_active", "dram_active", "engine_active", "memory_share", "power_w"]
    columns += ["intensity_flops_per_byte", "ridge_flops_per_byte", "bound_by", "because"]
    table = Table("DCGM counters against the roofline", columns, [[a.get(c) for c in columns] for a in answers])
    emit(form, {"schema_version": 1, "gpus": answers}, [table])


def _text(source: str) -> str:
    if "://" not in source:
        return read_text(source, "dcgm-exporter's text, or its URL,")
    from urllib.parse import urlsplit

    from calibrate.server.endpoint_client import Server, ServerError, check_url, fetch

    check_url(source)
    found: Any = urlsplit(source).path or "/metrics"
    try:
        return asyncio.run(fetch(Server(source), found))
    except ServerError as error:
        raise MissingError(
            f"no counters at {source}: {error}",
            where="--dcgm",
            remedy="start dcgm-exporter, or check host and port (9400 by default)",
        ) from None
