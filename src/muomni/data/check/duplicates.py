"""Duplicates and near-duplicates in a data set, and those on both sides of the split, with both rows named.

Rows are compared by their hashes, all of one kind at once; only those of which something is told are opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muomni.data.check import near_duplicates
from muomni.data.check.findings import Finding
from muomni.data.check.rows import Ints, Rows
from muomni.media.modality import MODALITIES

NEVER = np.iinfo(np.int64).max
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # an odd number of even bits: multiples of it lie far apart


def find(rows: Rows, near_texts: near_duplicates.NearTexts) -> Iterator[Finding]:
    """Every duplicate id, duplicate sample, leak and likeness among rows that know their side.

    Takes   near_texts: what all rows without media say, by their numbers among these.
    """
    used = _Used(rows)
    yield from _duplicates(rows)
    yield from _copies(rows, used)
    yield from _leaks(rows, used)
    yield from _near_media(rows, used)
    yield from _near_texts(rows, used, near_texts)


class _Used:
    """Uses of media, and what is the same in media: number of the name, of the bytes, of the bytes and the
    window."""

    def __init__(self, rows: Rows) -> None:
        self.media, self.owners = rows.used()
        self.sides = rows.is_valid[self.owners]
        media = rows.media
        self.names = _numbered([medium.name for medium in media])
        self.digests = _numbered([medium.digest for medium in media])
        self.keys = _numbered([medium.key for medium in media])
        self.is_inline = np.array([medium.name.startswith("data:") for medium in media], bool)
        self.without = np.setdiff1d(np.arange(len(rows)), self.owners)  # rows without media


def _numbered(values: Sequence[object]) -> Ints:
    """A number for each value, equal for equal ones."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)


def _firsts(keys: NDArray[np.integer], owners: Ints, sides: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """For each key that occurs, sorted: the key, its first row of training and its first row of validation,
    NEVER where it has none."""
    unique, inverse = np.unique(keys, return_inverse=True)
    firsts = []
    for side in (False, True):
        first = np.full(len(unique), NEVER, np.int64)
        np.minimum.at(first, inverse[sides == side], owners[sides == side])
        firsts.append(first)
    return unique, firsts[0], firsts[1]


def _duplicates(rows: Rows) -> Iterator[Finding]:
    _, first, inverse = np.unique(rows.contents, return_index=True, return_inverse=True)
    same = first[inverse]  # of each row, the first of its content
    # two manifests may both count from 0
    own_ids = rows.ids.astype(np.uint64) ^ rows.manifests.astype(np.uint64) * SPREAD
    _, first, inverse = np.unique(own_ids, return_index=True, return_inverse=True)
    namesake = first[inverse]
    numbers = np.arange(len(rows))
    for number in np.flatnonzero((same != numbers) | (rows.contents[namesake] != rows.contents)).tolist():
        if same[number] != number:
            yield Finding(
                "duplicate",
                rows.where(number),
                "the same content as another row",
                other=rows.where(same[number]),
            )
        if rows.contents[namesake[number]] != rows.contents[number]:
            row = rows[number]
            what = f"id {row.sample.id!r} is another row's"
            yield Finding(
                "duplicate_id",
                row.where,
                what,
                "an id of its own",
                row.sample.id,
                rows.where(namesake[number]),
            )


def _copies(rows: Rows, used: _Used) -> Iterator[Finding]:
    """Files of the same bytes under two names, where it is no leak."""
    first: dict[tuple[bool, int], tuple[str, int]] = {}
    reported: set[int] = set()
    _, places = np.unique(
        np.stack([used.media, used.sides]), axis=1, return_index=True
    )  # each medium's first use on each side
    for place in np.sort(places).tolist():
        medium, owner = int(used.media[place]), int(used.owners[place])
        name, named = rows.media[medium].name, int(used.names[medium])
        original, other = first.setdefault(
            (bool(used.sides[place]), int(used.digests[medium])), (name, owner)
        )
        if name != original and named not in reported and not used.is_inline[medium]:
            reported.add(named)
            what = f"file {name} holds the same bytes as {original}"
            yield Finding(
                "duplicate_file", rows.where(owner), what, "bytes of its own", name, rows.where(other)
            )


def _leaks(rows: Rows, used: _Used) -> Iterator[Finding]:
    """Exact leaks; the bytes of a file that is itself on both sides are not told again."""
    numbers, sides = np.arange(len(rows)), rows.is_valid
    yield from _findings(
        rows, "leak_id", "id", _firsts(rows.ids, numbers, sides), lambda row: rows[row].sample.id
    )
    yield from _findings(
        rows, "leak_group", "group", _firsts(rows.groups, numbers, sides), lambda row: rows[row].sample.group
    )
    stands = ~used.is_inline[used.media]
    on_both = _firsts(used.names[used.media][stands], used.owners[stands], used.sides[stands])
    yield from _media_findings(rows, used, "leak_path", "file", on_both, used.names)
    twice = set(on_both[0][(on_both[1] < NEVER) & (on_both[2] < NEVER)].tolist())
    others = np.array([name not in twice for name in used.names.tolist()], bool)[used.media]
    keys = _firsts(used.keys[used.media][others], used.owners[others], used.sides[others])
    yield from _media_findings(rows, used, "leak_content", "content", keys, used.keys)
    without = used.without
    yield from _findings(
        rows,
        "leak_content",
        "content",
        _firsts(rows.contents[without], without, sides[without]),
        lambda row: rows[row].words[:60],
    )


def _findings(
    rows: Rows, reason: str, kind: str, firsts: tuple[Ints, Ints, Ints], name: Callable[[int], str]
) -> Iterator[Finding]:
    """One finding for each key that both sides have, at its first row of validation, with its first row of
    training."""
    _, train, valid = firsts
    both = np.flatnonzero((train < NEVER) & (valid < NEVER))
    for place in both[np.argsort(valid[both], kind="stable")].tolist():
        yield _leak(rows, reason, kind, name(int(valid[place])), int(valid[place]), int(train[place]))


def _media_findings(
    rows: Rows, used: _Used, reason: str, kind: str, firsts: tuple[Ints, Ints, Ints], numbers: Ints
) -> Iterator[Finding]:
    """The same for keys of media, by the name that the medium has in the row of validation."""
    keys, train, valid = firsts
    both = np.flatnonzero((train < NEVER) & (valid < NEVER))
    for place in both[np.argsort(valid[both], kind="stable")].tolist():
        row = int(valid[place])
        mine = _media_of(used, row)
        name = next(rows.media[medium].name for medium in mine if numbers[medium] == keys[place])
        yield _leak(rows, reason, kind, name, row, int(train[place]))


def _media_of(used: _Used, row: int) -> list[int]:
    start, stop = np.searchsorted(used.owners, [row, row + 1])
    numbers: list[int] = used.media[start:stop].tolist()
    return numbers


def _leak(rows: Rows, reason: str, kind: str, name: str, row: int, other: int) -> Finding:
    what = f"{kind} {name[-80:]!r} is in validation here and in training there"
    return Finding(reason, rows.where(row), what, "on one side of the split", name, rows.where(other))


@dataclass
class _Things:
    """Things of one kind in the order of their first use: how each is called, and its first rows of training
    and validation."""

    kind: str
    rows: Rows
    names: Callable[[int], str]
    train: Ints
    valid: Ints

    def finding(self, number: int, near: Sequence[int]) -> Finding:
        """Of a thing that is like earlier ones: the leak if there is one."""
        return next((leak for other in near if (leak := self._leak(number, other))), None) or self._twice(
            number, near[0]
        )

    def _sides(self, number: int) -> list[tuple[str, int]]:
        """The sides that use a thing, with their first rows, the earlier first."""
        both = [("train", int(self.train[number])), ("valid", int(self.valid[number]))]
        return sorted((one for one in both if one[1] < NEVER), key=lambda one: one[1])

    def _leak(self, number: int, other: int) -> Finding | None:
        across = dict(self._sides(other))
        for side, row in self._sides(number):
            opposite = "train" if side == "valid" else "valid"
            if opposite in across:
                mine, theirs = self.names(number), self.names(other)
                what = f"{self.kind} {mine} ({side}) is all but the same as {theirs} ({opposite})"
                return Finding(
                    "leak_near",
                    self.rows.where(row),
                    what,
                    "on one side of the split",
                    mine,
                    self.rows.where(across[opposite]),
                )
        return None

    def _twice(self, number: int, other: int) -> Finding:
        row, first = self._sides(number)[0][1], self._sides(other)[0][1]
        mine, theirs = self.names(number), self.names(other)
        what = f"{self.kind} {mine} is all but the same as {theirs}"
        return Finding(
            "near_duplicate", self.rows.where(row), what, f"another {self.kind}", mine, self.rows.where(first)
        )


def _near_media(rows: Rows, used: _Used) -> Iterator[Finding]:
    """Likenesses between the media of each modality."""
    _, train, valid = _firsts(used.keys[used.media], used.owners, used.sides)
    _, places = np.unique(
        used.keys[used.media], return_index=True
    )  # the first use of each, in the same order
    order = np.argsort(places)
    train, valid, first = (
        train[order],
        valid[order],
        [rows.media[medium] for medium in used.media[places[order]].tolist()],
    )
    for kind, near_vectors in near_duplicates.NEAR.items():
        index = near_vectors()
        chosen = [
            number for number, medium in enumerate(first) if medium.vector is not None and medium.kind == kind
        ]
        mine = [first[number] for number in chosen]
        noun = MODALITIES[kind].noun
        names = [medium.name for medium in mine]
        things = _Things(noun, rows, names.__getitem__, train[chosen], valid[chosen])
        vectors = [medium.vector for medium in mine if medium.vector is not None]
        for number, near in enumerate(index.add_all(vectors, [medium.seconds for medium in mine])):
            if near:
                yield things.finding(number, near)


def _near_texts(rows: Rows, used: _Used, texts: near_duplicates.NearTexts) -> Iterator[Finding]:
    """Likenesses between texts that stand alone."""
    without = used.without
    if not len(without):
        return
    contents = rows.contents[without]
    _, train, valid = _firsts(contents, without, rows.is_valid[without])
    _, first = np.unique(contents, return_index=True)  # the first text of each content, in the same order
    order = np.argsort(first)
    chosen = first[order]
    things = _Things(
        "text",
        rows,
        lambda number: repr(rows[int(without[chosen[number]])].words[:40]),
        train[order],
        valid[order],
    )
    for number, near in texts.near(chosen):
        yield things.finding(number, near)
