"""A solved plan's model handed on, so that another load, limit or price is answered without simulating again.

What is handed on are the options whose capacities were simulated, and the demand and limits. A
capacity is known at the limits that were asked for and, where ``planner.explore`` asked for them, at some factors of
them. Between two known factors it is interpolated (geometrically: rate and limit both span magnitudes); outside them
nothing is answered. Other loads keep the capacities of the asked one. So no such answer is verified.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError, MissingError
from catalogs.names import nearest
from planner.answer import plan_document, promised_documents, purchase_lines
from planner.inputs.candidates import Candidate
from planner.optimizer.fleet_model import FleetModel, Limits, Option, Quota, SavingsPlan, State
from planner.optimizer.relax import explain_infeasible
from planner.optimizer.solve import solve
from planner.search import Key, Search

VERSION = 1  # of the form in which a model is handed on
MAX_OPTIONS = 2000  # of a model that is handed on
GAP, TIME_LIMIT_S = 1e-3, 5.0
LOAD_BOUNDS = (0.01, 100.0)
PRICE_BOUNDS = (0.0, 100.0)
NOT_VERIFIED = (
    "solved again from capacities that were simulated for the plan as it was asked; this fleet itself was not "
    "simulated: ask anew to verify it"
)
CandidateMap = Mapping[str, Candidate]


@dataclass(frozen=True)
class Change:
    """What is asked differently: factors on the load, on every latency limit, and on prices by name.

    A price's name is a purchase form, a GPU or an instance type; where several fit an option they multiply.
    """

    load: float = 1.0
    slo: float = 1.0
    prices: Mapping[str, float] = field(default_factory=dict)

    def price_factor(self, *names: str) -> float:
        """On the price of what goes by these names."""
        return math.prod(factor for name, factor in self.prices.items() if name in names)


def handed_on(
    search: Search, rps_at: Mapping[float, Mapping[Key, float]], usd_per_hour: float
) -> dict[str, Any] | None:
    """The model of a search as JSON; None where it is too large.

    Args:
        usd_per_hour: what its plan costs.
        rps_at: simulated capacities of a replica at other factors of the limits.
    """
    model = _leaner(search.simulated(), search.candidates)
    if len(model.options) > MAX_OPTIONS:
        return None
    keys = sorted({(search.candidates[o.config].config, search.patterns[o.name]) for o in model.options})
    capacities = []
    for key in keys:
        load = search.load_of(key)
        assert load is not None
        rps = {"1": search.rps[key], **{f"{f:g}": found[key] for f, found in rps_at.items() if found.get(key)}}
        capacities.append({
            "config": key[0], "serves": search.demand.pattern_name(key[1]), "rps": rps, "load": _finite(load),
        })  # fmt: skip
    index = {key: i for i, key in enumerate(keys)}
    options = [
        {**{k: v for k, v in asdict(replace(o, load=np.zeros(0), active=None)).items() if k not in ("load", "active")},
         "active": None if o.active is None else _runs(o.active),
         "capacity": index[(search.candidates[o.config].config, search.patterns[o.name])]}
        for o in model.options
    ]  # fmt: skip
    used = {o.config: search.candidates[o.config] for o in model.options}
    return {
        "version": VERSION,
        "usd_per_hour": round(usd_per_hour, 6),
        "slo_factors": sorted({1.0, *rps_at}),
        "capacities": capacities,
        "options": options,
        "candidates": {label: _described(c) for label, c in used.items()},
        "demand": model.demand.tolist(), "hours": model.hours.tolist(), "probability": model.probability.tolist(),
        "states": [asdict(s) for s in model.states], "limits": asdict(model.limits), "cyclic": model.cyclic,
        "savings_plans": [asdict(p) for p in model.savings_plans],
        "mean_output_tokens": search.demand.mean_tokens[:, 1].tolist(),
    }  # fmt: skip


def solve_again(what_if: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """The cheapest plan of a model that was handed on, under a change.

    Returns:
        ``plan`` as in the contract, ``usd_per_hour_before``, ``lower_bound_usd_per_hour``, ``mip_gap``, ``verified``
        (False) and why, and ``cost_range`` where capacities are interpolated: the costs at the two known factors.

    Raises:
        InputError: a factor out of bounds, a price's name that no option has.
        GateError: no plan keeps all limits.
    """
    check(what_if, change)
    candidates = _candidates(what_if)
    model = _model(what_if, candidates, change)
    found = solve(model, GAP, TIME_LIMIT_S)
    if found is None:
        raise explain_infeasible(model)
    by_bucket = np.einsum("o,t,ots->s", model.probability, model.weight, model.demand)
    rates = float(by_bucket.sum()), float(by_bucket @ np.array(what_if["mean_output_tokens"]))
    return {
        "schema_version": 1,
        "changed": {"load": change.load, "slo": change.slo, "prices": dict(change.prices)},
        "plan": plan_document(
            purchase_lines(model, found, candidates), found.usd_per_hour, rates, promised_documents(model, found)
        ),
        "usd_per_hour_before": what_if["usd_per_hour"],
        "cost_range": _between(what_if, candidates, change),
        "lower_bound_usd_per_hour": round(found.bound, 6),
        "mip_gap": found.gap,
        "verified": False,
        "verified_why": NOT_VERIFIED,
        "assumptions": _assumptions(what_if, change),
    }


def check(what_if: Mapping[str, Any], change: Change) -> None:
    """Refuse a change that the model cannot answer.

    Raises:
        InputError: see ``solve_again``.
    """
    known = what_if["slo_factors"]
    for name, value, (low, high) in (
        ("load", change.load, LOAD_BOUNDS), ("slo", change.slo, (known[0], known[-1])),
        *((f"price {n}", v, PRICE_BOUNDS) for n, v in change.prices.items()),
    ):  # fmt: skip
        if not low <= value <= high:
            raise InputError(
                f"{value:g} is outside {low:g} to {high:g}", where=name,
                why="capacities are known between these factors of the limits" if name == "slo" else "",
                remedy="ask anew with `plan recommend` for other limits" if name == "slo" else "a factor within them",
            )  # fmt: skip
    names = price_names(what_if)
    for name in change.prices:
        if name not in names:
            close = nearest(name, names, num=1)
            raise InputError(
                f"nothing in the model is called {name!r}", where="price",
                remedy=f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(names)}",
            )  # fmt: skip


def price_names(what_if: Mapping[str, Any]) -> list[str]:
    """What a price may be named by: purchase forms, GPUs, instance types."""
    candidates = what_if["candidates"].values()
    forms = [o["purchase"] for o in what_if["options"]] + ["savings_plan"] * bool(what_if.get("savings_plans"))
    found = forms, [c["gpu"] for c in candidates], [
        c["instance_type"] for c in candidates]  # fmt: skip
    return [name for group in found for name in sorted(set(group))]


def model_of(answer: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The model that an answer handed on.

    Raises:
        MissingError: it has none.
    """
    found = answer.get("what_if")
    if found and found.get("version") == VERSION:
        return cast("Mapping[str, Any]", found)
    why = "an earlier version kept it in another form"
    if "what_if" not in answer:
        why = "its capacities come from a table of measurements, or it was kept before models were handed on"
    elif not found:
        why = f"its model has more than {MAX_OPTIONS} options, too many to keep"
    raise MissingError(
        "this run holds no model to solve again", where=where, why=why,
        remedy="`plan recommend` with the changed settings",
    )  # fmt: skip


def _leaner(model: FleetModel, candidates: CandidateMap) -> FleetModel:
    """Without options that another of the same GPU and purchase form beats: a factor on either's price keeps it so."""
    groups: dict[tuple[str, str], list[Option]] = {}
    for option in model.options:
        groups.setdefault((candidates[option.config].gpu, option.purchase), []).append(option)
    return model.with_options([o for group in groups.values() for o in model.undominated(group)])


def _between(what_if: Mapping[str, Any], candidates: CandidateMap, change: Change) -> dict[str, float | None] | None:
    """Costs with the capacities of the two known factors about an interpolated one; None where it is known itself."""
    known = what_if["slo_factors"]
    if any(math.isclose(change.slo, f) for f in known):
        return None
    found = {}
    for name, factor in (("cheap", min(f for f in known if f > change.slo)),
                         ("dear", max(f for f in known if f < change.slo))):  # fmt: skip
        plan = solve(_model(what_if, candidates, replace(change, slo=factor)), GAP, TIME_LIMIT_S)
        found[name] = None if plan is None else round(plan.usd_per_hour, 6)
    return found


def _assumptions(what_if: Mapping[str, Any], change: Change) -> list[str]:
    said = ["only configurations whose capacity was simulated are offered; another might be cheaper now"]
    if change.load != 1:
        said.append("a replica's capacity is that of the load as it was asked; more replicas would share bursts better")
    if change.slo != 1:
        num = sum(_rps_at(c["rps"], change.slo) is not None for c in what_if["capacities"])
        said.append(f"at this factor of the limits {num} of {len(what_if['capacities'])} capacities are known")
    if not any(math.isclose(change.slo, f) for f in what_if["slo_factors"]):
        said.append("capacities are interpolated between the factors that were simulated")
    return said


def _rps_at(rps: Mapping[str, float], factor: float) -> float | None:
    """A capacity at a factor of the limits; without a looser known one that of the tighter, without a tighter none."""
    known = sorted((float(f), value) for f, value in rps.items())
    tighter = max(((f, v) for f, v in known if f <= factor * (1 + 1e-9)), default=None)
    looser = min(((f, v) for f, v in known if f >= factor * (1 - 1e-9)), default=tighter)
    if tighter is None or looser is None:
        return None
    if looser[0] <= tighter[0]:
        return tighter[1]
    share = math.log(factor / tighter[0]) / math.log(looser[0] / tighter[0])
    return float(tighter[1] * (looser[1] / tighter[1]) ** share)


def _model(what_if: Mapping[str, Any], candidates: CandidateMap, change: Change) -> FleetModel:
    periods = len(what_if["hours"])
    options = []
    for one in what_if["options"]:
        capacity, candidate = what_if["capacities"][one["capacity"]], candidates[one["config"]]
        rps = _rps_at(capacity["rps"], change.slo)
        if rps is None:
            continue
        price = change.price_factor(one["purchase"], candidate.gpu, candidate.instance_type)
        load = np.array([np.inf if x is None else x for x in capacity["load"]], dtype=float)
        load = load / candidate.served_at_once * (capacity["rps"]["1"] / rps)
        active = None if one["active"] is None else _periods(one["active"], periods)
        plain = {k: v for k, v in one.items() if k not in ("capacity", "active", "usd_per_hour")}
        options.append(Option(**plain, usd_per_hour=one["usd_per_hour"] * price, load=load, active=active))
    quotas = tuple(Quota(**q) for q in what_if["limits"]["quotas"])
    model = FleetModel(
        (), change.load * np.array(what_if["demand"], dtype=float),
        np.array(what_if["hours"], dtype=float), np.array(what_if["probability"], dtype=float),
        tuple(State(**s) for s in what_if["states"]), Limits(**{**what_if["limits"], "quotas": quotas}),
        bool(what_if["cyclic"]), _plans(what_if, candidates, change),
    )  # fmt: skip
    return model.with_options(model.undominated(options))


def _plans(what_if: Mapping[str, Any], candidates: CandidateMap, change: Change) -> tuple[SavingsPlan, ...]:
    """Savings Plans; the rates of those for sale follow the prices of their machines and of ``savings_plan``."""
    gpus = {c.instance_type: c.gpu for c in candidates.values()}
    found = []
    for one in what_if.get("savings_plans", []):
        if one.get("held_usd_per_hour") is not None:  # promised at its own rates
            found.append(SavingsPlan(**one))
            continue
        rates = {i: usd * change.price_factor("savings_plan", i, gpus.get(i, "")) for i, usd in one["rates"].items()}
        found.append(SavingsPlan(**{**one, "rates": rates}))
    return tuple(found)


def _candidates(what_if: Mapping[str, Any]) -> dict[str, Candidate]:
    return {label: Candidate(**c, replica=None) for label, c in what_if["candidates"].items()}


def _described(candidate: Candidate) -> dict[str, Any]:
    names = ("instance_type", "gpu", "num_gpus", "gpus_per_replica", "tensor_parallel_size", "precision", "framework",
             "score", "setting", "num_prefill", "num_decode")  # fmt: skip
    return {name: getattr(candidate, name) for name in names}


def _finite(load: NDArray[np.float64]) -> list[float | None]:
    return [float(x) if np.isfinite(x) else None for x in load]


def _runs(active: NDArray[np.bool_]) -> list[list[int]]:
    """Stretches [first, end) in which it is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    return [[int(a), int(b)] for a, b in edges.reshape(-1, 2)]


def _periods(runs: list[list[int]], num: int) -> NDArray[np.bool_]:
    found = np.zeros(num, dtype=bool)
    for first, end in runs:
        found[first:end] = True
    return found
