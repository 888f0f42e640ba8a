"""Charts as self-contained SVG: lines, steps, stacked areas, bars and points, on linear or logarithmic axes.

No script, no font file, no outside request: they read in a browser, in mail and on paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from numpy.typing import NDArray

# One colour a meaning, everywhere: Okabe and Ito's hues (2008), which stay apart for colour-blind readers, at a
# lightness that stands out from white and from near black by 3:1 (WCAG 2.1, 1.4.11).
PURCHASE_COLOURS: Mapping[str, str] = {
    "on_demand": "#0072b2", "spot": "#c77f00", "reserved_1yr": "#3a93c9", "reserved_3yr": "#009e73",
    "reserved": "#009e73", "savings_plan": "#3a93c9", "capacity_block": "#cc79a7",
}  # fmt: skip
MEANING_COLOURS: Mapping[str, str] = {
    "limit": "#d55e00", "load": "#767676", "measured": "#0072b2", "predicted": "#c77f00", "ideal": "#8a8a8a",
    "good": "#009e73", "bad": "#d55e00",
}  # fmt: skip
PALETTE = ("#0072b2", "#c77f00", "#009e73", "#cc79a7", "#3a93c9", "#d55e00", "#7f7f7f", "#8f8200")

Kind = Literal["line", "step", "area", "points", "bar"]
Values = Sequence[float] | NDArray[Any]


@dataclass(frozen=True)
class Series:
    """One named set of points; ``area`` series stack in their order; bars stand at 1, 2, 3... under ``labels``."""

    name: str
    x: Values
    y: Values
    kind: Kind = "line"
    colour: str | None = None
    labels: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Axis:
    """An axis: its label with the unit, linear or logarithmic, and bounds where they matter."""

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Limit:
    """A horizontal line at a promised or budgeted value."""

    name: str
    y: float


def svg(
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    limits: Sequence[Limit] = (),
    size: tuple[int, int] = (720, 300),
) -> str:
    """An SVG picture of the series.

    Args:
        title: what the chart shows; also its text alternative.
        series: drawn in their order; non-finite points (and, on a logarithmic axis, those <= 0) are left out.
        x, y: the axes.
        limits: horizontal lines.
        size: width and height in pixels.
    """
    width, height = size
    stacked = _stack(series)
    shown = [s for s, _ in stacked]
    left, right, top = 62, 14, 30
    bottom = 62 if len({s.name for s in shown if s.name}) > 1 else 44  # room for a legend
    bars = [s for s in shown if s.kind == "bar"]
    margin = [v + d for s in bars for v in s.x for d in (-0.5, 0.5)]  # bars stand at 1, 2, 3...
    x_low, x_high = _bounds(x, [v for s in shown for v in s.x] + margin)
    names = {v: n for s in bars for v, n in zip(s.x, s.labels, strict=False)}
    tops = [v for s in shown for v in s.y] + [m.y for m in limits]
    y_low, y_high = _bounds(y, tops + ([0.0] if not y.log and any(s.kind in ("area", "bar") for s in series) else []))
    to_x = _scale(x, x_low, x_high, left, width - right)
    to_y = _scale(y, y_low, y_high, height - bottom, top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="11" fill="currentColor">',
        f"<title>{escape(title)}</title>",
        f'<text x="{left}" y="16" font-size="13" font-weight="600">{escape(title)}</text>',
        *_axes(x, y, (x_low, x_high), (y_low, y_high), to_x, to_y, (left, width - right, top, height - bottom), names),
    ]
    base = to_y(max(y_low, 0.0) if not y.log else y_low)
    for i, (one, floor) in enumerate(stacked):
        colour = one.colour or PALETTE[i % len(PALETTE)]
        parts += _draw(one, floor, colour, to_x, to_y, base)
    for limit in limits:
        at = to_y(limit.y)
        colour = MEANING_COLOURS["limit"]
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}" stroke="{colour}" '
                     f'stroke-dasharray="6 3"/>')  # fmt: skip
        parts.append(f'<text x="{width - right}" y="{at - 4:.1f}" text-anchor="end">{escape(limit.name)}</text>')
    parts += _legend(stacked, left, height - 10, width)
    return "\n".join([*parts, "</svg>"])


def bars(title: str, rows: Sequence[tuple[str, float, str]], label: str, *, size: tuple[int, int] = (420, 240),
         mark: tuple[str, float] | None = None) -> str:  # fmt: skip
    """An SVG picture of horizontal bars from zero, the first on top, each with its value behind it.

    Args:
        title: what the picture shows; also its text alternative.
        rows: name, value (>= 0) and colour of each bar.
        label: of the axis, with the unit.
        size: width and height in pixels.
        mark: a vertical line: its name and value.
    """
    width, height = size
    left, right, top, bottom = 14 + 6.4 * max((len(n) for n, *_ in rows), default=0), width - 56, 46, height - 40
    most = max([v for _, v, _ in rows] + ([mark[1]] if mark else []), default=1.0) or 1.0
    pitch = (bottom - top) / max(1, len(rows))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="11" fill="currentColor">',
        f"<title>{escape(title)}</title>",
        f'<text x="14" y="16" font-size="13" font-weight="600">{escape(title)}</text>',
    ]

    def to_x(value: float) -> float:
        return left + (right - left) * value / most

    for i, (name, value, colour) in enumerate(rows):
        y, thick = top + pitch * (i + 0.14), pitch * 0.72
        parts.append(f'<rect x="{left:.1f}" y="{y:.1f}" width="{to_x(value) - left:.1f}" height="{thick:.1f}" '
                     f'fill="{colour}"/>')  # fmt: skip
        base = y + thick / 2 + 4
        parts.append(f'<text x="{left - 6:.1f}" y="{base:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<text x="{to_x(value) + 5:.1f}" y="{base:.1f}">{value:,.2f}</text>')
    if mark is not None:
        at, colour = to_x(mark[1]), MEANING_COLOURS["limit"]
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top - 6}" y2="{bottom}" stroke="{colour}" '
                     'stroke-dasharray="6 3"/>')  # fmt: skip
        parts.append(f'<text x="{at:.1f}" y="{top - 11}" text-anchor="middle">{escape(mark[0])}</text>')
    parts.append(f'<line x1="{left:.1f}" x2="{left:.1f}" y1="{top}" y2="{bottom}" stroke="currentColor"/>')
    parts.append(f'<text x="{(left + right) / 2:.0f}" y="{height - 12}" text-anchor="middle">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>"])


def stacked(pictures: Sequence[str], between: Sequence[str], size: tuple[int, int]) -> str:
    """One SVG picture of several, one below the other, with an arrow from each to the next.

    Args:
        pictures: SVG of ``size`` each.
        between: the lines of text beside an arrow.
        size: width and height in pixels of one of them.
    """
    width, height = size
    gap, line = 30 + 14 * len(between), 14
    parts = []
    for i, one in enumerate(pictures):
        top = i * (height + gap)
        parts.append(one.replace("<svg ", f'<svg y="{top}" ', 1))
        if i + 1 < len(pictures):
            start, end = top + height + 8, top + height + gap - 10
            parts.append(f'<path d="M40,{start}V{end}M34,{end - 7}L40,{end}L46,{end - 7}" fill="none" '
                         'stroke="currentColor" stroke-width="1.8"/>')  # fmt: skip
            parts += [
                f'<text x="58" y="{start + line * (k + 1)}">{escape(text)}</text>' for k, text in enumerate(between)
            ]
    tall = len(pictures) * height + (len(pictures) - 1) * gap
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {tall}" width="{width}" height="{tall}" '
        'role="img" font-family="system-ui, sans-serif" font-size="12" fill="currentColor">\n'
        + "\n".join(parts) + "\n</svg>"
    )  # fmt: skip


def ticks(low: float, high: float, log: bool = False, num: int = 5) -> list[float]:
    """Round values between low and high: 1, 2 or 5 times a power of ten; on a log axis powers of ten (and 2, 5)."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps: tuple[int, ...] = (1,) if len(decades) > 4 else (1, 2, 5)
        return [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high * (1 + 1e-9)]
    span = high - low
    if span <= 0:
        return [low]
    raw = span / num
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _stack(series: Sequence[Series]) -> list[tuple[Series, list[float]]]:
    """Each series with the floor it stands on; areas stack on those before them (their x must be the same)."""
    floor: list[float] = []
    stacked = []
    for one in series:
        if one.kind != "area":
            stacked.append((one, [0.0] * len(one.y)))
            continue
        below = floor or [0.0] * len(one.y)
        floor = [a + b for a, b in zip(below, one.y, strict=True)]
        stacked.append((Series(one.name, one.x, floor, "area", one.colour), below))
    return stacked


def _bounds(axis: Axis, values: Sequence[float]) -> tuple[float, float]:
    usable = [v for v in values if math.isfinite(v) and (v > 0 or not axis.log)]
    low = axis.low if axis.low is not None else min(usable, default=1.0 if axis.log else 0.0)
    high = axis.high if axis.high is not None else max(usable, default=10.0 if axis.log else 1.0)
    if axis.log:
        return (low / 1.1, high * 1.1) if high > low else (low / 2, high * 2)
    if high <= low:
        return low - (abs(low) * 0.1 or 0.5), low + (abs(low) * 0.1 or 0.5)
    return low, high + (0.04 * (high - low) if axis.high is None else 0.0)


def _scale(axis: Axis, low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    if axis.log:
        a, b = math.log(low), math.log(high)
        return lambda v: start + (end - start) * (math.log(max(v, 1e-300)) - a) / (b - a)
    return lambda v: start + (end - start) * (v - low) / (high - low)


def _axes(
    x: Axis, y: Axis, x_range: tuple[float, float], y_range: tuple[float, float],
    to_x: Callable[[float], float], to_y: Callable[[float], float], box: tuple[int, int, int, int],
    names: Mapping[float, str],
) -> list[str]:  # fmt: skip
    left, right, top, bottom = box
    grid = 'stroke="currentColor" stroke-opacity="0.15"'
    parts = []
    for v in ticks(*y_range, y.log):
        at = to_y(v)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" {grid}/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{_number(v)}</text>')
    for v in names or ticks(*x_range, x.log, 8):
        at = to_x(v)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="currentColor"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">'
                     f"{escape(names.get(v, _number(v)))}</text>")  # fmt: skip
    parts.append(f'<line x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="currentColor"/>')
    middle = (left + right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{bottom + 31}" text-anchor="middle">{escape(x.label)}</text>')
    centre = (top + bottom) / 2
    parts.append(f'<text x="14" y="{centre:.0f}" text-anchor="middle" transform="rotate(-90 14 {centre:.0f})">'
                 f"{escape(y.label)}</text>")  # fmt: skip
    return parts


def _draw(
    one: Series, floor: Sequence[float], colour: str, to_x: Callable[[float], float], to_y: Callable[[float], float],
    base: float,
) -> list[str]:  # fmt: skip
    points = [(to_x(a), to_y(b), to_y(f)) for a, b, f in zip(one.x, one.y, floor, strict=True)
              if math.isfinite(a) and math.isfinite(b)]  # fmt: skip
    if not points:
        return []
    if one.kind == "points":
        return [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}" fill-opacity="0.65"/>' for a, b, _ in points]
    if one.kind == "bar":
        wide = max(2.0, 0.7 * (to_x(1.0) - to_x(0.0)))
        return [f'<rect x="{a - wide / 2:.1f}" y="{min(b, base):.1f}" width="{wide:.1f}" height="{abs(base - b):.1f}" '
                f'fill="{colour}"/>' for a, b, _ in points]  # fmt: skip
    if one.kind == "area":
        upper = " ".join(f"{a:.1f},{b:.1f}" for a, b, _ in points)
        lower = " ".join(f"{a:.1f},{f:.1f}" for a, _, f in reversed(points))
        return [f'<polygon points="{upper} {lower}" fill="{colour}" fill-opacity="0.75"/>']
    path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
    for a, b, _ in points[1:]:
        path += f"H{a:.1f}V{b:.1f}" if one.kind == "step" else f"L{a:.1f},{b:.1f}"
    return [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>']


def _legend(stacked: Sequence[tuple[Series, Sequence[float]]], left: int, y: int, width: int) -> list[str]:
    named = [(one.name, one.colour or PALETTE[i % len(PALETTE)]) for i, (one, _) in enumerate(stacked) if one.name]
    if len(named) < 2:
        return []
    parts, at = [], float(left)
    for name, colour in dict(named).items():
        if at + 16 + 6.2 * len(name) > width:
            break
        parts.append(f'<rect x="{at:.0f}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{at + 14:.0f}" y="{y}">{escape(name)}</text>')
        at += 28 + 6.2 * len(name)
    return parts


def _number(value: float) -> str:
    size = abs(value)
    if size and size < 0.001:
        return f"{value:.0e}"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):g}{unit}"
    return f"{round(value, 10):g}"
