"""A scenario is read as the contract has it, and what is wrong in it is said with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from catalogs.errors import InputError
from simulator.scenario.spec import read_scenario
from simulator.workload.load import load_workload, read_buckets

CONTRACT = """\
model: llama-3.1-8b
workload:
  trace: requests.csv
fleet:
  - gpu: H100-SXM
    count: 1
    tensor_parallel_size: 1
    pipeline_parallel_size: 1
    data_parallel_size: 1
    expert_parallel_size: 1
    precision: bf16
    kv_cache_dtype: auto
    profile: my-profile.json
    engine:
      framework: vllm
      max_num_seqs: 256
      max_num_batched_tokens: 2048
      block_size: 16
      num_gpu_blocks: 2588
      gpu_memory_utilization: 0.9
      enable_prefix_caching: true
router: round_robin
seed: 0
"""
SYNTHETIC = """\
model: llama-3.1-8b
workload:
  arrivals: {process: poisson, rate_rps: 20, num_requests: 100}
  input_tokens: {distribution: lognormal, mean: 1000, cv: 0.9}
  output_tokens: {distribution: fixed, value: 256}
fleet:
  - {gpu: H100-SXM}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "s.yaml"
    path.write_text(text)
    return path


def test_the_contracts_scenario_is_read_whole(tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path, CONTRACT))
    line = scenario.fleet[0]
    assert scenario.workload.trace == tmp_path / "requests.csv"
    assert line.profile == tmp_path / "my-profile.json"
    engine = line.engine.engine()
    assert (engine.num_gpu_blocks, engine.enable_prefix_caching, engine.max_model_len) == (2588, True, None)


def test_a_synthetic_load_of_the_contract_is_made(tmp_path: Path) -> None:
    requests = load_workload(read_scenario(written(tmp_path, SYNTHETIC)).workload, seed=0)
    assert len(requests) == 100 and set(requests.output_tokens) == {256}


def test_a_closed_loop_of_the_contract_is_made(tmp_path: Path) -> None:
    text = SYNTHETIC.replace("process: poisson, rate_rps: 20, num_requests: 100",
                             "process: closed_loop, concurrency: 64, num_requests: 640")  # fmt: skip
    requests = load_workload(read_scenario(written(tmp_path, text)).workload)
    assert (len(requests), requests.concurrency) == (640, 64)


def test_overrides_replace_values_by_their_place(tmp_path: Path) -> None:
    path = written(tmp_path, SYNTHETIC)
    scenario = read_scenario(path, {"fleet.0.count": 3, "fleet.0.engine.max_num_seqs": 8, "seed": 5})
    assert (scenario.fleet[0].count, scenario.fleet[0].engine.max_num_seqs, scenario.seed) == (3, 8, 5)
    with pytest.raises(InputError, match="fleet"):
        read_scenario(path, {"fleet.7.count": 3})
    with pytest.raises(InputError, match="cuont"):
        read_scenario(path, {"fleet.0.cuont": 3})


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("max_num_seqs: 256", "max_num_seq: 256", 16, "did you mean 'max_num_seqs'"),
        ("    tensor_parallel_size: 1", "    tp: 2", 7, "`tensor_parallel_size`"),
        ("    precision: bf16", "    max_num_seqs: 2", 5, "stands under `engine:`"),
        ("gpu_memory_utilization: 0.9", "gpu_memory_utilization: 90", 20, "less than or equal to 1"),
        ("count: 1", "count: 0", 6, "greater than or equal to 1"),
        ("  trace: requests.csv", "  trase: requests.csv", 3, "did you mean 'trace'"),
        ("  trace: requests.csv", "  scale: 2", 2, "one of trace, arrivals, classes and buckets"),
        ("  trace: requests.csv", "  trace: requests.csv\n  scale: -1", 4, "greater than 0"),
        ("router:", "routre:", 22, "did you mean 'router'"),
        ("seed: 0", "seed: 0\nslo: {ttft_p95: 1}", 24, "ttft_p95_s"),
        ("seed: 0", "slo:\n  chat:\n    tpot_p99_s: -1", 23, "not a positive number"),
        ("seed: 0", "seed: -1", 23, "greater than or equal to 0"),
    ],
)
def test_a_fault_names_its_line(tmp_path: Path, old: str, new: str, line: int, what: str) -> None:
    with pytest.raises(InputError) as caught:
        read_scenario(written(tmp_path, CONTRACT.replace(old, new)))
    assert what in str(caught.value)
    assert caught.value.where.endswith(f"s.yaml:{line}")


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("process: poisson", "process: poison", "did you mean 'poisson'"),
        ("process: poisson", "process: gamma", "gamma needs cv"),
        ("process: poisson", "process: closed_loop", "closed_loop needs concurrency"),
        ("num_requests: 100", "num_requests: 100, duration_s: 5", "one of num_requests and duration_s"),
        (", num_requests: 100", "", "one of num_requests and duration_s"),
        ("rate_rps: 20", "rate_rps: 20, cv: 2", "poisson has no cv"),
        ("rate_rps: 20", "qps: 20", "rate_rps"),
        ("distribution: fixed, value: 256", "distribution: uniform, low: 9, high: 3", "low 9 is above high 3"),
        ("distribution: fixed, value: 256", "distribution: fixed, mean: 256", "fixed needs value"),
        ("  output_tokens: {distribution: fixed, value: 256}\n", "", "arrivals need output_tokens"),
        ("arrivals: {process: poisson, rate_rps: 20, num_requests: 100}", "trace: t.csv", "own lengths"),
    ],
)
def test_a_contradictory_load_is_refused(tmp_path: Path, old: str, new: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        read_scenario(written(tmp_path, SYNTHETIC.replace(old, new)))
    assert what in str(caught.value)


def test_buckets_are_read_and_refused_where_requests_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "demand.csv"
    path.write_text("input_tokens,output_tokens,rate_rps\n100,50,1.5\n1000,100,0\n")
    assert read_buckets(path) == [(100, 50, 1.5), (1000, 100, 0.0)]
    text = CONTRACT.replace("trace: requests.csv", "buckets: demand.csv")
    with pytest.raises(InputError, match="buckets are rates"):
        load_workload(read_scenario(written(tmp_path, text)).workload)


@pytest.mark.parametrize("rows", ["", "100,50,nan\n", "100,50,-1\n", "0,50,1\n", "100,50,0\n", "a,b,c\n", "100\n"])
def test_bad_buckets_are_refused(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "demand.csv"
    path.write_text("input_tokens,output_tokens,rate_rps\n" + rows)
    with pytest.raises(InputError, match=r"demand\.csv"):
        read_buckets(path)


def test_a_lines_instance_says_over_which_links_its_gpus_exchange() -> None:
    from calibrate.kernel_sums import KernelSums
    from calibrate.profiles import best_profile
    from catalogs.load import find_gpu, find_model
    from simulator.scenario.spec import FleetLine

    model = find_model("llama-3.1-8b")

    def link(**line: Any) -> tuple[str, float]:
        asked = FleetLine(tensor_parallel_size=4, **line)
        replica = asked.replica(model, find_gpu(asked.gpu))
        kernels = KernelSums(replica, best_profile(replica))
        return kernels.link, kernels.link_bytes_per_s

    assert link(gpu="A10G", instance="g5.12xlarge") == ("pcie", 31.5e9)
    assert link(gpu="H100-SXM", instance="p5.48xlarge") == ("nvlink", 450e9)
    assert link(gpu="L40S") == ("pcie", find_gpu("L40S").pcie_bytes_per_s)
