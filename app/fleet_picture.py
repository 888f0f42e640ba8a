"""A picture of a fleet over time as one SVG: load, replicas, KV use, TTFT, losses, dollars. Needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from app.charts import PURCHASE_COLOURS

WIDTH, LEFT, RIGHT, PANEL, GAP, TOP = 960, 74, 150, 118, 34, 54
COLOURS = {**PURCHASE_COLOURS, "booting": "#c9ced6", "draining": "#8f98a3"}
INK, GRID, RED = "#2b3440", "#e3e7ec", "#c23b3b"


@dataclass(frozen=True)
class Panel:
    """One panel: lines over time, areas stacked below them, marks, a limit.

    Attributes:
        lines, areas: name to values (None: no point); colours by name.
        limit: a horizontal line with its name.
        marks: instants with a vertical tick.
    """

    title: str
    lines: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    areas: Mapping[str, Sequence[float]] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)
    limit: tuple[str, float] | None = None
    marks: Sequence[float] = ()
    top: float | None = None


def draw(title: str, t_s: Sequence[float], panels: Sequence[Panel]) -> str:
    """The SVG text of some panels over one time axis."""
    height = TOP + len(panels) * (PANEL + GAP) + 22
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="26" font-size="16" font-weight="600" fill="{INK}">{escape(title)}</text>',
    ]
    for k, panel in enumerate(panels):
        parts += _panel(panel, t_s, TOP + k * (PANEL + GAP))
    parts += _time_axis(t_s, height - 18 - GAP + 14)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, t_s: Sequence[float], y0: float) -> list[str]:
    stacked = [sum(values) for values in zip(*panel.areas.values(), strict=True)] if panel.areas else []
    values = [v for line in panel.lines.values() for v in line if v is not None] + stacked
    values += [panel.limit[1] * 1.15] if panel.limit else []
    top = panel.top if panel.top is not None else _nice(max(values, default=1.0))
    span = max(t_s[-1], 1e-9)

    def x(t: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * t / span

    def y(v: float) -> float:
        return y0 + PANEL * (1 - min(v, top) / top)

    out = [f'<text x="{LEFT}" y="{y0 - 7}" font-weight="600" fill="{INK}">{escape(panel.title)}</text>']
    for share in (0.0, 0.5, 1.0):
        at = y(share * top)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="{GRID}"/>')
        label = f"{share * top:.3g}"
        out.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end" fill="#687380">{label}</text>')
    below = [0.0] * len(t_s)
    legend = []
    for name, area in panel.areas.items():
        above = [b + v for b, v in zip(below, area, strict=True)]
        if any(area):
            points = [f"{x(t):.1f},{y(v):.1f}" for t, v in zip(t_s, above, strict=True)]
            points += [f"{x(t):.1f},{y(v):.1f}" for t, v in reversed(list(zip(t_s, below, strict=True)))]
            colour = panel.colours.get(name, "#999999")
            out.append(f'<polygon points="{" ".join(points)}" fill="{colour}"/>')
            legend.append((name, colour, False))
        below = above
    for name, line in panel.lines.items():
        colour = panel.colours.get(name, INK)
        out += [
            f'<polyline points="{" ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in run)}" fill="none" stroke="{colour}" '
            'stroke-width="1.6"/>'
            for run in _runs(t_s, line)
        ]
        legend.append((name, colour, True))
    if panel.limit is not None:
        at = y(panel.limit[1])
        out.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="{RED}" '
            'stroke-dasharray="5 4"/>'
        )
        legend.append((panel.limit[0], RED, True))
    for mark in panel.marks:
        out.append(f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{y0}" y2="{y0 + 12}" stroke="{RED}"/>')
    if panel.marks:
        legend.append((f"{len(panel.marks)} losses", RED, True))
    return out + _legend(legend, y0)


def _legend(entries: Sequence[tuple[str, str, bool]], y0: float) -> list[str]:
    out = []
    for k, (name, colour, is_line) in enumerate(entries):
        at = y0 + 10 + 17 * k
        size = 3 if is_line else 10
        x0 = WIDTH - RIGHT + 12
        out.append(f'<rect x="{x0}" y="{at - size / 2:.1f}" width="14" height="{size}" fill="{colour}"/>')
        out.append(f'<text x="{x0 + 20}" y="{at + 4:.1f}" fill="{INK}">{escape(name.replace("_", " "))}</text>')
    return out


def _time_axis(t_s: Sequence[float], y: float) -> list[str]:
    span = max(t_s[-1], 1e-9)
    step = next((s for s in (60, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400) if span / s <= 12), 86400 * 7)
    out = []
    for k in range(int(span // step) + 1):
        x = LEFT + (WIDTH - LEFT - RIGHT) * k * step / span
        text = f"{k * step / 3600:g} h" if step >= 1800 else f"{k * step / 60:g} min"
        out.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" fill="#687380">{text}</text>')
    return out


def _runs(t_s: Sequence[float], values: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for t, v in zip(t_s, values, strict=True):
        if v is None or v != v:
            runs.append([])
        else:
            runs[-1].append((t, v))
    return [run for run in runs if len(run) > 1]


def _nice(value: float) -> float:
    scale = 10.0 ** len(str(int(max(value, 1)))) / 10
    while value > 0 and value < scale / 10:
        scale /= 10
    return next((scale * m / 10 for m in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 40, 50, 60, 80, 100)
                 if scale * m / 10 >= value), value)  # fmt: skip


def fleet_picture(answer: Mapping[str, Any], title: str = "") -> str:
    """The day of a live fleet, from the JSON of `plan simulate`."""
    live = answer["live_fleet"]
    series = live["series"]
    forms = [name for name in series if name.startswith("ready_")]
    areas = {name.removeprefix("ready_"): series[name] for name in forms}
    areas |= {"booting": series["booting"], "draining": series["draining"]}
    losses = [e["t_s"] for e in live["events"] if "spot notice" in e["what"] or "lost" in e["what"]]
    limit = next((v["limit"] for name, v in answer["slo"].items() if name.startswith("ttft_p") and "limit" in v), None)
    panels = [
        Panel("load, requests/s", {"arrivals": series["requests_per_s"]}),
        Panel("replicas", {"target": series["target"]}, areas, COLOURS, marks=losses),
        Panel("waiting and running requests",
              {"running": series["running_requests"], "waiting": series["queue_length"]},
              colours={"running": "#3b6fb6", "waiting": RED}),
        Panel("KV and GPU use", {"KV": series["kv_use"], "GPU": series["gpu_use"]},
              colours={"KV": "#8a63b8", "GPU": "#4f9d69"}, top=1.0),
        Panel("p95 TTFT of the last minute, s", {"TTFT": series["ttft_p95_s"]},
              limit=None if limit is None else (f"SLO {limit:g} s", limit)),
    ]  # fmt: skip
    if series.get("usd_per_hour"):
        panels.append(Panel("dollars an hour", {"USD/h": series["usd_per_hour"]}, colours={"USD/h": "#2f7d4f"}))
    return draw(title or f"{answer['model']}: {_summary(answer)}", series["t_s"], panels)


def _summary(answer: Mapping[str, Any]) -> str:
    done = answer["requests"]["completed"]
    cost = "" if answer["usd"] is None else f", ${answer['usd']:,.2f}"
    return f"{done:,} requests{cost}"
