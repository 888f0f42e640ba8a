"""The endpoint client and sweep against a real HTTP server on loopback; fits on replies made from a known step time."""

import asyncio
import dataclasses
import json
import random
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from scipy.interpolate import interpn

from app.cli.main import cli
from calibrate.endpoint_step import StepFit, step_fit, step_table
from calibrate.profiles import load_profile
from calibrate.server import endpoint
from calibrate.server.endpoint_client import Reply, Server, ask, check_url
from calibrate.server.endpoint_fit import Fitted, fit_step, observations_of, prompt_steps
from calibrate.server.engine_steps import engine_steps
from calibrate.server.load_points import summarise
from calibrate.step import StepShape
from catalogs.errors import InputError, MissingError
from catalogs.schema import Gpu, Model, Replica
from tests.calibrate.openai_server import Behaviour, openai_server


def asked(url: str, **settings: object) -> Reply:
    server = Server(url, "m", **settings)  # type: ignore[arg-type]
    return asyncio.run(ask(server, "a b c", 3, 5))


def test_a_stream_gives_every_token_its_instant_and_the_servers_own_counts() -> None:
    with openai_server(Behaviour()) as url:
        reply = asked(url)
        chat = asked(url + "/v1", api="chat")
    for r in (reply, chat):
        assert r.ok and r.has_usage and len(r.token_at_s) == 5 and r.input_tokens == 9 and r.output_tokens == 5
        assert r.sent_at_s < r.token_at_s[0] <= r.token_at_s[-1] <= r.finish_at_s
        assert r.tpot_s is not None and r.tpot_s == pytest.approx((r.e2e_s - r.ttft_s) / 4)


def test_the_key_is_sent_as_a_bearer_token_and_never_in_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour = Behaviour()
    with openai_server(behaviour) as url:
        assert asked(url, api_key="sk-secret").ok
    assert "sk-secret" not in json.dumps(behaviour.bodies)


def test_no_usage_means_counting_pieces() -> None:
    with openai_server(Behaviour(usage=False)) as url:
        reply = asked(url)
        session = asyncio.run(endpoint.connect(Server(url, "m")))
    assert reply.ok and not reply.has_usage and (reply.input_tokens, reply.output_tokens) == (3, 5)
    assert any("no usage" in note for note in session.notes)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"status": 500, "num_refusals": -1}, "HTTP 500: as told"),
        ({"status": 429, "num_refusals": -1}, "HTTP 429: as told"),
        ({"close_after": 2}, "closed early, after 2 tokens"),
        ({"close_after": 0}, "closed early, after 0 tokens"),
        ({"hang": True}, "no end within 0.3 s"),
        ({"garbage": b"{not json"}, "not JSON"),
        ({"garbage": b'{"choices": ["x"]}'}, "choices of another form"),
    ],
)
def test_each_failure_is_told_in_the_reply_and_ends_the_command_with_words(
    settings: dict[str, object], said: str
) -> None:
    with openai_server(Behaviour(**settings)) as url:
        reply = asked(url, timeout_s=0.3 if "hang" in settings else 10.0)
        assert not reply.ok and said in reply.error
        timeout = ["--timeout", "0.3"] if "hang" in settings else []
        result = CliRunner().invoke(cli, ["calibrate", "endpoint", "--url", url, *timeout])
    assert isinstance(result.exception, MissingError) and result.exception.exit_code == 3
    assert said in str(result.exception) and result.exception.remedy


def test_a_server_that_is_busy_at_first_is_asked_again() -> None:
    with openai_server(Behaviour(status=429, num_refusals=2)) as url:
        reply = asked(url)
    assert reply.ok and reply.num_retries == 2


def test_a_server_that_is_down_is_told_with_the_way_to_start_one() -> None:
    with socket.socket() as taken:  # bound, not listening: refuses connections
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(cli, ["calibrate", "endpoint", "--url", url])
    assert isinstance(result.exception, MissingError) and "no server at" in str(result.exception)
    assert "vllm serve" in result.exception.remedy


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:port"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="not a URL"):
        check_url(url)


def test_unknown_fields_are_left_out_after_the_server_refuses_them() -> None:
    behaviour = Behaviour(refuses_ignore_eos=True)
    with openai_server(behaviour) as url:
        session = asyncio.run(endpoint.connect(Server(url)))
    assert not session.server.ignore_eos and session.server.model == "m" and session.max_model_len == 4096
    assert (session.tokens_per_word, session.extra_tokens) == (2.0, 3.0)
    assert "ignore_eos" not in behaviour.bodies[-1]


def test_a_sweep_reads_the_servers_metrics_and_its_seat_limit() -> None:
    with openai_server(Behaviour()) as url:
        session = asyncio.run(endpoint.connect(Server(url, "m")))
        loads = [endpoint.Load(4, 21, 5, 8), endpoint.Load(1, 5000, 5, 8)]
        measured = asyncio.run(endpoint.measure(session, loads, lambda _text, _share: None))
    (point,) = measured.points
    assert point.num_requests == 8 and point.concurrency == 4 and point.input_tokens == 21
    assert measured.seat_limit == 3 and point.server["num_waiting"] == 2
    assert point.server["ttft_s"] == 0.5  # the sum grows half as fast as the count
    assert any("beyond max_model_len" in note for note in measured.notes)


def test_a_rate_limit_in_the_middle_of_a_sweep_leaves_larger_loads_out() -> None:
    behaviour = Behaviour()
    with openai_server(behaviour) as url:
        session = asyncio.run(endpoint.connect(Server(url, "m")))
        behaviour.status, behaviour.num_refusals = 429, -1
        loads = [endpoint.Load(c, 21, 5, 2) for c in (1, 2, 4)]
        measured = asyncio.run(endpoint.measure(session, loads, lambda _text, _share: None))
    assert not measured.points and any("limits the rate" in note for note in measured.notes)
    with pytest.raises(MissingError, match="no load could be measured"):
        endpoint.fit_measured(measured, 2048)


def test_the_command_writes_a_profile_that_the_step_table_reads(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    with openai_server(Behaviour()) as url:
        args = ["--concurrency", "1,2", "--input-tokens", "9,21", "--output-tokens", "4", "--num-requests", "4"]
        result = CliRunner().invoke(
            cli, ["calibrate", "endpoint", "--url", url, *args, "-o", str(path), "--format", "json"]
        )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["max_num_seqs_seen"] is None and len(document["points"]) == 5
    assert "sk-" not in path.read_text()
    profile = load_profile(path)
    assert profile.kind == "endpoint" and profile.model == "m"
    assert step_fit(profile).step_time_s(StepShape(9, 4.5, 1, 9.0, 2)) > 0


def test_open_loop_arrivals_are_all_answered() -> None:
    with openai_server(Behaviour()) as url:
        session = asyncio.run(endpoint.connect(Server(url, "m")))
        load = endpoint.Load(None, 21, 3, 6, rate_rps=500.0)
        replies = asyncio.run(endpoint.run_load(session, load, random.Random(0)))
    assert len(replies) == 6 and all(r.ok for r in replies)


# --- the fit -----------------------------------------------------------------------------------------------------

TRUE = StepFit(8e-3, 4e-5, 1e-4, 2e-7, 5e-9, power=2.0, request_overhead_s=0.015)


def served(concurrency: int, input_tokens: int, output_tokens: int, num: int, chunk: int = 512) -> list[Reply]:
    """Replies of a closed loop at a server whose steps take what ``TRUE`` says; one step after another, no clock."""
    now, waiting, running, replies = 0.0, [], [], []  # type: ignore[var-annotated]
    started = 0
    while len(replies) < num:
        while started < num and len(waiting) + len(running) < concurrency:
            waiting.append({"sent": now, "ready": now + TRUE.request_overhead_s, "done": 0, "at": []})
            started += 1
        budget, prefill, keys, first = chunk - len(running), 0, 0.0, []
        for request in [w for w in waiting if w["ready"] <= now]:
            tokens = min(budget, input_tokens - request["done"])
            if tokens <= 0:
                break
            keys += tokens * (request["done"] + tokens / 2)
            request["done"] += tokens
            budget, prefill = budget - tokens, prefill + tokens
            if request["done"] == input_tokens:
                first.append(request)
        if not prefill and not running:
            now = min(w["ready"] for w in waiting)
            continue
        contexts = [input_tokens + len(r["at"]) for r in running]
        mean = sum(contexts) / len(contexts) if contexts else 0.0
        now += TRUE.step_time_s(StepShape(prefill, keys / prefill if prefill else 0.0, len(running), mean, 0))
        for request in first:
            waiting.remove(request)
        for request in [*running, *first]:
            request["at"].append(now)
        running = [r for r in [*running, *first] if len(r["at"]) < output_tokens or _finish(r, input_tokens, replies)]
    return replies


def _finish(request: dict, input_tokens: int, replies: list[Reply]) -> bool:  # type: ignore[type-arg]
    at = tuple(request["at"])
    replies.append(Reply(request["sent"], at[-1], at, input_tokens, len(at), True))
    return False


def test_a_known_step_time_is_learned_from_tokens_instants() -> None:
    loads = [(1, 64), (1, 512), (1, 2048), (4, 512), (16, 512), (32, 64), (32, 2048), (16, 1024)]
    sweeps = [served(c, n, 64, max(4, 3 * c)) for c, n in loads]
    observations = [o for i, replies in enumerate(sweeps) for o in observations_of(replies, i, 512)]
    fitted = fit_step(observations)
    assert fitted.fit.request_overhead_s == pytest.approx(TRUE.request_overhead_s, rel=0.25)
    assert (fitted.error_of("decode")["median"] or 0) < 0.05
    for shape in (StepShape(0, 0, 1, 600, 1), StepShape(0, 0, 24, 800, 24), StepShape(512, 256, 8, 700, 9)):
        assert fitted.fit.step_time_s(shape) == pytest.approx(TRUE.step_time_s(shape), rel=0.15)


def test_too_little_to_learn_from_is_refused() -> None:
    with pytest.raises(InputError, match="usable observations"):
        fit_step(observations_of(served(1, 64, 1, 5), 0, 512))


def test_a_prompt_runs_in_chunks() -> None:
    steps = prompt_steps(1200, 512)
    assert [s.prefill_tokens for s in steps] == [512, 512, 176]
    assert [s.prefill_context for s in steps] == [256, 768, 1112]


def test_aggregate_points_alone_give_a_step_time() -> None:
    points = [summarise(served(c, n, 64, max(6, 4 * c)), c) for c, n in ((1, 64), (1, 1024), (8, 512), (32, 512))]
    fit = endpoint.fit_points(points, 512).fit
    shape = StepShape(0, 0, 16, 544, 16)
    assert fit.step_time_s(shape) == pytest.approx(TRUE.step_time_s(shape), rel=0.25)


def test_a_benchmark_that_counts_no_prompt_tokens_gives_decode_steps_alone() -> None:
    points = [summarise(served(c, 512, 64, max(6, 4 * c)), c) for c in (1, 8, 32)]
    fit = endpoint.fit_points([dataclasses.replace(p, input_tokens=0.0) for p in points], 512).fit
    assert fit.request_overhead_s == 0.0 and fit.floor_s > 0.0


@pytest.mark.parametrize("crossed_s", [0.0, 2e-9])
def test_the_table_of_a_measured_server_follows_its_formula(crossed_s: float) -> None:
    gpu = Gpu("x", "x", 8.0, 1, {"fp32": 1.0}, 1e9, 1e9, 1e6, None, 1e9, 1.0, "", "", "")
    model = Model("m", "decoder", 1, 8, 1, 1, 8, 8, 8, 4096, "bf16")
    fit = dataclasses.replace(TRUE, decode_keys_s=3 * crossed_s, prefill_keys_s=crossed_s)
    profile = endpoint.endpoint_profile("p", Fitted(fit, ()), [summarise(served(1, 64, 8, 4), 1)], {})
    table = step_table(Replica(model, gpu), profile, 512, 32)
    axes = (table.prefill_tokens_axis, table.prefill_context_axis, table.num_decode_axis, table.decode_context_axis)
    for shape in (
        StepShape(100, 50.0, 8, 1000.0, 8),
        StepShape(0, 0.0, 27, 333.0, 27),
        StepShape(500, 900.0, 1, 9.0, 1),
    ):
        at = (shape.num_prefill_tokens, shape.prefill_mean_context, shape.num_decode, shape.decode_mean_context)
        told = table.mixed_tokens_s[at[0] + at[2]] + interpn(axes, table.attention_s, at)[0]
        assert told == pytest.approx(fit.step_time_s(shape), rel=0.02 if crossed_s else 1e-9)
    assert table.request_overhead_s == fit.request_overhead_s


def test_steps_are_found_in_tokens_that_came_together() -> None:
    replies = served(3, 700, 8, 6)
    steps = engine_steps(replies, 512)
    assert sum(s.prefill_tokens for s in steps) == 6 * 700
    assert all(s.prefill_tokens + len(s.decoding) <= 512 for s in steps if s.duration_s)
    told = [s for s in steps if s.duration_s and not s.first and not s.prefill_tokens]
    assert told
    for step in told:
        mean = sum(c for _, c in step.decoding) / len(step.decoding)
        shape = StepShape(0, 0.0, len(step.decoding), mean, len(step.decoding))
        assert step.duration_s == pytest.approx(TRUE.step_time_s(shape), rel=0.01)
    assert engine_steps([], 512) == []
