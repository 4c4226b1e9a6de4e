"""Rows of the four tasks over text and media tokens: ids, labels and spans, built together.

    i2t   <img_start> IMAGE <img_end> <gen_text> <text_start> TEXT <text_end>
    a2t   <aud_start> AUDIO <aud_end> <gen_text> <text_start> TEXT <text_end>
    t2i   <text_start> TEXT <text_end> <gen_img> <img_start> IMAGE <img_end>
    t2a   <text_start> TEXT <text_end> <gen_aud> <aud_start> AUDIO <aud_end>

Labels are the ids of the target span, its start and end included, and -100 elsewhere. Where a codec lays its
books side by side, a row is a grid (K, T): what has one stream stands in stream 0, and pad_mm in the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from muomni.errors import ConfigError, DataError
from muomni.tokens.chat import IGNORE
from muomni.tokens.space import FRAMING, TokenSpace


@dataclass(frozen=True)
class Task:
    """What a row reads and what it writes: "text" or a modality."""

    reads: str
    writes: str

    @property
    def medium(self) -> str:
        """The modality that it has beside its text."""
        return self.reads if self.writes == "text" else self.writes


TASKS = {
    "i2t": Task("image", "text"),
    "a2t": Task("audio", "text"),
    "t2i": Task("text", "image"),
    "t2a": Task("text", "audio"),
}


@dataclass(frozen=True)
class Content:
    """Where the content of a span stands, between its start and its end token: columns start .. start +
    length - 1."""

    kind: str  # "text" or a modality
    start: int
    length: int


@dataclass(frozen=True)
class Window:
    """The frames of a longer sound that a row holds."""

    first_frame: int
    frames: int
    total_frames: int


@dataclass(frozen=True)
class TokenRow:
    """One row of a task. labels[t] is ids[t] or IGNORE; the objective shifts.

    ids, labels  int64 (T,), or (K, T) in a space whose codec lays its books side by side
    spans        contents of what is read and of what is written, in this order
    window       None: the whole medium stands in the row
    """

    ids: Tensor
    labels: Tensor
    task: str
    spans: tuple[Content, Content]
    window: Window | None = None

    def __len__(self) -> int:
        return int(self.ids.shape[-1])

    @property
    def prompt(self) -> Tensor:
        """The ids before the target's start token: what generation begins with."""
        return self.ids[..., : self.spans[1].start - 1]

    @property
    def target(self) -> Tensor:
        """The ids of the target span, start and end included."""
        return self.ids[..., self.spans[1].start - 1 :]


def task_of(name: str) -> Task:
    """A task by name.

    Raises  ConfigError for a name that is none of TASKS.
    """
    if name not in TASKS:
        raise ConfigError(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


def build(
    space: TokenSpace,
    task: str,
    text: Sequence[int] | Tensor,
    medium: Tensor,
    *,
    max_len: int | None = None,
    window: Window | None = None,
) -> TokenRow:
    """The row of a text and a medium.

    Takes   text: ids of the text region; medium: ids as `space.ids_of` lays them out; max_len: most columns;
            window: the frames of a sound to read, where not all are wanted (`window_of`).
    Raises  TokenRangeError for ids that are not of their region, or of a truncated or reordered span;
            DataError (empty_text, target_too_long, too_long): nothing is cut to fit;
            ConfigError for a window of what is written, or of an image.
    """
    kind = task_of(task)
    if window is not None and (kind.writes != "text" or kind.reads != "audio"):
        raise ConfigError(
            f"task {task}: only a sound that is read may be windowed, not a target and not an image"
        )
    text = torch.as_tensor(text, dtype=torch.int64)
    if not len(text):
        raise DataError("empty_text", f"task {task}: expected a text of at least one token, got none")
    space.from_global("text", text)
    codes_KF = space.codes_of(kind.medium, medium)
    if window is not None:
        codes_KF = _windowed(codes_KF, window)
    content = {"text": text, kind.medium: space.ids_of(kind.medium, codes_KF)}
    rows = _Columns(space)
    spans = []
    rows.span(kind.reads, content[kind.reads])
    spans.append(rows.content)
    rows.add(space.special(FRAMING[kind.writes][0]))
    first = len(rows)
    rows.span(kind.writes, content[kind.writes])
    spans.append(rows.content)
    ids_ST = rows.ids()
    length = ids_ST.shape[-1]
    if max_len is not None and length > max_len:
        is_target = length - first > max_len
        raise DataError(
            "target_too_long" if is_target else "too_long",
            f"task {task}: expected at most {max_len} positions, got {length}, {length - first} of them the target's",
            hint="raise the limit, leave the sample out, or window the sound that is read",
        )
    labels_ST = torch.full_like(ids_ST, IGNORE)
    labels_ST[:, first:] = torch.where(rows.silent()[:, first:], IGNORE, ids_ST[:, first:])
    if space.streams == 1:
        ids_ST, labels_ST = ids_ST[0], labels_ST[0]
    return TokenRow(ids_ST, labels_ST, task, (spans[0], spans[1]), window)


def without_words(row: TokenRow) -> TokenRow:
    """A row that writes a medium, with nothing between the start and the end of the words that ask for it."""
    words, target = row.spans
    kept_T = torch.ones(len(row), dtype=torch.bool)
    kept_T[words.start : words.start + words.length] = False
    spans = (replace(words, length=0), replace(target, start=target.start - words.length))
    return replace(row, ids=row.ids[..., kept_T], labels=row.labels[..., kept_T], spans=spans)


def prompt(space: TokenSpace, writes: str, text: Sequence[int]) -> Tensor:
    """The ids after which a model writes an image or a sound of a text, of any where it is empty: (T,), or
    (K, T)."""
    rows = _Columns(space)
    rows.span("text", torch.as_tensor(text, dtype=torch.int64))
    rows.add(space.special(FRAMING[writes][0]))
    ids_ST = rows.ids()
    return ids_ST[0] if space.streams == 1 else ids_ST


def words_of(asked: Tensor) -> Tensor:
    """The text ids of what `prompt` made, (T,)."""
    ids = asked if asked.ndim == 1 else asked[0]
    return ids[1:-2]  # between the start and the end of the text, before what is to be written


def window_of(frames: int, most: int, generator: torch.Generator | None = None) -> Window | None:
    """The frames of a sound that a row reads: all (None) where they fit, else a window of `most`.

    Takes   generator: draws where it begins; None: it lies in the middle.
    """
    if most < 1:
        raise ConfigError(f"window: expected at least 1 frame, got {most}")
    if frames <= most:
        return None
    room = frames - most
    first = room // 2 if generator is None else int(torch.randint(room + 1, (), generator=generator))
    return Window(first, most, frames)


def _windowed(codes_KF: Tensor, window: Window) -> Tensor:
    last, total = window.first_frame + window.frames, codes_KF.shape[1]
    if window.total_frames != total or window.first_frame < 0 or window.frames < 1 or last > total:
        raise ConfigError(f"window: expected frames of a sound of {total}, got {window}")
    return codes_KF[:, window.first_frame : last]


class _Columns:
    """Appends columns of S streams: what has one stream goes to stream 0, with pads beside it."""

    def __init__(self, space: TokenSpace) -> None:
        self.space = space
        self.parts: list[Tensor] = []  # (S, columns) each
        self.quiet: list[Tensor] = []  # bool, True = a pad that no stream says
        self.content = Content("", 0, 0)  # of the newest span

    def __len__(self) -> int:
        return sum(part.shape[1] for part in self.parts)

    def add(self, *tokens: int) -> None:
        """Ids in stream 0."""
        self._append(torch.tensor([tokens]))

    def span(self, kind: str, ids: Tensor) -> None:
        """A start token, content, an end token; the end of delayed streams stands beside their tail."""
        _, start, end = FRAMING[kind]
        self.add(self.space.special(start))
        begin = len(self)
        lags = None if kind == "text" else self.space.lags(kind)
        if lags is None:
            self._append(ids[None])
            self.content = Content(kind, begin, ids.shape[0])
            self.add(self.space.special(end))
            return
        frames = ids.shape[1] - max(lags)
        columns = frames + max(1, max(lags))
        grid_SC = ids.new_full((self.space.streams, columns), self.space.pad)
        grid_SC[: len(ids), : ids.shape[1]] = ids
        grid_SC[0, frames] = self.space.special(end)
        self._append(grid_SC)
        self.content = Content(kind, begin, ids.shape[1])

    def ids(self) -> Tensor:
        """(S, T)."""
        return torch.cat(self.parts, 1)

    def silent(self) -> Tensor:
        """bool (S, T), True = a pad in a stream that is silent there."""
        return self.ids() == self.space.pad

    def _append(self, ids: Tensor) -> None:
        if len(ids) < self.space.streams:
            pads = ids.new_full((self.space.streams - len(ids), ids.shape[1]), self.space.pad)
            ids = torch.cat((ids, pads))
        self.parts.append(ids)
