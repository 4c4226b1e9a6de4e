"""Account of a row's fields: each is used, reported or refused."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as fields_of
from functools import lru_cache
from typing import Any

from muomni.data.layouts import fields, media, placeholders
from muomni.data.sample import Sample
from muomni.errors import DataError

KNOWN_VALUES = 1000  # of columns that were left: a licence stands in many rows
KNOWN_SHAPES = 1000  # sets of columns that are counted each by itself before they are added up
TOLD = 6  # columns named in a line
DEPTH = 4  # of lists and objects in a field


@dataclass(frozen=True, slots=True)
class Reading:
    """A row for `sample.parse`, and of the row of the file the fields that were used and those that were
    left.

    row      in the spelling of `sample.parse`
    used     names of the fields of the file's row that it was made of
    left     the fields that nothing was made of, with their values
    whence   where its group comes from: "group" (a column or the recipe), "person", "" (its medium, its id)
    frames   its sounds may have times in samples of their file (`start_frame`, `end_frame`), to be told in
             seconds
    chosen   the recipe's own template names the columns: what it does not name is told, and not refused
    """

    row: dict[str, Any]
    used: Iterable[str] = ()
    left: Mapping[str, Any] = fields_of(default_factory=dict)
    whence: str = "group"
    chosen: bool = False
    frames: bool = False


@lru_cache(maxsize=1024)
def plain(fields_set: frozenset[str]) -> Reading:
    """The reading of a row that is spelt as ours are and has these fields; its sample stands for its row."""
    return Reading(
        {},
        tuple(name for name in Sample.model_fields if name in fields_set),
        {},
        "group" if "group" in fields_set else "",
    )


@dataclass
class Account:
    """Which columns of a source were read and which were left, in how many rows; and which rows with sound
    name nobody who speaks."""

    rows: int = 0
    sides: Counter[str] = fields_of(default_factory=Counter)  # that the rows say themselves
    named: int = 0  # rows with sound whose group is a person
    unnamed: list[int] = fields_of(
        default_factory=list
    )  # lines of rows with sound that have no group, nor a person
    signs: dict[str, str] = fields_of(default_factory=dict)  # column that was left -> what it names
    _shapes: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = fields_of(default_factory=Counter)
    _read: Counter[str] = fields_of(default_factory=Counter)
    _left: Counter[str] = fields_of(default_factory=Counter)

    def add(self, reading: Reading) -> None:
        """One more row."""
        self.rows += 1
        self._shapes[tuple(reading.used), tuple(reading.left)] += 1
        if len(self._shapes) > KNOWN_SHAPES:
            self._sum()

    def add_sample(self, line: int, sample: Sample, reading: Reading) -> None:
        """The sample that became of a row."""
        if sample.split is not None:
            self.sides[sample.split] += 1
        if reading.whence == "person":
            self.named += 1
        elif not reading.whence and len(self.unnamed) < KNOWN_SHAPES and (sample.audios or sample.speech):
            self.unnamed.append(line)

    def refuse_unnamed(self, path: str) -> None:
        """Raises DataError (bad_row) where some rows with sound name who speaks and others don't: theirs may
        stand on the other side."""
        if self.named and self.unnamed:
            raise DataError(
                "bad_row",
                f"{path}:{self.unnamed[0]}: {self.describe_unnamed()}",
                hint="fill it in, or leave the column out: `ignore: [...]`",
            )

    def describe_unnamed(self) -> str:
        """How many rows name no speaker where others do."""
        count = len(self.unnamed)
        return f"expected who speaks, as in {self.named} rows, got no name in {count}: these speakers may stand on both sides of the split"

    def _sum(self) -> None:
        for (read, left), count in self._shapes.items():
            for name in set(read):
                self._read[name] += count
            for name in left:
                self._left[name] += count
        self._shapes.clear()

    @property
    def read(self) -> dict[str, int]:
        """Columns that were used, with the rows that they were used in."""
        self._sum()
        return dict(self._read)

    @property
    def left(self) -> dict[str, int]:
        """Columns that were never used, with the rows that have them."""
        self._sum()
        return {name: count for name, count in self._left.items() if name not in self._read}

    def describe(self) -> str:
        """`5 columns read, 2 left: license, locale`; "" where there are no columns."""
        read, left = self.read, self.left
        if not read and not left:
            return ""
        names = [f"{name} (names {self.signs[name]})" if name in self.signs else name for name in left]
        more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
        of = f": {', '.join(names[:TOLD])}{more}" if names else ""
        return f"{len(read)} column{'s' * (len(read) != 1)} read, {len(left)} left{of}"

    def describe_split(self, val_split: float) -> str:
        """Which of the two counts where rows say their side and the recipe has a share; "" where rows say
        nothing."""
        if not self.sides:
            return ""
        counts = ", ".join(f"{side} {count}" for side, count in sorted(self.sides.items()))
        count = self.sides.total()
        rest = (
            f"val_split {val_split:g} decides on the other {self.rows - count}"
            if self.rows > count
            else f"val_split {val_split:g} decides on none"
        )
        return f"the data say the side of {count} of {self.rows} rows ({counts}), and that counts; {rest}"


class Signs:
    """Tells what must not be left in silence: a field that names a file."""

    def __init__(self, roots: Sequence[str], is_file: Any) -> None:
        self._roots, self._is_file = roots, is_file
        self._bare: set[str] | None = None
        self._known: dict[tuple[str, str], bool] = {}

    def refuse(self, reading: Reading, account: Account) -> None:
        """Raises DataError (bad_row) for a field that was left and names a file; where a template chose the
        columns, it is only noted.

        A field that names a person, and whose row has its group from elsewhere, is noted too.
        """
        for key, value in reading.left.items():
            if fields.names_person(key, value):
                account.signs.setdefault(key, "a person")
            if value is None or value == "" or isinstance(value, bool | int | float):
                continue
            named = self.of(key, value)
            if named is None or named in media.paths_in(
                reading.row
            ):  # a second column of the same files loses nothing
                continue
            if reading.chosen:
                account.signs.setdefault(key, "files")
                continue
            raise DataError(
                "bad_row",
                f"{key}: expected a field that is read, got {named!r:.80}, which names a file and was not read",
                hint=f"say what it is in a `messages:` template, or leave it out: `ignore: [{key}]`",
            )

    def refuse_extra(self, extra: Any) -> None:
        """Raises DataError (bad_row) for a file that `extra` of a row names: nobody opens it."""
        named = self.of("extra", extra)
        if named is not None:
            raise DataError(
                "bad_row",
                f"extra: expected words and numbers, got {named!r:.80}, which names a file and is not read",
            )

    def of(self, key: str, value: Any, depth: int = 0) -> str | None:
        """The file that a field names, None where it names none."""
        if isinstance(value, str):
            is_file = self._known.get((key, value))
            if is_file is None:
                if len(self._known) >= KNOWN_VALUES:
                    self._known.clear()
                is_file = self._known[key, value] = self._names_a_file(key, value)
            return value if is_file else None
        if isinstance(value, bytes):
            return f"{len(value)} bytes"
        if depth >= DEPTH:
            return None
        if isinstance(value, dict):
            return next(
                (
                    sign
                    for name, one in value.items()
                    if (sign := self.of(str(name), one, depth + 1)) is not None
                ),
                None,
            )
        if isinstance(value, list):
            return next((sign for one in value if (sign := self.of(key, one, depth + 1)) is not None), None)
        return None

    def _names_a_file(self, key: str, value: str) -> bool:
        if media.kind_of_key(key) is not None and not media.is_soft(key):
            return bool(value.strip())
        if not value or len(value) > 4096 or "\n" in value:
            return False
        if "." in value or "/" in value:
            if "://" in value:
                return False
            if media.has_suffix(value) and not media.is_provenance(key):
                return True
            return any(self._is_file(root, value) for root in self._roots)
        if self._bare is None:
            self._bare = {name for root in self._roots for name in _bare_names(root)}
        return value in self._bare


def _bare_names(root: str) -> Iterable[str]:
    """Files of a folder whose names have no dot: few, in any folder."""
    try:
        with os.scandir(root) as entries:
            return [entry.name for entry in entries if "." not in entry.name and entry.is_file()]
    except OSError:
        return []


def refuse_placeholders(sample: Sample, ignored: frozenset[str]) -> None:
    """Raises DataError (bad_row) where words still hold `<image>` or its like: what it stands for is not
    there."""
    if sample.text is not None:
        if "<" in sample.text or "[" in sample.text:
            _refuse_placeholder("text", sample.text, ignored)
        return
    for number, message in enumerate(sample.messages):
        if isinstance(message.content, str):
            if "<" in message.content or "[" in message.content:
                _refuse_placeholder(f"message {number} ({message.role})", message.content, ignored)
        else:
            for part in message.content:
                if part.type == "text" and ("<" in part.text or "[" in part.text):
                    _refuse_placeholder(f"message {number} ({message.role})", part.text, ignored)


def _refuse_placeholder(where: str, words: str, ignored: frozenset[str]) -> None:
    placeholder = next((one for one in placeholders.find(words) if one.spelt not in ignored), None)
    if placeholder is not None:
        raise DataError(
            "bad_row",
            f"{where}: expected words, or a place for a medium of the row, got {placeholder.spelt[:60]!r} and no {placeholder.kind} for it",
            hint=f'name its file in the row, or take it as words: `ignore: ["{placeholder.spelt[:60]}"]`',
        )
