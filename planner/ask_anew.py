"""The question that a change comes to, so that `planner.recommend` answers it anew and verifies it by simulation."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from catalogs.load import instances, prices
from planner.inputs.market import user_prices
from planner.inputs.problem import Problem
from planner.inputs.savings_plans import COLUMNS, rates_of
from planner.what_if import Change


def asked_anew(inputs: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """A run's settings with the load and every latency limit multiplied; changed prices are ``changed_prices``."""
    settings = deepcopy(dict(inputs))
    settings["workload"]["scale"] = (settings["workload"].get("scale") or 1.0) * change.load
    settings["slo"] = _multiplied(settings["slo"], change.slo)
    return settings


def changed_rates(problem: Problem, change: Change) -> str:
    """The Savings Plan rates of a problem as a file for ``savings_plans:``, those that the change names multiplied."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*COLUMNS, "region"))
    for rate in rates_of(problem):
        factor = change.price_factor("savings_plan", rate.instance, instances()[rate.instance].gpu)
        writer.writerow((*rate.key, rate.instance, f"{rate.usd_per_hour * factor:.8g}", problem.region))
    return out.getvalue()


def _multiplied(limits: Mapping[str, Any], factor: float) -> dict[str, Any]:
    return {k: _multiplied(v, factor) if isinstance(v, Mapping) else v * factor for k, v in limits.items()}


def changed_prices(inputs: Mapping[str, Any], change: Change) -> str:
    """The prices of the run's region as a file for ``prices:``, with those multiplied that the change names (CSV)."""
    region = str(inputs["region"])
    own: dict[tuple[str, str], float] = {}
    upfront: dict[tuple[str, str], float] = {}  # of commitments that are not paid for whole beforehand
    if inputs.get("prices"):
        offers = user_prices(Path(str(inputs["prices"])))
        here = {(name, form): o for (name, where, form), o in offers.items() if where in ("", region)}
        own = {key: o.usd_per_hour for key, o in here.items()}
        upfront = {key: o.upfront_usd for key, o in here.items() if o.running_usd_per_hour or o.upfront_usd}
    known: dict[tuple[str, str], float] = {
        (p.instance, p.purchase): p.usd_per_hour for p in prices() if p.region == region
    }
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("instance_type", "region", "purchase", "usd_per_hour", "upfront_usd"))
    for (name, form), price in sorted((known | own).items()):
        names = {form, name, instances()[name].gpu} if name in instances() else {form, name}
        factor = change.price_factor(*names)
        if names & change.prices.keys() or (name, form) in own:
            paid_before = f"{upfront[name, form] * factor:.8g}" if (name, form) in upfront else ""
            writer.writerow((name, region, form, f"{price * factor:.6g}", paid_before))
    return out.getvalue()
