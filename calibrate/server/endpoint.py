"""Measures a live server over a designed sweep of concurrency and lengths, and makes a profile of it."""

from __future__ import annotations

import asyncio
import datetime
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from calibrate.endpoint_step import FAMILY, fit_parameters
from calibrate.profiles import Profile
from calibrate.server import prometheus_text
from calibrate.server.endpoint_client import Reply, Server, ServerError, ask, endpoint_path, fetch
from calibrate.server.endpoint_fit import Fitted, fit_step, observations_of, observations_of_points
from calibrate.server.load_points import LoadPoint, point_to_dict, summarise
from calibrate.server.random_model import SYLLABLES
from catalogs.errors import InputError, MissingError, PlanError

Progress = Callable[[str, float], None]
MOST_FAILED = 0.2  # share of a load point's requests; above it the point is not used


@dataclass(frozen=True)
class Load:
    """One point of the sweep: closed loop of ``concurrency``, or open loop of ``rate_rps`` with Poisson arrivals."""

    concurrency: int | None
    input_tokens: int
    output_tokens: int
    num_requests: int
    rate_rps: float | None = None


@dataclass(frozen=True)
class Session:
    """A server that answered a first request: how prompts turn into tokens there.

    Attributes:
        tokens_per_word, extra_tokens: a prompt of w words has about w * tokens_per_word + extra_tokens tokens.
        notes: what the reader should know (no usage, unknown fields, no metrics).
    """

    server: Server
    tokens_per_word: float = 1.0
    extra_tokens: float = 0.0
    max_model_len: int | None = None
    metrics_url: str | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Measured:
    """What a sweep found; failures are told in ``notes``."""

    points: list[LoadPoint] = field(default_factory=list)
    replies: list[list[Reply]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seat_limit: int | None = None


def design(
    concurrency: Sequence[int], input_tokens: Sequence[int], output_tokens: int, num_requests: int
) -> list[Load]:
    """The sweep: every prompt length alone, then the loads at the middle length, then the corners.

    The first part separates the overhead of a request from the time of its prompt; the second shows how a step grows
    with the sequences in it; the third how context and prompts of others weigh.
    """
    lengths, levels = sorted(set(input_tokens)), sorted(set(concurrency) - {1})
    loads = [Load(1, n, output_tokens, max(3, num_requests // 8)) for n in lengths]
    middle = lengths[len(lengths) // 2]
    loads += [Load(c, middle, output_tokens, max(num_requests, 2 * c)) for c in levels]
    if levels:
        for n in (lengths[0], lengths[-1]):
            if n != middle:
                loads.append(Load(levels[-1], n, output_tokens, max(num_requests, 2 * levels[-1])))
        loads.append(Load(levels[len(levels) // 2], lengths[-1], 2 * output_tokens, num_requests))
    return loads


def prompt_of(num_words: int, rng: random.Random) -> str:
    """A prompt of random words; no two begin alike, so that a prefix cache does not help."""
    return " ".join("".join(rng.choices(SYLLABLES, k=2)) for _ in range(max(1, num_words)))


async def connect(server: Server, metrics_url: str | None = None) -> Session:
    """Ask once: is the server there, what is the model's name, how do words turn into tokens.

    Raises:
        MissingError: no server there, or it does not answer such a request; with what it said.
    """
    notes: list[str] = []
    server, max_model_len = await _find_model(server, notes)
    rng = random.Random(0)
    replies = []
    for num_words in (8, 64):
        reply = await ask(server, prompt_of(num_words, rng), num_words, 4)
        if not reply.ok and "ignore_eos" in reply.error and server.ignore_eos:
            server = replace(server, ignore_eos=False)
            notes.append("the server does not know ignore_eos: answers may end before the length asked for")
            reply = await ask(server, prompt_of(num_words, rng), num_words, 4)
        if not reply.ok:
            raise MissingError(
                f"{server.url} did not answer a first request: {reply.error}",
                where="--url",
                remedy=_remedy(reply.error, server),
            )
        replies.append(reply)
    session = Session(server, max_model_len=max_model_len)
    if all(r.has_usage for r in replies):
        slope = (replies[1].input_tokens - replies[0].input_tokens) / 56
        if slope > 0:
            session = replace(session, tokens_per_word=slope, extra_tokens=replies[0].input_tokens - 8 * slope)
    else:
        notes.append("the server streams no usage: prompt tokens are taken as words, output tokens as pieces")
    found = await _metrics_url(server, metrics_url)
    if found is None:
        notes.append("no Prometheus metrics at /metrics")
    return replace(session, metrics_url=found, notes=tuple(notes))


async def _find_model(server: Server, notes: list[str]) -> tuple[Server, int | None]:
    try:
        listed = json.loads(await fetch(server, endpoint_path(server, "models")))["data"]
        found = next((m for m in listed if m.get("id") == server.model), listed[0] if listed else {})
    except ServerError as error:
        if error.status == 0 and "connection failed" in str(error):
            raise MissingError(
                f"no server at {server.url}: {error}",
                where="--url",
                remedy="start it first, for example: vllm serve MODEL --port 8000; check host, port and firewall",
            ) from None
        found = {}
    except (ValueError, KeyError, TypeError, AttributeError):
        found = {}
    if not server.model:
        if not found.get("id"):
            raise MissingError(
                f"{server.url} does not list its models",
                where="--model",
                why="a request must name one",
                remedy="pass --model NAME",
            )
        server = replace(server, model=str(found["id"]))
        notes.append(f"model: {server.model}")
    length = found.get("max_model_len")
    return server, int(length) if isinstance(length, int) else None


def _remedy(error: str, server: Server) -> str:
    if "HTTP 401" in error or "HTTP 403" in error:
        return "pass the key in the variable that --api-key-env names"
    if "HTTP 404" in error:
        return "check --model, or pass --api chat" if server.api == "completions" else "check --model and the URL"
    if "HTTP 429" in error or "HTTP 503" in error:
        return "the server is busy or limits the rate: measure when nobody else uses it, or raise its limit"
    if "no end within" in error:
        return "raise --timeout, or check that the server is not overloaded"
    return "look at the server's log; --api chat for servers without /v1/completions"


async def _metrics_url(server: Server, given: str | None) -> str | None:
    base = server.url.rstrip("/").removesuffix("/v1")
    url = given or f"{base}/metrics"
    try:
        found = prometheus_text.scrape(await _get(server, url))
    except (ServerError, PlanError):
        found = None
    if given and found is None:
        raise MissingError(
            f"{given} holds no metrics of a serving engine", where="--metrics-url", remedy="leave it out to go without"
        )
    return url if found else None


async def _get(server: Server, url: str) -> str:
    from urllib.parse import urlsplit

    return await fetch(replace(server, url=url), urlsplit(url).path or "/")


async def measure(session: Session, loads: Sequence[Load], progress: Progress, seed: int = 0) -> Measured:
    """Run a sweep, one load after another, and write down what each request saw."""
    measured = Measured()
    rng = random.Random(seed)
    for index, load in enumerate(loads):
        label = f"concurrency {load.concurrency}" if load.concurrency else f"{load.rate_rps:g} requests/s"
        progress(f"{label}, {load.input_tokens} in, {load.output_tokens} out", index / len(loads))
        if session.max_model_len and load.input_tokens + load.output_tokens > session.max_model_len:
            size = f"{load.input_tokens} in + {load.output_tokens} out"
            measured.notes.append(f"{size} is beyond max_model_len {session.max_model_len}: left out")
            continue
        before = await _scrape(session)
        replies, peaks = await _watched(session, run_load(session, load, rng))
        after = await _scrape(session)
        if not _usable(replies, label, measured):
            if any("HTTP 429" in r.error for r in replies):
                measured.notes.append("the server limits the rate: larger loads are left out")
                break
            continue
        point = summarise(replies, load.concurrency, load.rate_rps)
        server_said = dict(peaks)
        if before and after:
            server_said |= after.means_since(before)
        seated = peaks.get("num_running")
        if peaks.get("num_waiting", 0) > 0 and load.concurrency and seated is not None and seated < load.concurrency:
            measured.seat_limit = max(measured.seat_limit or 0, int(seated))
        measured.points.append(replace(point, server=server_said))
        measured.replies.append(replies)
    return measured


def _usable(replies: Sequence[Reply], label: str, measured: Measured) -> bool:
    failed = [r for r in replies if not r.ok]
    retried = sum(r.num_retries for r in replies)
    if retried:
        measured.notes.append(f"{label}: {retried} requests were refused at first and asked again")
    if failed:
        measured.notes.append(f"{label}: {len(failed)} of {len(replies)} requests failed ({failed[0].error})")
    return len(failed) <= MOST_FAILED * len(replies) and len(failed) < len(replies)


async def run_load(session: Session, load: Load, rng: random.Random) -> list[Reply]:
    """Run one load to its end: ``concurrency`` workers, each asking again as soon as it was answered, or arrivals."""
    words = (load.input_tokens - session.extra_tokens) / session.tokens_per_word
    prompts = iter([prompt_of(round(words), rng) for _ in range(load.num_requests)])
    if load.rate_rps:
        return await _open_loop(session.server, load, list(prompts), rng)
    replies: list[Reply] = []

    async def worker() -> None:
        tokens = (load.input_tokens, load.output_tokens)
        replies.extend([await ask(session.server, prompt, *tokens) for prompt in prompts])

    await asyncio.gather(*(worker() for _ in range(load.concurrency or 1)))
    return replies


async def _open_loop(server: Server, load: Load, prompts: Sequence[str], rng: random.Random) -> list[Reply]:
    assert load.rate_rps is not None
    tasks = []
    for prompt in prompts:
        tasks.append(asyncio.create_task(ask(server, prompt, load.input_tokens, load.output_tokens)))
        await asyncio.sleep(rng.expovariate(load.rate_rps))
    return list(await asyncio.gather(*tasks))


async def _watched(session: Session, work: Awaitable[list[Reply]]) -> tuple[list[Reply], dict[str, float]]:
    """The work's result, and the highest gauges that the server's metrics showed meanwhile."""
    peaks: dict[str, float] = {}

    async def watch() -> None:
        while True:
            now = await _scrape(session)
            for name, value in (now.gauges if now else {}).items():
                peaks[name] = max(peaks.get(name, value), value)
            await asyncio.sleep(0.5)

    if session.metrics_url is None:
        return await work, peaks
    watcher = asyncio.create_task(watch())
    try:
        return await work, peaks
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


async def _scrape(session: Session) -> prometheus_text.Scrape | None:
    if session.metrics_url is None:
        return None
    try:
        return prometheus_text.scrape(await _get(session.server, session.metrics_url))
    except (ServerError, PlanError):
        return None


def fit_measured(measured: Measured, chunk_tokens: int) -> Fitted:
    """Fit the step time on every reply of a sweep.

    Raises:
        MissingError: no load could be measured. InputError: too few observations.
    """
    if not measured.points:
        raise MissingError(
            "no load could be measured",
            why="; ".join(measured.notes) or "every request failed",
            remedy="look at the server's log, lower --concurrency, raise --timeout",
        )
    found = [o for i, replies in enumerate(measured.replies) for o in observations_of(replies, i, chunk_tokens)]
    return fit_step(found)


def fit_points(points: Sequence[LoadPoint], chunk_tokens: int) -> Fitted:
    """Fit the step time on aggregate results."""
    found = observations_of_points(points, chunk_tokens)
    if not any(o.kind == "decode" for o in found):
        raise InputError(
            "the results hold no TPOT together with a concurrency or a rate",
            why="a step's time is learned from it",
            remedy="use results of a streaming benchmark, best at several concurrencies from 1 up",
        )
    return fit_step(found)


def endpoint_profile(
    name: str, fitted: Fitted, points: Sequence[LoadPoint], about: dict[str, str], notes: Sequence[str] = ()
) -> Profile:
    """A profile of kind ``endpoint``: coefficients with units in their names, range, errors on points left out.

    Args:
        about: ``source``, ``gpu``, ``model``, ``precision``, ``framework`` as far as known.
    """
    flights = [n for p in points if (n := p.in_flight) is not None]
    valid = {
        "input_tokens": [min(p.input_tokens for p in points), max(p.input_tokens for p in points)],
        "context_tokens": [0.0, max(p.input_tokens + p.output_tokens for p in points)],
        "num_in_flight": [min(flights, default=1.0), max(flights, default=1.0)],
    }
    framework = about.get("framework", "")
    overhead = {"request_overhead_s": fitted.fit.request_overhead_s}
    return Profile(
        name=name,
        kind="endpoint",
        gpu=about.get("gpu") or "unknown",
        source=about.get("source", "plan calibrate endpoint"),
        as_of=datetime.datetime.now(datetime.UTC).date().isoformat(),
        method="step times from the instants at which tokens came; least squares; each load point left out once",
        families={FAMILY: {"default": {**fit_parameters(fitted.fit), "valid": valid}}},
        error={FAMILY: {"default": {kind: fitted.error_of(kind) for kind in ("ttft", "decode")}}},
        engine_overheads={framework: overhead} if framework else {},
        model=about.get("model", ""),
        precision=about.get("precision", ""),
        framework=framework,
        tables={"points": [point_to_dict(p) for p in points], "notes": list(notes)},
    )
