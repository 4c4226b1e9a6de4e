"""The part of the page about a sweep: its points as a table, and held-out loss against the swap gap."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from muomni.report.curves import Axis, nice
from muomni.report.gather import StageRun
from muomni.report.html import Html, h, join, number, short, words
from muomni.stages import sweep

RULE = (
    "A point looks if its swap gap lies above 0 with its whole 95 % interval. Among those that look, and are not red, "
    "the lowest loss on held-out captions wins; one that does not look can't win, however low its loss."
)
NUMBERS = ("loss", "swap_gap", "swap_gap_low", "zero_gap", "noise_gap", "win_rate")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 300, 52, 14, 14, 40


def part(stage: StageRun, place: Path, page: str) -> Html | None:
    """The points of a sweep, None of another stage.

    Takes   place: the folder of the page, from which links lead to a point's own `page`, where it has one.
    """
    rows = stage.table or _so_far(stage)
    if not rows:
        return None
    parts = [h("p", RULE, cls="quiet rule")]
    if not stage.table:
        parts.append(h("p", "So far: nothing is decided before all points are done.", cls="verdict waived"))
    elif any(row.get("wins") for row in rows):
        parts.append(h("p", "Facts, gates and figures below are the winner's.", cls="quiet rule"))
    return join(parts, _table(stage, rows, place, page), _scatter(rows))


def _so_far(stage: StageRun) -> list[dict[str, Any]]:
    """The rows of points whose sweep is not concluded: none of them has won."""
    rows = sweep.pick({point.name: point.certificate for point in stage.points})
    return [{**row, "wins": False} for row in rows]


def _table(stage: StageRun, rows: Sequence[dict[str, Any]], place: Path, page: str) -> Html:
    points = {point.folder.name: point for point in stage.points}
    rows_html = []
    for row in rows:
        name, verdict = str(row.get("point")), str(row.get("verdict"))
        title: object = name
        if name in points and (points[name].folder / page).is_file():
            title = h("a", name, href=quote(os.path.relpath(points[name].folder / page, place)))
        crown = h("span", "wins", cls="badge green") if row.get("wins") else None
        cells = [h("td", _brief(row.get(key)), cls="num") for key in NUMBERS]
        looks = h(
            "td", _sight(row), cls=f"verdict {'green' if row.get('eligible', row.get('looks')) else 'red'}"
        )
        rows_html.append(
            h(
                "tr",
                h("td", h("i", cls=f"dot {verdict}", data_tip=verdict), title),
                cells,
                looks,
                h("td", crown),
            )
        )
    head = [h("th", "point"), [h("th", words(key), cls="num") for key in NUMBERS], h("th", ""), h("th", "")]
    return h("table", h("thead", h("tr", head)), h("tbody", rows_html), cls="points")


def _sight(row: Mapping[str, Any]) -> str:
    """Whether a point uses the picture, and whether it may win."""
    if not row.get("looks"):
        return "does not look"
    return "looks" if row.get("eligible", True) else "looks, but is red"


def _brief(value: Any) -> str:
    return number(value) if _is_known(value) else "–"


def _is_known(value: Any) -> bool:
    """Whether it was measured: an interrupted point has no loss, a diverged one no finite loss."""
    return isinstance(value, int | float) and math.isfinite(value)


def _scatter(rows: Sequence[dict[str, Any]]) -> Html | None:
    """Loss (right: worse) against swap gap (up: uses the picture more), with the low end of its interval as a
    stem."""
    shown = [row for row in rows if all(_is_known(row.get(key)) for key in ("loss", "swap_gap"))]
    if len(shown) < 2:
        return None
    xs = [float(row["loss"]) for row in shown]
    ys = [float(row[key]) for row in shown for key in ("swap_gap", "swap_gap_low") if _is_known(row.get(key))]
    x_axis, y_axis = _axis(xs, LEFT, WIDTH - RIGHT), _axis([*ys, 0.0], HEIGHT - BOTTOM, TOP)
    marks = [
        h("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y_axis(t), y2=y_axis(t), cls="grid") for t in y_axis.ticks
    ]
    marks.append(h("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y_axis(0.0), y2=y_axis(0.0), cls="zero"))
    marks += [h("text", short(t), x=LEFT - 6, y=y_axis(t) + 3.5, text_anchor="end") for t in y_axis.ticks]
    marks += [
        h("text", short(t), x=x_axis(t), y=HEIGHT - BOTTOM + 16, text_anchor="middle") for t in x_axis.ticks
    ]
    marks.append(
        h(
            "text",
            "loss on held-out captions (nats a token)",
            x=(LEFT + WIDTH) / 2,
            y=HEIGHT - 6,
            text_anchor="middle",
        )
    )
    for row in shown:
        x, y = x_axis(row["loss"]), y_axis(row["swap_gap"])
        look = "wins" if row.get("wins") else "looks" if row.get("looks") else "blind"
        label = f"{row.get('point')}: loss {number(row['loss'])}, swap gap {number(row['swap_gap'])}, {_sight(row)}"
        if _is_known(row.get("swap_gap_low")):
            marks.append(h("line", x1=x, x2=x, y1=y, y2=y_axis(row["swap_gap_low"]), cls=f"stem {look}"))
        marks.append(_mark(x, y, look, label))
    keys = [
        h("span", h("i", cls=look), text)
        for look, text in (("wins", "wins"), ("looks", "looks"), ("blind", "does not look"))
    ]
    head = h(
        "figcaption", h("b", "swap gap"), h("small", "nats a token; the stem ends at the low end of 95 %")
    )
    drawing = h(
        "svg", marks, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label="held-out loss against swap gap"
    )
    return h("figure", head, drawing, h("div", keys, cls="legend"), cls="chart scatter")


def _mark(x: float, y: float, look: str, label: str) -> Html:
    """A dot for a point that uses the picture, a cross for one that doesn't."""
    if look == "blind":
        return h("path", d=f"M{x - 4} {y - 4}l8 8M{x + 4} {y - 4}l-8 8", cls="mark blind", data_tip=label)
    return h("circle", cx=x, cy=y, r=6 if look == "wins" else 4.2, cls=f"mark {look}", data_tip=label)


def _axis(values: Sequence[float], start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - room, high + room, start, end, ticks=nice(low - room, high + room, 5))
