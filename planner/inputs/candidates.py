"""What could be bought: every instance type x parallelism x precision x engine setting that fits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from calibrate.memory import memory_plan
from calibrate.physics.precisions import precision, support
from catalogs.errors import InputError
from catalogs.load import engine_defaults
from catalogs.schema import Engine, Gpu, Instance, Model, Replica
from planner.inputs.market import Offer, offers_of, wanted_instances
from planner.inputs.problem import Candidates, Problem
from planner.inputs.quality import check_task, score_of

ENGINE_CORE = frozenset(f.name for f in fields(Engine)) - {"framework", "options"}
TENSOR_PARALLEL_SIZES = (1, 2, 4, 8)
MOST_REPLICAS = 8  # of both roles in a pool whose ratio is tried
BATCH_SIZES = (8, 32, 128)  # largest batches of models that answer at once, where none are named
SMALL_BUDGET = 2048  # vLLM's own default on most GPUs


@dataclass(frozen=True)
class Candidate:
    """One way to serve the model on one instance type.

    Attributes:
        instance_type, gpu: catalogue names, or the capacity table's.
        num_gpus: of the instance.
        gpus_per_replica, tensor_parallel_size, precision, framework: of a replica.
        replica: what to simulate; None for a GPU known from a capacity table only.
        offers: by purchase form.
        score: share of the unquantized model's score that is kept; None: unknown.
    """

    instance_type: str
    gpu: str
    num_gpus: int
    gpus_per_replica: int
    tensor_parallel_size: int
    precision: str
    framework: str
    replica: Replica | None
    offers: Mapping[str, Offer] = field(default_factory=dict)
    score: float | None = None
    setting: str = ""  # engine settings that differ from the defaults, in words
    num_prefill: int = 0  # replicas of a pool whose prompts and answers have replicas of their own; 0: no such pool
    num_decode: int = 0

    @property
    def replicas_per_instance(self) -> int:
        """Replicas that fit one machine."""
        return max(1, self.num_gpus // self.gpus_per_replica)

    @property
    def machines(self) -> int:
        """That are bought at once: one, or those of a pool."""
        return max(1, (self.num_prefill + self.num_decode) // self.replicas_per_instance)

    @property
    def served_at_once(self) -> int:
        """Replicas, or pools, on the machines that are bought at once."""
        return 1 if self.num_prefill else self.replicas_per_instance

    @cached_property
    def config(self) -> str:
        """The replica, in words; the same on every instance type with this GPU. A pool's has the machine, whose network
        its KV goes over."""
        more = [self.setting] if self.setting else []
        more += [self.roles, "on", self.instance_type] if self.num_prefill else []
        return " ".join([self.gpu, *self.parallelism, self.precision, self.framework, *more])

    @property
    def roles(self) -> str:
        """A pool's replicas in words; empty where each replica computes prompts and decodes."""
        return f"{self.num_prefill} prefill + {self.num_decode} decode" if self.num_prefill else ""

    @property
    def parallelism(self) -> list[str]:
        """How a replica is spread over its GPUs: ``tp2``, ``pp2``, ``dp2``, ``ep4``; sizes of 1 are not said."""
        sizes = {"tp": self.tensor_parallel_size}
        if self.replica is not None:
            sizes["pp"] = self.replica.pipeline_parallel_size
            sizes["dp"] = self.replica.data_parallel_size
            sizes["ep"] = self.replica.expert_parallel_size
        return [f"{name}{size}" for name, size in sizes.items() if size > 1]

    @cached_property
    def label(self) -> str:
        """Unique among candidates."""
        return f"{self.instance_type}: {self.config}"


def enumerate_candidates(problem: Problem, model: Model) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Every candidate that the problem allows, and those refused with the reason.

    Raises:
        InputError: an unknown GPU, instance, precision or framework. MissingError: nothing has a price there.
    """
    from catalogs.load import find_gpu

    check_task(problem)
    found: list[Candidate] = []
    refused: dict[str, str] = {}
    for instance in wanted_instances(problem):
        gpu = find_gpu(instance.gpu)
        offers = offers_of(problem, instance.name)
        for replica, setting in _replicas(problem, model, gpu, instance):
            why = _unsuitable(problem, replica)
            candidate = Candidate(
                instance.name, gpu.name, instance.num_gpus, replica.num_gpus, replica.tensor_parallel_size,
                replica.precision, replica.engine.framework, replica, offers, _score(problem, replica), setting,
            )  # fmt: skip
            if why:
                refused.setdefault(candidate.config, why)
                continue
            if False in problem.candidates.disaggregated:
                found.append(candidate)
            if True in problem.candidates.disaggregated:
                found += _pools(candidate)
    return found, sorted(refused.items())


def _pools(candidate: Candidate) -> list[Candidate]:
    """The same replica in each ratio of prefill to decode that is tried; offers are of all the machines of a pool."""
    found = []
    for num_prefill, num_decode, machines in ratios(candidate.replicas_per_instance):
        offers = {form: offer.times(machines) for form, offer in candidate.offers.items()}
        found.append(replace(candidate, offers=offers, num_prefill=num_prefill, num_decode=num_decode))
    return found


def ratios(replicas_per_instance: int) -> Iterator[tuple[int, int, int]]:
    """(prefill replicas, decode replicas, machines) of the pools to try on machines that hold so many replicas.

    Every split of whole machines up to ``MOST_REPLICAS``; one that is a multiple of a smaller pool is left out, since
    several of those are simulated as one.
    """
    for machines in range(1, MOST_REPLICAS // replicas_per_instance + 1):
        total = machines * replicas_per_instance
        for num_prefill in range(1, total):
            if math.gcd(machines, num_prefill, total - num_prefill) == 1:
                yield num_prefill, total - num_prefill, machines


def _replicas(problem: Problem, model: Model, gpu: Gpu, instance: Instance) -> Iterator[tuple[Replica, str]]:
    chosen = problem.candidates
    for sizes, name, framework, kv in itertools.product(
        _parallelism(chosen, model, instance),
        chosen.precision or default_precisions(model, gpu),
        _frameworks(chosen, model),
        chosen.kv_cache_dtype,
    ):
        tp, pp, dp, ep = sizes
        link = instance.interconnect_bytes_per_s if tp * pp * dp > 1 else None
        for settings in _engine_settings(chosen, framework, gpu, model):
            words = [f"kv {kv}"] if kv != "auto" else []
            words += [f"{key} {str(value).lower()}" for key, value in settings.items() if value is not None]
            replica = Replica(
                model, gpu, tp, pp, dp, ep, precision=precision(name, "candidates.precision").name,
                kv_cache_dtype=kv, engine=_engine(framework, settings), interconnect_bytes_per_s=link,
            )  # fmt: skip
            yield replica, " ".join(words)


def _parallelism(chosen: Candidates, model: Model, instance: Instance) -> list[tuple[int, int, int, int]]:
    """Tensor, pipeline, data and expert parallel sizes that fit one instance; experts only where there are."""
    experts = chosen.expert_parallel_size if model.moe is not None else [1]
    tensor = chosen.tensor_parallel_size or (TENSOR_PARALLEL_SIZES if model.kind == "decoder" else [1])
    sizes = itertools.product(tensor, chosen.pipeline_parallel_size, chosen.data_parallel_size, experts)
    return [(tp, pp, dp, ep) for tp, pp, dp, ep in sizes if tp * pp * dp <= instance.num_gpus]


def _frameworks(chosen: Candidates, model: Model) -> list[str]:
    """Those that are named; else vLLM, and ONNX Runtime for a model that answers at once."""
    named = "frameworks" in chosen.model_fields_set
    return chosen.frameworks if named or model.kind == "decoder" else ["onnxruntime"]


def _engine_settings(chosen: Candidates, framework: str, gpu: Gpu, model: Model) -> Iterator[dict[str, Any]]:
    """Every combination of the engine settings to try; None: the framework's default."""
    choices: dict[str, Sequence[Any]] = {
        "max_num_seqs": chosen.max_num_seqs or ([None] if model.kind == "decoder" else BATCH_SIZES),
        "max_num_batched_tokens": chosen.max_num_batched_tokens or _budgets(framework, gpu),
        **chosen.engine,
    }
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def _engine(framework: str, settings: Mapping[str, Any]) -> Engine:
    """Settings of the common core as such, all others as options by their flag."""
    core = {k: v for k, v in settings.items() if k in ENGINE_CORE}
    options = {k: v for k, v in settings.items() if k not in ENGINE_CORE and v is not None}
    return Engine(framework=framework, options=options, **core)


def _budgets(framework: str, gpu: Gpu) -> list[int | None]:
    """Token budgets to try: the framework's default, and a smaller one, which keeps decodes going beside prompts."""
    default = engine_defaults(framework, gpu).get("max_num_batched_tokens")
    return [None, SMALL_BUDGET] if isinstance(default, int) and default > SMALL_BUDGET else [None]


def default_precisions(model: Model, gpu: Gpu) -> list[str]:
    """The published weights' precision, and FP8 where the GPU computes in it; 16 bit for models that answer at once."""
    if model.kind != "decoder":
        return [model.quantization or "fp16"]
    own = model.quantization or ("fp16" if "bf16" not in gpu.peak_flops else model.dtype)
    names = [own]
    if model.quantization is None and support("fp8", gpu) == "native":
        names.append("fp8")
    return names


def _unsuitable(problem: Problem, replica: Replica) -> str:
    """Why a replica does not come into question; empty when it does."""
    least = problem.quality.min_score
    if least is not None:
        score = _score(problem, replica)
        if score is None:
            return f"its quality is not known, and min_score {least:g} is asked for; quality.results can say it"
        if score < least:
            return f"keeps {score:.3f} of the score, below min_score {least:g}"
    if replica.model.kind == "vision" and replica.engine.framework != "onnxruntime":
        return f"{replica.engine.framework} serves no images alone"
    if support(replica.precision, replica.gpu) == "refused":
        return f"{replica.gpu.name} cannot run {replica.precision}"
    try:
        memory_plan(replica)
    except InputError as error:
        return error.what
    return ""


def _score(problem: Problem, replica: Replica) -> float | None:
    return score_of(problem, replica.model, replica.precision, replica.kv_cache_dtype)
