"""A scenario is played and answered in the contract's form."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from app.cli.main import cli
from catalogs.errors import InputError, MissingError
from simulator.engine import preemption
from simulator.engine.invariants import BrokenInvariantError
from simulator.run import simulate
from simulator.scenario.spec import Scenario, read_scenario

EXAMPLES = [Path(__file__).resolve().parents[2] / "examples" / f"{n}.yaml" for n in ("chat", "closed_loop", "agents")]
CONTRACT_KEYS = {
    "schema_version", "requests", "ttft_s", "tpot_s", "e2e_s", "queue_s", "duration_s", "requests_per_s",
    "output_tokens_per_s", "total_tokens_per_s", "gpu_hours", "usd", "usd_per_million_output_tokens", "engine",
    "profile", "seed",
}  # fmt: skip
SMALL = """\
model: llama-3.1-8b
workload:
  arrivals: {process: poisson, rate_rps: 20, num_requests: 300}
  input_tokens: {distribution: lognormal, mean: 500, cv: 0.9}
  output_tokens: {distribution: uniform, low: 1, high: 100}
fleet:
  - {gpu: H100-SXM, count: 2}
"""


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN_HOME", str(tmp_path / "home"))


def written(folder: Path, text: str = SMALL) -> Path:
    path = folder / "s.yaml"
    path.write_text(text)
    return path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["simulate", *arguments])


def played(folder: Path, text: str = SMALL) -> dict[str, Any]:
    shown = invoke(str(written(folder, text)), "--format", "json")
    assert shown.exit_code in (0, 1), shown.output
    return dict(json.loads(shown.stdout))


def test_the_answer_has_the_contracts_form(tmp_path: Path) -> None:
    answer = played(tmp_path)
    assert set(answer) >= CONTRACT_KEYS
    assert answer["requests"] == {"completed": 300, "rejected": 0, "failed": 0}
    assert set(answer["ttft_s"]) == set(answer["tpot_s"]) == {"mean", "p50", "p90", "p95", "p99"}
    assert set(answer["engine"]) == {"num_gpu_blocks", "iterations", "preemptions", "prefix_cache_hit_rate"}
    assert answer["profile"]["name"]
    assert answer["usd"] is None
    assert answer["gpu_hours"] == pytest.approx(2 * answer["duration_s"] / 3600)


def test_the_requests_file_agrees_with_the_answer(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    shown = invoke(str(written(tmp_path)), "--format", "json", "--requests-out", str(out))
    answer = json.loads(shown.stdout)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = "request_id,arrival_s,input_tokens,output_tokens,scheduled_s,first_token_s,finish_s,replica,status"
    assert ",".join(rows[0]) == columns
    ttft = [float(r["first_token_s"]) - float(r["arrival_s"]) for r in rows]
    tpot = [(float(r["finish_s"]) - float(r["first_token_s"])) / (int(r["output_tokens"]) - 1)
            for r in rows if r["output_tokens"] != "1"]  # fmt: skip
    assert answer["ttft_s"]["p95"] == pytest.approx(np.percentile(ttft, 95), abs=1e-8)
    assert answer["tpot_s"]["mean"] == pytest.approx(np.mean(tpot), abs=1e-8)
    assert {r["status"] for r in rows} == {"completed"} and {r["replica"] for r in rows} == {"0", "1"}


def test_same_inputs_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL + "router: power_of_two\n")
    first, second = (invoke(str(path), "--format", "json").stdout for _ in range(2))
    assert first == second
    assert invoke(str(path), "--format", "json", "--seed", "1").stdout != first


def test_a_missed_slo_exits_with_one_and_a_kept_one_with_zero(tmp_path: Path) -> None:
    kept = invoke(str(written(tmp_path, SMALL + "slo: {ttft_p95_s: 10}\n")))
    assert kept.exit_code == 0 and "ttft_p95_s" in kept.stdout
    missed = invoke(str(written(tmp_path, SMALL + "slo: {ttft_p95_s: 0.000001}\n")), "--format", "json")
    assert missed.exit_code == 1
    assert not json.loads(missed.stdout)["slo"]["ttft_p95_s"]["ok"]


def test_a_price_turns_time_into_dollars(tmp_path: Path) -> None:
    answer = played(tmp_path, SMALL.replace("count: 2", "count: 2, usd_per_hour: 3.0"))
    assert answer["usd"] == pytest.approx(6.0 * answer["duration_s"] / 3600)
    tokens = answer["output_tokens_per_s"] * answer["duration_s"]
    assert answer["usd_per_million_output_tokens"] == pytest.approx(answer["usd"] / tokens * 1e6)
    by_instance = played(tmp_path, SMALL.replace("H100-SXM, count: 2", "L40S, count: 2, instance: g6e.xlarge"))
    assert by_instance["usd"] > 0


def test_a_prompt_longer_than_the_context_is_rejected_and_counted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n1,2000,5\n2,20,5\n")
    text = "model: llama-3.1-8b\nworkload: {trace: t.csv}\nfleet: [{gpu: L40S, engine: {max_model_len: 1000}}]\n"
    out = tmp_path / "out.csv"
    shown = invoke(str(written(tmp_path, text)), "--format", "json", "--requests-out", str(out))
    assert json.loads(shown.stdout)["requests"] == {"completed": 2, "rejected": 1, "failed": 0}
    assert out.read_text().splitlines()[2].endswith("rejected")


def test_a_run_says_why_it_rejected_requests(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n1,2000,5\n2,20,0\n3,600,5\n")
    engine = "max_model_len: 1000, max_num_seqs: 128, max_num_batched_tokens: 512, enable_chunked_prefill: false"
    text = f"model: llama-3.1-8b\nworkload: {{trace: t.csv}}\nfleet: [{{gpu: L40S, engine: {{{engine}}}}}]\n"
    shown = " ".join(invoke(str(written(tmp_path, text))).stdout.split())
    assert "1 rejected: the prompt leaves no room in 1,000 tokens of context or KV cache." in shown
    assert "1 rejected: no output token is asked for." in shown
    assert "1 rejected: without chunked prefill the prompt exceeds max_num_batched_tokens 512." in shown


def test_overload_is_said_with_the_rate_that_is_served(tmp_path: Path) -> None:
    text = SMALL.replace("rate_rps: 20, num_requests: 300", "rate_rps: 400, num_requests: 4000")
    answer = played(tmp_path, text.replace("count: 2", "count: 1"))
    assert answer["overload"]["served_rps"] < answer["overload"]["offered_rps"] == pytest.approx(400, rel=0.1)


def test_the_bottleneck_is_named_with_its_numbers(tmp_path: Path) -> None:
    light = played(tmp_path)["fleet"][0]
    assert light["bottleneck"] == "memory bandwidth" and "GB/s" in light["bottleneck_why"]
    assert 0 < light["mbu"] < 1 and 0 < light["mfu"] < 1 and 0 < light["kv_share_mean"] < 1
    closed = SMALL.replace("process: poisson, rate_rps: 20,", "process: closed_loop, concurrency: 64,")
    crowded = played(tmp_path, closed.replace("count: 2", "count: 1, engine: {max_num_seqs: 4}"))["fleet"][0]
    assert crowded["bottleneck"] == "seats" and crowded["running_mean"] == pytest.approx(4, rel=0.1)
    starved = played(tmp_path, closed.replace("count: 2", "count: 1, engine: {num_gpu_blocks: 200}"))["fleet"][0]
    assert starved["bottleneck"] == "memory capacity"


def test_mean_running_and_waiting_follow_littles_law(tmp_path: Path) -> None:
    answer = played(tmp_path, SMALL.replace("count: 2", "count: 1"))
    line, rate = answer["fleet"][0], answer["requests_per_s"]
    assert line["running_mean"] + line["waiting_mean"] == pytest.approx(rate * answer["e2e_s"]["mean"], rel=1e-9)


def test_an_encoder_answers_once_whatever_the_trace_says_of_its_output(tmp_path: Path) -> None:
    text = SMALL.replace("llama-3.1-8b", "bert-large").replace("low: 1, high: 100", "low: 0, high: 100")
    answer = played(tmp_path, text.replace("mean: 500, cv: 0.9", "mean: 100, cv: 0.5, max: 500"))
    assert answer["requests"]["completed"] == 300
    assert answer["ttft_s"] == answer["e2e_s"] and answer["tpot_s"]["mean"] is None


@pytest.mark.parametrize(("model", "items", "longer"), [("resnet50", 1, 2), ("bert-base", 512, 513)])
def test_a_request_may_fill_the_whole_context_of_a_model_without_answer_tokens(
    tmp_path: Path, model: str, items: int, longer: int
) -> None:
    (tmp_path / "t.csv").write_text(f"arrival_s,input_tokens,output_tokens\n0,{items},1\n1,{longer},1\n")
    text = f"model: {model}\nworkload: {{trace: t.csv}}\nfleet: [{{gpu: L4, engine: {{framework: onnxruntime}}}}]\n"
    assert played(tmp_path, text)["requests"] == {"completed": 1, "rejected": 1, "failed": 0}


def test_data_parallel_replicas_are_engines_of_their_own(tmp_path: Path) -> None:
    two = played(tmp_path)
    parallel = played(tmp_path, SMALL.replace("count: 2", "count: 1, data_parallel_size: 2"))
    assert parallel["gpu_hours"] == pytest.approx(two["gpu_hours"], rel=0.01)
    assert parallel["ttft_s"]["mean"] == pytest.approx(two["ttft_s"]["mean"], rel=0.02)  # its front end balances them


def test_the_run_is_kept(tmp_path: Path) -> None:
    played(tmp_path)
    shown = CliRunner().invoke(cli, ["runs", "list", "--format", "json"])
    assert "llama-3.1-8b on 2 x H100-SXM" in shown.stdout


@pytest.mark.parametrize("more", ["", "failures: {crash_mtbf_h: 0.01}\n"])
def test_invariants_are_looked_for_by_a_flag_in_any_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    shown = invoke(str(written(tmp_path, SMALL + more)), "--check", "--format", "json")
    assert shown.exit_code == 0 and "no invariant is broken" in shown.stderr
    monkeypatch.setattr(preemption, "blocks_held", lambda w, r, i, tokens: 1)  # blocks seem to leak
    assert isinstance(invoke(str(tmp_path / "s.yaml"), "--check").exception, BrokenInvariantError)
    assert invoke(str(tmp_path / "s.yaml")).exit_code == 0


def test_series_are_written(tmp_path: Path) -> None:
    out = tmp_path / "series.csv"
    assert invoke(str(written(tmp_path)), "--series-out", str(out), "--series-interval", "2").exit_code == 0
    head, *rows = out.read_text().splitlines()
    assert head.startswith("t_s,") and "num_running" in head and len(rows) > 5


def test_requests_in_memory_are_played_as_they_are(tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path))
    first = simulate(scenario)
    again = simulate(scenario, first.requests)
    assert np.array_equal(first.records.finish_s, again.records.finish_s)
    assert Scenario.model_validate(scenario.model_dump()) == scenario


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_examples_run_and_keep_their_promises(path: Path) -> None:
    shown = invoke(str(path), "--format", "json")
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["requests"]["completed"] > 0


@pytest.mark.parametrize("form", ["table", "csv", "md"])
def test_people_can_read_it(tmp_path: Path, form: str) -> None:
    shown = invoke(str(written(tmp_path)), "--format", form)
    assert shown.exit_code == 0 and "TTFT" in shown.stdout


@pytest.mark.parametrize(
    ("old", "new", "kind", "what"),
    [
        ("model: llama-3.1-8b", "model: lama-3.1-8b", InputError, "llama-3.1-8b"),
        ("gpu: H100-SXM", "gpu: H100-SXN", InputError, "H100-SXM"),
        ("model: llama-3.1-8b", "model: llama-3.1-405b", InputError, "fit"),
        ("count: 2", "count: 2, profile: nowhere.json", MissingError, "nowhere.json"),
        ("count: 2", "count: 2, engine: {framework: vlm}", InputError, "vllm"),
        ("count: 2", "count: 2, engine: {options: {polcy: prefill_first}}", InputError, "policy"),
        ("fleet:", "router: round_robbin\nfleet:", InputError, "round_robin"),
        ("count: 2", "count: 2, precision: fp9", InputError, "fp8"),
        ("count: 2", "count: 2, instance: g6e.xlarge", InputError, "L40S"),
        ("count: 2", "count: 2, instance: p9.large", InputError, "p9.large"),
    ],
)
def test_what_cannot_be_played_is_refused(tmp_path: Path, old: str, new: str, kind: type, what: str) -> None:
    shown = invoke(str(written(tmp_path, SMALL.replace(old, new))), "--format", "json")
    assert isinstance(shown.exception, kind), shown.exception
    assert what in str(shown.exception)


@pytest.mark.parametrize(
    ("pair", "what"),
    [("count", "KEY=VALUE"), ("fleet.9.count=2", "fleet"), ("fleet.².count=2", "fleet"), ("a=[", "value")],
)
def test_bad_overrides_are_refused(tmp_path: Path, pair: str, what: str) -> None:
    shown = invoke(str(written(tmp_path)), "--set", pair)
    assert isinstance(shown.exception, InputError) and what in str(shown.exception)
