"""Starts a serving engine on loopback with a model of random weights, waits until it answers, stops it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from catalogs.errors import InputError, MissingError

START_LIMIT_S = 600.0
# hidden, layers, heads, KV heads, MLP, vocabulary
SHAPES: dict[str, tuple[int, int, int, int, int, int]] = {
    "tiny": (128, 2, 4, 2, 256, 512),
    "small": (512, 6, 8, 4, 1536, 8192),
    "8b": (4096, 32, 32, 8, 14336, 128256),
}


@dataclass(frozen=True)
class Serving:
    """How a server is started.

    Attributes:
        engine: transformers (continuous batching) or vllm. python: interpreter that has it.
        device: cpu or cuda. The rest under vLLM's names.
    """

    engine: str
    python: str
    device: str
    max_num_batched_tokens: int
    block_size: int
    num_gpu_blocks: int
    threads: int = 1


def write_random_model(serving: Serving, directory: Path, shape: str) -> None:
    """Write a model of random weights with the server's interpreter.

    Raises:
        MissingError: the interpreter has no transformers.
    """
    script = Path(__file__).with_name("random_model.py")
    by_device = "float32" if serving.device == "cpu" else "bfloat16"
    weights = "none" if serving.engine == "vllm" else by_device  # vLLM makes up its own: --load-format dummy
    # by standard input: a script's own folder would be searched for modules first, and ours holds a `kernels`
    command = [serving.python, "-", str(directory), weights, *map(str, SHAPES[shape])]
    try:
        done = subprocess.run(
            command,
            input=script.read_text(),
            capture_output=True,
            text=True,
            cwd=directory,
            env=_environment(serving, directory),
            check=False,
        )
    except OSError as error:
        raise MissingError(f"cannot start {serving.python}: {error.strerror}", where="--python") from None
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise MissingError(
            f"{serving.python} could not write a model of random weights: {last[0][:200]}",
            where="--python",
            why="the server loads it",
            remedy=f'{serving.python} -m pip install torch "transformers>=5" accelerate fastapi uvicorn',
        )


def command_line(serving: Serving, directory: Path, port: int) -> list[str]:
    """The command that starts the engine.

    Raises:
        InputError: unknown engine.
    """
    beside = Path(serving.python).parent
    if serving.engine == "transformers":
        dtype = "float32" if serving.device == "cpu" else "bfloat16"
        return [
            str(beside / "transformers"), "serve", str(directory), "--continuous-batching", "--host", "127.0.0.1",
            "--port", str(port), "--device", serving.device, "--dtype", dtype, "--attn-implementation", "sdpa",
            "--cb-block-size", str(serving.block_size), "--cb-num-blocks", str(serving.num_gpu_blocks),
            "--cb-max-batch-tokens", str(serving.max_num_batched_tokens),
        ]  # fmt: skip
    if serving.engine == "vllm":
        return [
            str(beside / "vllm"), "serve", str(directory), "--load-format", "dummy", "--host", "127.0.0.1",
            "--port", str(port), "--max-num-batched-tokens", str(serving.max_num_batched_tokens),
            "--block-size", str(serving.block_size), "--num-gpu-blocks-override", str(serving.num_gpu_blocks),
            "--no-enable-prefix-caching", "--max-model-len", "8192",
        ]  # fmt: skip
    raise InputError(
        f"unknown engine {serving.engine!r}", where="--serve", remedy="transformers or vllm, or --url of your own"
    )


def _environment(serving: Serving, directory: Path) -> dict[str, str]:
    hub = directory / "hub"
    hub.mkdir(parents=True, exist_ok=True)  # transformers' server fails to list models without a cache directory
    threads = str(serving.threads)
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(hub),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
    }


@contextmanager
def running_server(serving: Serving, directory: Path) -> Iterator[str]:
    """Start the engine, give its URL once its port is open, stop it and all that it started at the end.

    Raises:
        MissingError: the program is not there, it ended, or its port did not open in ``START_LIMIT_S``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = command_line(serving, directory, port)
    log_path = directory / "server.log"
    with log_path.open("w") as log:
        try:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(serving, directory),
                start_new_session=True,
            )
        except OSError as error:
            raise MissingError(
                f"cannot start {command[0]}: {error.strerror}",
                where="--python",
                remedy='pip install "transformers>=5" accelerate fastapi uvicorn, or vllm, where --python points',
            ) from None
        try:
            _wait_until_open(process, port, log_path, command)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def _wait_until_open(process: subprocess.Popen[bytes], port: int, log: Path, command: Sequence[str]) -> None:
    end_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end_s:
        if process.poll() is not None:
            tail = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise MissingError(
                f"{Path(command[0]).name} ended with code {process.returncode}: {tail[0][:200]}",
                where="--serve",
                remedy="run it by hand: " + " ".join(command),
            )
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise MissingError(f"the server did not open its port within {START_LIMIT_S:.0f} s", where="--serve")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server's own process group to end; insist after ten seconds."""
    for ask in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, ask)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue
