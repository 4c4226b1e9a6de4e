"""Conversations -> ids, labels and media spans, built together, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from muomni.errors import DataError, ShapeError
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.special_tokens import MediaTokens

IGNORE = -100


class Turn(Protocol):
    """One message: who speaks and what; parts have `type` text (with `text`), or a modality's name."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str | Sequence[Any]: ...


@dataclass(frozen=True)
class Span:
    """Where the features of one medium go: ids[start : start + length] are pads."""

    kind: str  # of which modality
    item: int  # counts within its kind, in the order of the conversation
    start: int
    length: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as a decoder reads it. labels[t] is ids[t] or IGNORE; the objective shifts. `tail` ids
    follow the last turn's end."""

    ids: list[int]
    labels: list[int]
    spans: list[Span]
    tail: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class _Writer:
    """Appends ids and labels in one place, so that they can't drift apart."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.spans: list[Span] = []

    def write(self, ids: Sequence[int], *, learned: bool) -> None:
        self.ids += ids
        self.labels += ids if learned else [IGNORE] * len(ids)

    def media(self, kind: str, item: int, length: int, marks: MediaTokens) -> None:
        self.spans.append(Span(kind, item, len(self.ids) + 1, length))
        self.write([marks.start, *[marks.pad] * length, marks.end], learned=False)


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Turn],
    *,
    positions: Mapping[str, Sequence[int]] | None = None,
    reply: bool = False,
) -> Rendered:
    """Each turn between its role's header and its end, as the tokenizer's marks say; learned are the
    assistant's text and its end id.

    Takes   positions: by modality, how many positions each medium fills, in the order of the conversation.
            An assistant's audio part is what it says aloud: one learned `speech` id, no position.
            reply=True stops after the assistant's header (a last assistant turn is left out), ready to
            generate.
    Gives   Rendered; a medium of N tokens costs N + 2 ids.
    Raises  ShapeError if the counts don't match the media; DataError (bad_row) on an unknown role or part.
    """
    marks = tokenizer.special_tokens
    lengths, used = positions or {}, Counter[str]()
    writer = _Writer()
    writer.write(marks.opening, learned=False)
    if reply and messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    for number, message in enumerate(messages):
        if message.role not in marks.headers:
            raise DataError(
                "bad_row",
                f"message {number}: expected a role of {', '.join(marks.headers)}, got {message.role!r}",
            )
        learned = message.role == "assistant"
        writer.write(marks.headers[message.role], learned=False)
        if isinstance(message.content, str):
            writer.write(tokenizer.encode(message.content), learned=learned)
        else:
            part: Any
            for part in message.content:
                kind = part.type
                if kind == "text":
                    writer.write(tokenizer.encode(part.text), learned=learned)
                elif kind == "audio" and learned and marks.speech is not None:
                    writer.write([marks.speech], learned=True)
                elif not learned and (medium := marks.media.get(kind)) is not None:
                    item, counts = used[kind], lengths.get(kind, ())
                    if item >= len(counts):
                        got = f"got {len(counts)} counts"
                        raise ShapeError(f"render: expected a token count for {kind} {item}, {got}")
                    writer.media(kind, item, counts[item], medium)
                    used[kind] += 1
                else:
                    raise DataError(
                        "bad_row",
                        f"message {number} ({message.role}): can't hold a part of type {kind!r} in this vocabulary",
                    )
        writer.write([marks.end], learned=learned)
        writer.write(marks.after, learned=False)
    for kind, counts in lengths.items():
        if used[kind] != len(counts):
            expected = f"{used[kind]} {kind} token counts, as many as the messages have"
            raise ShapeError(f"render: expected {expected}, got {len(counts)}")
    if reply:
        writer.write(marks.headers["assistant"], learned=False)
    return Rendered(writer.ids, writer.labels, writer.spans, 0 if reply else len(marks.after))


def document(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text document between bos, from which its first word is predicted, and eos."""
    return [tokenizer.special_tokens.bos, *tokenizer.encode(text), tokenizer.special_tokens.eos]


def fit(rendered: Rendered, ctx_len: int, *, shorten: bool = False) -> Rendered:
    """The same conversation in at most ctx_len ids.

    A medium is never cut. With shorten=True the end of the last answer's text may go (at least half of it
    stays); its end id stays.
    Raises  DataError (too_long) if it can't fit.
    """
    excess = len(rendered) - ctx_len
    if excess <= 0:
        return rendered
    labels = rendered.labels
    last = max(
        (place for place, label in enumerate(labels) if label != IGNORE), default=-1
    )  # the end of the last answer's turn
    first = last
    while first > 0 and labels[first - 1] != IGNORE:
        first -= 1
    is_answer_last = last >= 0 and last + rendered.tail == len(rendered) - 1
    if not shorten or not is_answer_last or excess > (last - first) // 2:
        way_out = "" if shorten else "; shorten it or raise ctx_len"
        raise DataError(
            "too_long", f"conversation: expected at most {ctx_len} ids, got {len(rendered)}{way_out}"
        )
    cut = slice(last - excess, last)
    ids, labels = list(rendered.ids), list(labels)
    del ids[cut], labels[cut]
    return replace(rendered, ids=ids, labels=labels)
