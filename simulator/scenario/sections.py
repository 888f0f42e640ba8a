"""The optional sections of a scenario, each with the part of a fleet that it means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from catalogs.errors import InputError
from catalogs.yaml_source import Strict
from simulator.fleet.admission import AdmissionPolicy, ClassPolicy, RetryPolicy
from simulator.fleet.caches import Caches, ResultCacheConfig, SemanticCacheConfig
from simulator.fleet.cold_start import IMAGE_BYTES, PARTS, ColdStart, LogNormal
from simulator.fleet.controllers import ControllerSpec, NotNegative, Positive
from simulator.fleet.spot import Availability, SpotPolicy, Zone, check_zones, find_zones, synthesise
from simulator.workload.requests import Requests

Share = Annotated[float, Field(ge=0, le=1)]

# Fitted on nine transfers of 20 MB to 4.5 GB that vLLM's Mooncake connector made over 8 RoCE links of 200 GB/s in all
# (kvcache-ai.github.io/Mooncake, vLLM V1 support benchmark, Qwen3-8B; read 2026-11): within 9 % of each. RDMA only:
# over TCP the same engine reaches half of that and less.
LINK_EFFICIENCY = 0.71
LATENCY_S = 0.0004


class ZoneSpec(Strict):
    """A spot zone of one's own."""

    name: str
    region: str
    available_share: Share
    capacity: Annotated[int, Field(ge=0)] | None = None
    relative_price: Positive = 0.3


class SpotSpec(Strict):
    """Spot replicas: where, how many beyond the target, and what stands in for them (SkyServe's names)."""

    line: Annotated[int, Field(ge=0)] = 0
    zones: tuple[str | ZoneSpec, ...] = ()
    trace: Path | None = None
    trace_start: float | None = None
    trace_gaps: Literal["refuse", "hold", "down"] = "refuse"
    independent: bool = False
    step_s: Positive = 195.0
    num_overprovision: Annotated[int, Field(ge=0)] = 0
    base_ondemand_fallback_replicas: Annotated[int, Field(ge=0)] = 0
    dynamic_ondemand_fallback: bool = False
    placer: Literal["dynamic_fallback", "even_spread", "cheapest"] = "dynamic_fallback"
    notice_s: NotNegative = 120.0
    drain_on_notice: bool = True
    rebalance_lead_s: NotNegative = 0.0
    rebalance_share: Share = 1.0
    price_share: Positive | None = None  # over on-demand; None: the catalogue's spot price
    prices: Path | None = None  # CSV: start_s,zone,usd_per_hour; a zone's price from then on

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.trace is None) == (not self.zones):
            raise ValueError("spot needs zones, or a trace of their availability, and not both")
        return self

    def availability(self, duration_s: float, seed: int) -> Availability:
        """The path that the run sees."""
        from simulator.fleet.spot_trace import read_availability

        if self.trace is not None:
            return read_availability(self.trace, duration_s, self.trace_start, self.trace_gaps)
        zones: list[Zone] = []
        for zone in self.zones:
            zones += find_zones([zone], "spot.zones") if isinstance(zone, str) else [Zone(**zone.model_dump())]
        check_zones(zones)
        return synthesise(zones, duration_s, seed, self.step_s, independent=self.independent)

    def policy(self) -> SpotPolicy:
        """How a target is split."""
        return SpotPolicy(
            self.num_overprovision, self.base_ondemand_fallback_replicas, self.dynamic_ondemand_fallback, self.placer
        )


class PartSpec(Strict):
    """A log-normal duration: its median and the standard deviation of its logarithm."""

    median_s: NotNegative
    sigma: Annotated[float, Field(ge=0, le=3)] = 0.0


class ColdStartSpec(Strict):
    """From the request for a machine to its replica's first request; what is left out is measured elsewhere."""

    total: PartSpec | None = None
    image_bytes: NotNegative = IMAGE_BYTES
    compile_cached: bool = False
    parts: dict[Literal["instance_boot", "image_pull", "weight_load", "engine_start", "engine_warm_up",
                        "graph_capture"], PartSpec] = Field(default_factory=dict)  # fmt: skip
    warm_pool: Annotated[int, Field(ge=0)] = 0
    start_ready: bool = True

    hints: ClassVar[Mapping[str, str]] = {
        "total_s": "`total: {median_s: ...}`",
        **dict.fromkeys(PARTS, "under `parts:`"),
    }

    def build(self, weight_bytes: float, *, enforce_eager: bool) -> ColdStart:
        """The distribution for one kind of replica."""
        parts: dict[str, LogNormal] = {name: LogNormal(p.median_s, p.sigma) for name, p in self.parts.items()}
        total = None if self.total is None else LogNormal(self.total.median_s, self.total.sigma)
        return ColdStart(weight_bytes, self.image_bytes, self.compile_cached, enforce_eager, parts, total)


class ClassPolicySpec(Strict):
    """What a request class gets; a smaller priority goes first."""

    priority: int = 0
    deadline_s: Positive | None = None
    timeout_s: Positive | None = None


class RetrySpec(Strict):
    """Clients that come back after a refusal or a time-out."""

    max_retries: Annotated[int, Field(ge=0, le=100)] = 0
    backoff_s: Positive = 1.0
    multiplier: Annotated[float, Field(ge=1)] = 2.0
    max_backoff_s: Positive = 60.0
    jitter: Share = 1.0


class AdmissionSpec(Strict):
    """The gateway: queue, bounds, priorities, fairness, retries."""

    queue: Literal["replica", "central"] = "replica"
    max_ongoing_requests: Annotated[int, Field(ge=1)] | None = None
    max_queue: Annotated[int, Field(ge=0)] | None = None
    rate_rps: Positive | None = None
    burst: Annotated[float, Field(ge=1)] = 1.0
    per_tenant: bool = False
    classes: dict[str, ClassPolicySpec] = Field(default_factory=dict)
    ageing_s: Positive | None = None
    preempt_lower: bool = False
    fairness: Literal["none", "tenant"] = "none"
    retry: RetrySpec = Field(default_factory=RetrySpec)
    on_loss: Literal["requeue", "fail"] = "requeue"
    tick_s: Positive = 0.25

    def build(self, requests: Requests) -> AdmissionPolicy:
        """The policy; refuses classes that no request has."""
        for name in self.classes:
            if name not in requests.class_names:
                raise InputError(
                    f"no request has class {name!r}", where="admission.classes", remedy=", ".join(requests.class_names)
                )
        own = {n: getattr(self, n) for n in type(self).model_fields if n not in ("classes", "retry")}
        classes = {name: ClassPolicy(**c.model_dump()) for name, c in self.classes.items()}
        return AdmissionPolicy(**own, classes=classes, retry=RetryPolicy(**self.retry.model_dump()))


class ResultCacheSpec(Strict):
    """Answers of deterministic requests, by their whole prompt."""

    max_entries: Annotated[int, Field(ge=0)] = 10_000
    ttl_s: Positive | None = None
    policy: Literal["lru", "lfu"] = "lru"
    lookup_s: NotNegative = 0.0
    deterministic_share: Share = 1.0


class SemanticCacheSpec(Strict):
    """Answers to similar questions; ``curve`` has measured [threshold, hit rate, false hit rate] rows."""

    threshold: float
    curve: Annotated[tuple[tuple[float, float, float], ...], Field(min_length=1)]
    lookup_s: NotNegative = 0.0


class PopularitySpec(Strict):
    """How often prompts repeat, for loads without prefix blocks: popularity falls as 1 / rank ** zipf."""

    num_prompts: Annotated[int, Field(ge=1, le=100_000_000)]
    zipf: Annotated[float, Field(ge=0, le=10)] = 1.0


class CachesSpec(Strict):
    """Caches in front of the replicas."""

    result: ResultCacheSpec | None = None
    semantic: SemanticCacheSpec | None = None
    popularity: PopularitySpec | None = None

    def build(self, requests: Requests, seed: int) -> Caches:
        """Both caches, empty."""
        return Caches(
            requests,
            seed,
            ResultCacheConfig(**self.result.model_dump()) if self.result else None,
            SemanticCacheConfig(**self.semantic.model_dump()) if self.semantic else None,
            self.popularity.num_prompts if self.popularity else None,
            self.popularity.zipf if self.popularity else 1.0,
        )


class FailuresSpec(Strict):
    """Mean hours between failures, and how long they take; what is left out does not happen."""

    hang_mtbf_h: Positive | None = None
    crash_mtbf_h: Positive | None = None
    degrade_mtbf_h: Positive | None = None
    degrade_factor: Annotated[float, Field(ge=1)] = 1.5
    degrade_duration_s: Positive = 600.0
    zone_mtbf_h: Positive | None = None
    zone_recover_s: Positive = 3600.0
    reserved_mtbf_h: Positive | None = None
    health_check_period_s: Positive = 10.0
    health_check_failures: Annotated[int, Field(ge=1)] = 3
    restart_s: NotNegative | None = None


class BlockSpec(Strict):
    """A Capacity Block: a fleet line exists from ``start_s`` to ``end_s`` only."""

    line: Annotated[int, Field(ge=0)]
    start_s: NotNegative
    end_s: Positive


class CapacitySpec(Strict):
    """Where machines are bought, and when they are not to be had."""

    zones: Annotated[tuple[str, ...], Field(min_length=1)] = ("zone-a", "zone-b", "zone-c")
    insufficient_capacity_probability: Annotated[float, Field(ge=0, lt=1)] = 0.0
    retry_s: Positive = 20.0
    termination_grace_s: NotNegative = 120.0
    blocks: tuple[BlockSpec, ...] = ()


class WindowsSpec(Strict):
    """A long horizon by its control plane and ``num`` windows played in full."""

    num: Annotated[int, Field(ge=2, le=1000)] = 16
    length_s: Positive = 600.0
    warm_up_s: NotNegative = 120.0


class ControlSpec(Strict):
    """The run itself: how stale the router's view is, how often the fleet is sampled, when the run is cut off."""

    windows: WindowsSpec | None = None
    router_staleness_s: NotNegative = 0.0
    sample_interval_s: Positive = 60.0
    drain_limit_s: NotNegative = 3600.0


class FleetSections(Strict):
    """The sections that turn a fixed fleet into a live one."""

    autoscaling: ControllerSpec | None = None
    spot: SpotSpec | None = None
    cold_start: ColdStartSpec | None = None
    admission: AdmissionSpec | None = None
    caches: CachesSpec | None = None
    failures: FailuresSpec | None = None
    capacity: CapacitySpec | None = None
    control: ControlSpec | None = None

    @property
    def is_live(self) -> bool:
        """Whether any of them is there."""
        return any(getattr(self, name) is not None for name in FleetSections.model_fields)


# Who samples the token that the client sees first. All of them answer from the decode server; SGLang and TensorRT-LLM
# hand the sampled token over with the KV, vLLM computes the prompt's last token again.
class DisaggregationSpec(Strict):
    """What lies between prefill and decode replicas.

    ``link``: the instances' network, or NVLink or PCIe where both pools share machines; ``link_bytes_per_s``, of a
    replica and one direction, replaces it. ``first_token``: ``decode`` (vLLM) or ``prefill`` (DistServe, Splitwise).
    ``transfer``: ``layerwise`` sends a layer's KV as soon as it is computed; else all of it once the prompt is done.
    """

    link: Literal["network", "nvlink", "pcie"] = "network"
    link_bytes_per_s: Annotated[float, Field(gt=0)] | None = None
    link_efficiency: Annotated[float, Field(gt=0, le=1)] = LINK_EFFICIENCY
    latency_s: Annotated[float, Field(ge=0, le=60)] = LATENCY_S
    first_token: Literal["decode", "prefill"] = "decode"
    transfer: Literal["after_prompt", "layerwise"] = "after_prompt"
    decode_router: str = "least_loaded"
