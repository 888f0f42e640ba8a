"""Every export is read by what it is for: run by `make test-exports`, since it fetches the readers.

TensorRT-LLM publishes its wheel outside the package index and TGI is a Rust program, so these two are checked against
the flags of their reference pages, written down here.
"""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from typing import Any

import pytest
import yaml

from catalogs.load import instances
from planner.export import EXPORTERS, Deployment, deployment_of
from planner.export.engines import served_words
from planner.export.skypilot import ACCELERATORS
from tests.exports.real_parsers import (
    ENGINE_SOURCES,
    CommandLine,
    engine_command_line,
    validate_kubernetes_objects,
    validate_skypilot,
)

pytestmark = pytest.mark.exports
needs_npm = pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed: Karpenter's and KEDA's forms are")

# trtllm-serve: the options of `serve` in tensorrt_llm/commands/serve.py at 00209af (after 1.0), read 2026-11-25
TRTLLM = CommandLine(
    {"--host", "--port", "--backend", "--max_beam_width", "--max_batch_size", "--max_num_tokens", "--max_seq_len",
     "--tp_size", "--pp_size", "--ep_size", "--gpus_per_node", "--kv_cache_free_gpu_memory_fraction", "--tokenizer"}
)  # fmt: skip
# text-generation-launcher: docs/source/reference/launcher.md (a version after 3.3), read 2026-11-25
TGI = CommandLine(
    {"--model-id", "--num-shard", "--quantize", "--dtype", "--kv-cache-dtype", "--max-batch-prefill-tokens",
     "--max-total-tokens", "--max-batch-total-tokens", "--max-batch-size", "--cuda-memory-fraction", "--hostname",
     "--port"},
    {"--quantize": ("awq", "compressed-tensors", "eetq", "exl2", "gptq", "marlin", "bitsandbytes", "bitsandbytes-nf4",
                    "bitsandbytes-fp4", "fp8"),
     "--dtype": ("float16", "bfloat16"), "--kv-cache-dtype": ("fp8_e4m3fn", "fp8_e5m2")},
)  # fmt: skip
SETTINGS = {
    "max_num_seqs": 256, "max_num_batched_tokens": 2048, "max_model_len": 8192, "block_size": 16,
    "gpu_memory_utilization": 0.9, "enable_prefix_caching": False, "enable_chunked_prefill": True,
}  # fmt: skip


def plan(**changes: Any) -> Deployment:
    """A plan of one line for each of three ways to buy, in two periods, so that every exporter's branches run."""
    base = {
        "instance_type": "g6e.12xlarge", "gpu": "L40S", "gpus_per_replica": 2, "tensor_parallel_size": 2,
        "precision": "fp8", "framework": "vllm", "engine": SETTINGS, **changes,
    }  # fmt: skip
    lines = [
        {**base, "purchase": "on_demand", "instances": [2, 4], "requests_per_s": [6.0, 10.0]},
        {**base, "purchase": "spot", "instances": [0, 3], "requests_per_s": [0.0, 8.0]},
        {**base, "purchase": "capacity_block", "instances": [1, 1], "requests_per_s": [2.0, 2.0]},
    ]
    answer = {"plan": {"lines": lines}, "slo": {"ttft_p95_s": {"limit": 1.0}}, "prices_as_of": "2026-07-20"}
    return deployment_of({"model": "llama-3.1-8b", "region": "us-east-1"}, answer)


def command_faults(line: CommandLine, framework: str) -> dict[str, list[str]]:
    precisions = ("bf16", "fp16", "fp8", "int8", "int4-awq", "int4-gptq", "mxfp4")
    caches = ("auto", "fp8", "bf16")
    found = {}
    for precision, cache in itertools.product(precisions, caches):
        deployment = plan(precision=precision, framework=framework, engine={**SETTINGS, "kv_cache_dtype": cache})
        found[f"{precision}, kv {cache}"] = line.faults(served_words(deployment, deployment.groups[0]))
    return {k: v for k, v in found.items() if v}


@pytest.mark.parametrize("requirement", ENGINE_SOURCES)
def test_the_engines_own_argument_list_knows_every_flag_and_choice(requirement: str) -> None:
    line = engine_command_line(requirement)
    assert len(line.flags) > 100
    assert line.faults(["--no-such-flag", "--quantization", "no-such-method"]) != []
    assert command_faults(line, requirement.split("==")[0]) == {}


@pytest.mark.parametrize(("framework", "line"), [("tensorrt-llm", TRTLLM), ("tgi", TGI)])
def test_the_reference_page_lists_every_flag_and_choice(framework: str, line: CommandLine) -> None:
    assert command_faults(line, framework) == {}


@needs_npm
@pytest.mark.parametrize("target", ["karpenter", "keda"])
def test_karpenter_and_keda_accept_their_objects(target: str) -> None:
    kinds = {"karpenter": "NodePool", "keda": "ScaledObject"}
    objects = [d for d in yaml.safe_load_all(EXPORTERS[target](plan())) if d["kind"] == kinds[target]]
    assert len(objects) == 3
    assert validate_kubernetes_objects(objects) == []
    misspelt = {**objects[0], "spec": {**objects[0]["spec"], "limitz": {}, "cooldownPeriods": 1}}
    misspelt["spec"].pop("template", None)
    misspelt["spec"].pop("triggers", None)
    assert len(validate_kubernetes_objects([misspelt])) >= 2  # the unknown key and the absent one


def sky_instances() -> list[dict[str, Any]]:
    return [
        {
            "InstanceType": i.name, "AcceleratorName": ACCELERATORS.get(i.gpu, i.gpu), "AcceleratorCount": i.num_gpus,
            "vCPUs": i.num_vcpus, "MemoryGiB": (i.memory_bytes or 0.0) / 2**30, "GpuInfo": "{}",
            "Price": 1.0, "SpotPrice": 0.5, "Region": "us-east-1", "AvailabilityZone": "us-east-1a", "Arch": "x86_64",
        }
        for i in instances().values() if i.gpu_fraction == 1
    ]  # fmt: skip


@pytest.mark.parametrize("framework", ["vllm", "sglang", "tensorrt-llm", "tgi"])
def test_skypilot_loads_every_service(framework: str) -> None:
    text = EXPORTERS["skypilot"](plan(framework=framework))
    assert validate_skypilot(text, sky_instances()) == []


def test_skypilot_loads_a_plan_that_states_no_rate_and_refuses_what_is_wrong() -> None:
    unstated = plan()
    unstated = replace(unstated, groups=tuple(replace(g, requests_per_s=()) for g in unstated.groups))
    good = EXPORTERS["skypilot"](unstated)
    misspelt = good.replace("replica_policy", "replica_polices")
    unknown = good.replace("g6e.12xlarge", "g6e.13xlarge")
    assert len(validate_skypilot("---\n".join([good, misspelt, unknown]), sky_instances())) == 6
