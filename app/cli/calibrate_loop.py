"""`plan calibrate loop`: measure a server at some loads, predict others, run those for real, compare."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli.calibrate_endpoint import Numbers
from app.cli.output import Table, emit, format_option, progress_bar
from catalogs.errors import InputError, PlanError

if TYPE_CHECKING:
    from calibrate.server.endpoint import Load, Measured
    from calibrate.server.endpoint_client import Server

MEASURED_SEED, CHECKED_SEED = 0, 1


@click.command()
@click.option("--serve", type=click.Choice(["auto", "vllm", "transformers"]), help="Start it; auto: vLLM if there.")
@click.option("--python", default=sys.executable, help="Interpreter that has the engine; left out: this one.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--shape", type=click.Choice(["tiny", "small", "8b"]), default="small", show_default=True, help="Model.")
@click.option("--url", help="A server that runs already, in place of --serve; give --model-config too.")
@click.option("--model-config", type=click.Path(), help="Hugging Face config.json of the model at --url.")
@click.option("--concurrency", type=Numbers(), default="1,2,6,12", show_default=True, help="Loads to learn from.")
@click.option("--input-tokens", type=Numbers(), default="32,128,512", show_default=True, help="Lengths, likewise.")
@click.option("--output-tokens", type=click.IntRange(min=2), default=32, show_default=True)
@click.option("--check-concurrency", type=Numbers(), default="4,8", show_default=True, help="Loads to predict.")
@click.option("--check-input-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--check-rate-share", type=click.FloatRange(0.05, 0.95), default=0.5, show_default=True,
              help="Poisson arrivals of the middle length, at this share of its highest measured rate.")  # fmt: skip
@click.option("--num-requests", type=click.IntRange(min=2), default=24, show_default=True, help="At each load.")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=1, show_default=True, help="Times the loads to predict run."
)
@click.option("--max-num-batched-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--max-num-seqs", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--block-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--num-gpu-blocks", type=click.IntRange(min=1), default=1024, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of a CPU server.")
@click.option("--gpu", help="Catalogue GPU of the scenario; left out: this machine's, or L4 for a CPU.")
@click.option("--against", type=click.Path(), help="Another profile to predict with too.")
@click.option("-o", "--output", default="server.json", show_default=True, type=click.Path(dir_okay=False))
@format_option
def loop(output: str, form: str, **options: Any) -> None:
    """Prove the loop on this machine: calibrate a real server, simulate other loads, run those, compare.

    Starts transformers' server (continuous batching) or vLLM with random weights, or takes one that runs. Prints the
    error of every predicted run.

    \b
    Example:
      plan calibrate loop --serve transformers --shape small
      plan calibrate loop --serve vllm --device cuda --shape 8b --gpu H100-SXM --max-num-batched-tokens 2048
    """
    if bool(options["serve"]) == bool(options["url"]):
        raise InputError("give either --serve or --url", remedy="--serve transformers")
    options["gpu"] = options["gpu"] or _this_gpu(options["device"])
    if options["serve"] == "auto":
        options["serve"] = "vllm" if (Path(options["python"]).parent / "vllm").exists() else "transformers"
    with _server(options) as (url, config):
        from calibrate.server.endpoint_client import Server, check_url

        check_url(url)
        learned, checked, profile = _measure(Server(url, "" if options["url"] else str(config.parent)), options, output)
        other = Path(options["against"]).absolute() if options["against"] else None
        scenarios = [_scenario(options, config, p) for p in (profile, other) if p]
        _answer(form, output, learned, checked, scenarios)


def _this_gpu(device: str) -> str:
    from calibrate.device.probe import nvidia_smi_query
    from catalogs.load import known_gpu

    row = nvidia_smi_query(["name"]) if device == "cuda" else None
    sheet = known_gpu(row[0]) if row else None
    return sheet.name if sheet else "L4"


@contextmanager
def _server(options: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    if options["url"]:
        config = Path(options["model_config"] or "")
        if not options["model_config"] or not config.is_file():
            raise InputError("--url needs the model's config.json", where="--model-config", remedy="config.json of it")
        yield options["url"], config
        return
    from calibrate.server.server_process import Serving, running_server, write_random_model

    serving = Serving(
        engine=options["serve"],
        python=options["python"],
        device=options["device"],
        max_num_batched_tokens=options["max_num_batched_tokens"],
        block_size=options["block_size"],
        num_gpu_blocks=options["num_gpu_blocks"],
        threads=options["threads"],
    )
    with tempfile.TemporaryDirectory(prefix="plan-loop-") as directory:
        click.echo(f"starting {serving.engine} with random weights ({options['shape']})", err=True)
        write_random_model(serving, Path(directory), options["shape"])
        with running_server(serving, Path(directory)) as url:
            yield url, Path(directory) / "config.json"


def _measure(server: Server, options: dict[str, Any], output: str) -> tuple[Measured, Measured, Path]:
    from calibrate.profiles import profile_to_dict
    from calibrate.server.endpoint import design, endpoint_profile, fit_measured
    from catalogs.files import write_text

    num, tokens = options["num_requests"], options["output_tokens"]
    loads = design(options["concurrency"], options["input_tokens"], tokens, num)
    learned = asyncio.run(_run(server, loads, MEASURED_SEED))
    fitted = fit_measured(learned, options["max_num_batched_tokens"])
    about = {"gpu": options["gpu"], "framework": options["serve"] or "", "source": f"{server.url}, measured"}
    profile = endpoint_profile(Path(output).stem, fitted, learned.points, about, learned.notes)
    path = Path(output).absolute()
    write_text(path, json.dumps(profile_to_dict(profile), indent=1) + "\n")
    checked = asyncio.run(_run(server, _unseen(options, learned), CHECKED_SEED))
    return learned, checked, path


def _unseen(options: dict[str, Any], learned: Measured) -> list[Load]:
    from calibrate.server.endpoint import Load

    num, tokens, length = options["num_requests"], options["output_tokens"], options["check_input_tokens"]
    loads = [Load(c, length, tokens, max(num, 3 * c)) for c in options["check_concurrency"]]
    middle = sorted(options["input_tokens"])[len(options["input_tokens"]) // 2]
    alike = [p for p in learned.points if abs(p.input_tokens - middle) <= 0.25 * middle] or learned.points
    best = max(p.requests_per_s or 0.0 for p in alike)
    loads.append(Load(None, middle, tokens, 2 * num, rate_rps=round(options["check_rate_share"] * best, 3)))
    return loads * int(options["repeats"])


async def _run(server: Server, loads: Sequence[Load], seed: int) -> Measured:
    from calibrate.server.endpoint import connect, measure

    session = await connect(server)
    await measure(session, loads[:1], lambda _text, _share: None, seed + 100)  # compiles, allocates, fills caches
    click.echo(f"{len(loads)} loads, {sum(x.num_requests for x in loads)} requests", err=True)
    with progress_bar("measuring") as progress:
        measured = await measure(session, loads, progress, seed)
    measured.notes[:0] = session.notes
    return measured


def _scenario(options: dict[str, Any], config: Path, profile: Path) -> Any:
    from simulator.server_check import scenario_of

    names = ("max_num_seqs", "max_num_batched_tokens", "block_size", "num_gpu_blocks")
    engine = {name: options[name] for name in names} | {"enable_prefix_caching": False, "max_model_len": 8192}
    if options["serve"] == "transformers":  # a request joins the next step
        engine["options"] = {"async_scheduling": False}
    try:
        return scenario_of(str(config), options["gpu"], str(profile), engine)
    except ValueError as error:
        if isinstance(error, PlanError):
            raise
        raise InputError(f"no scenario can be made of this: {error}", remedy="check the engine's settings") from None


def _answer(form: str, output: str, learned: Measured, checked: Measured, scenarios: Sequence[Any]) -> None:
    from simulator.server_check import METRICS, check, summary

    seen = check(scenarios[0], learned.points, learned.replies)
    rows = check(scenarios[0], checked.points, checked.replies)
    points, replies = [*learned.points, *checked.points], [*learned.replies, *checked.replies]
    others = [row for scenario in scenarios[1:] for row in check(scenario, points, replies)]
    document = {
        "schema_version": 1,
        "profile": output,
        "learned_from": seen,
        "predicted": rows,
        "error": summary(rows),
        "error_on_learned": summary(seen),
        "predicted_by_other_profile": others,
        "error_of_other_profile": summary(others),
        "notes": [*learned.notes, *checked.notes],
    }
    columns = ["load", "requests"]
    for name in METRICS:
        columns += [f"{name} measured", "predicted", "error"]
    tables = [
        Table("Loads that the profile did not see", columns, [_cells(r, METRICS) for r in rows]),
        Table("Loads that it was learned from", columns, [_cells(r, METRICS) for r in seen]),
    ]
    if others:
        tables.append(Table("All loads, by the other profile", columns, [_cells(r, METRICS) for r in others]))
    said = [f"note: {text}" for text in dict.fromkeys([*learned.notes, *checked.notes])]
    for name, error in summary(rows).items():
        said.append(f"{name}: error {error['median']:.1%} in the median, {error['worst']:.1%} at worst")
    emit(form, document, tables, [*said, f"wrote {output}"])


def _cells(row: dict[str, Any], metrics: Sequence[str]) -> list[object]:
    cells: list[object] = [row["load"], row["num_requests"]]
    for name in metrics:
        error = row["error"][name]
        cells += [row["measured"][name], row["predicted"][name], "–" if error is None else f"{error:+.1%}"]
    return cells
