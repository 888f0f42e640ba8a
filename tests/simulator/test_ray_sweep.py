"""A sweep on a real Ray cluster of two nodes on loopback, with a worker and a node killed in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from simulator.sweep import read_sweep, run_sweep

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).resolve().parents[2]


def ray_command(*arguments: str) -> None:
    command = Path(sys.executable).with_name("ray")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
                   "RAY_USAGE_STATS_ENABLED": "0"}  # fmt: skip
    subprocess.run([str(command), *arguments], check=True, capture_output=True, env=environment, timeout=120)


@pytest.fixture
def cluster() -> Iterator[str]:
    """Two nodes of one core each; answers the head's address and ends what it started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = f"/tmp/ray-test-{port}"  # socket names must be short
    head = (
        "--head",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--include-dashboard=false",
        f"--temp-dir={folder}",
    )
    ray_command("start", *head, "--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats")
    try:
        ray_command("start", f"--address=127.0.0.1:{port}", "--num-cpus=1", "--object-store-memory=100000000")
        yield f"127.0.0.1:{port}"
    finally:
        ours = {pid for pid, command in processes() if folder in command}
        for pid in ours | {pid for pid, _ in processes() if parent(pid) in ours}:  # agents change their command lines
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def processes() -> Iterator[tuple[int, str]]:
    """Number and command line of every process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def parent(pid: int) -> int:
    """Number of a process's parent; 0 if it has gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def sweep_of(folder: Path, num: int, takes_s: float) -> Path:
    ran = folder / "ran"
    ran.mkdir(exist_ok=True)
    values = json.dumps({"folder": [str(ran)], "takes_s": [takes_s], "n": list(range(num))})
    (folder / "s.yaml").write_text("model: llama-3.1-8b\n")
    path = folder / "sweep.yaml"
    path.write_text(f"scenario: s.yaml\ngrid: {values}\n")
    return path


def test_a_worker_killed_in_the_middle_loses_nothing(cluster: str, tmp_path: Path) -> None:
    from tests.simulator.pool_tasks import slow_answer

    points = read_sweep(sweep_of(tmp_path, 24, 0.4))
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 240
        while len(list((tmp_path / "ran").iterdir())) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        newest = max((tmp_path / "ran").iterdir(), key=lambda path: int(path.name.split("-")[0]))
        killed.append(int(newest.name.split("-")[1]))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    rows, _ = run_sweep(points, tmp_path / "ray.parquet", function=slow_answer, ray_address=cluster)
    killer.join()
    assert killed
    assert [r["status"] for r in rows] == ["ok"] * 24
    assert len(list((tmp_path / "ran").iterdir())) > 24  # what the dead worker did was done again
    run_sweep(points, tmp_path / "local.parquet", function=slow_answer, workers=2)
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()


def test_simulations_on_the_cluster_equal_those_here(cluster: str, tmp_path: Path) -> None:
    points = read_sweep(ROOT / "examples" / "sweep.yaml")
    for name, address in (("ray", cluster), ("here", None)):
        run_sweep(points, tmp_path / f"{name}.parquet", ray_address=address, workers=None)
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "here.parquet").read_bytes()
    assert len(pq.read_table(tmp_path / "ray.parquet")) == 6
