"""A plan's answer as rows to draw and to download; the figures are in `app.web.answer_charts`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.web.style import LABELS

Rows = list[dict[str, Any]]
NEAR = 8.0  # times the plan's cost


def roads(answer: Mapping[str, Any]) -> Rows:
    """The plan and what it was chosen over: label, USD an hour, and whether that is a bound rather than a cost."""
    rows = [{"plan": "this plan", "usd_per_hour": answer["plan"]["usd_per_hour"], "at_least": False}]
    for other in answer["alternatives"]:
        if other.get("usd_per_hour") is not None and other.get("why_not") != "this is the plan":
            label = str(other["label"])
            short = "runner-up" if label.startswith("runner-up") else label.rpartition(" only")[0].rpartition(": ")[2]
            rows.append({"plan": short or label, "usd_per_hour": other["usd_per_hour"],
                         "at_least": bool(other.get("bound"))})  # fmt: skip
    return rows


def near_roads(answer: Mapping[str, Any]) -> Rows:
    """Those that cost at most ``NEAR`` times the plan: on one scale with the others it could not be seen."""
    return [r for r in roads(answer) if r["usd_per_hour"] <= NEAR * answer["plan"]["usd_per_hour"]]


def promises(answer: Mapping[str, Any]) -> Rows:
    """Each promise's simulated value, its 95 % interval and its spread over fresh draws, as shares of the limit."""
    spread = (answer.get("confidence") or {}).get("spread") or {}
    rows = []
    for name, one in answer["slo"].items():
        if one.get("simulated") is None:
            continue
        limit = one["limit"]
        low, high = one.get("interval_95") or (None, None)
        worst = spread.get(name) or (None, None)
        rows.append({
            "promise": promise_name(name), "limit_s": limit, "simulated": one["simulated"] / limit,
            "interval_low": None if low is None else low / limit,
            "interval_high": None if high is None else high / limit,
            "draws_low": None if worst[0] is None else worst[0] / limit,
            "draws_high": None if worst[1] is None else worst[1] / limit,
        })  # fmt: skip
    return rows


def promise_name(key: str) -> str:
    """``chat.ttft_p95_s`` as people write it: chat: TTFT p95."""
    group, _, rest = key.rpartition(".")
    metric, _, percentile = rest.removesuffix("_s").partition("_")
    return f"{group}: {metric.upper()} {percentile}" if group else f"{metric.upper()} {percentile}"


def machines(answer: Mapping[str, Any]) -> Rows:
    """Machines of each line in each planning period; empty where the plan has one period."""
    lines = answer["plan"]["lines"]
    num = max((len(line["instances"]) for line in lines), default=0)
    if num < 2:
        return []
    names = list(answer.get("periods") or []) or [str(i) for i in range(num)]
    found = []
    for number, line in enumerate(lines, 1):
        name = f"{line['instance_type']} {line['precision']} {LABELS.get(line['purchase'], line['purchase'])} #{number}"
        for period, count in zip(names, line["instances"], strict=False):
            found.append({"period": str(period), "line": name, "purchase": line["purchase"], "instances": count})
    return found


def latency_front(answer: Mapping[str, Any]) -> Rows:
    """What a tighter or looser promise costs: every limit multiplied by a factor; empty where it was not asked."""
    rows = (answer.get("pareto") or {}).get("cost_against_latency") or []
    return [dict(r) for r in rows if r.get("usd_per_hour") is not None]


def swings(answer: Mapping[str, Any]) -> Rows:
    """What moves the price most, widest first; empty where it was not asked."""
    return [dict(r) for r in answer.get("tornado") or []]


def quality_front(answer: Mapping[str, Any]) -> Rows:
    """What keeping more of the unquantized model's score costs; empty where it was not asked or nothing is known."""
    rows = (answer.get("pareto") or {}).get("cost_against_quality") or []
    return [dict(r) for r in rows if r.get("usd_per_hour") is not None]


def kept_quality(answer: Mapping[str, Any]) -> float | None:
    """The least score that a line of the plan keeps; None where one is not known."""
    scores = [line.get("quality_score") for line in answer["plan"]["lines"]]
    return min(scores) if scores and None not in scores else None
