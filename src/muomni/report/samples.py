"""Samples that a stage's measurement answered, with their pictures and sounds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from difflib import SequenceMatcher
from typing import Any

from muomni.report import charts, media
from muomni.report.gather import StageRun
from muomni.report.html import Html, h, number, words

Row = dict[str, Any]
WHY = {"worst": "among the worst", "best": "among the best", "even": "evenly chosen"}


def diff(truth: str, guess: str, *, by_word: bool = False) -> Html:
    """An answer as a diff against the reference: inserted or wrong characters (or words), and gaps."""
    if truth == guess:
        return h("span", guess, cls="right")
    parts: list[object] = []
    ours, theirs = (re.findall(r"\S+\s*", text) if by_word else list(text) for text in (truth, guess))
    for what, a, b, c, d in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if what == "equal":
            parts.append("".join(theirs[c:d]))
            continue
        if b > a:
            parts.append(h("del", "".join(ours[a:b])))
        if d > c:
            parts.append(h("mark", "".join(theirs[c:d])))
    return h("span", parts or [h("del", truth)], cls="wrong")


def gallery(stage: StageRun) -> Html | None:
    """All golden samples of a stage, by kind, with a switch between all, wrong and right ones; None where
    there are none."""
    blocks = []
    for kind, (title, draw) in CARDS.items():
        rows = stage.of_kind(kind)
        cards = [card for row in rows if (card := _drawn(draw, stage, row)) is not None]
        if not cards:
            continue
        judged = [row for row in rows if _is_right(row) is not None]
        wrong = sum(not _is_right(row) for row in judged)
        tabs = (
            [
                ("all", f"all {len(rows)}"),
                ("wrong", f"not right {wrong}"),
                ("right", f"right {len(judged) - wrong}"),
            ]
            if judged
            else []
        )
        buttons = [
            h("button", text, type="button", data_show=key, aria_pressed="true" if key == "all" else "false")
            for key, text in tabs
        ]
        head = h("header", h("h4", title), h("div", buttons, cls="tabs") if buttons else None)
        blocks.append(h("div", head, h("div", cards, cls=f"cards {kind}"), cls="gallery"))
    return h("div", blocks) if blocks else None


def _drawn(draw: Callable[[StageRun, Row], Html], stage: StageRun, row: Row) -> Html | None:
    """A card; None for a row of another version that lacks its fields."""
    try:
        return draw(stage, row)
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _is_right(row: Row) -> bool | None:
    """Whether an item is right; None for tasks that are scored by degree."""
    if row["kind"] in ("transcript", "answer"):
        return bool(row.get("truth") == row.get("guess"))
    if row["kind"] == "speech":
        return bool(row.get("text") == row.get("heard"))
    if row["kind"] == "token_speech" and "heard" in row:
        return bool(row.get("prompt") == row["heard"])
    if row["kind"] == "token_text":
        return bool(row.get("text") == row.get("said"))
    if row["kind"] == "drawn" and "right" in row:
        return bool(row["right"])
    if row["kind"] == "picture":
        return row.get("rank") == 1 and not row.get("fooled")
    return None


def _card(row: Row, *inside: object) -> Html:
    right = _is_right(row)
    why = WHY.get(str(row.get("why")), "")
    caption = " · ".join(str(each) for each in (row.get("id"), why) if each)
    look = "card" if right is None else f"card {'is-right' if right else 'is-wrong'}"
    return h(
        "article",
        *inside,
        cls=look,
        data_tip=caption or None,
        data_right=None if right is None else int(right),
    )


def _tag(text: object) -> Html:
    return h("small", text, cls="tag")


def _transcript(stage: StageRun, row: Row) -> Html:
    greedy = row.get("greedy", row["guess"])
    return _card(
        row,
        h("div", media.sound(stage.media(row.get("audio"))), _tag(words(row["task"])), cls="line"),
        h("p", diff(row["truth"], row["guess"])),
        h("p", h("small", "without the character model "), diff(row["truth"], str(greedy)), cls="quiet")
        if greedy != row["guess"]
        else None,
    )


def _picture(stage: StageRun, row: Row) -> Html:
    path, caption = stage.media(row.get("picture")), row["caption"]
    views = [media.picture(path, alt=caption)]
    views += [
        media.over(path, row.get(key), label)
        for key, label in (("fits", "fits its caption"), ("looks", "summary looks"))
    ]
    best = max([1e-9, *(score for _, score in row["found"])])
    marks_html = []
    for text, score in row["found"]:
        bar = h("i", style=f"width:{max(2, 70 * score / best):.0f}px")
        marks_html.append(h("li", diff(caption, text, by_word=True), bar, h("small", number(score, 2))))
    place = _tag(f"own caption is number {row['rank']} of {row['among']}")
    beaten = None
    if wins := row.get("fooled"):
        lines = [
            h("li", h("small", f"changed {each['kind']} "), diff(caption, each["text"], by_word=True))
            for each in wins
        ]
        beaten = h("div", _tag(f"{len(wins)} of {row['changed']} changed captions win"), h("ul", lines))
    return _card(
        row,
        h("div", views, cls="views"),
        h("p", caption, " ", place),
        h("ol", marks_html, cls="found"),
        beaten,
    )


def _round_trip(stage: StageRun, row: Row) -> Html:
    both = [
        media.sound(stage.media(row.get(key)), label)
        for key, label in (("audio", "true"), ("rebuilt", "rebuilt"))
    ]
    codes = row.get("codes") or []
    shown = f"{len(codes)} × {len(codes[0])} codes, " if codes and codes[0] else ""
    return _card(
        row,
        h("div", both, cls="line"),
        h("p", row["text"], " ", _tag(f"{shown}error {number(row['error'], 3)}")),
    )


def _rebuilt(stage: StageRun, row: Row) -> Html:
    sides = (("picture", "original"), ("rebuilt", "rebuilt from its codes"))
    views = [
        h("figure", media.picture(stage.media(row.get(key)), alt=label), h("figcaption", label))
        for key, label in sides
    ]
    caption = h(
        "p",
        row.get("caption") or "",
        " ",
        _tag(f"{len(row['codes'])} × {len(row['codes'][0])} codes, {number(row['psnr'], 3)} dB"),
    )
    return _card(row, h("div", views, cls="views"), caption)


def _speech(stage: StageRun, row: Row) -> Html:
    ends = "" if row.get("ended", True) else ", cut off by the guard"
    length = _tag(f"{row['frames']} frames for {row['true_frames']}{ends}")
    looks, pieces = row.get("looks") or [], row.get("pieces") or []
    reading = None
    if looks and pieces:
        turned = [list(column) for column in zip(*looks)]
        reading = charts.matrix(
            turned,
            pieces,
            [f"frame {i}" for i in range(len(looks))],
            "the token that each frame looks at",
            tall=9,
        )
    sound = h("div", media.sound(stage.media(row.get("audio"))), length, cls="line")
    return _card(row, sound, h("p", diff(row["text"], row["heard"])), reading)


def _answer(stage: StageRun, row: Row) -> Html:
    path, other = stage.media(row.get("picture")), stage.media(row.get("other_picture"))
    views = [media.picture(path, alt=row["question"]), media.over(path, row.get("looks"), "looked at")]
    swap = None
    if other is not None:
        caption = h("figcaption", "with another picture ", h("b", row.get("other_guess")))
        swap = h("figure", media.picture(other, alt="another picture", size=44), caption, cls="swap")
    says = h("p", h("b", diff(row["truth"], row["guess"], by_word=True)))
    tags = h("div", _tag(words(row["task"])), _tag(row["asks"]) if row.get("asks") else None, cls="line")
    sound, question = (
        media.sound(stage.media(row.get("audio"))),
        h("p", row["question"]) if row["question"] else None,
    )
    return _card(row, h("div", views, cls="views") if path else None, sound, question, says, tags, swap)


def spelt(tokens: list[Any]) -> Html:
    """Text as tokens, coloured by their nats: redder is more."""
    spans = [
        h(
            "span",
            piece,
            style=f"--share:{min(1.0, nats / 6):.3f}",
            data_tip=f"{piece!r}: {number(nats, 3)} nats",
        )
        for piece, nats in tokens
    ]
    return h("p", spans, cls="spelt")


def _text(stage: StageRun, row: Row) -> Html:
    tokens = row.get("tokens") or []
    mean = sum(nats for _, nats in tokens) / len(tokens) if tokens else math.nan
    cost = (
        h("details", h("summary", f"token by token, {number(mean, 3)} nats on average"), spelt(tokens))
        if tokens
        else None
    )
    return _card(
        row,
        h("p", row["prompt"], h("b", row["continuation"], cls="made")),
        h("p", h("small", "in truth "), row["truth"], cls="quiet"),
        cost,
    )


def _drawn_picture(stage: StageRun, row: Row) -> Html:
    seen = h("p", h("small", "the checker sees "), row["seen"], cls="quiet") if "seen" in row else None
    view = media.picture(stage.media(row["picture"]), alt=row["prompt"])
    return _card(row, h("div", view, cls="views"), h("p", row["prompt"]), seen)


def _token_speech(stage: StageRun, row: Row) -> Html:
    heard = (
        h("p", h("small", "stage hearing understands "), diff(row["prompt"], row["heard"]), cls="quiet")
        if "heard" in row
        else None
    )
    return _card(
        row, h("div", media.sound(stage.media(row["audio"])), cls="line"), h("p", row["prompt"]), heard
    )


def _token_text(stage: StageRun, row: Row) -> Html:
    path = stage.media(row.get("picture"))
    view = h("div", media.picture(path, alt=row["text"]), cls="views") if path else None
    return _card(
        row,
        view,
        media.sound(stage.media(row.get("audio"))),
        h("p", diff(row["text"], row["said"])),
        _tag(row["task"]),
    )


def _voice(stage: StageRun, row: Row) -> Html:
    end = "" if row["ended"] else ", cut off by the guard"
    lines = []
    for key, name in (("reference", "reference"), ("true", "true speech"), ("speech", "speech")):
        if (path := stage.media(row.get(key))) is not None:
            lines.append(h("div", h("small", f"{name} "), media.sound(path), cls="line"))
    told = f"{row['frames']} frames for {row['true_frames']}{end}"
    return _card(row, h("p", row["text"]), lines, h("p", h("small", told), cls="quiet"))


CARDS: dict[str, tuple[str, Callable[[StageRun, Row], Html]]] = {
    "answer": ("Asked", _answer),
    "picture": ("Pictures and the captions that they find", _picture),
    "transcript": ("Heard", _transcript),
    "speech": ("Said, and understood by our own ears", _speech),
    "voice": ("Spoken in the voice of a reference", _voice),
    "round_trip": ("There and back through the codes", _round_trip),
    "rebuilt": ("Pictures, and what their codes give back", _rebuilt),
    "text": ("Continued", _text),
    "drawn": ("Drawn from words, token by token", _drawn_picture),
    "token_speech": ("Spoken from words, token by token", _token_speech),
    "token_text": ("Written of images and sounds as tokens", _token_text),
}
