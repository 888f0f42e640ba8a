"""What was planned, what happened and why they differ: findings from metrics, the bill and today's prices.

Every finding is a pure function; dollars are over the report's period, and None where they cannot be told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from calibrate.profiles import best_profile
from calibrate.step import StepShape
from calibrate.step_time import step_model
from catalogs.load import known_gpu, price_of
from catalogs.schema import Replica
from catalogs.units import HOURS_PER_MONTH, SECONDS_PER_HOUR
from planner.explain import replica_of
from planner.spend.bill import Bill
from planner.spend.observed import Observed
from planner.spend.prometheus import share_above
from planner.spend.spend_findings import Finding

LOAD_STEP = 0.10  # load this far from the plan's has drifted
STEP_TIME_STEP = 0.20  # so has a step time: profiles state errors of 5 to 15 %
SHARE_STEP = 0.10  # and a spot share, in parts of all hours
SAVING_STEP = 0.02  # a plan cheaper by less is not worth the change
SLO_NAME = re.compile(r"^(ttft|tpot|itl|e2e)_p(\d+(?:\.\d+)?)_s$")
DAY_S = 86_400.0
FORESEEN_DAYS = 3650  # a trend says nothing of what comes later


def drift(observed: Observed, plan: Mapping[str, Any], model: str | None = None) -> tuple[Finding, ...]:
    """Every finding that metrics and a plan give.

    Args:
        observed: what ran.
        plan: the answer of ``plan recommend``.
        model: the served model's name, to predict step times; left out: the plan's own, where it says.
    """
    name = model or plan.get("model")
    found = [*load_drift(observed, plan), *load_trend(observed, plan), *slo_burn(observed, plan)]
    if name:
        found += step_time_drift(observed, plan, str(name))
    return tuple(found)


def load_drift(observed: Observed, plan: Mapping[str, Any]) -> list[Finding]:
    """Mean load and request sizes against the plan's; dollars are the plan's price of the difference."""
    planned, rate = plan["plan"].get("requests_per_s"), observed.requests_per_s
    if not planned or rate is None:
        return []
    found = []
    if abs(rate / planned - 1) > LOAD_STEP:
        usd_per_request = plan["plan"]["usd_per_hour"] / SECONDS_PER_HOUR / planned
        usd = (rate - planned) * usd_per_request * observed.counted_s
        word = "outgrows" if rate > planned else "falls short of"
        found.append(Finding(
            "drift", "load", usd,
            f"load {word} the plan: {rate:,.2f} requests a second where {planned:,.2f} were planned "
            f"({rate / planned - 1:+.0%})",
            "plan again on a recent trace",
        ))  # fmt: skip
    planned_tokens = plan["plan"].get("output_tokens_per_s")
    requests, tokens = observed.counts.get("requests"), observed.counts.get("output_tokens")
    if planned_tokens and requests and tokens:
        size, planned_size = tokens / requests, planned_tokens / planned
        if abs(size / planned_size - 1) > LOAD_STEP:
            found.append(Finding(
                "drift", "request size", None,
                f"answers have {size:,.0f} tokens on average where the plan's have {planned_size:,.0f} "
                f"({size / planned_size - 1:+.0%})",
                "plan again on a recent trace",
            ))  # fmt: skip
    return found


def load_trend(observed: Observed, plan: Mapping[str, Any]) -> list[Finding]:
    """Whether load grows, and when it passes the plan's; from daily means, said only beyond two standard errors."""
    days: dict[int, list[float]] = {}
    for at, rate in observed.load:
        days.setdefault(int(at // DAY_S), []).append(rate)
    counts = max((len(v) for v in days.values()), default=0)
    full = {day: float(np.mean(v)) for day, v in days.items() if len(v) >= counts / 2}
    if len(full) < 5:
        return []
    x, y = np.array(sorted(full), dtype=float), np.array([full[d] for d in sorted(full)])
    slope, at_mean = np.polyfit(x - x.mean(), y, 1)
    residual = y - (at_mean + slope * (x - x.mean()))
    error = math.sqrt(float(residual @ residual) / (len(x) - 2) / float(((x - x.mean()) ** 2).sum()))
    if abs(slope) <= 2 * error or y.mean() <= 0 or abs(slope) * 7 < 0.01 * y.mean():
        return []
    text = f"load {'grows' if slope > 0 else 'shrinks'} by {abs(slope) * 7 / y.mean():.1%} a week"
    planned, now = plan["plan"].get("requests_per_s"), float(at_mean + slope * (x[-1] - x.mean()))
    if planned and slope > 0 and now < planned <= now + slope * FORESEEN_DAYS:
        on = datetime.fromtimestamp(x[-1] * DAY_S, UTC) + timedelta(days=(planned - now) / float(slope))
        text += f"; at this pace it passes the plan's {planned:,.2f} requests a second on {on:%Y-%m-%d}"
    return [Finding("drift", "load trend", None, text, "forecast it: `plan trace forecast`, then plan again")]


def slo_burn(observed: Observed, plan: Mapping[str, Any]) -> list[Finding]:
    """Each promise against what was measured: the share of requests beyond the limit, over the share allowed."""
    found = []
    for name, promise in (plan.get("slo") or {}).items():
        match, limit = SLO_NAME.match(name), promise.get("limit") if isinstance(promise, Mapping) else None
        if not match or not limit:
            continue
        metric, allowed = f"{match.group(1)}_s", 1 - float(match.group(2)) / 100
        histogram = observed.latency.get(metric) or (observed.latency.get("itl_s") if metric == "tpot_s" else None)
        if histogram is None or allowed <= 0:
            continue
        bad, measured = share_above(histogram.buckets, limit), histogram.percentile(1 - allowed)
        if bad is None or bad <= allowed:
            continue
        simulated = promise.get("simulated")
        beside = "" if simulated is None else f", simulated {simulated:.3g} s"
        found.append(Finding(
            "slo_burn", name, None,
            f"{name} was {measured:.3g} s against {limit:g} s{beside}: {bad:.1%} of requests were beyond it, "
            f"{bad / allowed:.1f} times what it allows",
            "add replicas now; then plan again on a recent trace",
        ))  # fmt: skip
    return found


def step_time_drift(observed: Observed, plan: Mapping[str, Any], model: str) -> list[Finding]:
    """Measured time between tokens against the profile's step at the measured batch and prompt rate.

    Only for a plan of one line: metrics of several kinds of replica cannot be told apart.
    """
    lines = plan["plan"]["lines"]
    configurations = {(x["gpu"], x["tensor_parallel_size"], x["precision"], x["framework"]) for x in lines}
    histogram = observed.latency.get("itl_s") or observed.latency.get("tpot_s")
    if len(configurations) != 1 or histogram is None or histogram.mean_s is None:
        return []
    if known_gpu(str(lines[0]["gpu"])) is None:  # a capacity table's own
        return []
    predicted = predicted_step_s(observed, replica_of(lines[0], model))
    if predicted is None or abs(histogram.mean_s / predicted - 1) <= STEP_TIME_STEP:
        return []
    ratio = histogram.mean_s / predicted
    return [Finding(
        "drift", "step time", None,
        f"the time between tokens is {histogram.mean_s * 1e3:.1f} ms where the profile says {predicted * 1e3:.1f} ms "
        f"at this batch ({ratio - 1:+.0%})",
        "recalibrate: `plan calibrate endpoint` against this server, then plan again",
    )]  # fmt: skip


def predicted_step_s(observed: Observed, replica: Replica) -> float | None:
    """The profile's step time at the observed mean batch, context and prompt rate of one replica.

    Prompt tokens that arrive while a step runs are computed in the next one, so the step is the fixed point of
    t = step(prompt rate x t, batch). ``None`` where the load is not known.
    """
    replicas, running = observed.num_replicas, observed.means.get("running")
    requests, prompt = observed.counts.get("requests"), observed.counts.get("input_tokens")
    output = observed.counts.get("output_tokens")
    if not replicas or not running or not requests or prompt is None or output is None or observed.counted_s <= 0:
        return None
    batch = max(1, round(running / replicas))
    prompt_tokens, output_tokens = prompt / requests, output / requests
    rate = prompt / observed.counted_s / replicas
    step = step_model(replica, best_profile(replica))
    t = 0.01
    for _ in range(50):
        tokens = round(rate * t)
        finished = min(tokens / prompt_tokens, 1.0) if prompt_tokens else 0.0
        shape = StepShape(tokens, prompt_tokens / 2, batch, prompt_tokens + output_tokens / 2, batch + round(finished))
        new = step.step_time_s(shape)
        if abs(new - t) <= 1e-4 * t:
            return new
        t = 0.5 * (t + new)
    return t


def _purchase(line: Mapping[str, Any]) -> str:
    return str(line.get("purchase", "on_demand"))


def spot_share(bill: Bill, plan: Mapping[str, Any], region: str) -> list[Finding]:
    """Spot's share of machine-hours against the plan's; dollars are what the missing hours cost beyond spot."""
    lines = plan["plan"]["lines"]
    hours = {p: sum(float(np.mean(x["instances"])) for x in lines if (_purchase(x) == "spot") == p)
             for p in (True, False)}  # fmt: skip
    usage = bill.usage
    total = float(usage["hours"].sum())
    if total <= 0 or sum(hours.values()) <= 0:
        return []
    planned = hours[True] / sum(hours.values())
    actual = float(usage.loc[usage["purchase"] == "spot", "hours"].sum()) / total
    if abs(actual - planned) <= SHARE_STEP:
        return []
    usd = None
    kinds = {x["instance_type"] for x in lines if _purchase(x) == "spot"}
    pairs = [(price_of(kind, region, "on_demand"), price_of(kind, region, "spot")) for kind in kinds]
    spreads = [whole.usd_per_hour - spot.usd_per_hour for whole, spot in pairs if whole and spot]
    if spreads:
        usd = (planned - actual) * total * float(np.mean(spreads))
    return [Finding(
        "drift", "spot share", usd, f"{actual:.0%} of machine-hours ran on spot where the plan has {planned:.0%}",
        "see why spot was not had: other zones or types, or plan with a lower `spot.max_share`",
    )]  # fmt: skip


def cheaper_plan(plan: Mapping[str, Any], alternative: Mapping[str, Any]) -> list[Finding]:
    """A newly solved plan that costs less than the one in use; dollars are its saving a month."""
    now, then = float(plan["plan"]["usd_per_hour"]), float(alternative["plan"]["usd_per_hour"])
    if then >= now * (1 - SAVING_STEP):
        return []
    held = "verified by simulation" if alternative.get("verified") else "not verified by simulation"
    saving = (now - then) * HOURS_PER_MONTH
    what = ", ".join(
        f"{max(x['instances'])} x {x['instance_type']} {_purchase(x)}" for x in alternative["plan"]["lines"]
    )
    return [Finding(
        "cheaper_plan", "plan", saving,
        f"a plan at ${then:,.2f} an hour ({what}; {held}) does what this one does at ${now:,.2f}: "
        f"${saving:,.2f} less a month",
        "`plan compare` shows the two side by side",
    )]  # fmt: skip


def repriced(plan: Mapping[str, Any], region: str) -> list[Finding]:
    """The plan's own lines at today's prices; dollars are the difference a month."""
    was = now = 0.0
    moved: list[str] = []
    for line in plan["plan"]["lines"]:
        count = float(np.mean(line["instances"]))
        old = line.get("usd_per_instance_hour") or (float(line["usd_per_hour"]) / count if count else 0.0)
        price = price_of(line["instance_type"], region, _purchase(line))
        if price is None or not old:
            continue
        was, now = was + count * old, now + count * price.usd_per_hour
        if abs(price.usd_per_hour / old - 1) > 1e-6:
            moved.append(f"{line['instance_type']} {_purchase(line)} ${old:,.4f} to ${price.usd_per_hour:,.4f}")
    if not moved or abs(now - was) < 0.005:
        return []
    return [Finding(
        "price_change", "plan", (now - was) * HOURS_PER_MONTH,
        f"prices moved since the plan: {'; '.join(moved)} an hour", "`plan recommend` again at today's prices",
    )]  # fmt: skip
