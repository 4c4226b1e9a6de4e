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
    """A good row: its sample, its place (file:line), and the media that it uses, in their order."""

    sample: Sample
    where: str
    media: list[Medium] = field(default_factory=list)
    side: str = "train"

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


class _Users:
    """The rows that use each of several media, or have each of several texts: the first on either side is enough."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sides: list[dict[str, Row]] = []

    def __len__(self) -> int:
        return len(self.names)


def _near(rows: Sequence[Row]) -> Iterator[Finding]:
    """Likenesses between media and between texts that stand alone."""
    pictures, sounds, texts = likeness.near_pictures(), likeness.near_sounds(), likeness.NearTexts()
    users = {"picture": _Users(), "sound": _Users(), "text": _Users()}
    places: dict[Hashable, tuple[_Users, int]] = {}
    found: list[tuple[str, int, list[int]]] = []
    for row in rows:
        for medium in row.media:
            kind = "sound" if medium.is_sound else "picture"
            if medium.vector is None:
                continue
            if medium.key not in places:
                near = sounds.add(medium.vector, medium.seconds) if medium.is_sound else pictures.add(medium.vector)
                found.append((kind, len(users[kind]), near))
                places[medium.key] = _enter(users[kind], medium.name)
            _use(places[medium.key], row)
        if not row.media and (row.content, "text") not in places:
            found.append(("text", len(users["text"]), texts.add(row.words)))
            places[row.content, "text"] = _enter(users["text"], repr(row.words[:40]))
        if not row.media:
            _use(places[row.content, "text"], row)
    for kind, number, near in found:
        yield from _pairs(kind, users[kind], number, near)


def _enter(users: _Users, name: str) -> tuple[_Users, int]:
    users.names.append(name)
    users.sides.append({})
    return users, len(users) - 1


def _use(place: tuple[_Users, int], row: Row) -> None:
    users, number = place
    users.sides[number].setdefault(row.side, row)


def _pairs(kind: str, users: _Users, number: int, near: list[int]) -> Iterator[Finding]:
    """One finding for a medium that is like earlier ones: the leak if there is one."""
    ours = users.sides[number]
    for other in near:
        theirs = users.sides[other]
        for side, row in ours.items():
            across = theirs.get("train" if side == "valid" else "valid")
            if across is not None:
                what = f"{kind} {users.names[number]} ({side}) is all but the same as {users.names[other]} ({across.side})"
                yield Finding("leak_near", row.where, what, "on one side of the split", users.names[number], across.where)
                return
    if near:
        row, first = next(iter(ours.values())), next(iter(users.sides[near[0]].values()))
        what = f"{kind} {users.names[number]} is all but the same as {users.names[near[0]]}"
        yield Finding("near_duplicate", row.where, what, f"another {kind}", users.names[number], first.where)
