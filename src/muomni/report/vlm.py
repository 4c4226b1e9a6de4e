"""The part of the page for align, sweep and instruct: answers by length, classes, coverage, watched
answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from muomni.data import stratify
from muomni.report import charts, media
from muomni.report.charts import Bar
from muomni.report.gather import StageRun
from muomni.report.html import Html, h, join, number, words
from muomni.report.samples import diff

SHOWN = 12  # watched items
EDGE_PX = 96
COVERAGE = (
    ("truncated_share", "rows whose answers are cut, or that do not fit"),
    ("zero_label_rows", "rows that teach nothing"),
    ("label_tokens_mean", "learned tokens of a row"),
    ("label_coverage", "share of drawn rows that taught something"),
    ("taught_right", "rows whose labels spell the assistant's words"),
    ("ends_taught", "rows whose turns end in a learned end"),
)


def by_length(stage: StageRun) -> Html | None:
    """Nats a token of held-out answers, by how long they are."""
    kept = stage.settings.get("length_edges")
    edges = (
        kept
        if isinstance(kept, list) and kept and all(isinstance(each, int) for each in kept)
        else list(stratify.EDGES)
    )
    names = stratify.names(edges)
    rows = [
        Bar(name, value, n=_n(stage, f"nats_{name}"))
        for name in names
        if (value := stage.value(f"nats_{name}")) is not None
    ]
    if not rows:
        return None
    note = f"answers of {' / '.join(_spans(edges))} tokens, equally many of each where there are"
    figure = h(
        "figure",
        h("figcaption", h("b", "nats a token of the answer")),
        charts.bars(rows, unit="nats"),
        h("small", note),
    )
    return h("div", figure, cls="figures")


def _spans(edges: Sequence[Any]) -> list[str]:
    return [f"{low + 1}–{high}" for low, high in pairwise(edges)] + [f"over {edges[-1]}"]


def _n(stage: StageRun, fact: str) -> int | None:
    return stage.facts[fact].get("n")


def named(stage: StageRun) -> Html | None:
    """How many answers in free words name the right class and no other; the tick is always saying the
    commonest."""
    rows = [
        Bar(
            words(fact.removesuffix("_names")),
            stage.value(fact) or 0.0,
            row.get("ci"),
            row.get("floor"),
            row.get("n"),
            "good",
        )
        for fact, row in stage.facts.items()
        if fact.endswith("_names")
    ]
    if not rows:
        return None
    least = stage.facts.get("names_least", {})
    note = (
        f"; least sure: {words(str(least.get('note', '')).removesuffix('_names'))}"
        if least.get("note")
        else ""
    )
    margin_note = (
        f"the low end of 95 % above chance by {number(least.get('value'), 3)}{note}" if least else None
    )
    caption = h("figcaption", h("b", "classes named"), "the tick is chance: always the commonest class")
    return h("div", h("figure", caption, charts.bars(rows, most=1.0), h("small", margin_note)), cls="figures")


def taught(stage: StageRun) -> Html | None:
    """Share of the data with targets, and share that was cut."""
    if stage.value("truncated_share") is None and stage.value("label_tokens_mean") is None:
        return None
    rows = []
    for fact, meaning in COVERAGE:
        if fact in stage.facts:
            row = stage.facts[fact]
            cells = [
                h("td", number(row.get("value")), cls="num"),
                h("td", number(row.get("n")), cls="num"),
                h("td", row.get("note") or ""),
            ]
            rows.append(h("tr", h("td", meaning), cells))
    head = [h("th", ""), h("th", "value", cls="num"), h("th", "of", cls="num"), h("th", "which")]
    return h("table", h("thead", h("tr", head)), h("tbody", rows), cls="taught")


def watched(stage: StageRun) -> Html | None:
    """The watched items: changed answers per checkpoint, and the first and last answer beside the
    reference."""
    dumps = [(step, {str(row.get("id")): row for row in rows}) for step, rows in stage.golden if rows]
    if not dumps:
        return None
    bars = []
    for (_, before), (step, now) in pairwise(dumps):
        both = [key for key in now if key in before]
        changed = sum(now[key].get("hash") != before[key].get("hash") for key in both)
        bars.append(Bar(f"step {step}", changed / max(1, len(both)), n=len(both)))
    right = [
        Bar(f"step {step}", sum(map(_is_right, rows.values())) / len(rows), n=len(rows), look="good")
        for step, rows in dumps
    ]
    figures = [
        h(
            "figure",
            h("figcaption", h("b", "answers that changed"), "since the checkpoint before"),
            charts.bars(bars, most=1.0),
        )
    ]
    figures = [
        *(figures if bars else []),
        h("figure", h("figcaption", h("b", "word for word the reference")), charts.bars(right, most=1.0)),
    ]
    (first_step, first), (last_step, last) = dumps[0], dumps[-1]
    keys = list(last)
    chosen = [keys[i * len(keys) // min(SHOWN, len(keys))] for i in range(min(SHOWN, len(keys)))]
    cards = [
        _card(last[key], first.get(key), (first_step, last_step), _answers(dumps, key)) for key in chosen
    ]
    return join(h("div", figures, cls="figures"), h("div", cards, cls="cards answer watched"))


def _is_right(row: dict[str, Any]) -> bool:
    return bool(row.get("prediction") == row.get("reference"))


def _answers(dumps: Sequence[tuple[int, dict[str, dict[str, Any]]]], key: str) -> int:
    """How many different answers an item was given."""
    return len({rows[key].get("hash") for _, rows in dumps if key in rows})


def _card(last: dict[str, Any], first: dict[str, Any] | None, steps: tuple[int, int], different: int) -> Html:
    reference = str(last.get("reference"))
    question, pictures = _asked(last.get("prompt"))
    lines = [h("p", h("small", "reference "), reference, cls="quiet")]
    if first is not None and steps[0] != steps[1]:
        lines.append(
            h(
                "p",
                h("small", f"step {steps[0]} "),
                diff(reference, str(first.get("prediction")), by_word=True),
            )
        )
    lines.append(
        h("p", h("small", f"step {steps[1]} "), diff(reference, str(last.get("prediction")), by_word=True))
    )
    count = h("small", "never changed" if different == 1 else f"{different} different answers", cls="tag")
    views = [shown for path in pictures[:2] if (shown := media.thumbnail(path, EDGE_PX)) is not None]
    look = "card is-right" if _is_right(last) else "card is-wrong"
    inside = [
        h("div", views, cls="views") if views else None,
        h("p", question) if question else None,
        lines,
        count,
    ]
    return h("article", inside, cls=look, data_tip=str(last.get("id")))


def _asked(prompt: Any) -> tuple[str, list[Path]]:
    """The words and the pictures of a stored prompt."""
    texts, pictures = list[str](), list[Path]()
    for turn in prompt if isinstance(prompt, list) else []:
        content = turn.get("content") if isinstance(turn, dict) else None
        for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif isinstance(part, dict) and part.get("type") == "image" and isinstance(part.get("path"), str):
                pictures.append(Path(part["path"]))
    return " ".join(texts), pictures
