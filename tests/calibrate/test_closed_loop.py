"""The loop against real engines on this CPU: learn at some loads, predict others, run those, compare.

Slow, and timing depends on what else the machine does: the errors are printed, and only gross ones fail.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli.main import cli
from calibrate.server.server_process import Serving, command_line, running_server, write_random_model
from catalogs.errors import InputError, MissingError

GROSS = 1.0  # twice or nothing of what was measured


def serving_python() -> str:
    """An interpreter that has transformers' server: PLAN_SERVE_PYTHON, or this one; skips where there is none."""
    python = os.environ.get("PLAN_SERVE_PYTHON", sys.executable)
    probe = "import transformers, fastapi, uvicorn, torch"
    done = subprocess.run([python, "-c", probe], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("no interpreter with transformers' server; set PLAN_SERVE_PYTHON (docs/calibration.md)")
    return python


@pytest.mark.slow
def test_a_real_server_with_continuous_batching_is_predicted(tmp_path: Path) -> None:
    args = ["calibrate", "loop", "--serve", "transformers", "--python", serving_python(), "--shape", "small"]
    args += ["--num-requests", "16", "-o", str(tmp_path / "server.json"), "--format", "json"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.exception
    document = json.loads(result.stdout)
    for row in document["predicted"]:
        print(row["load"], {name: f"{error:+.1%}" for name, error in row["error"].items()})
    assert document["error"]["output_tokens_per_s"]["median"] < GROSS
    assert document["error"]["tpot_s"]["median"] < GROSS


@pytest.mark.slow
def test_a_real_onnx_session_is_predicted_under_dynamic_batching(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    args = ["calibrate", "onnx", "-o", str(tmp_path / "onnx.json"), "--format", "json"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.exception
    document = json.loads(result.stdout)
    for row in document["predicted"]:
        print(row["load"], {name: f"{error:+.1%}" for name, error in row["error"].items()})
    assert document["error"]["ttft_s"]["median"] < GROSS


def test_engines_are_started_with_their_own_flags(tmp_path: Path) -> None:
    vllm = command_line(Serving("vllm", "/opt/bin/python", "cuda", 2048, 16, 4000), tmp_path, 8000)
    assert vllm[:3] == ["/opt/bin/vllm", "serve", str(tmp_path)]
    assert vllm[vllm.index("--max-num-batched-tokens") + 1] == "2048" and "dummy" in vllm
    transformers = command_line(Serving("transformers", "/opt/bin/python", "cpu", 512, 32, 99), tmp_path, 8000)
    assert "--continuous-batching" in transformers and "float32" in transformers
    with pytest.raises(InputError, match="unknown engine"):
        command_line(Serving("llamafile", "python", "cpu", 1, 1, 1), tmp_path, 1)


def test_a_missing_engine_is_told_with_the_pip_line(tmp_path: Path) -> None:
    nowhere = Serving("transformers", str(tmp_path / "python"), "cpu", 512, 32, 99)
    with pytest.raises(MissingError, match="cannot start") as caught, running_server(nowhere, tmp_path):
        pass
    assert "pip install" in caught.value.remedy
    bare = tmp_path / "bare"
    bare.write_text("#!/bin/sh\necho 'ModuleNotFoundError: no transformers' >&2\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(MissingError, match="no transformers"):
        write_random_model(Serving("transformers", str(bare), "cpu", 512, 32, 99), tmp_path, "tiny")


def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    program = tmp_path / "transformers"
    program.write_text("#!/bin/sh\necho 'out of luck'\nexit 7\n")
    program.chmod(0o755)
    serving = Serving("transformers", str(tmp_path / "python"), "cpu", 512, 32, 99)
    with pytest.raises(MissingError, match="code 7: out of luck"), running_server(serving, tmp_path):
        pass


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["loop"], "either --serve or --url"),
        (["loop", "--url", "http://127.0.0.1:1"], "config.json"),
        (["onnx", "--loads", "x"], "not a list of shares"),
        (["onnx", "--loads", "2"], "between 0 and 1"),
        (["onnx", "--model", "none.onnx"], "no such file"),
    ],
)
def test_wrong_use_is_refused_in_words(args: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["calibrate", *args])
    assert isinstance(result.exception, InputError) and said in str(result.exception)


def test_a_file_that_is_no_onnx_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "x.onnx"
    path.write_bytes(b"not a model")
    result = CliRunner().invoke(cli, ["calibrate", "onnx", "--model", str(path)])
    assert isinstance(result.exception, InputError) and "cannot read it" in str(result.exception)
