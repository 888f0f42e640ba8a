"""The `plan` command. Sub-commands load when called, so that help is instant."""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import importlib.util
import io
import os
import re
import sys
from typing import TextIO

import click

from catalogs.errors import PlanError

# name: (module, attribute, one line of help). The order is the order of `plan --help`.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("app.cli.demo", "demo", "The whole main job on bundled data, offline."),
    "init": ("app.cli.init", "init", "Write a commented plan.yaml that runs as it is."),
    "doctor": ("app.cli.doctor", "doctor", "What is installed, fresh or missing, and how to get it."),
    "schema": ("app.cli.schema", "schema", "JSON Schema of the input and output forms."),
    "estimate": ("app.cli.estimate", "estimate", "Does a model fit a GPU? Memory, roofline, bottleneck."),
    "recommend": ("app.cli.recommend", "recommend", "The cheapest fleet that keeps the latency promise."),
    "what-if": ("app.cli.what_if", "what_if", "A plan under another load, limit or price, in a second."),
    "advise": ("app.cli.advise", "advise", "The steps that save most, from the fleet you run today."),
    "verify": ("app.cli.verify", "verify", "Check a plan's certificate in exact arithmetic."),
    "simulate": ("app.cli.simulate", "simulate", "One fleet, one workload."),
    "sweep": ("app.cli.sweep", "sweep", "Many simulations, on this machine or a Ray cluster."),
    "compare": ("app.cli.compare", "compare", "Two runs side by side."),
    "explain": ("app.cli.explain", "explain", "Why a run came out as it did."),
    "runs": ("app.cli.runs", "runs", "List, show and remove past runs."),
    "calibrate": (
        "app.cli.calibrate",
        "calibrate",
        "Measure devices and servers; fit, import and check profiles.",
    ),
    "trace": ("app.cli.trace", "trace", "Import, synthesise, describe and forecast workloads."),
    "catalog": ("app.cli.catalog", "catalog", "GPUs, models and instances that are known."),
    "prices": ("app.cli.prices", "prices", "Show, refresh and compare prices."),
    "export": ("app.cli.export", "export", "Turn a plan into launch commands and manifests."),
    "report": ("app.cli.report", "report", "Build, schedule and send cost reports."),
    "web": ("app.cli.web", "web", "The web app."),
}


class LazyGroup(click.Group):
    """Loads a sub-command's module when that sub-command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if _exists(name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS or not _exists(cmd_name):
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, COMMANDS[name][2]) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def _exists(name: str) -> bool:
    return importlib.util.find_spec(COMMANDS[name][0]) is not None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="gpu-capacity-planner", prog_name="plan")
def cli() -> None:
    """Plan GPU capacity for model serving: the cheapest fleet that keeps its latency promise.

    \b
    Example:
      plan recommend -c plan.yaml
    """


def main() -> None:
    """Run the command line; every foreseen error becomes its message and exit code, never a traceback."""
    gc.set_threshold(GARBAGE_COUNT)
    _open_standard_streams()
    code = _run()
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _output_lost(error)
    sys.exit(code)


# Objects between two looks for garbage: 700, as Python has it, makes hundreds of them while modules are loaded.
GARBAGE_COUNT = 50_000
READER_LEFT = 141  # 128 + SIGPIPE, as the shell has it for any program whose reader stops early


def _run() -> int | str | None:
    stdout = sys.stdout
    try:
        cli.main(prog_name="plan", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _say("stopped")
        return 130
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        _say(f"error: {_of_usage(error)}")
        return 2
    except PlanError as error:
        _say(f"error: {error}")
        return error.exit_code
    except SystemExit as stop:  # rich leaves by this when a pipe's reader has gone; click also wraps standard output
        gone = isinstance(stop.__context__, BrokenPipeError) or sys.stdout is not stdout
        return _output_lost(BrokenPipeError(errno.EPIPE, "")) if gone else stop.code
    except UnicodeEncodeError as error:  # bytes of an argument or a file name that are no text
        _say(f"error: {error.object!r} is not text in UTF-8\n  try: a name without these bytes")
        return 2
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _OUTPUT_ERRORS:
            return _output_lost(error)
        if os.environ.get("PLAN_DEBUG"):
            raise
        _say(
            f"error: this is a fault of ours: {type(error).__name__}: {error}\n"
            "  try: run again with PLAN_DEBUG=1 for the traceback, and report it"
        )
        return 4
    return 0


def _of_usage(error: click.ClickException) -> PlanError:
    """What click found wrong with the command line, in the form of our own errors."""
    from catalogs.names import nearest

    if isinstance(error, click.FileError):
        return PlanError(error.message, where=error.ui_filename)
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "plan"
    what = error.message
    where, why = command, ""
    if isinstance(error, click.BadParameter) and error.param is not None:
        where = f"{command}: {error.param_hint or error.param.get_error_hint(context)}".replace("'", "")
        why = (getattr(error.param, "help", None) or "").rstrip(".")
    if isinstance(error, click.MissingParameter):
        what = "is missing"
    close = sorted(error.possibilities or []) if isinstance(error, click.NoSuchOption) else []
    if context and isinstance(context.command, click.Group) and (unknown := re.search(r"command '(.*)'", what)):
        known = context.command.list_commands(context)
        close = [f"`{command} {name}`" for name in nearest(unknown[1], known, num=1, cutoff=0.5)]
    remedy = f"did you mean {' or '.join(close)}?" if close else f"{command} --help"
    return PlanError(what[:1].lower() + what[1:].rstrip("."), where=where, why=why, remedy=remedy)


_OUTPUT_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


def _output_lost(error: OSError) -> int:
    """Nothing more can be printed: quiet if the reader stopped early (``| head``), else a word on why."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
    if error.errno == errno.EPIPE:
        return READER_LEFT
    _say(f"error: the answer cannot be written to standard output: {error.strerror}\n  try: another place for it")
    return 2


def _say(text: str) -> None:
    """A last word on stderr, if anyone still listens there."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _open_standard_streams() -> None:
    """A stream that the caller closed (``>&-``) becomes one that goes nowhere; a sign that it cannot show, a ``?``."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115 - open while the program runs
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115
    _keep_for_the_answer(sys.stdout)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _keep_for_the_answer(stdout: TextIO) -> None:
    """Move standard output away from descriptor 1, to which native libraries write as they please.

    SciPy's HiGHS prints a line of its own in rare cases, which would follow the one JSON document.
    """
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=stdout.encoding)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
