"""A sweep plays every point once, whatever the workers, kills and failures, and its output does not depend on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from app.cli.main import cli
from catalogs.errors import InputError
from simulator.sweep import read_sweep, run_sweep
from tests.simulator.pool_tasks import slow_answer

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = """\
model: llama-3.1-8b
workload:
  arrivals: {process: poisson, rate_rps: 20, num_requests: 100}
  input_tokens: {distribution: fixed, value: 300}
  output_tokens: {distribution: fixed, value: 20}
fleet:
  - {gpu: H100-SXM, count: 1, usd_per_hour: 3.0}
"""
SWEEP = """\
scenario: s.yaml
grid:
  fleet.0.gpu: [H100-SXM, L40S]
  seed: [0, 1]
"""


def written(folder: Path, sweep: str = SWEEP, scenario: str = SCENARIO) -> Path:
    (folder / "s.yaml").write_text(scenario)
    path = folder / "sweep.yaml"
    path.write_text(sweep)
    return path


def counted(folder: Path, num: int, takes_s: float = 0.0) -> Path:
    """A sweep of points that only note that they ran."""
    ran = folder / "ran"
    ran.mkdir(exist_ok=True)
    values = json.dumps({"folder": [str(ran)], "takes_s": [takes_s], "n": list(range(num))})
    return written(folder, f"scenario: s.yaml\ngrid: {values}\n")


def test_a_grid_is_crossed_with_the_points_in_order(tmp_path: Path) -> None:
    points = read_sweep(written(tmp_path, SWEEP + "points: [{fleet.0.count: 1}, {fleet.0.count: 2}]\n"))
    assert [list(p.overrides.values()) for p in points][:3] == [[1, "H100-SXM", 0], [1, "H100-SXM", 1], [1, "L40S", 0]]
    assert len(points) == 8 and points[5].read().fleet[0].count == 2


def test_the_output_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    points = read_sweep(written(tmp_path))
    for workers in (1, 2):
        run_sweep(points, tmp_path / f"{workers}.parquet", workers=workers)
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    rows = pq.read_table(tmp_path / "1.parquet").to_pylist()
    assert [r["point"] for r in rows] == [0, 1, 2, 3]
    assert rows[0]["ttft_p95_s"] == json.loads(rows[0]["answer"])["ttft_s"]["p95"] != rows[1]["ttft_p95_s"]
    assert not list(tmp_path.glob("*.parts"))


def test_a_failed_point_is_a_row_that_says_why(tmp_path: Path) -> None:
    path = written(
        tmp_path, "scenario: s.yaml\ngrid: {fleet.0.gpu: [H100-SXM, H100-XXL], fleet.0.precision: [bf16, bf17]}\n"
    )
    out = tmp_path / "o.parquet"
    shown = CliRunner().invoke(cli, ["sweep", str(path), "-o", str(out), "--workers", "1", "--format", "json"])
    answer = json.loads(shown.stdout)
    assert shown.exit_code == 0 and (answer["points"], answer["failed"]) == (4, 3)
    assert "did you mean" in answer["failures"][1]["error"]
    assert answer["results"][0]["usd"] > 0 and answer["results"][1]["usd"] is None
    assert CliRunner().invoke(cli, ["sweep", str(path), "-o", str(out)]).exit_code == 0


def test_all_points_failing_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "scenario: s.yaml\ngrid: {fleet.0.gpu: [H100-XXL]}\n")
    assert CliRunner().invoke(cli, ["sweep", str(path), "-o", str(tmp_path / "o.parquet")]).exit_code == 1


def test_a_sweep_that_grew_runs_only_what_is_new(tmp_path: Path) -> None:
    out = tmp_path / "o.parquet"
    run_sweep(read_sweep(counted(tmp_path, 3)), out, function=slow_answer, workers=1)
    rows, num_before = run_sweep(read_sweep(counted(tmp_path, 5)), out, function=slow_answer, workers=1)
    assert (len(rows), num_before) == (5, 3)
    assert len(list((tmp_path / "ran").iterdir())) == 5
    run_sweep(read_sweep(counted(tmp_path, 5)), out, function=slow_answer, workers=1, restart=True)
    assert len(list((tmp_path / "ran").iterdir())) == 10


def test_a_changed_input_file_is_played_again(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n")
    scenario = "model: llama-3.1-8b\nworkload: {trace: t.csv}\nfleet: [{gpu: L40S}]\n"
    path = written(tmp_path, "scenario: s.yaml\ngrid: {seed: [0]}\n", scenario)
    first = read_sweep(path)[0].key
    assert read_sweep(path)[0].key == first
    time.sleep(0.01)
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,10,6\n")
    assert read_sweep(path)[0].key != first


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_sweep_resumes_and_repeats_nothing_that_was_written(tmp_path: Path, workers: int) -> None:
    path, out = counted(tmp_path, 12, takes_s=0.1), tmp_path / "o.parquet"
    program = (
        "import sys\nimport simulator.sweep as s\nfrom tests.simulator.pool_tasks import slow_answer\n"
        "if __name__ == '__main__':\n    s.FLUSH_ROWS = 2\n"
        "    s.run_sweep(s.read_sweep(sys.argv[1]), sys.argv[2], function=slow_answer, workers=int(sys.argv[3]))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, str(script), str(path), str(out), str(workers)], env=environment)
    parts = tmp_path / "o.parquet.parts"
    while not list(parts.glob("part-*.parquet")):
        assert child.poll() is None
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    saved = sum(len(pq.read_table(p)) for p in parts.glob("part-*.parquet"))
    assert saved >= 1 and not out.exists()
    rows, num_before = run_sweep(read_sweep(path), out, function=slow_answer, workers=1)
    assert (len(rows), num_before) == (12, saved)
    ran = Counter(int(p.name.rpartition("-")[2]) for p in (tmp_path / "ran").iterdir())
    assert len(ran) == 12 and sum(n == 1 for n in ran.values()) >= saved


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("scenario: nowhere.yaml\n", "nowhere.yaml"),
        ("scenario: s.yaml\ngird: {seed: [0]}\n", "did you mean 'grid'"),
        ("scenario: s.yaml\ngrid: {seed: 0}\n", "list"),
        ("scenario: s.yaml\ngrid: {seed: []}\n", "at least 1"),
        ("scenario: s.yaml\ngrid: {seed: [0, 1, 0]}\n", "again"),
        ("grid: {seed: [0]}\n", "'scenario' is missing"),
        ("scenario: s.yaml\npoints: [{slo: {1: 2, a: 3}}]\n", "keys that are not text"),
        (f"scenario: s.yaml\ngrid: {{a: {list(range(1001))}, b: {list(range(1001))}}}\n", "1,002,001 points"),
    ],
)
def test_a_bad_sweep_is_refused(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        read_sweep(written(tmp_path, text))
    assert what in str(caught.value)


def test_an_output_that_is_something_else_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "o.parquet"
    out.write_text("my thesis")
    with pytest.raises(InputError, match="not a result of a sweep"):
        run_sweep(read_sweep(written(tmp_path)), out, workers=1)
    assert out.read_text() == "my thesis"


def test_the_example_is_current() -> None:
    assert len(read_sweep(ROOT / "examples" / "sweep.yaml")) == 6
