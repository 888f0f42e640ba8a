"""Exports are read back by the real parsers and schemas: Kubernetes', HCL's, YAML's and the shell's."""

from __future__ import annotations

import shlex
import warnings
from typing import Any

import hcl2
import pytest
import yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # kubernetes_validate reads its version by pkg_resources
    import kubernetes_validate

from catalogs.errors import InputError
from planner.export import EXPORTERS, Deployment, deployment_of


def line(**changes: Any) -> dict[str, Any]:
    base = {
        "instance_type": "g6e.xlarge", "gpu": "L40S", "gpus_per_replica": 1, "tensor_parallel_size": 1,
        "precision": "fp8", "framework": "vllm", "purchase": "on_demand", "instances": [3, 4], "usd_per_hour": 7.0,
        "requests_per_s": [9.0, 10.0],
        "engine": {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "enable_prefix_caching": True},
    }  # fmt: skip
    return {**base, **changes}


def deployment(*lines: dict[str, Any]) -> Deployment:
    answer = {
        "plan": {"lines": list(lines)},
        "slo": {"ttft_p95_s": {"limit": 1.0, "simulated": 0.5, "ok": True}},
        "prices_as_of": "2026-07-20",
    }
    return deployment_of({"model": "llama-3.1-8b", "region": "us-east-1"}, answer)


MIXED = deployment(line(), line(purchase="spot", instances=[2, 0]), line(instance_type="p5.48xlarge", gpu="H100-SXM",
                   gpus_per_replica=4, tensor_parallel_size=4, purchase="reserved_3yr", instances=[1, 1]))  # fmt: skip


def flags(command: str) -> dict[str, str]:
    words = shlex.split(command, comments=True)
    pairs = zip(words, [*words[1:], ""], strict=True)
    return {a: ("" if b.startswith("--") else b) for a, b in pairs if a.startswith("--")}


def test_vllm_command_carries_the_plans_settings() -> None:
    found = flags(EXPORTERS["vllm"](deployment(line(tensor_parallel_size=2, gpus_per_replica=2))))
    assert found["--tensor-parallel-size"] == "2"
    assert found["--quantization"] == "fp8"
    assert found["--max-num-seqs"] == "256"
    assert found["--max-num-batched-tokens"] == "2048"
    assert "--enable-prefix-caching" in found


@pytest.mark.parametrize(
    ("target", "framework", "flag"),
    [("sglang", "sglang", "--tp-size"), ("trtllm", "tensorrt-llm", "--tp_size"), ("tgi", "tgi", "--num-shard")],
)
def test_other_engines_get_their_own_flag_names(target: str, framework: str, flag: str) -> None:
    plan = deployment(line(framework=framework, tensor_parallel_size=4, gpus_per_replica=4))
    assert flags(EXPORTERS[target](plan))[flag] == "4"


def test_a_plan_for_another_engine_is_refused() -> None:
    with pytest.raises(InputError, match="the plan is for vllm"):
        EXPORTERS["tgi"](deployment(line()))


@pytest.mark.parametrize("target", ["hpa", "keda"])
def test_kubernetes_accepts_every_core_object(target: str) -> None:
    documents = list(yaml.safe_load_all(EXPORTERS[target](MIXED)))
    kinds = [d["kind"] for d in documents]
    assert kinds.count("Deployment") == 3
    assert kinds.count("Service") == 1
    for document in documents:
        if document["apiVersion"] in ("v1", "apps/v1", "autoscaling/v2"):
            kubernetes_validate.validate(document, "1.31", strict=True)


def test_the_hpa_spans_the_plans_periods() -> None:
    scalers = [d for d in yaml.safe_load_all(EXPORTERS["hpa"](MIXED)) if d["kind"] == "HorizontalPodAutoscaler"]
    assert [(s["spec"]["minReplicas"], s["spec"]["maxReplicas"]) for s in scalers] == [(3, 4), (1, 2), (2, 2)]


def test_keda_may_go_to_zero_and_asks_for_the_engines_metric() -> None:
    scaled = [d for d in yaml.safe_load_all(EXPORTERS["keda"](MIXED)) if d["kind"] == "ScaledObject"]
    assert [s["spec"]["minReplicaCount"] for s in scaled] == [3, 0, 2]
    assert all("vllm:num_requests_running" in s["spec"]["triggers"][0]["metadata"]["query"] for s in scaled)


def test_karpenter_pools_pin_type_and_purchase_and_limit_gpus() -> None:
    pools = list(yaml.safe_load_all(EXPORTERS["karpenter"](MIXED)))
    found = [
        {r["key"]: r["values"][0] for r in p["spec"]["template"]["spec"]["requirements"]} | p["spec"]["limits"]
        for p in pools
    ]
    assert [f["karpenter.sh/capacity-type"] for f in found] == ["on-demand", "spot", "on-demand"]
    assert [f["nvidia.com/gpu"] for f in found] == ["4", "2", "8"]
    names = [p["metadata"]["name"] for p in pools]
    assert len(set(names)) == 3
    assert all(len(n) <= 63 for n in names)


def test_skyserve_services_say_spot_and_count_accelerators() -> None:
    services = list(yaml.safe_load_all(EXPORTERS["skypilot"](MIXED)))
    assert [s["resources"]["use_spot"] for s in services] == [False, True, False]
    assert services[2]["resources"]["accelerators"] == {"H100": 8}
    policies = [s["service"]["replica_policy"] for s in services]
    assert policies[1]["dynamic_ondemand_fallback"] is True
    assert policies[0] == {"min_replicas": 3, "max_replicas": 4, "target_qps_per_replica": 3.0}  # 9 on 3, 10 on 4
    assert policies[2] == {"min_replicas": 2, "max_replicas": 2}


def test_without_a_stated_rate_skyserve_keeps_the_busiest_periods_replicas() -> None:
    (service,) = yaml.safe_load_all(EXPORTERS["skypilot"](deployment(line(requests_per_s=[]))))
    assert service["service"]["replica_policy"] == {"min_replicas": 4, "max_replicas": 4}


@pytest.mark.parametrize("framework", ["vllm", "sglang", "tensorrt-llm", "tgi"])
@pytest.mark.parametrize("target", ["hpa", "skypilot"])
def test_a_deployed_engine_listens_to_the_network(target: str, framework: str) -> None:
    documents = list(yaml.safe_load_all(EXPORTERS[target](deployment(line(framework=framework)))))
    if target == "hpa":
        (container,) = next(d for d in documents if d["kind"] == "Deployment")["spec"]["template"]["spec"]["containers"]
        words, port = container["command"], container["ports"][0]["containerPort"]
    else:
        words, port = shlex.split(documents[0]["run"]), documents[0]["resources"]["ports"]
    host = words.index("--hostname" if framework == "tgi" else "--host")
    assert words[host + 1] == "0.0.0.0"
    assert words[words.index("--port") + 1] == str(port)


def test_terraform_parses_and_keeps_the_on_demand_base() -> None:
    parsed = hcl2.loads(EXPORTERS["terraform"](MIXED))
    groups = {
        k.strip('"'): v
        for r in parsed["resource"]
        for k, v in r.get("aws_autoscaling_group", r.get('"aws_autoscaling_group"')).items()
    }
    mixed = groups["llama_3_1_8b_g6e_xlarge"]
    distribution = mixed["mixed_instances_policy"][0]["instances_distribution"][0]
    assert (mixed["min_size"], mixed["max_size"]) == (4, 5)
    assert distribution["on_demand_base_capacity"] == 4
    assert distribution["on_demand_percentage_above_base_capacity"] == 0


def test_an_answer_without_a_plan_is_refused() -> None:
    with pytest.raises(InputError, match="holds no plan"):
        deployment_of({"model": "llama-3.1-8b"}, {"requests": {}})
    with pytest.raises(InputError, match="holds no plan"):
        deployment_of({"model": "llama-3.1-8b"}, {"plan": {"lines": [line(instances=[0, 0])]}})


def test_every_export_states_what_it_assumed() -> None:
    for target in ("vllm", "skypilot", "karpenter", "terraform", "keda", "hpa"):
        assert "# Assumed: " in EXPORTERS[target](MIXED), target
