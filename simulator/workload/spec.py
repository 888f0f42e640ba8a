"""The `workload` section of a scenario or plan: a trace, a synthetic load, or a mix of classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from catalogs.yaml_source import Strict

Positive = Annotated[float, Field(gt=0)]
Tokens = Annotated[int, Field(ge=0, le=16_000_000)]
Count = Annotated[int, Field(ge=1, le=200_000_000)]


class LengthSpec(Strict):
    """Lengths in tokens: fixed (value), uniform (low to high, both included), lognormal (mean, cv) or empirical (file).

    ``min`` and ``max`` clip what is drawn. An empirical file is a trace or a CSV with input_tokens,output_tokens; when
    both lengths come from one file, they are drawn together, row by row.
    """

    distribution: Literal["fixed", "uniform", "lognormal", "empirical"]
    value: Tokens | None = None
    low: Tokens | None = None
    high: Tokens | None = None
    mean: Positive | None = None
    cv: Annotated[float, Field(ge=0, le=20)] | None = None
    min: Tokens | None = None
    max: Tokens | None = None
    file: Path | None = None

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "fixed": ("value",), "uniform": ("low", "high"), "lognormal": ("mean", "cv"), "empirical": ("file",),
    }  # fmt: skip
    hints: ClassVar[Mapping[str, str]] = {"std": "give `cv`: standard deviation / mean", "p50": "give `mean` and `cv`"}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _keys_fit(self, self.distribution, self.needs, {"lognormal": ("min", "max"), "empirical": ("min", "max")})
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class ArrivalSpec(Strict):
    """How requests arrive.

    poisson (rate_rps); gamma (rate_rps, cv of the gaps); constant (rate_rps); mmpp (rates_rps and mean_durations_s of
    the states, visited at random); diurnal (rate_rps on average, peak_to_mean, a sinusoid over period_s with its peak
    at peak_at_s); closed_loop (concurrency: a new request as soon as one ends). Length: num_requests or duration_s.
    """

    process: Literal["poisson", "gamma", "constant", "mmpp", "diurnal", "closed_loop"]
    rate_rps: Positive | None = None
    num_requests: Count | None = None
    duration_s: Positive | None = None
    cv: Annotated[float, Field(gt=0, le=50)] | None = None
    rates_rps: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    mean_durations_s: tuple[Positive, ...] | None = None
    peak_to_mean: Annotated[float, Field(ge=1, le=2)] | None = None
    period_s: Positive | None = None
    peak_at_s: float | None = None
    concurrency: Annotated[int, Field(ge=1, le=10_000_000)] | None = None

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "poisson": ("rate_rps",), "gamma": ("rate_rps", "cv"), "constant": ("rate_rps",),
        "mmpp": ("rates_rps", "mean_durations_s"), "diurnal": ("rate_rps",),
        "closed_loop": ("concurrency", "num_requests"),
    }  # fmt: skip
    hints: ClassVar[Mapping[str, str]] = {"qps": "say `rate_rps`", "rate": "say `rate_rps`", "rps": "say `rate_rps`"}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        extra = {"diurnal": ("peak_to_mean", "period_s", "peak_at_s")}
        open_loop = ("num_requests", "duration_s")
        allowed = {p: (*extra.get(p, ()), *open_loop) for p in self.needs if p != "closed_loop"}
        _keys_fit(self, self.process, self.needs, allowed)
        if self.process != "closed_loop" and (self.num_requests is None) == (self.duration_s is None):
            raise ValueError("give one of num_requests and duration_s")
        if self.process == "mmpp" and self.rates_rps is not None and self.mean_durations_s is not None:
            if len(self.rates_rps) != len(self.mean_durations_s) or len(self.rates_rps) < 2:
                raise ValueError("rates_rps and mean_durations_s need the same number of states, at least 2")
            if not max(self.rates_rps) > 0:
                raise ValueError("every state's rate is 0")
        return self


def _keys_fit(
    spec: Strict, kind: str, needs: Mapping[str, tuple[str, ...]], extra: Mapping[str, tuple[str, ...]]
) -> None:
    """Refuse what this kind lacks, and what it would silently ignore."""
    missing = [name for name in needs[kind] if getattr(spec, name) is None]
    if missing:
        raise ValueError(f"{kind} needs {' and '.join(missing)}")
    known = {*needs[kind], *extra.get(kind, ()), "process", "distribution"}
    idle = [name for name in spec.model_fields_set if name not in known and getattr(spec, name) is not None]
    if idle:
        raise ValueError(f"{kind} has no {' and '.join(sorted(idle))}")


class SessionSpec(Strict):
    """Conversations: each arrival starts one; a turn's prompt holds all that was said before it.

    The number of turns is geometric with mean ``mean_turns``; a next turn comes ``think_time_s`` (exponential) after
    the last one's answer would have been read (``output_tokens * read_s_per_token``).
    """

    mean_turns: Annotated[float, Field(ge=1, le=1000)] = 4.0
    think_time_s: Annotated[float, Field(ge=0)] = 30.0
    read_s_per_token: Annotated[float, Field(ge=0)] = 0.05
    max_input_tokens: Tokens = 32_768


class SystemPromptSpec(Strict):
    """Prompts that many requests begin with; their popularity falls as 1 / rank ** zipf."""

    tokens: Annotated[int, Field(ge=1, le=1_000_000)]
    num: Annotated[int, Field(ge=1, le=100_000)] = 1
    zipf: Annotated[float, Field(ge=0, le=10)] = 1.0


class GrowthSpec(Strict):
    """Steady growth: the rate is multiplied by ``1 + per_year`` in a year, smoothly."""

    per_year: Annotated[float, Field(gt=-1, le=1000)]


class FlashCrowdSpec(Strict):
    """A sudden crowd: ``factor`` times the rate from ``at_s`` for ``duration_s``, with linear ramps of ``ramp_s``."""

    at_s: Annotated[float, Field(ge=0)]
    duration_s: Positive
    factor: Positive
    ramp_s: Annotated[float, Field(ge=0)] = 0.0


class WeekSpec(Strict):
    """A week's rhythm: the rate is multiplied by the hour's and the day's factor (Monday first).

    The load starts at ``start_hour`` of the week (0: Monday 0:00).
    """

    hour_factors: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    day_factors: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    start_hour: Annotated[float, Field(ge=0, lt=168)] = 0.0

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        for name, num in (("hour_factors", 24), ("day_factors", 7)):
            given = getattr(self, name)
            if given is not None and len(given) != num:
                raise ValueError(f"{name} needs {num} numbers, here are {len(given)}")
        return self


class SyntheticSpec(Strict):
    """One synthetic load."""

    arrivals: ArrivalSpec | None = None
    input_tokens: LengthSpec | None = None
    output_tokens: LengthSpec | None = None
    sessions: SessionSpec | None = None
    system_prompts: SystemPromptSpec | None = None
    hash_block_tokens: Annotated[int, Field(ge=1, le=65_536)] | None = None


class ClassSpec(SyntheticSpec):
    """One class of a mix: a name, and a trace or a synthetic load."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    trace: Path | None = None
    scale: Positive = 1.0


class WorkloadSpec(SyntheticSpec):
    """A trace, or a synthetic load (arrivals, input_tokens, output_tokens), or a mix of classes, or demand buckets.

    ``scale`` multiplies the rate and keeps burst shape and duration; ``repeat_s`` plays the load again until that time;
    growth, week and flash_crowds then change its rate over time. Buckets are for `plan recommend` with a
    capacity table.
    """

    trace: Path | None = None
    sort: bool = False
    limit: Count | None = None
    scale: Positive = 1.0
    repeat_s: Positive | None = None
    growth: GrowthSpec | None = None
    week: WeekSpec | None = None
    flash_crowds: tuple[FlashCrowdSpec, ...] = ()
    classes: tuple[ClassSpec, ...] = ()
    buckets: Path | None = None

    hints: ClassVar[Mapping[str, str]] = {
        "file": "say `trace`",
        "path": "say `trace`",
        "rate": "`arrivals: {rate_rps: ...}`",
    }

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = {"trace": self.trace, "arrivals": self.arrivals, "classes": self.classes, "buckets": self.buckets}
        given = [name for name, value in sources.items() if value]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"one of trace, arrivals, classes and buckets is the load; here: {found}")
        if self.arrivals is not None:
            _synthetic_complete(self)
        elif self.input_tokens or self.output_tokens:
            raise ValueError(f"input_tokens and output_tokens go with arrivals; {given[0]} has its own lengths")
        for one in self.classes:
            if (one.trace is None) == (one.arrivals is None):
                raise ValueError(f"class {one.name!r} needs one of trace and arrivals")
            if one.arrivals is not None:
                _synthetic_complete(one)
                if one.arrivals.process == "closed_loop":
                    raise ValueError(f"class {one.name!r}: a closed loop cannot be mixed with others")
        names = [one.name for one in self.classes]
        if len(set(names)) < len(names):
            raise ValueError("two classes have the same name")
        return self

    def resolved(self, folder: Path) -> WorkloadSpec:
        """The same with file names made relative to ``folder``."""
        return self.model_validate(resolve_paths(self.model_dump(exclude_unset=True), folder))


def _synthetic_complete(spec: SyntheticSpec) -> None:
    missing = [name for name in ("input_tokens", "output_tokens") if getattr(spec, name) is None]
    if missing:
        raise ValueError(f"arrivals need {' and '.join(missing)}")


def resolve_paths(value: Any, folder: Path) -> Any:
    """The same nested data with every path that is not absolute placed in ``folder``."""
    if isinstance(value, Path):
        return value if value.is_absolute() else folder / value
    if isinstance(value, Mapping):
        return {k: resolve_paths(v, folder) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(resolve_paths(v, folder) for v in value)
    return value
