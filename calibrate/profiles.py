"""Profiles: how fast kernels run on a GPU, as fitted parameters with range, error and origin, in one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from catalogs.errors import InputError, MissingError
from catalogs.files import parse_json, read_text
from catalogs.names import normalise
from catalogs.schema import Engine, Replica

SCHEMA_VERSION = 1
SHIPPED = Path(__file__).parent / "shipped"
SHARED = "shared"  # what all measured GPUs share: no GPU's own profile
# Kernel family: variants that a profile without them takes from ``shared``; (): all. Links of other machines, attention
# backends that no engine's tables have, 8-bit linear layers of GPUs whose tables have none.
LENT: Mapping[str, tuple[str, ...]] = {
    "gemm": ("fp8",),
    "prefill_attention": ("eager", "mem_efficient", "flash1"),
    "all_reduce": (),
    "all_gather": (),
    "all_to_all": (),
}
ARITHMETIC = ("tile_", "eff_flops", "eff_sm_flops")  # parameters that are shares of the GPU's peak FLOP/s
OVERHEADS = Path(__file__).parent / "engine_overheads.json"


SECTIONS = ("families", "error", "engine_overheads", "versions", "tables", "power", "device")


class Parameters(dict[str, Any]):
    """One variant's parameters; one that physics asks for and the profile lacks is missing data."""

    def __missing__(self, name: str) -> Any:
        raise MissingError(
            f"the profile's kernels lack the parameter {name}",
            why="their time cannot be told",
            remedy="make the profile again: plan calibrate fit, or plan calibrate import",
        )


@dataclass(frozen=True)
class Profile:
    """What was measured or estimated, the fitted parameters, where they hold, how wrong they may be.

    Attributes:
        name. kind: ``kernels`` (physics parameters by family), ``llmservingsim`` (tables of one model) or ``endpoint``
            (a measured server).
        gpu: catalogue name. source, method, as_of: who measured what, how it was fitted, when.
        families: kernel family -> variant (dtype, backend) -> parameters, units in their names.
        error: family -> variant -> held-out error (median, p90, worst; ratios), number of points, basis.
        engine_overheads: framework -> step_overhead_s, per_sequence_s, request_overhead_s, output_overhead_s.
        model, precision, framework, versions: what a profile of one model was taken with; empty: any.
        tables: measured tables of an imported profile.
        carried_from: shipped profile whose families stand for those that this one lacks.
        power: power that arithmetic at peak takes over the board's limit, here (demand) and where those families were
            measured; empty: as there.
        device: for a measured device that the catalogue does not know: its own peaks.
    """

    name: str
    kind: str
    gpu: str
    source: str
    as_of: str
    method: str = ""
    families: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=dict)
    engine_overheads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    model: str = ""
    precision: str = ""
    framework: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)
    carried_from: str = ""
    power: Mapping[str, float] = field(default_factory=dict)
    device: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def family(self, name: str, *variants: str) -> Mapping[str, Any]:
        """Parameters of a kernel family: the first of ``variants`` that the profile has, else ``default`` or 16 bit.

        Raises:
            MissingError: the profile has nothing for the family.
        """
        known = self.families.get(name, {})
        for variant in (*variants, "default", "bf16"):
            if variant in known:
                return Parameters(known[variant])
        raise MissingError(
            f"profile {self.name} has no {name} kernels for {' or '.join(variants) or 'any type'}",
            why="their time cannot be told",
            remedy="leave `profile:` out to use the best shipped one, or measure: plan calibrate run",
        )

    def overheads(self, engine: Engine) -> Mapping[str, Any]:
        """Engine overheads of a framework: the profile's own, else the fitted defaults of the project.

        Those of asynchronous scheduling, where they are known and the engine is told to use it.
        """
        known = default_overheads()
        found = self.engine_overheads.get(engine.framework)
        if found is None:
            found = known.get(engine.framework, known.get("default", {}))
        hidden = found.get("asynchronous")
        return {**found, **hidden} if hidden and engine.options.get("async_scheduling") is True else found


@cache
def default_overheads() -> Mapping[str, Mapping[str, Any]]:
    """Engine overheads by framework, as fitted on serving points."""
    if not OVERHEADS.exists():
        return {}
    document: dict[str, dict[str, Any]] = json.loads(OVERHEADS.read_text())
    return document


def profile_from_dict(document: Mapping[str, Any], where: str = "") -> Profile:
    """A profile from its JSON form.

    Raises:
        InputError: not a profile, or made by a newer version of this program.
    """
    version = document.get("schema_version")
    if not isinstance(version, int):
        raise InputError("not a profile: schema_version is missing", where=where)
    if version > SCHEMA_VERSION:
        raise InputError(
            f"profile schema {version} is newer than {SCHEMA_VERSION}, which this program reads",
            where=where,
            why="its fields may mean something else",
            remedy="update this program, or make the profile again with it",
        )
    missing = [k for k in ("name", "kind", "gpu", "source", "as_of") if k not in document]
    if missing:
        raise InputError(f"not a profile: {', '.join(missing)} missing", where=where)
    _check_form(document, where)
    carried = document.get("carried_from")
    if carried:
        base = _within_power(_families_of(str(carried), where), document.get("power", {}))
        document = {**document, "families": {**base, **document.get("families", {})}}
    if document["kind"] == "kernels" and document["name"] != SHARED:
        document = _with_lent(document)
    known = Profile.__dataclass_fields__
    return Profile(**{k: v for k, v in document.items() if k in known})


def _check_form(document: Mapping[str, Any], where: str) -> None:
    """Raises ``InputError`` where a section of the document is of another form than a profile's."""
    words = [k for k in ("name", "kind", "gpu", "source", "as_of") if not isinstance(document[k], str)]
    wrong = [k for k in SECTIONS if not isinstance(document.get(k, {}), Mapping)]
    for section in ("families", "error"):
        for family, variants in (document.get(section, {}) if section not in wrong else {}).items():
            wrong += [] if isinstance(variants, Mapping) else [f"{section}.{family}"]
            for variant, values in variants.items() if isinstance(variants, Mapping) else ():
                wrong += [] if isinstance(values, Mapping) else [f"{section}.{family}.{variant}"]
    if words or wrong:
        what = f"{words[0]} is no text" if words else f"{wrong[0]} holds no keys with values"
        raise InputError(f"not a profile: {what}", where=where, remedy="plan schema profile prints the form")
    power = document.get("power", {})
    if power and not all(_is_share(power.get(k)) for k in ("demand", "measured")):
        raise InputError("power needs demand and measured, shares of the board's limit", where=where)


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 < value < 1000.0


def _within_power(families: Mapping[str, Any], power: Mapping[str, float]) -> dict[str, Any]:
    """Families of another GPU under a tighter power limit: the closer a kernel comes to the peak, the more it slows.

    As in ``static_batches``: power at a share of the peak grows with it, and the limit gives way smoothly.
    """
    if not power:
        return dict(families)

    def slowed(fit: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value * held(value) if name.startswith(ARITHMETIC) else value for name, value in fit.items()}

    def held(share: float) -> float:
        here, there = (1.0 + (min(share, 1.0) * power[each]) ** 4 for each in ("demand", "measured"))
        return float((there / here) ** 0.25)

    dense = ("gemm", "moe", "prefill_attention")
    return {
        family: {v: slowed(fit) for v, fit in variants.items()} if family in dense else variants
        for family, variants in families.items()
    }


def _with_lent(document: Mapping[str, Any]) -> dict[str, Any]:
    """The profile, with the variants of ``LENT`` that its own tables lack taken from ``shared``, errors said so."""
    if not (SHIPPED / f"{SHARED}.json").exists():
        return dict(document)
    families, errors = dict(document.get("families", {})), dict(document.get("error", {}))
    lent, lent_errors = _families_of(SHARED, ""), _errors_of(SHARED)
    for family, wanted in LENT.items():
        own = families.get(family, {})
        new = {v: fit for v, fit in lent.get(family, {}).items() if v not in own and (not wanted or v in wanted)}
        families[family] = {**own, **new}
        said = {v: _lent_error(lent_errors.get(family, {}).get(v, {})) for v in new}
        errors[family] = {**said, **errors.get(family, {})}
    return {**document, "families": families, "error": errors}


def _lent_error(error: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: error[k] for k in ("median", "p90", "worst") if k in error}
    return {**kept, "basis": f"lent by profile {SHARED}: {error.get('basis', 'not checked')}"}


@cache
def _errors_of(name: str) -> Mapping[str, Any]:
    errors: Mapping[str, Any] = json.loads((SHIPPED / f"{name}.json").read_text()).get("error", {})
    return errors


@cache
def _families_of(name: str, where: str) -> Mapping[str, Any]:
    """Families of a shipped profile, which another one rests on."""
    path = SHIPPED / f"{name}.json"
    if not path.exists():
        raise MissingError(f"the profile rests on {name!r}, which is not shipped", where=where)
    families: Mapping[str, Any] = json.loads(path.read_text())["families"]
    return families


def profile_to_dict(profile: Profile) -> dict[str, Any]:
    """The JSON form of a profile."""
    values = {name: getattr(profile, name) for name in Profile.__dataclass_fields__}
    return {"schema_version": profile.schema_version, **{k: v for k, v in values.items() if v not in ({}, "")}}


def load_profile(path_or_name: str | Path, where: str = "") -> Profile:
    """A profile from a file, or a shipped one by name.

    Raises:
        InputError: unreadable, not JSON, not a profile. MissingError: no such file or shipped profile.
    """
    path = Path(path_or_name)
    if path.suffix != ".json" and not path.exists():
        shipped = shipped_profiles()
        by_key = {normalise(name): profile for name, profile in shipped.items()}
        found = by_key.get(normalise(str(path_or_name)))
        if found is None:
            raise MissingError(
                f"no profile {str(path_or_name)!r}",
                where=where,
                remedy=f"a .json file, or one of {', '.join(shipped)}",
            )
        return found
    if not path.exists():
        raise MissingError(f"no file {path}", where=where, remedy="plan calibrate list shows the shipped profiles")
    try:
        document = parse_json(read_text(path, "a profile"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} cannot be read as JSON: {error}", where=where) from error
    if not isinstance(document, dict):
        raise InputError(f"{path} is not a profile", where=where)
    return profile_from_dict(document, where or str(path))


@cache
def shipped_profiles() -> dict[str, Profile]:
    """The profiles that come with the project, by name."""
    found = [profile_from_dict(json.loads(p.read_text()), p.name) for p in sorted(SHIPPED.glob("*.json"))]
    return {profile.name: profile for profile in found if profile.gpu}


def best_profile(replica: Replica) -> Profile:
    """The shipped profile that fits a replica best: its GPU's and framework's own, else its GPU's.

    Raises:
        MissingError: nothing is shipped for the GPU.
    """
    own = [p for p in shipped_profiles().values() if normalise(p.gpu) == normalise(replica.gpu.name)]
    framework = replica.engine.framework
    own.sort(key=lambda p: (p.framework != framework, p.framework not in ("", "vllm"), p.name))
    if own:
        return own[0]
    raise MissingError(
        f"no profile for {replica.gpu.name}",
        why="its step time is not known",
        remedy="measure it: plan calibrate run, or import tables: plan calibrate import",
    )
