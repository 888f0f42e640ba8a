"""Launch commands of the serving engines, one for each line of the plan.

Flag names: vLLM 0.11 `vllm serve`, SGLang 0.5 `sglang.launch_server`, TensorRT-LLM 1.0 `trtllm-serve`,
TGI 3.3 `text-generation-launcher`, each from its own documentation.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping

from catalogs.errors import InputError
from catalogs.load import find_gpu
from planner.export.deployment import Deployment, Group, header, only_framework

VERSIONS = {"vllm": "0.11", "sglang": "0.5", "tensorrt-llm": "1.0", "tgi": "3.3"}

# precision: the engine's flag; a precision that needs its own checkpoint maps to the flag and the assumption says so
VLLM_QUANTIZATION: Mapping[str, str] = {
    "fp8": "fp8", "int4-awq": "awq_marlin", "int4-gptq": "gptq_marlin", "int8": "compressed-tensors",
    "mxfp4": "mxfp4",
}  # fmt: skip
SGLANG_QUANTIZATION: Mapping[str, str] = {
    "fp8": "fp8", "int4-awq": "awq_marlin", "int4-gptq": "gptq_marlin", "int8": "w8a8_int8", "mxfp4": "mxfp4",
}  # fmt: skip
TGI_QUANTIZATION: Mapping[str, str] = {"fp8": "fp8", "int4-awq": "awq", "int4-gptq": "gptq"}
NEEDS_CHECKPOINT = ("int4-awq", "int4-gptq", "int8", "gguf-q4_k_m")
PORTS = {"vllm": 8000, "sglang": 30000, "tensorrt-llm": 8000, "tgi": 80}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

Flags = list[tuple[str, object]]


def vllm_flags(group: Group) -> Flags:
    """vLLM's flags for one group."""
    flags: Flags = [("--tensor-parallel-size", group.tensor_parallel_size)]
    if group.pipeline_parallel_size > 1:
        flags.append(("--pipeline-parallel-size", group.pipeline_parallel_size))
    if group.data_parallel_size > 1:
        flags.append(("--data-parallel-size", group.data_parallel_size))
    if group.expert_parallel_size > 1:
        flags.append(("--enable-expert-parallel", None))
    flags += _precision(group, VLLM_QUANTIZATION)
    flags += _kv_cache(group, {"bf16": "bfloat16"})
    settings = (
        "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "gpu_memory_utilization",
    )  # fmt: skip
    flags += [(f"--{key.replace('_', '-')}", group.engine[key]) for key in settings if group.engine.get(key)]
    switches = {"enable_prefix_caching": "prefix-caching", "enable_chunked_prefill": "chunked-prefill"}
    for key, flag in switches.items():
        if group.engine.get(key) is not None:
            flags.append((f"--{'' if group.engine[key] else 'no-'}enable-{flag}", None))
    return flags


def sglang_flags(group: Group) -> Flags:
    """SGLang's flags for one group."""
    flags: Flags = [("--tp-size", group.tensor_parallel_size)]
    if group.pipeline_parallel_size > 1:
        flags.append(("--pp-size", group.pipeline_parallel_size))
    if group.data_parallel_size > 1:
        flags.append(("--dp-size", group.data_parallel_size))
    if group.expert_parallel_size > 1:
        flags.append(("--ep-size", group.expert_parallel_size))
    flags += _precision(group, SGLANG_QUANTIZATION)
    flags += _kv_cache(group, {"fp8": "fp8_e5m2", "bf16": "bfloat16"})
    names = {
        "max_model_len": "--context-length", "max_num_seqs": "--max-running-requests",
        "max_num_batched_tokens": "--chunked-prefill-size", "gpu_memory_utilization": "--mem-fraction-static",
    }  # fmt: skip
    flags += [(flag, group.engine[key]) for key, flag in names.items() if group.engine.get(key)]
    if group.engine.get("enable_prefix_caching") is False:
        flags.append(("--disable-radix-cache", None))
    return [*flags, ("--enable-metrics", None)]


def trtllm_flags(group: Group) -> Flags:
    """TensorRT-LLM's flags for one group; precision is a property of its checkpoint."""
    flags: Flags = [("--tp_size", group.tensor_parallel_size)]
    if group.pipeline_parallel_size > 1:
        flags.append(("--pp_size", group.pipeline_parallel_size))
    if group.expert_parallel_size > 1:
        flags.append(("--ep_size", group.expert_parallel_size))
    _no_ranks(group)
    names = {
        "max_num_seqs": "--max_batch_size", "max_num_batched_tokens": "--max_num_tokens",
        "max_model_len": "--max_seq_len", "gpu_memory_utilization": "--kv_cache_free_gpu_memory_fraction",
    }  # fmt: skip
    return flags + [(flag, group.engine[key]) for key, flag in names.items() if group.engine.get(key)]


def tgi_flags(group: Group) -> Flags:
    """TGI's flags for one group."""
    _no_ranks(group)
    flags: Flags = [("--num-shard", group.tensor_parallel_size)]
    flags += _precision(group, TGI_QUANTIZATION, quantization="--quantize")
    if group.kv_cache_dtype != "bf16":  # it has no such value: the cache is of the model's type unless told otherwise
        flags += _kv_cache(group, {"fp8": "fp8_e4m3fn"})
    names = {"max_num_batched_tokens": "--max-batch-prefill-tokens", "max_model_len": "--max-total-tokens"}
    flags += [(flag, group.engine[key]) for key, flag in names.items() if group.engine.get(key)]
    if group.engine.get("gpu_memory_utilization"):
        flags.append(("--cuda-memory-fraction", group.engine["gpu_memory_utilization"]))
    return flags


def _no_ranks(group: Group) -> None:
    if group.data_parallel_size > 1:
        raise InputError(
            f"{group.framework} starts no data-parallel ranks by a flag", where="RUN",
            remedy="candidates.data_parallel_size: [1] and more replicas",
        )  # fmt: skip


def launch_words(deployment: Deployment, group: Group) -> list[str]:
    """The command line that starts one replica of a group, word by word."""
    model = deployment.model_id
    starts: dict[str, tuple[list[str], Callable[[Group], Flags]]] = {
        "vllm": (["vllm", "serve", model], vllm_flags),
        "sglang": (["python3", "-m", "sglang.launch_server", "--model-path", model], sglang_flags),
        "tensorrt-llm": (["trtllm-serve", model], trtllm_flags),
        "tgi": (["text-generation-launcher", "--model-id", model], tgi_flags),
    }
    start, flags_of = starts[group.framework]
    words = list(start)
    for flag, value in flags_of(group):
        words += [flag] if value is None else [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return words


def with_server(deployment: Deployment) -> Deployment:
    """The deployment, if each of its engines is a server that one command starts.

    Raises:
        InputError: one is not.
    """
    for group in deployment.groups:
        if group.framework not in PORTS:
            raise InputError(f"{group.framework} is no server by itself", where="RUN",
                             why="Triton serves it from a folder of models, which the plan does not know",
                             remedy="`plan export triton` writes the model's configuration")  # fmt: skip
    return deployment


def served_words(deployment: Deployment, group: Group) -> list[str]:
    """The command line of one replica that others on the network reach: two engines listen on loopback if not told."""
    host = "--hostname" if group.framework == "tgi" else "--host"
    return [*launch_words(deployment, group), host, "0.0.0.0", "--port", str(PORTS[group.framework])]


def assumptions_of(deployment: Deployment) -> list[str]:
    """What a launch rests on that the plan cannot check."""
    found = [
        f"{f} {VERSIONS[f]} or a later version with the same flags"
        for f in sorted({g.framework for g in deployment.groups})
    ]
    for precision in sorted({g.precision for g in deployment.groups}):
        if precision in NEEDS_CHECKPOINT:
            found.append(f"a {precision} checkpoint of {deployment.model_id} is given in place of the model id")
        elif precision == "fp8" and any(g.framework == "tensorrt-llm" for g in deployment.groups):
            found.append(f"an fp8 checkpoint of {deployment.model_id} is given in place of the model id")
    return found


def _precision(group: Group, known: Mapping[str, str], quantization: str = "--quantization") -> Flags:
    if group.precision in known:
        return [(quantization, known[group.precision])]
    dtype = group.precision
    if dtype == "bf16" and "bf16" not in find_gpu(group.gpu).peak_flops:
        dtype = "fp16"  # as the engines refuse bf16 before compute capability 8.0
    return [("--dtype", DTYPES[dtype])] if dtype in DTYPES else []


def _kv_cache(group: Group, names: Mapping[str, str]) -> Flags:
    """The KV cache's type by the engine's own name; fp16 is the model's type there, which needs no flag."""
    dtype = group.kv_cache_dtype
    return [] if dtype in ("auto", "fp16") else [("--kv-cache-dtype", names.get(dtype, dtype))]


def _commands(framework: str) -> Callable[[Deployment], str]:
    def command(deployment: Deployment) -> str:
        only_framework(deployment, framework)
        blocks = []
        for group in deployment.groups:
            counts = ", ".join(map(str, group.instances[:24])) + (", ..." if len(group.instances) > 24 else "")
            blocks.append(
                f"# {group.instance_type} ({group.gpu}), {group.purchase}: {counts} instance(s), "
                f"{group.replicas_per_instance} replica(s) on each\n" + _wrapped(launch_words(deployment, group))
            )
        return header(deployment, assumptions_of(deployment)) + "\n" + "\n".join(blocks)

    command.__doc__ = f"Launch commands for {framework}, one for each line of the plan."
    return command


def _wrapped(words: list[str]) -> str:
    """A shell command, one flag a line."""
    text, line = [], ""
    for word in words:
        if word.startswith("--") and line:
            text.append(line)
            line = "  " + word
        else:
            line = f"{line} {shlex.quote(word)}".strip() if not text else f"{line} {shlex.quote(word)}"
    return " \\\n".join([*text, line]) + "\n"


vllm_command = _commands("vllm")
sglang_command = _commands("sglang")
trtllm_command = _commands("tensorrt-llm")
tgi_command = _commands("tgi")
