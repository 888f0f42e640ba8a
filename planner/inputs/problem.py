"""The question: the plan file (or its flags) as checked nouns.

Every key has one meaning, given in its description; an unknown key is refused with its line and the nearest key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from calibrate.physics.precisions import kv_cache_bytes, precision
from catalogs.engines import frameworks
from catalogs.errors import InputError
from catalogs.names import nearest, resolve
from catalogs.yaml_source import Located, Strict, check, read_yaml
from simulator.scenario.replicas import engine_options
from simulator.scenario.sections import DisaggregationSpec
from simulator.scenario.spec import EngineSpec, parse_slos
from simulator.workload.requests import Slo
from simulator.workload.spec import WorkloadSpec

PURCHASES = ("on_demand", "spot", "reserved_1yr", "reserved_3yr", "capacity_block")
Form = Literal["on_demand", "spot", "reserved_1yr", "reserved_3yr", "capacity_block", "savings_plan"]


def _check_setting(name: str, value: Any) -> None:
    try:
        EngineSpec.model_validate({name: value})
    except ValidationError as error:
        raise ValueError(f"{name}: {value!r} is refused: {error.errors()[0]['msg']}") from error


class Candidates(Strict):
    """What may be bought and how it may be run."""

    gpus: Literal["all"] | list[str] = Field("all", description="catalogue names")
    instances: Literal["all"] | list[str] = Field("all", description="instance types")
    precision: list[str] | None = Field(None, description="None: the published weights', and fp8 where it is native")
    frameworks: list[str] = Field(["vllm"], min_length=1)
    purchase: list[Form] = Field(["on_demand"], min_length=1)
    tensor_parallel_size: list[int] | None = Field(None, description="None: 1, 2, 4, 8 as the instance allows")
    pipeline_parallel_size: list[int] = Field([1], description="stages to try")
    data_parallel_size: list[int] = Field([1], description="ranks of one replica to try")
    expert_parallel_size: list[int] = Field([1], description="of models with experts: GPUs that share them out, to try")
    disaggregated: list[bool] = Field(
        [False], min_length=1, description="whether prefill and decode have replicas of their own, to try"
    )
    max_num_seqs: list[int] | None = Field(None, description="engine seats to try; None: the framework's default")
    max_num_batched_tokens: list[int] | None = Field(None, description="None: the framework's default")
    kv_cache_dtype: list[str] = Field(["auto"], min_length=1)
    engine: dict[str, list[Any]] = Field(
        {}, description="other engine settings to try, each a list: {enable_prefix_caching: [true, false]}"
    )

    @field_validator(
        "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "expert_parallel_size", "max_num_seqs",
        "max_num_batched_tokens",
    )  # fmt: skip
    @classmethod
    def _positive(cls, values: list[int] | None) -> list[int] | None:
        if values is not None and (not values or min(values) < 1):
            raise ValueError("needs whole numbers of 1 or more")
        return values

    @field_validator("purchase")
    @classmethod
    def _plans_need_machines(cls, values: list[Form]) -> list[Form]:
        if "savings_plan" in values and "on_demand" not in values:
            raise ValueError("a Savings Plan pays for machines that run on demand: name on_demand beside savings_plan")
        return values

    @field_validator("engine")
    @classmethod
    def _engine_settings(cls, values: dict[str, list[Any]]) -> dict[str, list[Any]]:
        own = {name for name in cls.model_fields if name != "engine"}
        known = (set(EngineSpec.model_fields) | engine_options()) - {"framework", "options"} - own
        for name, choices in values.items():
            if name in own:
                raise ValueError(f"{name} stands beside `engine`, not in it")
            if name not in known:
                close = nearest(name, sorted(known), num=1)
                raise ValueError(
                    f"unknown engine setting {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")
                )
            if not choices:
                raise ValueError(f"{name}: an empty list leaves nothing to choose from")
            for choice in choices:
                if name in EngineSpec.model_fields:
                    _check_setting(name, choice)
        return values

    @field_validator("kv_cache_dtype")
    @classmethod
    def _kv_cache_dtypes(cls, values: list[str]) -> list[str]:
        for value in values:
            kv_cache_bytes(value)
        return values

    @field_validator("precision", "gpus", "instances")
    @classmethod
    def _not_empty(cls, values: Any) -> Any:
        if values is not None and not values:
            raise ValueError("an empty list leaves nothing to choose from")
        return values


class Quality(Strict):
    """How much of the unquantized model's score must remain."""

    min_score: float | None = Field(None, gt=0, le=1, description="share of the unquantized model's score")
    task: str | None = Field(None, description="a task of catalogs/quality.csv; None: the lowest over its tasks")
    results: Path | None = Field(None, description="your own evaluations: model,precision,task,score,baseline_score")


class Spot(Strict):
    """How far spot may be relied on."""

    max_share: float = Field(1.0, ge=0, le=1, description="of the requests, in every period")
    availability: float = Field(0.999, gt=0, le=1, description="expected share of requests served")
    zones: int = Field(3, ge=1, le=12, description="zones that spot machines are spread over")
    zone_availability: float | None = Field(
        None, gt=0, le=1, description="share of time in which a zone has spot capacity; None: of the zones observed"
    )
    zone_correlation: float = Field(0.43, ge=0, lt=1, description="between the zones of a region")
    mean_outage_s: float = Field(8000.0, gt=0, description="of a zone; the mean of four us-east-1 zones in 2023")
    fallback: bool = Field(True, description="replace lost spot machines on demand")


class Scenario(Strict):
    """One future of the demand."""

    name: str = ""
    scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    probability: float = Field(1.0, gt=0, le=1)


class Time(Strict):
    """Demand over time; left out: one fleet that stands for the whole workload."""

    periods: Literal["static", "hour_of_day", "hour_of_week", "hour"] = Field(
        "static", description="what the trace's requests are grouped by"
    )
    demand: Path | None = Field(None, description="rates by hour: hour,rate_rps[,request_class], shapes from workload")
    headroom: float = Field(0.0, ge=0, le=5, description="capacity kept free, as a share of the demand")
    growth: float = Field(0.0, gt=-1, le=100, description="of the demand over the horizon's year, planned for its end")
    scenarios: list[Scenario] = Field(
        [Scenario(name="", scale=1.0, probability=1.0)], min_length=1, description="futures and their probabilities"
    )
    max_added_per_hour: int | None = Field(None, ge=1, description="machines of one line, at most")
    max_removed_per_hour: int | None = Field(None, ge=1, description="machines of one line, at most")
    min_run_hours: int = Field(1, ge=1, le=168, description="hours that a machine runs once it is started, at least")
    boot_s: float = Field(300.0, ge=0, le=7200, description="from start to the first request; paid for")
    cvar_weight: float = Field(0.0, ge=0, le=1, description="of the tail's mean cost in the objective")
    cvar_alpha: float = Field(0.9, ge=0, lt=1)

    @field_validator("scenarios")
    @classmethod
    def _probabilities(cls, values: list[Scenario]) -> list[Scenario]:
        total = sum(s.probability for s in values)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"probabilities sum to {total:g}, not 1")
        return values


class Holding(Strict):
    """Machines that are already paid for, or that run today."""

    instance_type: str
    count: int = Field(ge=1)
    purchase: str = "reserved_3yr"
    usd_per_hour: float | None = Field(None, ge=0, description="of one; None: the catalogue's price")
    precision: str | None = None
    tensor_parallel_size: int | None = Field(None, ge=1)
    framework: str | None = None

    @field_validator("purchase")
    @classmethod
    def _known_form(cls, value: str) -> str:
        return resolve(value, PURCHASES, "purchase form")

    @field_validator("framework")
    @classmethod
    def _known_framework(cls, value: str | None) -> str | None:
        return None if value is None else resolve(value, frameworks(), "framework")

    @field_validator("precision")
    @classmethod
    def _known_precision(cls, value: str | None) -> str | None:
        if value is not None:
            precision(value)
        return value


class HeldSavingsPlan(Strict):
    """A Savings Plan that is promised already."""

    plan: Literal["compute", "ec2_instance"]
    family: str = Field("", description="of an EC2 Instance plan: g6e")
    term_years: Literal[1, 3]
    payment: Literal["no_upfront", "partial_upfront", "all_upfront"]
    usd_per_hour: float = Field(gt=0, lt=1e6, description="promised for each hour")

    @model_validator(mode="after")
    def _family_of_a_family_plan(self) -> Self:
        if bool(self.family) != (self.plan == "ec2_instance"):
            raise ValueError("an EC2 Instance plan holds for one family (family: g6e), a Compute plan for all")
        return self


class Commitment(Strict):
    """How commitments are judged."""

    existing: list[Holding] = Field([], description="already paid for: they cost the plan nothing more")
    existing_savings_plans: list[HeldSavingsPlan] = Field(
        [], description="promised already: they cost the plan nothing more, and their rates come first"
    )
    horizon_months: float = Field(36.0, gt=0, le=120, description="how long the demand is expected to last")
    discount_rate: float = Field(0.0, ge=0, le=1, description="yearly cost of money paid upfront")


class Solver(Strict):
    """When to stop."""

    gap: float = Field(1e-3, gt=0, lt=1, description="relative, between the plan's cost and the proven lower bound")
    time_limit_s: float = Field(60.0, gt=0, le=86400)
    max_rounds: int = Field(12, ge=1, le=100, description="of solving, simulating and tightening")


class Problem(Strict):
    """The input of ``plan recommend``."""

    model: str = Field(description="a catalogue name, a Hugging Face id, or a path to a config.json")
    workload: WorkloadSpec
    slo: dict[str, Any] = Field(description="{ttft_p95_s: 1.0, ...}; or by request class")
    region: str = "us-east-1"
    candidates: Candidates = Candidates()  # type: ignore[call-arg]
    disaggregation: DisaggregationSpec = Field(
        DisaggregationSpec(), description="what lies between prefill and decode replicas, where they are tried"
    )
    quality: Quality = Quality()  # type: ignore[call-arg]
    spot: Spot = Spot()  # type: ignore[call-arg]
    time: Time = Time()  # type: ignore[call-arg]
    commitments: Commitment = Commitment()  # type: ignore[call-arg]
    quotas: dict[str, int] = Field({}, description="machines at most, by instance type or GPU")
    budget_usd_per_month: float | None = Field(None, gt=0, allow_inf_nan=False)
    capacity_table: Path | None = Field(
        None, description="your measurements: gpu,precision,input_tokens,output_tokens,max_rps[,usd_per_hour]"
    )
    prices: Path | None = Field(
        None, description="your prices: instance_type,region,purchase,usd_per_hour[,upfront_usd]"
    )
    savings_plans: Path | None = Field(
        None, description="your Savings Plan rates: plan,term_years,payment,instance_type,usd_per_hour[,region]"
    )
    today: list[Holding] = Field([], description="the fleet that runs today, to compare with")
    explore: bool = Field(True, description="also Pareto fronts, sensitivity and the range that calibration leaves")
    router: str = Field("least_loaded", description="between the replicas of one line")
    solver: Solver = Solver()  # type: ignore[call-arg]
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("slo")
    @classmethod
    def _slo_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not parse_slos(value):
            raise ValueError("no limit given: what latency must the fleet keep? ttft_p95_s: 1.0")
        return value

    @field_validator("quotas")
    @classmethod
    def _quota_counts(cls, value: dict[str, int]) -> dict[str, int]:
        bad = [k for k, v in value.items() if v < 0]
        if bad:
            raise ValueError(f"{bad[0]}: a quota is 0 or more")
        return value

    @property
    def slos(self) -> tuple[Slo, ...]:
        """Every promised latency."""
        return parse_slos(self.slo)


PATH_KEYS = frozenset({"trace", "buckets", "file", "demand", "results", "capacity_table", "prices", "savings_plans"})


def read_problem(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Problem:
    """The plan file as a problem; relative paths in it are taken from the file's own folder.

    Args:
        overrides: nested settings that replace the file's (from flags).

    Raises:
        InputError: not readable, not YAML, an unknown key (its line and the nearest key), a value out of range.
    """
    located = read_yaml(path)
    if not isinstance(located.data, dict):
        return check(located, Problem)  # says that keys are needed
    document = _anchored(located.data, Path(path).parent)
    model = document.get("model")
    if isinstance(model, str) and model.endswith(".json") and not Path(model).is_absolute():
        document["model"] = str(Path(path).parent / model)
    return check(replace(located, data=merged(document, overrides or {})), Problem)


def problem_from(settings: Mapping[str, Any], where: str = "flags") -> Problem:
    """A problem from nested settings (flags, a form, a stored run).

    Raises:
        InputError: as in ``read_problem``.
    """
    try:
        return check(Located(Path(where), dict(settings), {}), Problem)
    except InputError as error:
        raise InputError(error.what, where=where, why=error.why, remedy=error.remedy) from error


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the nested settings of ``over`` put on top."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        out[key] = merged(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return out


def _anchored(value: Any, folder: Path) -> Any:
    """The same nested settings with every file name that is not absolute placed in ``folder``."""
    if isinstance(value, Mapping):
        return {
            k: str(folder / v) if k in PATH_KEYS and isinstance(v, str) else _anchored(v, folder)
            for k, v in value.items()
        }
    return [_anchored(v, folder) for v in value] if isinstance(value, list) else value
