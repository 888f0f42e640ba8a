"""`plan calibrate onnx`: time an ONNX Runtime session over batch sizes, and check it under dynamic batching."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from app.cli.calibrate_endpoint import Numbers
from app.cli.output import Table, emit, format_option, progress_bar


@click.command()
@click.option("--model", type=click.Path(), help="An .onnx file; left out: an encoder of random weights.")
@click.option("--tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Of an item.")
@click.option("--batches", type=Numbers(), default="1,2,4,8", show_default=True, help="Sizes to learn from.")
@click.option("--loads", default="0.3,0.6,0.8", show_default=True, help="Shares of the highest rate to serve at.")
@click.option("--num-requests", type=click.IntRange(min=10), default=200, show_default=True, help="At each load.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--gpu", default="L4", show_default=True, help="Catalogue GPU that the scenario names.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("-o", "--output", default="onnx.json", show_default=True, type=click.Path(dir_okay=False))
@format_option
def onnx(output: str, form: str, **options: Any) -> None:
    """Time an ONNX Runtime session, predict it under dynamic batching, serve it so for real, and compare.

    Needs onnxruntime, and onnx when no --model is given.

    \b
    Example:
      plan calibrate onnx --batches 1,2,4,8 --loads 0.3,0.6,0.8 -o encoder.json
    """
    from calibrate.device.onnx_session import EncoderShape, fit_batches, open_session, time_batches, write_encoder
    from calibrate.profiles import profile_to_dict
    from calibrate.server.endpoint import endpoint_profile
    from calibrate.server.load_points import summarise
    from catalogs.errors import InputError
    from catalogs.files import write_text

    try:
        loads = [float(part) for part in options["loads"].split(",")]
    except ValueError:
        raise InputError(f"{options['loads']!r} is not a list of shares", where="--loads", remedy="0.3,0.8") from None
    if not all(0 < share < 1 for share in loads):
        raise InputError("loads are shares between 0 and 1", where="--loads", remedy="0.3,0.8")
    tokens, sizes = options["tokens"], sorted(set(options["batches"]))
    with tempfile.TemporaryDirectory(prefix="plan-onnx-") as directory:
        path = Path(options["model"] or Path(directory) / "encoder.onnx")
        if not options["model"]:
            write_encoder(path, EncoderShape())
        elif not path.is_file():
            raise InputError("no such file", where="--model", remedy="an .onnx file, or leave it out")
        run = open_session(path, tokens, options["threads"], options["device"])
        times = time_batches(run, sizes)
        fitted = fit_batches(times, tokens)
        served = _serve(run, times, loads, options)
    points = [summarise(replies, None, rate) for rate, replies in served]
    about = {"gpu": options["gpu"], "framework": "onnxruntime", "source": "plan calibrate onnx"}
    profile = endpoint_profile(Path(output).stem, fitted, points, about)
    write_text(output, json.dumps(profile_to_dict(profile), indent=1) + "\n")
    _answer(form, output, options, times, fitted, (points, [replies for _, replies in served]))


def _serve(run: Any, times: dict[int, list[float]], loads: list[float], options: dict[str, Any]) -> list[Any]:
    from calibrate.device.onnx_session import arrivals, serve_dynamically
    from calibrate.server.load_points import statistics

    largest = max(times)
    best_rps = largest / statistics(times[largest])["p50"]
    for size in range(1, largest + 1):
        run(size)  # first runs of a shape allocate
    served = []
    with progress_bar("serving") as progress:
        for index, share in enumerate(loads):
            progress(f"{share:.0%} of the highest rate", index / len(loads))
            rate = share * best_rps
            at = arrivals(rate, options["num_requests"], options["seed"] + index)
            served.append((rate, serve_dynamically(run, at, largest, options["tokens"])))
    return served


def _answer(
    form: str, output: str, options: dict[str, Any], times: dict[int, list[float]], fitted: Any, real: Any
) -> None:
    from calibrate.server.load_points import statistics
    from simulator.server_check import check_batches, summary

    rows = check_batches(output, options["gpu"], max(times), options["tokens"], real)
    step = [(size, statistics(samples)) for size, samples in sorted(times.items())]
    told = [float(fitted.fit.positionwise_s(size * options["tokens"])) for size, _ in step]
    batches = [
        {"batch": size, "median_s": s["p50"], "p90_s": s["p90"], "fitted_s": t}
        for (size, s), t in zip(step, told, strict=True)
    ]
    errors = {"batch": fitted.error_of("decode"), **summary(rows)}
    document = {"schema_version": 1, "profile": output, "batches": batches, "predicted": rows, "error": errors}
    columns = ["load", "mean s measured", "predicted", "error", "p95 s measured", "predicted", "error"]
    served = []
    for row in rows:
        cells: list[object] = [row["load"]]
        for name in ("ttft_s", "ttft_p95_s"):
            cells += [row["measured"][name], row["predicted"][name], f"{row['error'][name]:+.1%}"]
        served.append(cells)
    tables = [
        Table("Under dynamic batching", columns, served),
        Table("Batches", list(batches[0]), [list(b.values()) for b in batches]),
    ]
    emit(form, document, tables, [f"wrote {output}"])
