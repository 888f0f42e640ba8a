"""From a replica's description to what the engine simulates: settings, KV blocks and step times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from calibrate.memory import MemoryPlan, memory_plan
from calibrate.physics.cuda_graphs import largest_graph
from calibrate.physics.expert_layout import ranks_sharing_experts
from calibrate.physics.lora import copy_s, lora_of
from calibrate.profiles import Profile, best_profile, load_profile
from calibrate.step import StepTable
from calibrate.step_time import step_table
from catalogs.engines import ASYNC_SINCE, ASYNC_STAGES_SINCE, version_numbers
from catalogs.errors import InputError
from catalogs.load import find_gpu, find_model, resolve_engine
from catalogs.names import nearest
from catalogs.schema import Engine, Replica
from simulator.engine.replica_spec import LONGEST_ANSWER, ReplicaSpec
from simulator.engine.techniques import Adapters
from simulator.scenario.spec import Scenario
from simulator.scenario.technique_spec import OPTIONS, demand_fitting_role, with_techniques
from simulator.workload.requests import Requests

SETTINGS = (
    "block_size", "max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching", "enable_chunked_prefill",
)  # fmt: skip
# Engines that admit a request only with the blocks of its prompt and all tokens that it asks for, and preempt no one.
RESERVING = ("tensorrt-llm", "tgi")
SCHEDULER_POLICY = "capacity_scheduler_policy"  # TensorRT-LLM's
SCHEDULER_POLICIES = ("guaranteed_no_evict", "max_utilization")
TRITON_QUEUE_DELAY_S = 0.0  # max_queue_delay_microseconds of Triton's dynamic batcher, its default
SYNCHRONOUS = ("tgi", "onnxruntime", "tensorrt-llm")  # a request joins the next step (TensorRT-LLM: as measured)
# Clients of a closed loop that always wait: in 86 measured loops of TensorRT-LLM 1.0 on H100 (TP 1 and 4, 8 to 128
# clients) TTFT holds one request's whole duration over the clients less one, as if one sequence fewer ran than asked.
CLOSED_LOOP_WAITING: Mapping[str, int] = {"tensorrt-llm": 1}
# Options that the step time and memory models read; the engine's loop does not.
STEP_OPTIONS = (
    "activation_chunk_tokens",
    "activation_checkpoint_layers",
    "activation_recomputation",
    "all2all_backend",
    "attention_backend",
    "expert_skew",
    "lora",
)
KINDS: Mapping[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True)
class Line:
    """A line of the fleet, ready to run.

    Attributes:
        replica: with every engine setting resolved.
        profile: what its step times rest on.
        memory: where its memory goes.
        spec: one engine's settings; a replica has one for each data-parallel rank and, of a pipeline whose steps are
            decided synchronously, for each batch that is under way: as many as stages.
        count: replicas.
        role: both, prefill or decode.
        number: of the line in its scenario.
    """

    replica: Replica
    profile: Profile
    memory: MemoryPlan
    spec: ReplicaSpec
    count: int
    role: str = "both"
    number: int = 0

    @property
    def num_engines(self) -> int:
        in_rounds = self.spec.lockstep_ranks // ranks_sharing_experts(self.replica)
        return self.count * self.replica.data_parallel_size * max(self.spec.pipeline_stages, in_rounds)

    @property
    def num_schedulers(self) -> int:
        """Engines with a queue, seats and a KV cache of their own: the batches of a pipeline share them."""
        return self.num_engines // self.spec.pipeline_stages


def build_line(
    replica: Replica,
    profile: Profile | None = None,
    count: int = 1,
    where: str = "",
    table_of: Callable[[Replica, Profile, int, int], StepTable] = step_table,
) -> Line:
    """What the engine needs to know of a replica.

    Args:
        profile: None: the best shipped one.
        table_of: gives the step times; ``step_table``, or that with a memory.

    Raises:
        InputError: it does not fit the GPU, the GPU cannot run the precision, or an engine setting is impossible.
        MissingError: nothing is known of its step times.
    """
    asked = replica.engine
    replica = replace(replica, engine=resolve_engine(replica.engine, replica.model, replica.gpu))
    profile = profile or best_profile(replica)
    memory = memory_plan(replica)
    engine = replica.engine
    known = engine_options()
    options = {}
    for name, value in engine.options.items():
        if name in known.difference(STEP_OPTIONS, OPTIONS, (SCHEDULER_POLICY,)):
            options[name] = _checked(name, value, where)
        elif name not in known:
            close = nearest(name, sorted(known), num=1)
            raise InputError(f"unknown engine option {name!r}", where=where,
                             remedy=f"did you mean {close[0]!r}?" if close else "")  # fmt: skip
    table = table_of(replica, profile, engine.max_num_batched_tokens or 2048, engine.max_num_seqs or 256)
    overheads = profile.overheads(engine)
    table = table._replace(prompt_token_s=float(overheads.get("prompt_token_s", 0.0)))
    settings = {name: getattr(engine, name) for name in SETTINGS}
    settings |= {"max_model_len": memory.max_model_len, "policy": policy_of(engine)}
    measured_so = overheads.get("async_scheduling")  # overheads of a synchronous engine hold time that another hides
    settings["async_scheduling"] = (
        _is_asynchronous(engine.framework, engine.version or "") if measured_so is None else bool(measured_so)
    )
    settings["reserve_output_tokens"] = _reserved(engine, where)
    settings["front_end_ranks"] = replica.data_parallel_size if engine.framework == "vllm" else 1
    settings["graph_tokens"] = largest_graph(replica)
    if settings["policy"] == "dynamic":
        settings["max_queue_delay_s"] = TRITON_QUEUE_DELAY_S
    settings["adapters"] = _adapters(replica)
    settings |= options
    num_blocks = memory.num_gpu_blocks
    if replica.model.kind != "decoder":  # its answer is no token of the context
        settings["max_model_len"] += 1
        # It caches nothing: as many blocks as all seats could ever fill, so none is short.
        num_blocks = 1 + settings["max_num_seqs"] * -(-settings["max_model_len"] // settings["block_size"])
    stages, ranks = replica.pipeline_parallel_size, ranks_sharing_experts(replica)
    settings["lockstep_ranks"] = ranks
    if stages > 1 and not _one_batch_at_a_time(settings, replica.engine):
        settings["async_scheduling"] = bool(asked.options.get("async_scheduling", False))  # refused where it is asked
        settings["front_end_ranks"] = 1  # the scenario's router balances them
        if ranks > 1:  # micro-batches of their own, in rounds with the other ranks'
            num_blocks = max(2, num_blocks // stages)
            settings |= {
                "max_num_seqs": max(1, settings["max_num_seqs"] // stages), "lockstep_ranks": stages * ranks,
            }  # fmt: skip
        else:
            settings["pipeline_stages"] = stages
    spec = ReplicaSpec(step_table=table, num_gpu_blocks=num_blocks, name=replica.gpu.name, **settings)
    spec = with_techniques(spec, replica, asked, profile, memory)
    return Line(replica, profile, memory, spec, count)


def _checked(name: str, value: Any, where: str) -> Any:
    """An option of the engine's loop, of the kind that its default is of."""
    kind = next(type(f.default) for f in fields(ReplicaSpec) if f.name == name)
    fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if not fits:
        raise InputError(f"{name} is {value!r}", where=where, remedy=KINDS[kind])
    return value


def policy_of(engine: Engine) -> str:
    """How an engine forms its steps (the sources stand in ``catalogs/engines.yaml``).

    vLLM V1 and TensorRT-LLM mix prompts and decodes; so does TGI where it cuts prompts into chunks, else prompts come
    first; SGLang computes prompts first and alone; ONNX Runtime gets the batches of the server in front of it.
    """
    if engine.framework == "onnxruntime":
        return "dynamic"
    prompts_first = engine.framework == "sglang" or (engine.framework == "tgi" and not engine.enable_chunked_prefill)
    return "prefill_first" if prompts_first else "continuous"


def engine_options() -> frozenset[str]:
    """Names that ``engine.options`` may hold: techniques of the engine loop, of its steps and of its memory."""
    ours = {
        "step_table",
        "num_gpu_blocks",
        "lockstep_ranks",
        "front_end_ranks",
        "pipeline_stages",
        "graph_tokens",
        "adapters",
        "name",
        "speculation",
        "swap",
        "kv_offload",
    }
    read_here = (*STEP_OPTIONS, *OPTIONS, SCHEDULER_POLICY)
    return frozenset({f.name for f in fields(ReplicaSpec)} - ours) | frozenset(read_here)


def _reserved(engine: Engine, where: str) -> int:
    """What an engine reserves for answers by default (``ReplicaSpec.reserve_output_tokens``)."""
    policy = engine.options.get(SCHEDULER_POLICY)
    if policy is not None and engine.framework != "tensorrt-llm":
        raise InputError(f"{SCHEDULER_POLICY} with framework {engine.framework}", where=where,
                         why="it is TensorRT-LLM's", remedy=f"leave {SCHEDULER_POLICY} out")  # fmt: skip
    if policy not in (None, *SCHEDULER_POLICIES):
        raise InputError(f"no {SCHEDULER_POLICY} {policy!r}", where=where, remedy=" or ".join(SCHEDULER_POLICIES))
    return LONGEST_ANSWER if engine.framework in RESERVING and policy != "max_utilization" else 0


def _one_batch_at_a_time(settings: Mapping[str, Any], engine: Engine) -> bool:
    """Whether a pipeline's steps follow one another, none beginning before the one before has left the last stage.

    So it is with vLLM's asynchronous scheduling (0.19): each step is decided while the one before runs, has all running
    sequences, and the first stage waits for the tokens that the last one sampled and broadcasts
    (``v1/worker/gpu_model_runner.py``, ``_pp_receive_prev_sampled_token_ids_to_input_batch``).
    """
    numbers = version_numbers(engine.version or "")
    later = len(numbers) < 2 or numbers >= ASYNC_STAGES_SINCE
    return bool(settings["async_scheduling"]) and engine.framework == "vllm" and later


def _adapters(replica: Replica) -> Adapters | None:
    lora = lora_of(replica.engine)
    return None if lora is None else Adapters(lora.num_adapters, lora.max_loras, copy_s(replica))


def in_closed_loop(line: Line, requests: Requests, num_schedulers: int = 1) -> ReplicaSpec:
    """The engine of a line under a workload: in a closed loop a framework may run fewer sequences than it has clients.

    A loop in which each client asks once is a batch, and all of it runs.
    """
    waiting = CLOSED_LOOP_WAITING.get(line.replica.engine.framework, 0)
    if requests.concurrency is None or not waiting or len(requests) <= requests.concurrency:
        return line.spec
    seats = max(1, -(-requests.concurrency // num_schedulers) - waiting)
    return replace(line.spec, max_num_seqs=min(seats, line.spec.max_num_seqs))


def _is_asynchronous(framework: str, version: str) -> bool:
    numbers = version_numbers(version)
    return framework not in SYNCHRONOUS and (framework != "vllm" or len(numbers) < 2 or numbers >= ASYNC_SINCE)


def build_fleet(scenario: Scenario) -> list[Line]:
    """Every line of a scenario's fleet; see ``build_line``."""
    model = find_model(scenario.model, where="model")
    lines = []
    for number, line in enumerate(scenario.fleet):
        where = f"fleet.{number}"
        replica = line.replica(model, find_gpu(line.gpu, where=f"{where}.gpu"), where)
        profile = load_profile(line.profile, where=f"{where}.profile") if line.profile is not None else None
        if line.role != "both":
            demand_fitting_role(replica.engine.options, line.role, where)
        lines.append(replace(build_line(replica, profile, line.count, where), role=line.role, number=number))
    return lines
