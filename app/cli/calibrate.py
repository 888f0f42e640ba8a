"""`plan calibrate`: one file a sub-command (`calibrate_<name>.py`), loaded when it is called."""

from __future__ import annotations

import importlib
import importlib.util

import click

SUBCOMMANDS: dict[str, str] = {
    "run": "Measure this machine's kernels and batches with torch.",
    "endpoint": "Measure a live server that speaks the OpenAI API, or read results you have.",
    "loop": "Start a server, calibrate at some loads, predict others, run those, compare.",
    "onnx": "Time an ONNX Runtime session; predict and check it under dynamic batching.",
    "profiler": "Read a PyTorch or Nsight trace into kernel families; DCGM counters against the roofline.",
    "import": "Make a profile from published kernel tables.",
    "fit": "Turn measurements into a profile.",
    "batches": "Whole batches that were measured, against what a fitted profile predicts.",
    "validate": "Predicted against measured, with a gate.",
    "list": "The shipped profiles.",
    "show": "One profile: what it rests on, its range and errors.",
}


class CalibrateGroup(click.Group):
    """Loads a sub-command's module when that sub-command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in SUBCOMMANDS if importlib.util.find_spec(_module(name)) is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = getattr(importlib.import_module(_module(cmd_name)), _attribute(cmd_name))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUBCOMMANDS[name]) for name in self.list_commands(ctx)])


def _module(name: str) -> str:
    return f"app.cli.calibrate_{name}"


def _attribute(name: str) -> str:
    return f"{name}_" if name == "import" else name  # a keyword needs the underscore


@click.group(cls=CalibrateGroup)
def calibrate() -> None:
    """Measure devices and servers; fit, import and check profiles.

    \b
    Example:
      plan calibrate run -o measurements.jsonl
    """
