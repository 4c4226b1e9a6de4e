"""Bars, intervals, histograms, matrices and time lines as inline SVG or small HTML."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from muomni.report import media
from muomni.report.html import Html, h, number, seconds

LABELS = 18  # rows and columns of a confusion matrix; the commonest, the others together
OTHER = "(other)"


@dataclass(frozen=True)
class Bar:
    """One bar: value, a 95 % interval where there is one, a floor tick where one is known."""

    name: str
    value: float
    ci: Sequence[float] | None = None
    floor: float | None = None
    n: int | None = None
    look: str = ""


def bars(rows: Sequence[Bar], *, most: float | None = None, unit: str = "") -> Html:
    """Horizontal bars from zero, with intervals as whiskers and floors as ticks."""
    ends = [
        abs(v)
        for row in rows
        for v in (row.value, *(row.ci or ()), row.floor or 0.0)
        if v is not None and math.isfinite(v)
    ]
    end = most if most is not None else max([*ends, 1e-9])

    def share(value: float) -> str:
        return f"{100 * min(max(value, 0.0), end) / end:.2f}%"

    rows_html = []
    for row in rows:
        marks = [h("i", cls=f"fill {row.look}", style=f"width:{share(row.value)}")]
        if row.ci:
            low, high = row.ci
            marks.append(
                h("i", cls="whisker", style=f"left:{share(low)};width:calc({share(high)} - {share(low)})")
            )
        if row.floor is not None and math.isfinite(row.floor):
            marks.append(h("i", cls="floor", style=f"left:{share(row.floor)}"))
        labels = [f"{row.name}: {number(row.value)} {unit}".strip()]
        labels += [f"95 % {number(row.ci[0], 3)} … {number(row.ci[1], 3)}"] if row.ci else []
        labels += [f"floor {number(row.floor, 3)}"] if row.floor is not None else []
        labels += [f"n {row.n}"] if row.n else []
        rows_html += [
            h("span", row.name),
            h("div", marks, cls="track", data_tip=" · ".join(labels)),
            h("b", number(row.value, 3)),
        ]
    return h("div", rows_html, cls="bars")


def interval(fact: dict[str, object], threshold: str, verdict: str) -> Html | None:
    """A gate's value and interval against its bound; the accepted side is shaded. None without a value to
    draw."""
    value, ci, floor = fact.get("value"), fact.get("ci"), fact.get("floor")
    sign, _, bound_text = threshold.partition(" ")
    try:
        bound = float(bound_text)
    except ValueError:
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if sign not in (">=", "<=", ">", "<"):
        return None
    low, high = (float(ci[0]), float(ci[1])) if isinstance(ci, list | tuple) else (float(value), float(value))
    near = [float(value), bound, low, high]
    if all(0 <= v <= 1 for v in near) and max(near) > 0.2:
        start, end = 0.0, 1.0
    else:
        start, end = min([*near, 0.0]), max(near)
        end += 0.15 * (end - start) or 1.0

    def x(v: float) -> float:
        return round(3 + 134 * (min(max(v, start), end) - start) / (end - start), 1)

    good = (x(bound), 137.0) if sign[0] == ">" else (3.0, x(bound))
    marks = [
        h("line", x1=3, x2=137, y1=9, y2=9, cls="rail"),
        h("rect", x=good[0], y=3, width=max(0.0, round(good[1] - good[0], 1)), height=12, cls="good"),
        h("line", x1=x(bound), x2=x(bound), y1=1, y2=17, cls="bound"),
        h("line", x1=x(low), x2=x(high), y1=9, y2=9, cls=f"ci {verdict}") if high > low else None,
        h("line", x1=x(floor), x2=x(floor), y1=5, y2=13, cls="floor")
        if isinstance(floor, int | float) and start <= floor <= end
        else None,
        h("circle", cx=x(float(value)), cy=9, r=3.6, cls=verdict),
    ]
    label = f"{number(float(value))}, should be {threshold}" + (
        f"; 95 % {number(low, 3)} … {number(high, 3)}" if high > low else ""
    )
    return h("svg", marks, viewBox="0 0 140 18", width=140, height=18, cls="interval", data_tip=label)


def histogram(counts: Sequence[int], label: str) -> Html:
    """Uses of each codebook entry, most used first, with the perplexity; dead entries are a gap at the
    end."""
    total = sum(counts)
    ordered = sorted(counts, reverse=True)
    top = max([*ordered, 1])
    wide = 248 / max(1, len(ordered))
    path = "".join(
        f"M{4 + i * wide:.2f} 66v-{60 * n / top:.2f}h{max(0.4, wide * 0.86):.2f}V66z"
        for i, n in enumerate(ordered)
        if n
    )
    perplexity = math.exp(-sum(n / total * math.log(n / total) for n in counts if n)) if total else 0.0
    used = sum(1 for n in counts if n)
    drawing = h(
        "svg",
        h("path", d=path),
        h("line", x1=4, x2=252, y1=66, y2=66),
        viewBox="0 0 256 70",
        cls="histogram",
        role="img",
    )
    caption = h(
        "figcaption", h("b", label), f"{used} of {len(counts)} used · perplexity {number(perplexity, 3)}"
    )
    return h(
        "figure",
        caption,
        drawing,
        cls="chart",
        data_tip=f"{total} codes; the commonest {top}, the rarest {min(counts, default=0)}",
    )


def confusion(task: str, counts: Sequence[Sequence[object]]) -> Html:
    """Confusion matrix, truth (rows) x answer (columns), with accuracy; a cell is darker for a larger row
    share."""
    table: Counter[tuple[str, str]] = Counter()
    for truth, guess, n in counts:
        table[str(truth), str(guess)] += int(str(n))
    by_truth: Counter[str] = Counter()
    for (truth, _), n in table.items():
        by_truth[truth] += n
    labels = sorted([truth for truth, _ in by_truth.most_common(LABELS)], key=_digit_first)
    cells: Counter[tuple[str, str]] = Counter()
    for (truth, guess), n in table.items():
        cells[truth if truth in labels else OTHER, guess if guess in labels else OTHER] += n
    rows = [*labels, *([OTHER] if any(t == OTHER for t, _ in cells) else [])]
    columns = [*labels, *([OTHER] if any(g == OTHER for _, g in cells) else [])]
    right = sum(n for (truth, guess), n in table.items() if truth == guess)
    body = [h("tr", h("th"), [h("th", h("span", guess or "·"), scope="col") for guess in columns])]
    for truth in rows:
        total = sum(cells[truth, guess] for guess in columns)
        cells_html = [_cell(truth, guess, cells[truth, guess], total) for guess in columns]
        body.append(h("tr", h("th", truth or "·", scope="row"), cells_html))
    caption = h("figcaption", h("b", task), f"{right} of {sum(table.values())}")
    return h("figure", caption, h("table", body), cls="confusion")


def _cell(truth: str, guess: str, n: int, total: int) -> Html:
    if not n:
        return h("td")
    look = "right" if truth == guess and truth != OTHER else "wrong"
    return h(
        "td", n, cls=look, style=f"--share:{n / total:.3f}", data_tip=f"{truth} → {guess}: {n} of {total}"
    )


def _digit_first(word: str) -> tuple[int, str]:
    order = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return (order.index(word), word) if word in order else (int(word), word) if word.isdigit() else (99, word)


def matrix(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    caption: str,
    *,
    tall: int = 6,
    most: int = 260,
) -> Html:
    """A matrix as a picture, first row on top; the pointer shows its values."""
    data = json.dumps({"r": list(rows), "c": list(columns), "v": values})
    high = min(most, max(48, tall * len(values)))
    image = h(
        "img", src=media.heat(values, low=0.0, ink=True), alt=caption, style=f"height:{high}px", cls="matrix"
    )
    return h("figure", h("figcaption", caption), image, cls="attention", data_matrix=data)


def timeline(spans: Sequence[tuple[str, float, float, str]]) -> Html:
    """Stages over time: (name, start, end, verdict) in seconds, a row each."""
    end = max([stop for *_, stop, _ in spans] + [1e-9])
    rows = []
    for name, start, stop, verdict in spans:
        style = f"left:{100 * start / end:.2f}%;width:{max(0.4, 100 * (stop - start) / end):.2f}%"
        took, is_narrow = seconds(stop - start), stop - start < 0.08 * end
        inside = h("i", None if is_narrow else h("b", took), cls=f"span {verdict}", style=style)
        beside = h("small", took, style=f"left:{100 * stop / end + 0.6:.2f}%") if is_narrow else None
        rows += [
            h("span", name),
            h("div", inside, beside, cls="track", data_tip=f"{name}: {took}, {verdict}"),
        ]
    return h(
        "div",
        rows,
        h("span"),
        h("div", h("small", "0"), h("small", seconds(end)), cls="scale"),
        cls="timeline",
    )
