"""The command line as a whole: help, errors and exit codes, as users meet them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from app.cli.doctor import _packages
from app.cli.main import cli
from app.cli.reference import commands

ROOT = Path(__file__).resolve().parents[2]
EVERY = list(commands(cli, "plan"))


def plan(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run `plan` as a user would: another process, in a folder of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PLAN_HOME": str(home / "home")}
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *words],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("path", "text"), EVERY, ids=[path for path, _ in EVERY])
def test_every_help_has_a_worked_example(path: str, text: str) -> None:
    assert "Example:" in text
    example = text.split("Example:")[1].strip().splitlines()[0]
    assert "plan " in example


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom app.cli.main import cli\n"
        "try:\n    cli.main(['--help'], standalone_mode=True)\nexcept SystemExit:\n    pass\n"
        "heavy = {'pandas', 'numpy', 'scipy', 'numba', 'boto3', 'rich', 'pydantic', 'torch', 'streamlit'}\n"
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["recomend"], 2, "did you mean `plan recommend`?"),
        (["compare", "nope", "nope"], 2, "no run 'nope'"),
        (["explain", "last"], 2, "there are no runs yet"),
        (["export", "vllm", "last"], 2, "there are no runs yet"),
        (["export", "nomad", "last"], 2, "is not one of"),
        (["estimate", "lama-3.1-8b", "--gpu", "L4"], 2, "llama-3.1-8b"),
        (["estimate", "llama-3.1-8b", "--gpu", "L44"], 2, "did you mean"),
        (["estimate", "llama-3.1-405b", "--gpu", "L4"], 2, "does not fit"),
        (["recommend", "-c", "absent.yaml"], 2, "absent.yaml"),
        (["simulate", "absent.yaml"], 2, "absent.yaml"),
        (["simulate", "absent.yaml", "--set", "seed=2001-99-99"], 2, "is not a value"),
        (["report", "build", "--bill", "absent.csv"], 2, "absent.csv"),
        (["report", "schedule", "absent.yaml"], 2, "absent.yaml"),
        (["web", "--host", "0.0.0.0"], 2, "PLAN_WEB_PASSWORD"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_ends_with_its_code_and_no_traceback(
    words: list[str], code: int, said: str, tmp_path: Path
) -> None:
    done = plan(*words, home=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_init_writes_a_plan_that_is_never_overwritten(tmp_path: Path) -> None:
    assert plan("init", "mine", home=tmp_path).returncode == 0
    (tmp_path / "mine" / "plan.yaml").write_text("mine")
    again = plan("init", "mine", home=tmp_path)
    assert again.returncode == 2
    assert "already there" in again.stderr
    assert (tmp_path / "mine" / "plan.yaml").read_text() == "mine"


def test_json_on_stdout_is_one_document(tmp_path: Path) -> None:
    for words in (["doctor"], ["runs", "list"], ["estimate", "llama-3.1-8b", "--gpu", "L4"]):
        done = plan(*words, "--format", "json", home=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["schema_version"] == 1


def test_doctor_looks_for_all_that_the_project_requires() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for_users = {k: v for k, v in stated["optional-dependencies"].items() if k != "dev"}
    wanted = [*stated["dependencies"], *(needed for extra in for_users.values() for needed in extra)]
    assert [p["package"] for p in _packages()] == [needed.partition(">=")[0] for needed in wanted]


def test_every_schema_is_published(tmp_path: Path) -> None:
    schemas = json.loads(plan("schema", home=tmp_path).stdout)
    assert set(schemas) == {"plan", "scenario", "profile", "report"}
    assert all(s["properties"] for s in schemas.values())
