"""What really ran, asked of a real Prometheus over days of planted metrics, and of one that scrapes an exporter."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

from catalogs.errors import InputError, MissingError
from planner.spend.drift import drift
from planner.spend.observed import METRICS, Observed, observe
from planner.spend.prometheus import MAX_POINTS, Prometheus, Series, quantile, share_above
from tests.planner.prometheus_server import needs_prometheus, prometheus
from tests.planner.test_drift import PLAN

START = datetime(2026, 11, 2, tzinfo=UTC)
DAYS, STEP_S = 6, 600
GAP = (START + timedelta(days=3), START + timedelta(days=3, hours=6))
RESTART = START + timedelta(days=5)
BASE_RATE = 10.0  # requests a second on the first day, over two replicas
GROWTH = 0.03  # a day, of the first day's


def rate_on(day: float) -> float:
    return BASE_RATE * (1 + GROWTH * day)


def samples() -> str:
    """OpenMetrics text: two vLLM replicas and two GPUs, with a gap, a restart, growth and one idle GPU."""
    ttft = {"0.5": 0.70, "1.0": 0.90, "2.5": 1.0, "+Inf": 1.0}  # a tenth beyond 1 s
    itl = {"0.01": 0.0, "0.02": 0.5, "0.05": 1.0, "+Inf": 1.0}
    gauges = {"vllm:num_requests_running": 12.0, "vllm:num_requests_waiting": 1.0, "vllm:kv_cache_usage_perc": 0.4}
    lines: dict[str, list[str]] = {}

    def put(name: str, labels: str, value: float, at: float) -> None:
        lines.setdefault(name, []).append(f"{name}{{{labels}}} {value:.6f} {at:.0f}")

    served = 0.0
    moment = START
    while moment < START + timedelta(days=DAYS):
        at, day = moment.timestamp(), (moment - START).total_seconds() / 86400
        if moment == RESTART:
            served = 0.0
        served += rate_on(day) / 2 * STEP_S
        if not GAP[0] <= moment < GAP[1]:
            for replica in ("a", "b"):
                label = f'instance="{replica}:8000",model_name="llama"'
                put("vllm:request_success_total", f'{label},finished_reason="stop"', served, at)
                put("vllm:prompt_tokens_total", label, served * 1000, at)
                put("vllm:generation_tokens_total", label, served * 200, at)
                for name, value in gauges.items():
                    put(name, label, value, at)
                for family, shares, mean, per in (("vllm:time_to_first_token_seconds", ttft, 0.5, 1),
                                                  ("vllm:inter_token_latency_seconds", itl, 0.02, 200)):  # fmt: skip
                    for edge, share in shares.items():
                        put(f"{family}_bucket", f'{label},le="{edge}"', served * share * per, at)
                    put(f"{family}_count", label, served * per, at)
                    put(f"{family}_sum", label, served * mean * per, at)
            for machine, busy in (("i-busy", 0.7), ("i-idle", 0.01)):
                put("DCGM_FI_PROF_GR_ENGINE_ACTIVE", f'Hostname="{machine}",gpu="0"', busy, at)
        moment += timedelta(seconds=STEP_S)
    return "\n".join(line for family in lines.values() for line in family) + "\n# EOF\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with prometheus(tmp_path_factory.mktemp("prometheus"), openmetrics=samples()) as url:
        yield Prometheus(url)


@pytest.fixture(scope="module")
def week(server: Prometheus) -> Observed:
    return observe(server, START, START + timedelta(days=DAYS), step_s=600)


@needs_prometheus
def test_load_and_tokens_are_counted_through_a_restart_and_a_gap(week: Observed) -> None:
    assert week.framework == "vllm"
    expected = sum(rate_on(i * STEP_S / 86400) * STEP_S for i in range(DAYS * 86400 // STEP_S))
    assert week.counts["requests"] == pytest.approx(expected, rel=0.01)
    assert week.counts["output_tokens"] / week.counts["requests"] == pytest.approx(200, rel=0.001)
    assert week.num_replicas == pytest.approx(2.0)


@needs_prometheus
def test_a_gap_is_found_and_said(week: Observed) -> None:
    ((start, end),) = week.gaps
    assert start == pytest.approx(GAP[0].timestamp(), abs=1500)
    assert end == pytest.approx(GAP[1].timestamp(), abs=1500)
    assert any("gaps" in note for note in week.notes)


@needs_prometheus
def test_latency_and_use_are_read(week: Observed) -> None:
    ttft = week.latency["ttft_s"]
    assert share_above(ttft.buckets, 1.0) == pytest.approx(0.10, abs=0.001)
    assert ttft.percentile(0.95) == pytest.approx(1.75, abs=0.01)
    assert ttft.mean_s == pytest.approx(0.5, rel=0.001)
    assert week.means["running"] == pytest.approx(24.0)
    assert week.means["kv_cache_usage"] == pytest.approx(0.4)
    assert dict(zip(week.busy["resource_id"], week.busy["busy_share"].round(3), strict=True)) == {
        "i-busy": 0.7, "i-idle": 0.01,
    }  # fmt: skip


@needs_prometheus
def test_drift_finds_each_planted_fault(week: Observed) -> None:
    found = {f.subject: f for f in drift(week, PLAN)}
    mean = sum(rate_on(i / 100) for i in range(DAYS * 100)) / DAYS / 100
    rate = week.requests_per_s
    assert rate is not None
    assert "outgrows" in found["load"].text
    assert found["load"].usd == pytest.approx((rate / 8.0 - 1) * 3.722 * week.counted_s / 3600)
    assert rate == pytest.approx(mean, rel=0.01)
    weekly = BASE_RATE * GROWTH * 7 / mean
    said = float(found["load trend"].text.split("grows by ")[1].split("%")[0]) / 100
    assert said == pytest.approx(weekly, abs=0.01)  # a day with a gap weighs its own hours
    assert "10.0% of requests" in found["ttft_p95_s"].text
    assert "2.0 times" in found["ttft_p95_s"].text
    assert "tpot_p95_s" not in found


@needs_prometheus
def test_a_selector_chooses_the_service(server: Prometheus) -> None:
    end = START + timedelta(days=1)
    one = observe(server, START, end, selector='instance="a:8000"', step_s=600)
    assert one.num_replicas == pytest.approx(1.0)
    with pytest.raises(MissingError, match="no metrics of vLLM"):
        observe(server, START, end, selector='model_name="other"')
    with pytest.raises(InputError, match="does not understand"):
        observe(server, START, end, selector="not promql")
    with pytest.raises(MissingError, match="no metrics"):
        observe(server, START - timedelta(days=99), START - timedelta(days=98))


class _Exporter(BaseHTTPRequestHandler):
    """An SGLang-like engine that serves ten requests between scrapes."""

    served = 0

    def do_GET(self) -> None:
        type(self).served += 10
        n = self.served
        text = (
            f"# TYPE sglang:num_requests_total counter\nsglang:num_requests_total {n}\n"
            f"# TYPE sglang:generation_tokens_total counter\nsglang:generation_tokens_total {n * 50}\n"
            "# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs 3\n"
            "# TYPE sglang:token_usage gauge\nsglang:token_usage 0.25\n"
            "# TYPE sglang:time_to_first_token_seconds histogram\n"
            f'sglang:time_to_first_token_seconds_bucket{{le="0.1"}} {n // 2}\n'
            f'sglang:time_to_first_token_seconds_bucket{{le="+Inf"}} {n}\n'
            f"sglang:time_to_first_token_seconds_sum {n * 0.1}\nsglang:time_to_first_token_seconds_count {n}\n"
            '# TYPE DCGM_FI_DEV_GPU_UTIL gauge\nDCGM_FI_DEV_GPU_UTIL{gpu="0",Hostname="i-1"} 80\n'
        )
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield int(server.server_address[1])
    server.shutdown()
    server.server_close()
    thread.join()


@needs_prometheus
def test_a_live_engine_that_prometheus_scrapes_is_observed(tmp_path: Path) -> None:
    with serving(_Exporter) as exporter, prometheus(tmp_path, scrape=exporter) as url:
        started = datetime.now(UTC)
        server = Prometheus(url)
        for _ in range(100):
            time.sleep(0.1)
            seen = server.scalar('count_over_time({__name__="sglang:num_requests_total"}[1h])', time.time())
            if seen is not None and seen >= 8:
                break
        found = observe(server, started, datetime.now(UTC), step_s=0.5)
    assert found.framework == "sglang"
    assert found.counts["requests"] > 10
    assert found.counts["output_tokens"] == pytest.approx(50 * found.counts["requests"])
    assert found.means["kv_cache_usage"] == pytest.approx(0.25)
    assert found.busy["busy_share"].tolist() == [pytest.approx(0.8)]


# Failures of the server


class _Broken(BaseHTTPRequestHandler):
    status, body, wait_s = 200, b"", 0.0

    def do_POST(self) -> None:
        time.sleep(self.wait_s)
        self.rfile.read(int(self.headers["Content-Length"]))
        try:
            self.send_response(self.status)
            self.send_header("Content-Length", str(len(self.body)))
            self.end_headers()
            self.wfile.write(self.body)
        except OSError:
            pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "body", "wait_s", "message"),
    [
        (200, b"<html>", 0.0, "not Prometheus"),
        (
            200,
            b'{"status":"success","data":{"resultType":"vector","result":[{"value":[1,"x"]}]}}',
            0.0,
            "cannot be read",
        ),
        (401, b"", 0.0, "PLAN_PROMETHEUS_TOKEN"),
        (503, b'{"status":"error","errorType":"timeout","error":"query timed out"}', 0.0, "shorter period"),
        (502, b"<html>", 0.0, "HTTP 502"),
        (200, b"", 1.0, "cannot be reached"),
    ],
)
def test_a_server_that_fails_is_missing_data(status: int, body: bytes, wait_s: float, message: str) -> None:
    handler = type("Handler", (_Broken,), {"status": status, "body": body, "wait_s": wait_s})
    with serving(handler) as port, pytest.raises(MissingError, match=message):
        observe(Prometheus(f"http://127.0.0.1:{port}", timeout_s=0.4), START, START + timedelta(days=1))


def test_nobody_listening_is_missing_data_and_no_address_is_wrong_input() -> None:
    with pytest.raises(MissingError, match="cannot be reached"):
        observe(Prometheus("http://127.0.0.1:9"), START, START + timedelta(days=1))
    for no_address in ("localhost:9090", "http://", "http://[bad", "http://host:abc"):
        with pytest.raises(InputError, match="no http address"):
            Prometheus(no_address)
    with pytest.raises(InputError, match="empty"):
        observe(Prometheus("http://127.0.0.1:9"), START, START)


@pytest.mark.parametrize("said", [
    b"-ERR unknown command\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"",
])  # fmt: skip
def test_what_speaks_no_http_or_breaks_off_is_missing_data(said: bytes) -> None:
    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.wfile.write(said)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(MissingError, match="cannot be reached"):
                Prometheus(f"http://127.0.0.1:{server.server_address[1]}").instant("up", 0.0)
        finally:
            server.shutdown()


@pytest.mark.parametrize("labels", [b"5", b'{"le": null}', b'{"le": "wide"}', b'[["le", 1]]'])
def test_labels_that_are_none_are_missing_data(labels: bytes) -> None:
    series = b'{"metric": %s, "value": [0, "1"]}' % labels
    body = b'{"status": "success", "data": {"resultType": "vector", "result": [%s]}}' % series
    with serving(type("Handler", (_Broken,), {"body": body})) as port, pytest.raises(MissingError):
        observe(Prometheus(f"http://127.0.0.1:{port}"), START, START + timedelta(days=1), framework="vllm")


def test_a_long_period_at_a_fine_step_is_no_row_of_gaps() -> None:
    asked: dict[str, float] = {}

    class Even(Prometheus):
        def range(self, query: str, start_s: float, end_s: float, step_s: float) -> list[Series]:
            asked[query] = step = max(step_s, (end_s - start_s) / MAX_POINTS)
            return [Series({}, tuple((start_s + i * step, 1.0) for i in range(int((end_s - start_s) / step) + 1)))]

        def instant(self, query: str, at_s: float) -> list[Series]:
            return [] if "_bucket" in query else [Series({}, ((at_s, 1.0),))]

    seen = observe(Even("http://metrics"), START, START + timedelta(days=90), framework="vllm", step_s=60.0)
    assert not seen.gaps and seen.counted_s == 90 * 86_400
    assert set(asked.values()) == {90 * 86_400 / MAX_POINTS}


def test_a_token_is_sent_and_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Handler(_Broken):
        body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": []}}).encode()

        def do_POST(self) -> None:
            seen.append(self.headers["Authorization"])
            super().do_POST()

    monkeypatch.setenv("PLAN_PROMETHEUS_TOKEN", "hush\n")  # as a mounted secret ends
    with serving(Handler) as port, pytest.raises(MissingError) as caught:
        observe(Prometheus(f"http://127.0.0.1:{port}"), START, START + timedelta(days=1))
    assert set(seen) == {"Bearer hush"}
    assert "hush" not in str(caught.value)
    monkeypatch.setenv("PLAN_PROMETHEUS_TOKEN", "hush\nhush")
    with pytest.raises(InputError, match="is no token") as refused:
        Prometheus("http://127.0.0.1:9").instant("up", 0.0)
    assert "hush" not in str(refused.value)


# Formulas


def test_a_quantile_is_linear_within_its_bucket() -> None:
    buckets = {0.1: 50.0, 0.2: 90.0, float("inf"): 100.0}
    assert quantile(buckets, 0.5) == pytest.approx(0.1)
    assert quantile(buckets, 0.7) == pytest.approx(0.15)
    assert quantile(buckets, 0.99) == pytest.approx(0.2)  # beyond the last edge: all that is known
    assert quantile({float("inf"): 0.0}, 0.5) is None
    assert share_above(buckets, 0.15) == pytest.approx(0.3)
    assert share_above(buckets, 5.0) == pytest.approx(0.1)


def test_every_engine_has_a_gauge_to_find_it_by() -> None:
    assert all(names["running"] for names in METRICS.values())
