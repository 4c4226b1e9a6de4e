"""What stands twice in a data set, exactly or nearly, and what of it stands on both sides of the split: with both rows named."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from muomni import files
from muomni.data import likeness
from muomni.data.findings import Finding
from muomni.data.medium import Medium
from muomni.data.sample import Sample

Keys = list[tuple[Hashable, str]]  # what is compared, and how people read it


@dataclass
class Row:
    """A good row: its sample, its place (file:line), the media that it uses, in their order, and the stages that can learn from it."""

    sample: Sample
    where: str
    media: list[Medium] = field(default_factory=list)
    side: str = "train"
    stages: tuple[str, ...] = ()

    @cached_property
    def content(self) -> str:
        """Hash of what the sample shows and says, whatever its id and file names."""
        sample = self.sample
        return files.sha256_json([sample.text, [[m.role, m.text] for m in sample.messages], [medium.key for medium in self.media]])

    @property
    def words(self) -> str:
        """All that is said in it."""
        return self.sample.text if self.sample.text is not None else " ".join(message.text for message in self.sample.messages)


def find(rows: Sequence[Row]) -> Iterator[Finding]:
    """Every duplicate id, duplicate sample, leak and likeness among rows that know their side."""
    yield from _duplicates(rows)
    yield from _copies(rows)
    yield from _leaks(rows)
    yield from _near(rows)


def _duplicates(rows: Sequence[Row]) -> Iterator[Finding]:
    contents: dict[str, Row] = {}
    ids: dict[tuple[str, str], Row] = {}
    for row in rows:
        first = contents.setdefault(row.content, row)
        if first is not row:
            yield Finding("duplicate", row.where, "the same content as another row", other=first.where)
        namesake = ids.setdefault((row.where.rpartition(":")[0], row.sample.id), row)  # two manifests may both count from 0
        if namesake.content != row.content:
            what = f"id {row.sample.id!r} is another row's"
            yield Finding("duplicate_id", row.where, what, "an id of its own", row.sample.id, namesake.where)


def _copies(rows: Sequence[Row]) -> Iterator[Finding]:
    """Files of the same bytes under two names, where it is no leak."""
    first: dict[tuple[str, str], tuple[str, Row]] = {}
    told: set[str] = set()
    for row in rows:
        for medium in row.media:
            name, other = first.setdefault((row.side, medium.digest), (medium.name, row))
            if medium.name != name and medium.name not in told and not medium.name.startswith("data:"):
                told.add(medium.name)
                what = f"file {medium.name} holds the same bytes as {name}"
                yield Finding("duplicate_file", row.where, what, "bytes of its own", medium.name, other.where)


def _leaks(rows: Sequence[Row]) -> Iterator[Finding]:
    """Exact leaks; the bytes of a file that is itself on both sides are not told again."""
    yield from _shared(rows, "leak_id", "id", lambda row: [(row.sample.id, row.sample.id)])
    yield from _shared(rows, "leak_group", "group", lambda row: [(row.sample.group, row.sample.group)])
    paths: set[str] = set()
    for finding in _shared(rows, "leak_path", "file", _paths):
        paths.add(finding.got)
        yield finding
    yield from _shared(rows, "leak_content", "content", lambda row: [key for key in _contents(row) if key[1] not in paths])


def _paths(row: Row) -> Keys:
    return [(medium.name, medium.name) for medium in row.media if not medium.name.startswith("data:")]


def _contents(row: Row) -> Keys:
    """Each medium's bytes, or, where there is none, all that is said."""
    return [(medium.key, medium.name) for medium in row.media] or [(row.content, row.words[:60])]


def _shared(rows: Sequence[Row], reason: str, kind: str, keys: Callable[[Row], Keys]) -> Iterator[Finding]:
    """One finding for each key that both sides have, at its first row of validation, with its first row of training."""
    train: dict[Hashable, Row] = {}
    for row in rows:
        if row.side == "train":
            for key, _ in keys(row):
                train.setdefault(key, row)
    told: set[Hashable] = set()
    for row in rows:
        for key, name in keys(row) if row.side == "valid" else ():
            if key in train and key not in told:
                told.add(key)
                what = f"{kind} {name[-80:]!r} is in validation here and in training there"
                yield Finding(reason, row.where, what, "on one side of the split", name, train[key].where)


class _Likes:
    """All things of one kind, each with its name, the first row on either side that uses it, and the earlier ones that are like it."""

    def __init__(self, kind: str, index: Callable[..., list[int]]) -> None:
        self.kind, self.index = kind, index
        self.places: dict[Hashable, int] = {}
        self.names: list[str] = []
        self.sides: list[dict[str, Row]] = []
        self.near: list[list[int]] = []

    def use(self, key: Hashable, name: str, row: Row, *what: object) -> None:
        """A row uses a thing; `what` goes to the index the first time."""
        if key not in self.places:
            self.places[key] = len(self.names)
            self.names.append(name)
            self.sides.append({})
            self.near.append(self.index(*what))
        self.sides[self.places[key]].setdefault(row.side, row)

    def findings(self) -> Iterator[Finding]:
        """One for each thing that is like earlier ones: the leak if there is one."""
        for number, near in enumerate(self.near):
            if near:
                yield next((leak for other in near if (leak := self._leak(number, other))), None) or self._twice(number, near[0])

    def _leak(self, number: int, other: int) -> Finding | None:
        for side, row in self.sides[number].items():
            across = self.sides[other].get("train" if side == "valid" else "valid")
            if across is not None:
                what = f"{self.kind} {self.names[number]} ({side}) is all but the same as {self.names[other]} ({across.side})"
                return Finding("leak_near", row.where, what, "on one side of the split", self.names[number], across.where)
        return None

    def _twice(self, number: int, other: int) -> Finding:
        row, first = next(iter(self.sides[number].values())), next(iter(self.sides[other].values()))
        what = f"{self.kind} {self.names[number]} is all but the same as {self.names[other]}"
        return Finding("near_duplicate", row.where, what, f"another {self.kind}", self.names[number], first.where)


def _near(rows: Sequence[Row]) -> Iterator[Finding]:
    """Likenesses between media, and between texts that stand alone."""
    pictures = _Likes("picture", likeness.near_pictures().add)
    sounds = _Likes("sound", likeness.near_sounds().add)
    texts = _Likes("text", likeness.NearTexts().add)
    for row in rows:
        for medium in row.media:
            if medium.vector is not None:
                likes = sounds if medium.is_sound else pictures
                likes.use(medium.key, medium.name, row, medium.vector, medium.seconds)
        if not row.media:
            texts.use(row.content, repr(row.words[:40]), row, row.words)
    for likes in (pictures, sounds, texts):
        yield from likes.findings()
