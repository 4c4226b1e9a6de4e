"""What `data check` tells of rows together, against a plain twin that walks row by row and keeps every row in
a dict."""

from __future__ import annotations

import hashlib
import random
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from muomni.data.check import duplicates, near_duplicates
from muomni.data.check.findings import Finding
from muomni.data.check.media_stats import MediaStats
from muomni.data.check.rows import AT_ITS_MEDIUM, Row, Rows
from muomni.data.sample import AudioPart, ImagePart, Message, Sample, TextPart

Keys = list[tuple[Hashable, str]]  # what is compared, and how people read it
WORDS = "red blue green circle square star ring left right under over two three seven bird house tree road".split()  # noqa: SIM905


def find(rows: Sequence[Row]) -> Iterator[Finding]:
    """Every duplicate id, duplicate sample, leak and likeness among rows that know their side."""
    yield from _duplicates(rows)
    yield from _copies(rows)
    yield from _leaks(rows)
    yield from _near(rows)


class DictNearTexts:
    """Which of the texts seen so far say all but the same: equal but for case and punctuation, or four fifths
    of their word triples shared.

    Source  Broder 1997 (shingles), by 64 minimal hashes in 16 bands.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._factors = rng.integers(1, 2**63, near_duplicates.HASHES, dtype=np.uint64) | np.uint64(1)
        self._offsets = rng.integers(0, 2**63, near_duplicates.HASHES, dtype=np.uint64)
        self._plain: dict[bytes, int] = {}
        self._buckets: defaultdict[bytes, list[int]] = defaultdict(list)
        self._signatures: dict[int, NDArray[np.uint32]] = {}
        self._count = 0

    def add(self, text: str) -> list[int]:
        """The numbers (in the order of adding, from 0) of those like it; then it is one of them."""
        number, self._count = self._count, self._count + 1
        words = re.findall(r"\w+", text.casefold())
        plain = " ".join(words).encode(errors="replace")
        if not plain:
            return []
        first = self._plain.setdefault(hashlib.sha256(plain).digest(), number)
        if first != number:
            return [first]
        if len(words) < near_duplicates.LEAST_WORDS:
            return []
        signature = self._signature(words[: near_duplicates.MOST_WORDS])
        found: set[int] = set()
        for band in range(near_duplicates.HASHES // near_duplicates.ROWS):
            bucket = self._buckets[
                bytes([band])
                + signature[band * near_duplicates.ROWS : (band + 1) * near_duplicates.ROWS].tobytes()
            ]
            found.update(bucket[-near_duplicates.CROWD :])
            bucket.append(number)
        self._signatures[number] = signature
        return [
            other
            for other in sorted(found)
            if float(np.mean(self._signatures[other] == signature)) >= near_duplicates.TEXT_LIKE
        ]

    def _signature(self, words: list[str]) -> NDArray[np.uint32]:
        triples = {
            " ".join(words[i : i + near_duplicates.SHINGLE_WORDS])
            for i in range(len(words) - near_duplicates.SHINGLE_WORDS + 1)
        }
        hashes = np.array(
            [zlib.crc32(triple.encode(errors="replace")) for triple in triples], dtype=np.uint64
        )
        mixed = (hashes[None, :] * self._factors[:, None] + self._offsets[:, None]) >> np.uint64(32)
        return np.asarray(mixed.min(axis=1), dtype=np.uint32)


def _duplicates(rows: Sequence[Row]) -> Iterator[Finding]:
    contents: dict[str, Row] = {}
    ids: dict[tuple[str, str], Row] = {}
    for row in rows:
        first = contents.setdefault(row.content, row)
        if first is not row:
            yield Finding("duplicate", row.where, "the same content as another row", other=first.where)
        namesake = ids.setdefault(
            (row.where.rpartition(":")[0], row.sample.id), row
        )  # two manifests may both count from 0
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
    yield from _shared(
        rows, "leak_content", "content", lambda row: [key for key in _contents(row) if key[1] not in paths]
    )


def _paths(row: Row) -> Keys:
    return [(medium.name, medium.name) for medium in row.media if not medium.name.startswith("data:")]


def _contents(row: Row) -> Keys:
    """Each medium's bytes, or, where there is none, all that is said."""
    return [(medium.key, medium.name) for medium in row.media] or [(row.content, row.words[:60])]


def _shared(rows: Sequence[Row], reason: str, kind: str, keys: Callable[[Row], Keys]) -> Iterator[Finding]:
    """One finding for each key that both sides have, at its first row of validation, with its first row of
    training."""
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
    """All things of one kind, each with its name, the first row on either side that uses it, and the earlier
    ones that are like it."""

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
                yield next(
                    (leak for other in near if (leak := self._leak(number, other))), None
                ) or self._twice(number, near[0])

    def _leak(self, number: int, other: int) -> Finding | None:
        for side, row in self.sides[number].items():
            across = self.sides[other].get("train" if side == "valid" else "valid")
            if across is not None:
                what = f"{self.kind} {self.names[number]} ({side}) is all but the same as {self.names[other]} ({across.side})"
                return Finding(
                    "leak_near", row.where, what, "on one side of the split", self.names[number], across.where
                )
        return None

    def _twice(self, number: int, other: int) -> Finding:
        row, first = next(iter(self.sides[number].values())), next(iter(self.sides[other].values()))
        what = f"{self.kind} {self.names[number]} is all but the same as {self.names[other]}"
        return Finding(
            "near_duplicate", row.where, what, f"another {self.kind}", self.names[number], first.where
        )


def _near(rows: Sequence[Row]) -> Iterator[Finding]:
    """Likenesses between media, and between texts that stand alone."""
    pictures = _Likes("picture", near_duplicates.near_pictures().add)
    sounds = _Likes("sound", near_duplicates.near_sounds().add)
    texts = _Likes("text", DictNearTexts().add)
    for row in rows:
        for medium in row.media:
            if medium.vector is not None:
                likes = sounds if medium.kind == "audio" else pictures
                likes.use(medium.key, medium.name, row, medium.vector, medium.seconds)
        if not row.media:
            texts.use(row.content, repr(row.words[:40]), row, row.words)
    for likes in (pictures, sounds, texts):
        yield from likes.findings()


def media(rng: random.Random) -> list[MediaStats]:
    """Pictures and sounds, some of the same bytes under two names, some with windows, some all but alike."""
    made = []
    noise = np.random.default_rng(rng.randrange(1000)).normal(0, 12, (4, 768)).astype(np.int8)
    lengths = [rng.choice([1.0, 1.01, 2.0]) for _ in range(6)]
    for number in range(rng.randint(1, 8)):
        digest = rng.randint(0, 5)  # the same bytes are the same sound or picture
        is_sound = digest % 2 == 1
        window = (rng.choice([None, 0.5]), 1.0) if is_sound and rng.random() < 0.4 else (None, None)
        name = rng.choice([f"/a/{number}", f"/a/{rng.randint(0, 3)}", "data:audio/wav;base64,xx..."])
        vector = None if digest == 4 else noise[digest % 4 // 2 * 2]
        shape = {"rate_hz": 16000, "seconds": lengths[digest]} if is_sound else {"size": (8, 8)}
        made.append(
            MediaStats(
                name, "audio" if is_sound else "image", f"digest{digest}", *window, vector=vector, **shape
            )
        )
    return made


def words(rng: random.Random) -> str:
    spoken = [rng.choice(WORDS) for _ in range(rng.choice([2, 3, 14, 30]))]
    return " ".join(spoken)


def row(
    rng: random.Random, number: int, known: list[MediaStats], earlier: list[Sample]
) -> tuple[Row, list[int]]:
    if earlier and rng.random() < 0.3:  # almost another's words
        said = rng.choice(earlier).text or words(rng)
        said = rng.choice([said, said.title() + "!", said.replace("red", "pale", 1), said + " more"])
    else:
        said = words(rng)
    name, group = str(rng.choice([number, rng.randint(0, 12)])), f"g{rng.randint(0, 6)}"
    if rng.random() < 0.5 or not known:
        sample = Sample(id=name, group=group, task="text", text=said)
        return Row(sample, ""), []
    used = [rng.randrange(len(known)) for _ in range(rng.choice([1, 1, 2]))]
    parts = [
        (AudioPart if known[each].kind == "audio" else ImagePart)(path=known[each].name) for each in used
    ]
    turns = [Message(role="user", content=parts), Message(role="assistant", content=[TextPart(text=said)])]
    sample = Sample(id=name, group=group, task="t", messages=turns)
    return Row(sample, "", [known[each] for each in used]), used


@pytest.mark.parametrize("seed", range(60))
def test_rows_by_their_hashes_are_told_as_rows_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    known = media(rng)
    rows, texts = Rows(["hearing", "vision"]), near_duplicates.NearTexts()
    rows.media.extend(known)
    plain: list[Row] = []
    earlier: list[Sample] = []
    for manifest in range(rng.randint(1, 3)):
        rows.begin(f"/m{manifest}.jsonl")
        for line in range(1, rng.randint(2, 30)):
            one, used = row(rng, line, known, earlier)
            has_line = manifest < 2
            if not has_line and (not used or one.sample.media[0].path.startswith("data:")):
                continue  # the last is a folder of classes
            earlier.append(one.sample)
            one.where = f"/m{manifest}.jsonl:{line}" if has_line else one.sample.media[0].path
            one.stages = tuple(stage for stage in ("hearing", "vision") if rng.random() < 0.5)
            rows.add(one, line if has_line else AT_ITS_MEDIUM, used)
            if not used:
                texts.add(one.words)
            plain.append(one)
    sides = np.array([rng.random() < 0.3 for _ in plain], bool)
    for one, is_valid in zip(plain, sides.tolist(), strict=True):
        one.side = "valid" if is_valid else "train"
    rows.close(sides)
    assert list(rows) == plain
    assert [rows.where(number) for number in range(len(rows))] == [one.where for one in plain]
    assert Counter(duplicates.find(rows, texts)) == Counter(find(plain))


def test_the_twins_tell_something_of_every_kind() -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
        rng = random.Random(seed)
        known = media(rng)
        earlier: list[Sample] = []
        plain = []
        for line in range(1, 40):
            one, _ = row(rng, line, known, earlier)
            earlier.append(one.sample)
            one.where, one.side = f"/m.jsonl:{line}", "valid" if rng.random() < 0.3 else "train"
            plain.append(one)
        seen.update(finding.reason for finding in find(plain))
    kinds = {
        "duplicate",
        "duplicate_id",
        "duplicate_file",
        "leak_id",
        "leak_group",
        "leak_path",
        "leak_content",
        "leak_near",
        "near_duplicate",
    }
    assert set(seen) == kinds


@pytest.mark.parametrize("seed", range(20))
def test_texts_at_once_are_as_texts_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    twin, index = DictNearTexts(), near_duplicates.NearTexts()
    texts: list[str] = []
    for _ in range(200):
        said = rng.choice(texts) if texts and rng.random() < 0.6 else words(rng)
        for _ in range(rng.choice([0, 0, 1, 3])):
            said = said.replace(rng.choice(WORDS), rng.choice(WORDS), 1)
        texts.append(rng.choice([said, said.upper(), "...", said]))
    for text in texts:
        index.add(text)
    assert dict(index.near()) == {
        number: near for number, text in enumerate(texts) if (near := twin.add(text))
    }
