"""A real Prometheus (Debian's package) on loopback: over backfilled blocks, or scraping an exporter."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed (Debian: apt-get install prometheus)",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def prometheus(folder: Path, openmetrics: str | None = None, scrape: int | None = None) -> Iterator[str]:
    """A server's address, over given samples or scraping a port of this machine every 200 ms."""
    data, config, log = folder / "data", folder / "prometheus.yml", folder / "log"
    if openmetrics is not None:
        (folder / "samples.txt").write_text(openmetrics)
        made = subprocess.run(
            ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(folder / "samples.txt"), str(data)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
    jobs = "" if scrape is None else (
        f"  - job_name: engine\n    scrape_interval: 200ms\n    scrape_timeout: 200ms\n"
        f"    static_configs:\n      - targets: ['127.0.0.1:{scrape}']\n"
    )  # fmt: skip
    config.write_text(f"scrape_configs:\n{jobs}" if jobs else "scrape_configs: []\n")
    port = free_port()
    with log.open("w") as out:
        server = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={data}",
             "--storage.tsdb.retention.time=10y", "--query.lookback-delta=15m",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            _wait_ready(f"http://127.0.0.1:{port}/-/ready", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=20)


def _wait_ready(url: str, log: Path) -> None:
    for _ in range(200):
        try:
            with urlopen(url, timeout=1) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            pass
        time.sleep(0.1)
    raise AssertionError(f"Prometheus did not start: {log.read_text()[-2000:]}")
