"""What may be written next: the legal ids of each step of a text, an image or a sound, as a function of the
step alone.

The same sets serve twice: they restrict generation, so that everything written can be decoded, and they
restrict the loss at each target position, so that no probability is spent on ids that can't stand there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from muomni.errors import ConfigError, TokenRangeError
from muomni.tokens.space import FRAMING, TokenSpace

Legal = tuple[range, ...]
"""Ids that may stand in a place, as ranges that don't overlap."""


@dataclass(frozen=True)
class Grammar:
    """One span from its start token to its end token: start, units of one id of each book, end.

    A text has one book, its words, and a unit is a word; an image or a sound has K books, and a unit is a
    frame.

    start, end    the ids around the span
    pad           what a stream says before it begins and after it has ended
    books         the legal ids of each book
    least, most   units between start and end
    lags          None: one stream, in which the books take turns; else the steps by which each stream starts
                  late
    """

    start: int
    end: int
    pad: int
    books: tuple[Legal, ...]
    least: int
    most: int
    lags: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ConfigError(f"grammar: expected 0 <= least <= most units, got {self.least} and {self.most}")

    @property
    def streams(self) -> int:
        """Ids in one step."""
        return 1 if self.lags is None else len(self.lags)

    @property
    def steps(self) -> int:
        """Steps of the longest span, start and end included."""
        return self.length(self.most)

    def length(self, units: int) -> int:
        """Steps of a span of so many units, start and end included."""
        if self.lags is None:
            return 2 + units * len(self.books)
        return 1 + units + max(1, max(self.lags))

    def legal(self, step: int, stream: int = 0, end: int | None = None) -> Legal:
        """The ids that may stand in a step of a stream; none after the span.

        Takes   end: the units after which stream 0 has said the end token; None: it has not. One stream needs
                it only to know that the span is over.
        """
        if step == 0:
            return _only(self.start if stream == 0 else self.pad)
        if self.lags is None:
            if end is not None:
                return ()
            unit, book = divmod(step - 1, len(self.books))
            return self._at_border(unit) if book == 0 else self.books[book]
        if end is not None and step >= self.length(end):
            return ()
        unit = step - 1 - self.lags[stream]
        if unit < 0:
            return _only(self.pad)
        if end is None:
            return self._at_border(unit) if stream == 0 else self.books[stream]
        if stream == 0 and unit == end:
            return _only(self.end)
        return self.books[stream] if unit < end else _only(self.pad)

    def reach(self, stream: int) -> Legal:
        """All ids that may stand anywhere in a stream, in ascending order."""
        if self.lags is None:
            return union([*self.books, _only(self.start), _only(self.end)])
        own = [self.books[stream], _only(self.pad)]
        return union([*own, _only(self.start), _only(self.end)] if stream == 0 else own)

    def end_of(self, step: int) -> int:
        """The units after which a span ended whose end token stands in a step of stream 0."""
        return (step - 1) // len(self.books) if self.lags is None else step - 1

    def _at_border(self, unit: int) -> Legal:
        """Where a unit begins or the span ends."""
        if unit >= self.most:
            return _only(self.end)
        return self.books[0] if unit < self.least else (*self.books[0], *_only(self.end))

    def targets(self, units: int) -> list[list[Legal]]:
        """The legal sets of each stream at each step of a span of so many units: [stream][step].

        Of one stream they are those that a writer chooses among. Streams side by side know their end.
        """
        steps, end = range(self.length(units)), None if self.lags is None else units
        return [[self._choices(step, stream, units, end) for step in steps] for stream in range(self.streams)]

    def _choices(self, step: int, stream: int, units: int, end: int | None) -> Legal:
        is_border = self.lags is not None and stream == 0 and 1 <= step <= units + 1
        return self._at_border(step - 1) if is_border else self.legal(step, stream, end)

    def first_illegal(self, ids: Tensor) -> int | None:
        """The first step at which a written span breaks the grammar, None where it is legal to its end.

        Takes   ids (T,), or (K, T) for streams side by side, from the start token on. A span without an end
                breaks it at its length.
        """
        rows_ST = ids[None] if ids.ndim == 1 else ids
        if len(rows_ST) != self.streams:
            return 0
        end: int | None = None
        for step in range(rows_ST.shape[1]):
            for stream in range(self.streams):
                token = int(rows_ST[stream, step])
                if not contains(self.legal(step, stream, end), token):
                    return step
                if stream == 0 and token == self.end and end is None:
                    end = self.end_of(step)
        is_whole = end is not None and rows_ST.shape[1] == self.length(end)
        return None if is_whole else rows_ST.shape[1]

    def require(self, ids: Tensor, space: TokenSpace) -> None:
        """Refuse a span that breaks the grammar.

        Raises  TokenRangeError naming the step, what may stand there, and what does.
        """
        if (step := self.first_illegal(ids)) is None:
            return
        rows_ST = ids[None] if ids.ndim == 1 else ids
        got = "the end of the ids"
        if step < rows_ST.shape[1]:
            got = ", ".join(space.describe(int(token)) for token in rows_ST[:, step])
        sets = [self.legal(step, stream) for stream in range(self.streams)]
        expected = "; ".join(
            " or ".join(f"{r.start}..{r.stop - 1}" for r in legal) or "nothing more" for legal in sets
        )
        raise TokenRangeError(f"written span: step {step}: expected {expected}, got {got}")


def of_text(space: TokenSpace, most: int, *, least: int = 1, words: Sequence[range] | None = None) -> Grammar:
    """The grammar of a text of least .. most tokens.

    Takes   words: ids of plain text, where the tokenizer has special ids of its own that no caption holds;
            None: all of the region.
    """
    _, start, end = (space.special(name) for name in FRAMING["text"])
    book = (space.region("text").ids,) if words is None else tuple(words)
    return Grammar(start, end, space.pad, (book,), least, most)


def of_medium(space: TokenSpace, modality: str, *, least: int = 1, most: int | None = None) -> Grammar:
    """The grammar of an image, which has exactly its frames, or of a sound of least .. most frames.

    Raises  ConfigError for a sound without `most`; TokenSpaceError where the space has no such tokens.
    """
    _, start, end = (space.special(name) for name in FRAMING[modality])
    shape = space.codec(modality).grid
    if shape is not None:
        least = most = shape[0] * shape[1]
    if most is None:
        raise ConfigError(f"grammar of {modality}: expected the most frames that may be written, got none")
    books = tuple((book.ids,) for book in space.books(modality))
    return Grammar(start, end, space.pad, books, least, most, space.lags(modality))


def contains(legal: Legal, token: int) -> bool:
    """Whether an id is legal."""
    return any(token in ids for ids in legal)


def union(sets: Sequence[Legal]) -> Legal:
    """The ids that are legal in any of several places, as ordered ranges that don't touch."""
    merged: list[range] = []
    for ids in sorted((ids for legal in sets for ids in legal), key=lambda each: each.start):
        if merged and ids.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, ids.stop))
        else:
            merged.append(ids)
    return tuple(merged)


def _only(token: int) -> Legal:
    return (range(token, token + 1),)
