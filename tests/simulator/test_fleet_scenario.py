"""Live fleets through scenarios: the examples run, and what cannot work is refused with the way out."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from app.cli.simulate_fleet import fleet_notes, fleet_tables
from app.fleet_picture import fleet_picture
from catalogs.errors import InputError
from planner.money.fleet_cost import with_fleet_dollars
from simulator.engine.records import COMPLETED
from simulator.run import Result, simulate
from simulator.scenario.spec import Scenario, read_scenario
from simulator.workload.requests import Requests

ROOT = Path(__file__).resolve().parents[2]
BASE = """
model: llama-3.1-8b
workload:
  arrivals: {{process: poisson, rate_rps: 4, duration_s: {duration_s}}}
  input_tokens: {{distribution: fixed, value: 400}}
  output_tokens: {{distribution: fixed, value: 100}}
fleet:
  - {{gpu: L40S, count: 2, precision: fp8, instance: g6e.xlarge}}
region: us-east-1
router: least_loaded
"""
HPA = "autoscaling: {controller: hpa, metrics: [{metric: running_requests, target: 8}], max_replicas: 8}\n"


def scenario(tmp_path: Path, text: str, duration_s: float = 900.0) -> Scenario:
    (tmp_path / "s.yaml").write_text(BASE.format(duration_s=duration_s) + text)
    return read_scenario(tmp_path / "s.yaml")


def play(tmp_path: Path, text: str, duration_s: float = 900.0) -> Result:
    return simulate(scenario(tmp_path, text, duration_s))


SHORT = {
    "fleet_diurnal_spot": {"workload.arrivals.duration_s": 2400},
    "fleet_flash_crowd_hpa": {"workload.arrivals.duration_s": 2400},
    "fleet_flash_crowd_keda": {"workload.arrivals.duration_s": 2400},
    "fleet_rag_prefix_affinity": {"workload.arrivals.duration_s": 300},
    "fleet_batch_at_night": {
        "workload.classes.0.arrivals.duration_s": 1800,
        "workload.classes.1.arrivals.duration_s": 1800,
        "workload.classes.1.arrivals.mean_durations_s": [300, 600],
    },
    "fleet_two_priorities": {
        "workload.classes.0.arrivals.duration_s": 600,
        "workload.classes.1.arrivals.duration_s": 600,
    },
}


@pytest.mark.parametrize("name", SHORT)
def test_the_examples_run_and_can_be_drawn_and_priced(name: str) -> None:
    read = read_scenario(ROOT / "examples" / f"{name}.yaml", SHORT[name])
    result = simulate(read)
    assert result.fleet is not None
    document = with_fleet_dollars(result.document, read, result.fleet.ledger)
    assert document["usd"] > 0 and sum(document["requests"].values()) == len(result.requests)
    assert document["gpu_hours"] == pytest.approx(sum(u["gpu_hours"] for u in document["live_fleet"]["usage"]))
    assert sum(c["usd"] for c in document["live_fleet"]["cost"]) == pytest.approx(document["usd"], abs=0.02)
    assert fleet_tables(document) and isinstance(fleet_notes(document), list)
    picture = ElementTree.fromstring(fleet_picture(document, "a < b & c"))
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}polyline"))) >= 4


def test_the_committed_pictures_are_whole() -> None:
    for name in SHORT:
        ElementTree.parse(ROOT / "examples" / "pictures" / f"{name}.svg")


CONTROLLERS = [
    HPA,
    "autoscaling: {controller: keda, triggers: [{metric: queue_length, threshold: 4}], min_replica_count: 1}\n",
    "autoscaling: {controller: kpa, container_concurrency_target_default: 16, min_scale: 1, max_scale: 8}\n",
    "autoscaling: {controller: aws_target_tracking, metric: kv_use, target_value: 0.2, max_capacity: 8}\n",
    "autoscaling: {controller: ray_serve, max_replicas: 8, target_ongoing_requests: 8}\n",
    "autoscaling: {controller: skyserve, target_qps_per_replica: 2, max_replicas: 8}\n",
    "autoscaling: {controller: scheduled, schedule: [{at: '00:05', replicas: 4}, {at: '12:00', replicas: 2}]}\n",
    "autoscaling: {controller: predictive, requests_per_s_per_replica: 2, max_replicas: 8, season_s: 600, bin_s: 60}\n",
    "autoscaling: {controller: oracle, requests_per_s_per_replica: 2, max_replicas: 8, metrics_delay_s: 30}\n",
]


@pytest.mark.parametrize("text", CONTROLLERS, ids=[t.split("controller: ")[1].split(",")[0] for t in CONTROLLERS])
def test_every_controller_runs_from_a_scenario_and_loses_nothing(tmp_path: Path, text: str) -> None:
    result = play(tmp_path, text + "cold_start: {total: {median_s: 60}}\n")
    assert (result.records.status == COMPLETED).all()
    assert result.fleet is not None and len(result.fleet.targets["0: L40S"]) >= 1


def test_a_forecast_from_history_says_how_wrong_it_was(tmp_path: Path) -> None:
    from simulator.workload.trace_writing import write_trace

    rng = np.random.default_rng(0)
    arrival = np.cumsum(rng.exponential(0.25, 4 * 3600))
    lengths = np.full(len(arrival), 100, np.int64)
    write_trace(Requests(arrival, lengths, lengths), tmp_path / "before.csv")
    text = (
        "autoscaling: {controller: predictive, method: holt_winters, requests_per_s_per_replica: 2, max_replicas: 8, "
        "season_s: 600, bin_s: 60, history: before.csv}\ncold_start: {total: {median_s: 60}}\n"
    )
    result = play(tmp_path, text, 1800.0)
    error = result.document["live_fleet"]["forecast"]["0: L40S"]
    assert 0 < error < 0.3 and f"off by {error:.1%}" in " ".join(fleet_notes(result.document))


def test_same_seed_same_document(tmp_path: Path) -> None:
    text = HPA + "spot: {zones: [us-east-1], dynamic_ondemand_fallback: true}\nfailures: {crash_mtbf_h: 0.2}\n"
    assert play(tmp_path, text).document == play(tmp_path, text).document


def test_a_semantic_cache_and_its_dollars(tmp_path: Path) -> None:
    text = "caches: {semantic: {threshold: 0.85, curve: [[0.8, 0.6, 0.03], [0.9, 0.4, 0.01]], lookup_s: 0.02}}\n"
    read = scenario(tmp_path, text)
    result = simulate(read)
    assert result.fleet is not None
    cache = with_fleet_dollars(result.document, read, result.fleet.ledger)["live_fleet"]["caches"]["semantic"]
    assert cache["hit_rate"] == pytest.approx(0.5, abs=0.05) and 0 < cache["false_hits"] < cache["hits"]
    assert cache["saved_usd"] > 0
    answered = result.records.replica == -1
    assert np.allclose((result.records.first_token_s - result.records.arrival_s)[answered], 0.02)


def test_a_controller_that_oscillates_is_reported(tmp_path: Path) -> None:
    nervous = (
        "autoscaling: {controller: hpa, metrics: [{metric: queue_length, target: 0.02}], max_replicas: 8, "
        "behavior: {scale_down: {stabilization_window_seconds: 0}}}\ncold_start: {total: {median_s: 20}}\n"
    )
    result = play(tmp_path, nervous, duration_s=3000.0)
    note = fleet_notes(result.document)
    assert result.fleet is not None and result.fleet.oscillations
    assert "oscillates" in note[0] and "stabilization window" in note[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HPA.replace("max_replicas: 8", "min_replicas: 9, max_replicas: 8"), "min_replicas 9 is above max_replicas 8"),
        (
            "autoscaling: {controller: keda, triggers: [{metric: queue_length, threshold: 1}], "
            "min_replica_count: 5, max_replica_count: 4}\n",
            "min_replica_count 5 is above max_replica_count 4",
        ),
        ("autoscaling: {controller: kpa, min_scale: 5, max_scale: 4}\n", "min_scale 5 is above max_scale 4"),
        ("autoscaling: {controller: hpb}\n", "hpb"),
        ("autoscaling: {controller: hpa, max_replicas: 3, metrics: [{metric: cpu, target: 1}]}\n", "metric"),
        ("spot: {zones: [{name: a1, region: a, available_share: 0}]}\n", "no spot zone has capacity"),
        ("spot: {zones: []}\n", "spot needs zones"),
        ("spot: {zones: [us-east-9]}\n", "unknown spot zone or region"),
        (HPA + "cold_start: {total: {median_s: 5000}}\n", "a cold start takes 5000 s, the run lasts 900 s"),
        ("cold_start: {instance_boot: 5}\n", "instance_boot"),
        ("admission: {classes: {gold: {priority: 0}}}\n", "no request has class 'gold'"),
        ("admission: {preempt_lower: true}\n", "need a queue to reorder"),
        ("caches: {result: {ttl_s: 60}}\n", "which prompts are equal"),
        ("failures: {degrade_factor: 0.5}\n", "degrade_factor"),
        ("capacity: {blocks: [{line: 0, start_s: 0, end_s: 1200}]}\n", "Capacity Block"),
        ("capacity: {blocks: [{line: 3, start_s: 0, end_s: 12000}]}\n", "line 3, but the fleet has 1"),
        (HPA.replace("hpa,", "hpa, line: 2,"), "line 2, but the fleet has 1"),
        ("autoscalling: {controller: hpa}\n", "did you mean 'autoscaling'"),
    ],
)
def test_what_cannot_work_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read = scenario(tmp_path, text)
        simulate(read)
    assert words in str(caught.value)


def test_spot_traces_of_ones_own(tmp_path: Path) -> None:
    rows = "".join(f"{60 * i},{int(i % 20 < 12)},{int(i % 14 < 9)}\n" for i in range(90))
    (tmp_path / "zones.csv").write_text("time_s,za,zb\n" + rows)
    result = play(
        tmp_path, "spot: {trace: zones.csv, dynamic_ondemand_fallback: true}\ncold_start: {total: {median_s: 60}}\n"
    )
    assert (result.records.status == COMPLETED).all()
    assert result.fleet is not None and any("spot notice" in what for _, what in result.fleet.events)
    (tmp_path / "gap.csv").write_text("time_s,za\n" + "".join(f"{t},1\n" for t in [0, 60, 120, 2000, 2060, 9000]))
    with pytest.raises(InputError, match="gaps"):
        play(tmp_path, "spot: {trace: gap.csv}\n")
    (tmp_path / "clock.csv").write_text("time_s,za\n" + "".join(f"{1.7e9 + 60 * i},1\n" for i in range(100)))
    with pytest.raises(InputError, match="another clock"):
        play(tmp_path, "spot: {trace: clock.csv}\n")


def test_a_closed_loop_or_several_engines_a_replica_are_refused(tmp_path: Path) -> None:
    closed = BASE.replace(
        "{{process: poisson, rate_rps: 4, duration_s: {duration_s}}}",
        "{{process: closed_loop, concurrency: 4, num_requests: 40}}",
    )
    (tmp_path / "c.yaml").write_text(closed.format() + HPA)
    with pytest.raises(InputError, match="closed loop cannot drive"):
        simulate(read_scenario(tmp_path / "c.yaml"))
    with pytest.raises(InputError, match="data_parallel_size is 2"):
        (tmp_path / "d.yaml").write_text(
            BASE.format(duration_s=100).replace("count: 2", "count: 2, data_parallel_size: 2") + HPA
        )
        simulate(read_scenario(tmp_path / "d.yaml"))


def test_a_long_horizon_by_windows_is_close_to_the_full_run(tmp_path: Path) -> None:
    text = HPA + "cold_start: {total: {median_s: 60}}\n"
    full = play(tmp_path, text, 14400.0).document
    short = play(tmp_path, text + "control: {windows: {num: 6, length_s: 300}}\n", 14400.0).document
    assert short["requests"]["completed"] == pytest.approx(full["requests"]["completed"], rel=0.05)
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        assert short[name]["p90"] == pytest.approx(full[name]["p90"], rel=0.1)
    assert short["gpu_hours"] == pytest.approx(full["gpu_hours"], rel=0.1)
    assert short["by_class"] == {}
    assert len(short["live_fleet"]["windows"]) == 6 and "windows played in full" in " ".join(fleet_notes(short))
    with pytest.raises(InputError, match="windows know neither"):
        play(tmp_path, text + "control: {windows: {num: 6}}\nadmission: {max_queue: 5}\n")


def test_classes_keep_their_promises_in_windows_too(tmp_path: Path) -> None:
    shape = "input_tokens: {distribution: fixed, value: 400}\n      output_tokens: {distribution: fixed, value: 100}"
    one = "    - name: {}\n      arrivals: {{process: poisson, rate_rps: {}, duration_s: 7200}}\n      {}\n"
    text = BASE.format(duration_s=1)
    head, tail = text[: text.index("  arrivals")], text[text.index("fleet:") :]
    classes = "  classes:\n" + one.format("chat", 1, shape) + one.format("batch", 0.5, shape)
    promise = "slo: {chat: {ttft_p95_s: 10}}\ncontrol: {windows: {num: 2, length_s: 300}}\n"
    (tmp_path / "s.yaml").write_text(head + classes + tail + promise)
    found = simulate(read_scenario(tmp_path / "s.yaml"))
    assert found.slo_ok and set(found.document["by_class"]) == {"chat", "batch"}
