"""A streaming client of the OpenAI completions and chat API: when each token came, what went wrong, nothing more.

Standard library only: HTTP/1.1 over asyncio, one connection a request, server-sent events.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from catalogs.errors import InputError
from catalogs.files import parse_json

Api = Literal["completions", "chat"]
MAX_RETRY_WAIT_S = 5.0
NUM_RETRIES = 3
LINE_LIMIT_BYTES = 2**20


@dataclass(frozen=True)
class Server:
    """Where and how to ask.

    Attributes:
        url: base, with or without ``/v1``. model: name the server knows. api: completions or chat.
        api_key: sent as a bearer token. timeout_s: for a whole request.
        ignore_eos: ask for exactly as many tokens as wanted (vLLM and SGLang know this; some others refuse it).
    """

    url: str
    model: str = ""
    api: Api = "completions"
    api_key: str | None = None
    timeout_s: float = 120.0
    ignore_eos: bool = True


@dataclass(frozen=True)
class Reply:
    """One request as the client saw it. Instants in seconds of one monotonic clock.

    Attributes:
        token_at_s: when each piece of the answer came; the first is the first token.
        input_tokens, output_tokens: as the server's usage says, else as asked and as counted in pieces.
        has_usage: the server said how many tokens there were.
        error: what went wrong, or empty. num_retries: after 429 and 503.
    """

    sent_at_s: float
    finish_at_s: float
    token_at_s: tuple[float, ...]
    input_tokens: int
    output_tokens: int
    has_usage: bool = False
    error: str = ""
    num_retries: int = 0

    @property
    def ok(self) -> bool:
        """The answer came whole."""
        return not self.error

    @property
    def ttft_s(self) -> float:
        """From sending to the first token."""
        return self.token_at_s[0] - self.sent_at_s

    @property
    def e2e_s(self) -> float:
        """From sending to the last token."""
        return self.token_at_s[-1] - self.sent_at_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds a token after the first; None for one token."""
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else None


class ServerError(Exception):
    """The server, or the way to it, failed; the text says how. ``status``: HTTP's, 0 without an answer."""

    def __init__(self, text: str, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.status, self.retry_after_s = status, retry_after_s


@dataclass
class _Stream:
    """What has come of one answer."""

    token_at_s: list[float] = field(default_factory=list)
    usage: Mapping[str, Any] | None = None
    finished: bool = False


def endpoint_path(server: Server, name: str) -> str:
    """The path of an API call under the server's base URL: ``completions`` becomes ``/v1/completions``."""
    base = urlsplit(server.url).path.rstrip("/")
    return f"{base}/{name}" if base.endswith("/v1") else f"{base}/v1/{name}"


def check_url(url: str) -> None:
    """Raises InputError unless ``url`` is an http or https URL with a host."""
    parts = urlsplit(url)
    try:
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        port_ok = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok:
        raise InputError(f"{url!r} is not a URL of a server", where="--url", remedy="http://127.0.0.1:8000")


async def ask(server: Server, prompt: str | list[int], input_tokens: int, output_tokens: int) -> Reply:
    """Send one request and follow its stream to the end; failures are told in the reply, never raised.

    A busy server (429, 503) is asked again after the wait that it names, or a growing one; ``sent_at_s`` is then the
    last try's.
    """
    num_retries = 0
    while True:
        sent_at_s = time.perf_counter()
        stream = _Stream()
        error = ""
        try:
            await asyncio.wait_for(_follow(server, prompt, output_tokens, stream), server.timeout_s)
        except TimeoutError:
            error = f"no end within {server.timeout_s:g} s"
        except ServerError as failed:
            if failed.status in (429, 503) and num_retries < NUM_RETRIES and not stream.token_at_s:
                wait_s = failed.retry_after_s if failed.retry_after_s is not None else 0.25 * 2**num_retries
                num_retries += 1
                await asyncio.sleep(min(wait_s, MAX_RETRY_WAIT_S))
                continue
            error = str(failed)
        except (OSError, EOFError, ValueError) as failed:  # ValueError: a line beyond the limit
            error = f"connection failed: {failed or type(failed).__name__}"
        return _reply(stream, sent_at_s, error, (input_tokens, output_tokens), num_retries)


def _reply(stream: _Stream, sent_at_s: float, error: str, asked: tuple[int, int], num_retries: int) -> Reply:
    num_pieces = len(stream.token_at_s)
    if not error and not stream.finished:
        error = f"closed early, after {num_pieces} tokens"
    if not error and not num_pieces:
        error = "the answer held no token"
    usage = stream.usage or {}
    has_usage = isinstance(usage.get("completion_tokens"), int) and isinstance(usage.get("prompt_tokens"), int)
    return Reply(
        sent_at_s=sent_at_s,
        finish_at_s=time.perf_counter(),
        token_at_s=tuple(stream.token_at_s),
        input_tokens=int(usage["prompt_tokens"]) if has_usage else asked[0],
        output_tokens=int(usage["completion_tokens"]) if has_usage else num_pieces,
        has_usage=has_usage,
        error=error,
        num_retries=num_retries,
    )


async def _follow(server: Server, prompt: str | list[int], output_tokens: int, stream: _Stream) -> None:
    body: dict[str, Any] = {
        "model": server.model,
        "max_tokens": output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
    }
    if server.ignore_eos:
        body["ignore_eos"] = True
    if server.api == "chat":
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    path = endpoint_path(server, "chat/completions" if server.api == "chat" else "completions")
    async for line in _exchange(server, "POST", path, json.dumps(body).encode()):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            stream.finished = True
            return
        _take(data, stream)


def _take(data: bytes, stream: _Stream) -> None:
    try:
        event = parse_json(data)
    except ValueError:
        raise ServerError(f"the stream holds what is not JSON: {data[:60]!r}") from None
    if not isinstance(event, dict):
        return
    if event.get("error"):
        raise ServerError(f"the stream holds an error: {str(event['error'])[:160]}")
    if isinstance(event.get("usage"), dict):
        stream.usage = event["usage"]
    choices = event.get("choices") or ()
    if not isinstance(choices, list | tuple) or not all(isinstance(choice, dict) for choice in choices):
        raise ServerError(f"the stream holds choices of another form: {data[:60]!r}")
    for choice in choices:
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
        if text or choice.get("token_ids"):
            stream.token_at_s.append(time.perf_counter())
        if choice.get("finish_reason"):
            stream.finished = True


async def fetch(server: Server, path: str) -> str:
    """The body of a GET.

    Raises:
        ServerError: no connection, no answer in time, or a status other than 200.
    """

    async def whole() -> str:
        return b"\n".join([line async for line in _exchange(server, "GET", path, b"")]).decode(errors="replace")

    try:
        return await asyncio.wait_for(whole(), min(server.timeout_s, 10.0))
    except TimeoutError:
        raise ServerError("no answer within 10 s") from None
    except (OSError, EOFError, ValueError) as error:
        raise ServerError(f"connection failed: {error or type(error).__name__}") from None


async def _exchange(server: Server, method: str, path: str, body: bytes) -> AsyncIterator[bytes]:
    """Send one request; yield the lines of a 200 answer's body as they come."""
    parts = urlsplit(server.url)
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if secure else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=secure, limit=LINE_LIMIT_BYTES)
    try:
        head = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}", "Connection: close"]
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}", "Accept: */*"]
        if server.api_key:
            head.append(f"Authorization: Bearer {server.api_key}")
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        await writer.drain()
        status, headers = await _head(reader)
        pieces = _chunks(reader) if headers.get("transfer-encoding", "").lower() == "chunked" else _plain(reader)
        if status != 200:
            text = await _error_text(pieces)
            raise ServerError(f"HTTP {status}: {text}", status, _seconds(headers.get("retry-after")))
        async for line in _lines(pieces):
            yield line
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first = (await reader.readline()).decode("latin-1").split(None, 2)
    if len(first) < 2 or not first[0].startswith("HTTP/") or not first[1].isdigit():
        raise ServerError("closed early, before any answer" if not first else "the answer is not HTTP")
    headers = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return int(first[1]), headers


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        size_line = await reader.readline()
        try:
            size = int(size_line.split(b";")[0], 16)
        except ValueError:
            return  # the connection ended inside the body; the caller sees an unfinished stream
        if size <= 0:
            return
        try:
            piece = await reader.readexactly(size + 2)
        except asyncio.IncompleteReadError:
            return
        yield piece[:-2]


async def _plain(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(65536):
        yield piece


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r")
    if rest:
        yield rest


async def _error_text(pieces: AsyncIterator[bytes]) -> str:
    text = b"".join([piece async for piece in pieces]).decode(errors="replace").strip()
    try:
        found = parse_json(text)
        error = found.get("error", found) if isinstance(found, dict) else found
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        pass
    return " ".join(text.split())[:200]


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:  # a date; a growing wait serves as well
        return None
