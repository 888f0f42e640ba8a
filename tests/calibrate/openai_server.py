"""A small real HTTP server on loopback that speaks the OpenAI streaming API, and misbehaves on request."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

METRICS = """# HELP vllm:num_requests_running running
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:time_to_first_token_seconds_sum{model_name="m"} %d
vllm:time_to_first_token_seconds_count{model_name="m"} %d
vllm:prefix_cache_hits_total{model_name="m"} 10
"""


class Behaviour:
    """What the server does; tests change it while it runs."""

    def __init__(self, **settings: Any) -> None:
        self.status = 200
        self.num_refusals = 0  # answers with ``status`` this many times, then with 200
        self.usage = True
        self.close_after: int | None = None  # tokens, then the connection ends
        self.hang = False
        self.metrics = True
        self.refuses_ignore_eos = False
        self.garbage = b""  # an event of the stream
        self.num_asked = 0
        self.bodies: list[dict[str, Any]] = []
        self.released = threading.Event()
        self.__dict__.update(settings)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._whole(200, json.dumps({"data": [{"id": "m", "max_model_len": 4096}]}))
        elif self.path == "/metrics" and self.behaviour.metrics:
            self._whole(200, METRICS % (self.behaviour.num_asked, 2 * self.behaviour.num_asked))
        else:
            self._whole(404, "not here")

    def do_POST(self) -> None:
        behaviour = self.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        behaviour.bodies.append(body)
        behaviour.num_asked += 1
        if behaviour.hang:
            behaviour.released.wait(20)
            return
        if behaviour.refuses_ignore_eos and "ignore_eos" in body:
            self._whole(422, json.dumps({"detail": "Unexpected fields: {'ignore_eos'}"}))
            return
        if behaviour.status != 200 and (behaviour.num_refusals != 0):
            behaviour.num_refusals -= 1
            self._whole(behaviour.status, json.dumps({"error": {"message": "as told"}}), {"Retry-After": "0"})
            return
        self._stream(body)

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chat = "messages" in body
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        for index in range(body["max_tokens"]):
            if self.behaviour.close_after == index:
                self.close_connection = True
                return
            choice = {"delta": {"content": "x"}} if chat else {"text": "x"}
            self._event({"choices": [{**choice, "finish_reason": None}]})
        if self.behaviour.garbage:
            self._chunk(b"data: " + self.behaviour.garbage + b"\n\n")
        usage = {"prompt_tokens": 2 * len(prompt.split()) + 3, "completion_tokens": body["max_tokens"]}
        self._event({"choices": [{"finish_reason": "length"}]} | ({"usage": usage} if self.behaviour.usage else {}))
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(f"data: {json.dumps(event)}\n\n".encode())

    def _chunk(self, piece: bytes) -> None:
        self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.flush()

    def _whole(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that give up are part of the tests


@contextmanager
def openai_server(behaviour: Behaviour) -> Iterator[str]:
    """Serve until the block ends; gives the base URL."""
    handler = type("Bound", (Handler,), {"behaviour": behaviour})
    server = Quiet(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        behaviour.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
