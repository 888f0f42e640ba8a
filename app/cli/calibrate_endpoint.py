"""`plan calibrate endpoint`: measure a live server, or read results of other benchmarks."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from app.cli.output import Table, emit, format_option, progress_bar
from catalogs.errors import InputError

if TYPE_CHECKING:
    from calibrate.server.endpoint import Measured
    from calibrate.server.endpoint_client import Server
    from calibrate.server.endpoint_fit import Fitted
    from calibrate.server.load_points import LoadPoint

COLUMNS = ["concurrency", "rate", "input", "output", "requests", "failed", "TTFT mean s", "TTFT p95 s", "TPOT mean s"]
COLUMNS += ["tokens/s"]


class Numbers(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Whole numbers separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            numbers = [int(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 1,2,4", param, ctx)
        if min(numbers) < 1:
            self.fail("numbers start at 1", param, ctx)
        return numbers


@click.command()
@click.option("--url", help="Base URL of the server, with or without /v1.")
@click.option("--results", multiple=True, type=click.Path(), help="Results you have, in place of --url; repeatable.")
@click.option("--model", default="", help="Name of the model at the server; left out: the first it lists.")
@click.option("--api", type=click.Choice(["completions", "chat"]), default="completions", show_default=True)
@click.option("--api-key-env", default="OPENAI_API_KEY", show_default=True, help="Variable that holds the key.")
@click.option("--concurrency", type=Numbers(), default="1,2,4,8,16,32", show_default=True, help="Loads.")
@click.option("--input-tokens", type=Numbers(), default="64,256,1024", show_default=True, help="Prompt lengths.")
@click.option("--output-tokens", type=click.IntRange(min=2), default=64, show_default=True)
@click.option("--num-requests", type=click.IntRange(min=2), default=24, show_default=True, help="At each load.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=120.0, show_default=True)
@click.option("--metrics-url", help="Prometheus metrics; left out: /metrics of the server, if it has it.")
@click.option("--max-num-batched-tokens", type=click.IntRange(min=1), default=2048, show_default=True)
@click.option("--gpu", default="", help="What the server runs on, for the profile.")
@click.option("--precision", default="", help="Likewise.")
@click.option("--framework", default="", help="Likewise: vllm, sglang, tgi, tensorrt-llm.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prompts.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Profile to write.")
@format_option
def endpoint(url: str | None, results: tuple[str, ...], form: str, output: str | None, **options: Any) -> None:
    """Measure a server that speaks the OpenAI API by streaming, and make a profile of it.

    A sweep of concurrency and prompt lengths; TTFT, TPOT and ITL at each; the server's Prometheus metrics where it
    offers them. The profile serves `plan simulate` through `profile:`. With --results it is made from what vllm bench
    serve, GuideLLM, AIPerf or genai-perf wrote.

    \b
    Example:
      plan calibrate endpoint --url http://127.0.0.1:8000 --concurrency 1,4,16 -o my-server.json
      plan calibrate endpoint --results bench.json -o my-server.json
    """
    if bool(url) == bool(results):
        raise InputError("give either --url or --results", remedy="--url http://127.0.0.1:8000")
    about = {name: options[name] for name in ("gpu", "model", "precision", "framework")}
    if url:
        from calibrate.server.endpoint import fit_measured

        measured, server = _measure(url, options)
        about |= {"source": f"{server.url}, measured", "model": about["model"] or server.model}
        fitted = fit_measured(measured, options["max_num_batched_tokens"])
        _answer(form, output, measured.points, fitted, about, measured.notes, measured.seat_limit)
    else:
        from calibrate.server.benchmark_results import read_results
        from calibrate.server.endpoint import fit_points

        points = [point for path in results for point in read_results(path)]
        about["source"] = ", ".join(dict.fromkeys(p.source for p in points))
        fitted = fit_points(points, options["max_num_batched_tokens"])
        _answer(form, output, points, fitted, about, [], None)


def _measure(url: str, options: dict[str, Any]) -> tuple[Measured, Server]:
    from calibrate.server.endpoint import connect, design, measure
    from calibrate.server.endpoint_client import Server, check_url

    check_url(url)
    api: Literal["completions", "chat"] = "chat" if options["api"] == "chat" else "completions"
    key = os.environ.get(options["api_key_env"])
    server = Server(url, options["model"], api, key, options["timeout_s"])
    lengths = options["input_tokens"]
    loads = design(options["concurrency"], lengths, options["output_tokens"], options["num_requests"])

    async def whole() -> tuple[Measured, Server]:
        session = await connect(server, options["metrics_url"])
        for note in session.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(f"{len(loads)} loads, {sum(x.num_requests for x in loads)} requests", err=True)
        with progress_bar("measuring") as progress:
            measured = await measure(session, loads, progress, options["seed"])
        measured.notes[:0] = session.notes
        return measured, session.server

    return asyncio.run(whole())


def _answer(
    form: str,
    output: str | None,
    points: Sequence[LoadPoint],
    fitted: Fitted,
    about: dict[str, str],
    notes: Sequence[str],
    seat_limit: int | None,
) -> None:
    from calibrate.endpoint_step import fit_parameters
    from calibrate.profiles import profile_to_dict
    from calibrate.server.endpoint import endpoint_profile
    from calibrate.server.load_points import point_to_dict
    from catalogs.files import write_text

    errors = {kind: fitted.error_of(kind) for kind in ("ttft", "decode")}
    document: dict[str, Any] = {
        "schema_version": 1,
        "points": [point_to_dict(p) for p in points],
        "fit": fit_parameters(fitted.fit),
        "error": errors,
        "max_num_seqs_seen": seat_limit,
        "notes": list(notes),
    }
    said = [f"note: {text}" for text in notes]
    if seat_limit:
        said.append(f"the server ran at most {seat_limit} requests at a time: set max_num_seqs to it")
    if output:
        name = Path(output).stem
        profile = endpoint_profile(name, fitted, points, about, notes)
        write_text(output, json.dumps(profile_to_dict(profile), indent=1) + "\n")
        document["profile"] = output
        said.append(f"wrote {output}; use it in a scenario as `profile: {output}`")
    fit_rows = [[name, value] for name, value in fit_parameters(fitted.fit).items()]
    error_rows = [[kind, e["median"], e["p90"], e["worst"], e["num_points"]] for kind, e in errors.items()]
    tables = [
        Table("Measured", COLUMNS, [_row(p) for p in points]),
        Table("Step time, fitted (seconds)", ["coefficient", "value"], fit_rows),
        Table("Error at loads left out of the fit", ["metric", "median", "p90", "worst", "loads"], error_rows),
    ]
    emit(form, document, tables, said)


def _row(point: LoadPoint) -> list[object]:
    return [
        point.concurrency,
        point.rate_rps,
        round(point.input_tokens, 1),
        round(point.output_tokens, 1),
        point.num_requests,
        point.num_failed,
        point.ttft_s.get("mean"),
        point.ttft_s.get("p95"),
        point.tpot_s.get("mean"),
        point.output_tokens_per_s,
    ]
