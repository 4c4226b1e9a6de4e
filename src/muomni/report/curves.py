"""Training curves as inline SVG; the page's script only shows and hides values at the pointer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from muomni.report.html import Html, h, short

POINTS = 400  # of a curve; longer ones are thinned evenly, the last point always stays
Size = Literal["wide", "half", "small"]
SIZES: dict[Size, tuple[int, int]] = {"wide": (520, 250), "half": (520, 108), "small": (256, 118)}
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 22


@dataclass(frozen=True)
class Curve:
    """One line: its points (step, value), and how it looks. `colour` counts the page's palette from 0."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """A scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.is_log else v for v in (self.low, self.high, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def chart(
    title: str, curves: Sequence[Curve], *, unit: str = "", size: Size = "small", by_log: bool = True
) -> Html | None:
    """A titled chart with legend, hover and a switch to a logarithmic scale; None without points."""
    curves = [
        Curve(c.name, _thin([(x, y) for x, y in c.points if math.isfinite(y)]), c.colour, c.dashed)
        for c in curves
    ]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    width, height = SIZES[size]
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    x_axis = Axis(
        min(xs), max(xs), LEFT, width - RIGHT, ticks=nice(min(xs), max(xs), 3 if size == "small" else 5)
    )
    axes = [_linear(ys, height)]
    if by_log and min(ys) > 0 and max(ys) > 3 * min(ys):
        axes.append(_logarithmic(ys, height))
    layers = [_layer(curves, x_axis, axis, width, height) for axis in axes]
    legend_html = [
        {
            "n": c.name,
            "c": c.colour,
            "p": [[x, float(f"{y:.5g}"), x_axis(x), *(axis(y) for axis in axes)] for x, y in c.points],
        }
        for c in curves
    ]
    drawing = h(
        "svg",
        layers,
        h("line", cls="ruler", x1=0, x2=0, y1=TOP, y2=height - BOTTOM),
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"{title} over steps",
    )
    names = (
        [h("span", h("i", cls=f"c{c.colour}" + (" dashed" if c.dashed else "")), c.name) for c in curves]
        if len(curves) > 1
        else []
    )
    switch = h("button", "log", type="button", cls="log", aria_pressed="false") if len(axes) > 1 else None
    head = h("figcaption", h("b", title), h("small", unit) if unit else None, switch)
    legend = h("div", names, cls="legend") if names else None
    return h("figure", head, drawing, legend, cls=f"chart {size}", data_curves=json.dumps(legend_html))


def spark(points: Sequence[tuple[float, float]], width: int = 120, height: int = 28) -> Html | None:
    """A curve without axes and labels."""
    points = _thin([(x, y) for x, y in points if math.isfinite(y)])
    if len(points) < 2:
        return None
    ys = [y for _, y in points]
    x_axis, y_axis = Axis(points[0][0], points[-1][0], 2, width - 2), Axis(min(ys), max(ys), height - 3, 3)
    path = "M" + "L".join(f"{x_axis(x)} {y_axis(y)}" for x, y in points)
    end = h("circle", cx=x_axis(points[-1][0]), cy=y_axis(ys[-1]), r=2.2)
    return h(
        "svg",
        h("path", d=path),
        end,
        viewBox=f"0 0 {width} {height}",
        cls="spark",
        width=width,
        height=height,
    )


def _layer(curves: Sequence[Curve], x_axis: Axis, y_axis: Axis, width: int, height: int) -> Html:
    marks = [
        h("line", x1=LEFT, x2=width - RIGHT, y1=y_axis(t), y2=y_axis(t), cls="grid") for t in y_axis.ticks
    ]
    marks += [h("text", short(t), x=LEFT - 6, y=y_axis(t) + 3.5, text_anchor="end") for t in y_axis.ticks]
    marks += [h("text", short(t), x=x_axis(t), y=height - 6, text_anchor="middle") for t in x_axis.ticks]
    for curve in curves:
        places = [(x_axis(x), y_axis(y)) for x, y in curve.points]
        look = f"c{curve.colour}" + (" dashed" if curve.dashed else "")
        marks.append(h("path", d="M" + "L".join(f"{x} {y}" for x, y in places), cls=f"curve {look}"))
        if len(places) < 30:
            marks += [h("circle", cx=x, cy=y, r=2.1, cls=look) for x, y in places]
    return h("g", marks, cls="by-log" if y_axis.is_log else "by-value")


def _linear(ys: Sequence[float], height: int) -> Axis:
    low, high = min(ys), max(ys)
    low = 0.0 if 0 <= low < 0.6 * high else low
    if high == low:
        low, high = (low - 1, high + 1) if low else (0.0, 1.0)
    ticks = nice(low, high, 5 if height > 200 else 3)
    return Axis(min(low, ticks[0]), max(high, ticks[-1]), height - BOTTOM, TOP, ticks=ticks)


def _logarithmic(ys: Sequence[float], height: int) -> Axis:
    low, high = min(ys), max(ys)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = len(powers) > 5
    ticks = [
        m * 10.0**power
        for power in powers
        for m in ((1,) if few else (1, 2, 5))
        if low <= m * 10.0**power <= high
    ]
    return Axis(low * 0.9, high * 1.1, height - BOTTOM, TOP, True, ticks[:: max(1, len(ticks) // 6)])


def nice(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from low to high."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    ticks = [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return ticks or [low]


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    step = -(-len(points) // POINTS) if points else 1
    kept = list(points[::step])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]
