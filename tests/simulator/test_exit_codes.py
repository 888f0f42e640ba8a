"""Bad input ends with the contract's exit code and words, never a traceback, in the real program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = "model: llama-3.1-8b\nworkload: {trace: t.csv}\nfleet: [{gpu: L40S}]\n"
TRACE = "arrival_s,input_tokens,output_tokens\n0,10,5\n1,20,6\n"


def plan(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PLAN_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "app.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("arguments", "files", "code", "said"),
    [
        (["simulate", "s.yaml"], {"t.csv": TRACE.replace("1,20", "1,-20")}, 2, "t.csv:3: input_tokens '-20'"),
        (["simulate", "s.yaml"], {"t.csv": ""}, 2, "t.csv: is empty"),
        (["simulate", "s.yaml"], {"s.yaml": SCENARIO + "sede: 1\n"}, 2, "s.yaml:4: unknown key 'sede'"),
        (["simulate", "s.yaml"], {"s.yaml": SCENARIO.replace("L40S", "L40S, profile: p.json")}, 3, "p.json"),
        (["simulate", "s.yaml"], {"s.yaml": SCENARIO + "slo: {ttft_p95_s: 0.000001}\n"}, 1, "SLO is missed"),
        (["trace", "stats", "nowhere.csv"], {}, 2, "nowhere.csv: no such file"),
        (["sweep", "nowhere.yaml"], {}, 2, "nowhere.yaml: no such file"),
        (["simulate", "s.yaml", "--format", "xml"], {}, 2, "xml"),
    ],
)
def test_bad_input_has_its_exit_code(
    tmp_path: Path, arguments: list[str], files: dict[str, str], code: int, said: str
) -> None:
    for name, text in {"s.yaml": SCENARIO, "t.csv": TRACE, **files}.items():
        (tmp_path / name).write_text(text)
    done = plan(tmp_path, *arguments)
    assert done.returncode == code
    assert said in done.stderr and "Traceback" not in done.stderr


def test_good_input_prints_one_json_document_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO)
    (tmp_path / "t.csv").write_text(TRACE)
    done = plan(tmp_path, "simulate", "s.yaml", "--format", "json")
    assert done.returncode == 0 and json.loads(done.stdout)["requests"]["completed"] == 2
