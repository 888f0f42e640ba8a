"""The answer of `plan recommend` as tables and sentences; the command, the demo and the web app show the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.cli.output import Table

MAX_SCHEDULE_ROWS = 60

ENDED_BY = {
    "work": " The search ended at its limits of nodes and rounds, which are the same on every machine.",
    "time": " The time limit ended the search: a faster machine or a larger solver.time_limit_s may find another plan.",
}


def tables(answer: Mapping[str, Any]) -> list[Table]:
    """The answer as people read it; the purchase list comes first."""
    parts = [
        _purchases(answer), _savings_plans(answer), _schedule(answer), _promise(answer), _today(answer),
        _commitments(answer), _others(answer), _tornado(answer), *_fronts(answer),
    ]  # fmt: skip
    found = [table for table in parts if table is not None]
    return found + [Table(t["title"], t["columns"], t["rows"]) for t in answer.get("tables", [])]


def _purchases(answer: Mapping[str, Any]) -> Table:
    plan = answer["plan"]
    sorts = {line.get("serves", "all") for line in plan["lines"]} != {"all"}  # whether lines serve different sizes
    rows = [
        [
            line["instance_type"], _counts(line["instances"]), line["gpu"],
            _runs(line), _form(line),
            *([line.get("serves", "all")] if sorts else []), _mean(line["requests_per_s"]), line.get("quality_score"),
            line["usd_per_hour"], line.get("usd_per_month"),
        ]
        for line in plan["lines"]
    ]  # fmt: skip
    columns = [
        "instance type", "instances", "GPU", "runs", "purchase", *(["serves"] if sorts else []), "requests/s",
        "quality kept", "USD/h", "USD/month",
    ]  # fmt: skip
    title = f"Plan: ${plan['usd_per_hour']:,.2f} an hour, ${plan['usd_per_month']:,.0f} a month"
    if plan["usd_per_million_output_tokens"]:
        title += f", ${plan['usd_per_million_output_tokens']:.3f} per million output tokens"
    each = plan.get("usd_per_thousand_requests")
    if each:
        title += (
            f", ${each:.3f} per thousand requests" if each >= 0.01 else f", ${1000 * each:.3f} per million requests"
        )
    return Table(title, columns, rows)


def _savings_plans(answer: Mapping[str, Any]) -> Table | None:
    """What is promised, or to promise, for each hour, which pays for machines on demand."""
    plans = answer["plan"].get("savings_plans")
    if not plans:
        return None
    rows = [
        [p["name"] + ", held" * p.get("held", False), p["promised_usd_per_hour"], f"{p['used_share']:.1%}",
         p["upfront_usd"], ", ".join(p["instance_types"]), p["usd_per_hour"]]
        for p in plans
    ]  # fmt: skip
    columns = ["Savings Plan", "promised USD/h", "of it used", "upfront USD", "pays for", "USD/h"]
    return Table("Savings Plans: the on-demand lines above are what they leave to pay", columns, rows)


def _runs(line: Mapping[str, Any]) -> str:
    words = [parallelism(line), line["precision"], line["framework"]]
    if line.get("roles"):
        words.append(
            f"{_counts(line['roles']['prefill'])} prefill + {_counts(line['roles']['decode'])} decode replicas"
        )
    return ", ".join(words)


def parallelism(line: Mapping[str, Any]) -> str:
    """How a replica is spread over GPUs: ``TP 2``, ``TP 4 x PP 2``; sizes of 1 are left out, but for the first."""
    names = {"PP": "pipeline_parallel_size", "DP": "data_parallel_size", "EP": "expert_parallel_size"}
    more = [f"{short} {line[key]}" for short, key in names.items() if (line.get(key) or 1) > 1]
    return " x ".join([f"TP {line['tensor_parallel_size']}", *more])


def _form(line: Mapping[str, Any]) -> str:
    words = [str(line["purchase"]), line.get("held") or ""]
    if line.get("covered_share"):
        words.append(f"{line['covered_share']:.0%} under Savings Plans")
    return ", ".join(word for word in words if word)


def _counts(instances: Sequence[int]) -> str:
    low, high = min(instances), max(instances)
    return f"{low}" if low == high else f"{low}-{high}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _schedule(answer: Mapping[str, Any]) -> Table | None:
    """Machines of each line by period; periods in a row with the same fleet are one row."""
    periods, lines = answer.get("periods") or [], answer["plan"]["lines"]
    if len(periods) < 2 or not lines:
        return None
    fleets = [tuple(line["instances"][t] for line in lines) for t in range(len(periods))]
    rates = answer.get("requests_per_s_by_period") or []
    starts = [t for t in range(len(periods)) if t == 0 or fleets[t] != fleets[t - 1]]
    rows: list[list[object]] = []
    for first, after in zip(starts, [*starts[1:], len(periods)], strict=True):
        span = periods[first] if after == first + 1 else f"{periods[first]} to {periods[after - 1]}"
        busiest = max(rates[first:after], default=None) if rates else None
        rows.append([span, busiest, *fleets[first]])
    columns = ["when", "requests/s at most", *(f"{x['instance_type']} {x['precision']} {_form(x)}" for x in lines)]
    title = "What to run when"
    if len(rows) > MAX_SCHEDULE_ROWS:
        title += f" (the first {MAX_SCHEDULE_ROWS} of {len(rows)} stretches; all are in --format json)"
        rows = rows[:MAX_SCHEDULE_ROWS]
    return Table(title, columns, rows)


def _promise(answer: Mapping[str, Any]) -> Table:
    rows = [
        [name, s["limit"], s["simulated"], "–" if s["ok"] is None else "kept" if s["ok"] else "MISSED"]
        for name, s in answer["slo"].items()
    ]
    return Table("Latency promise", ["metric", "limit (s)", "simulated (s)", ""], rows)


def _today(answer: Mapping[str, Any]) -> Table | None:
    today = answer.get("today")
    if not today:
        return None
    plan = answer["plan"]
    rows = [
        ["today", today["usd_per_hour"], today.get("usd_per_month")],
        ["this plan", plan["usd_per_hour"], plan["usd_per_month"]],
        ["saved", today["saving_usd_per_hour"], today["saving_usd_per_month"]],
    ]
    return Table("Against today's fleet", ["", "USD/h", "USD/month"], rows)


def _commitments(answer: Mapping[str, Any]) -> Table | None:
    rows = [
        [
            b["instance_type"], b["purchase"], b["usd_per_hour"], b["on_demand_usd_per_hour"],
            f"{b['utilisation']:.0%} of the time", b["months"], b["upfront_usd"] or None,
        ]
        for b in answer.get("break_even") or []
    ]  # fmt: skip
    columns = [
        "instance type", "commitment", "USD/h committed", "USD/h on demand", "pays where needed more than",
        "paid back after (months)", "upfront USD each",
    ]  # fmt: skip
    return Table("When a commitment pays", columns, rows) if rows else None


def _others(answer: Mapping[str, Any]) -> Table | None:
    rows = [[a["label"], a["usd_per_hour"], a["why_not"]] for a in answer["alternatives"]]
    return Table("Why not the others", ["alternative", "USD/h", "why not"], rows) if rows else None


def _tornado(answer: Mapping[str, Any]) -> Table | None:
    swings = [
        [r["what"], r["change"], r["low_usd_per_hour"], _or_no_plan(r["high_usd_per_hour"])]
        for r in answer.get("tornado") or []
    ]
    columns = ["what", "change", "USD/h at best", "USD/h at worst"]
    return Table("What moves the cost", columns, swings) if swings else None


def _or_no_plan(usd: float | None) -> object:
    return "no plan" if usd is None else usd


def _fronts(answer: Mapping[str, Any]) -> list[Table]:
    pareto = answer.get("pareto") or {}
    latency = [
        [f"x {p['slo_factor']:g}", _or_no_plan(p["usd_per_hour"]), p["plan"]]
        for p in pareto.get("cost_against_latency") or []
    ]
    quality = [[p["min_score"], p["usd_per_hour"], p["plan"]] for p in pareto.get("cost_against_quality") or []]
    return [
        Table(title, [first, "USD/h", "plan"], rows)
        for title, first, rows in (
            ("Cost against latency", "every limit", latency),
            ("Cost against quality", "quality kept at least", quality),
        )
        if rows
    ]


def notes(answer: Mapping[str, Any]) -> list[str]:
    """What the answer rests on, in sentences."""
    said = []
    if answer["verified"]:
        said.append("Verified: " + answer.get("verified_why", "the fleet was simulated on the whole workload."))
    else:
        said.append("Not verified: " + answer.get("verified_why", ""))
    said.append(
        f"Optimality: no plan of this model costs less than ${answer['lower_bound_usd_per_hour']:,.2f} an hour "
        f"(gap {answer['mip_gap']:.2%})." + ENDED_BY.get(answer.get("ended_by", "gap"), "")
    )
    if answer.get("cost_range"):
        ends = answer["cost_range"]
        cheap, dear = ends["cheap"], ends["dear"]
        said.append(
            f"Were steps {ends['step_time_error']:.0%} longer, or shorter by that factor, as measured ones were: "
            + (f"${cheap:,.2f} to " if cheap is not None else "")
            + (f"${dear:,.2f} an hour." if dear is not None else "no plan of these machines at the dear end.")
        )
    said += _money_notes(answer)
    if answer.get("prices_as_of"):
        said.append(f"Prices as of {answer['prices_as_of']}{_age(answer['prices_as_of'])}.")
    said += [f"Assumed: {text}." for text in answer["assumptions"]]
    said += [f"Profile: {p['name']} ({p['source']})" for p in answer["profiles"]]
    if answer.get("run"):
        said.append(f"Run {answer['run']}: plan explain {answer['run']}")
    return said


def _money_notes(answer: Mapping[str, Any]) -> list[str]:
    """What the purchase list alone does not say about the money."""
    said = []
    plan = answer["plan"]
    beside = plan.get("beside_lines_usd_per_hour") or 0.0
    if beside > 0.005:
        said.append(
            f"Beside the lines the plan pays ${beside:,.2f} an hour on average: replacements on demand while spot "
            "zones are down, boots, and what other scenarios ask for."
        )
    upfront = sum(line.get("upfront_usd") or 0.0 for line in plan["lines"])
    if upfront:
        said.append(
            f"Of this, ${upfront:,.0f} is paid upfront for commitments; their USD/h spreads it over their term."
        )
    budget = answer.get("budget")
    if budget:
        said.append(f"The plan takes {budget['share']:.0%} of the budget of ${budget['usd_per_month']:,.0f} a month.")
    today = answer.get("today")
    if today and today["saving_share"] is not None:
        share = today["saving_share"]
        said.append(
            f"Today's fleet costs ${today['usd_per_hour']:,.2f} an hour: "
            + (f"{share:.0%} saved." if share >= 0 else f"this plan costs {-share:.0%} more.")
        )
        said += [f"No price is known for {name}: it is left out of today's cost." for name in today["without_a_price"]]
    return said


def _age(as_of: str) -> str:
    """What to say of a plan whose oldest price is old; nothing where it is fresh."""
    from catalogs.freshness import STALE_AFTER_DAYS, is_stale, today

    if not is_stale(as_of, today()):
        return ""
    return f", older than {STALE_AFTER_DAYS} days: `plan prices refresh` fetches today's"
