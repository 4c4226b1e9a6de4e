"""Train or validation by the hash of a group: nothing moves when rows are added, and nothing sits on both sides."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from muomni.data.copies import CopyFinder
from muomni.data.sample import Sample, Split


@lru_cache(maxsize=512)  # rows of a group often follow one another
def place(group: str, seed: int) -> float:
    """Where a group stands in [0, 1): a hash, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\0{group}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign(group: str, val_split: float, seed: int) -> Split:
    """`valid` for about val_split of all groups. A group's side depends on nothing but its name and the seed."""
    return "valid" if place(group, seed) < val_split else "train"


@dataclass(frozen=True)
class Leaks:
    """What stands on both sides of a split, by the way it was noticed."""

    ids: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.ids or self.groups or self.paths or self.contents)

    def __str__(self) -> str:
        kinds = (("ids", self.ids), ("groups", self.groups), ("media", self.paths), ("contents", self.contents))
        return ", ".join(f"{len(found)} {name} (e.g. {found[0]})" for name, found in kinds if found) or "none"


# What must not stand on both sides, by the name that it has in `Leaks`.
KEYS: dict[str, Callable[[Sample], list[str]]] = {
    "ids": lambda sample: [sample.id],
    "groups": lambda sample: [sample.group],
    "paths": lambda sample: [part.path for part in sample.media],
}


def leaks(train: Sequence[Sample], valid: Sequence[Sample], content: Callable[[Sample], Iterable[str]] | None = None) -> Leaks:
    """What both sides share: ids, groups, media files and, where `content` gives the hashes of a sample, contents."""
    kinds = KEYS if content is None else {**KEYS, "contents": content}
    return Leaks(**{name: _shared(train, valid, keys) for name, keys in kinds.items()})


def _shared(train: Sequence[Sample], valid: Sequence[Sample], keys: Callable[[Sample], Iterable[Hashable]]) -> list[str]:
    ours = {key for sample in train for key in keys(sample)}
    return sorted({str(key) for sample in valid for key in keys(sample) if key in ours})


class LeakFinder:
    """`leaks` in one pass, with what files hold: it takes samples before their sides are known and holds a few bytes of each key."""

    def __init__(self) -> None:
        self._copies = CopyFinder()
        self._hashes = {name: array("q") for name in KEYS}
        self._owners = {name: array("I") for name in KEYS}
        self._count = 0

    def add(self, sample: Sample) -> set[str]:
        """One more sample; the modalities that it holds."""
        media = sample.media
        for name, keys in KEYS.items():
            found = keys(sample)
            self._hashes[name].extend(map(hash, found))
            self._owners[name].extend([self._count] * len(found))
        if media:
            self._copies.add(media, self._count)
        self._count += 1
        return {part.type for part in media} or {"text"}

    def found(self, is_valid: NDArray[np.bool_], train: Sequence[Sample], valid: Sequence[Sample]) -> Leaks:
        """What both sides share; the samples are walked through again only where hashes meet."""
        shared: dict[str, list[str]] = {}
        for name, keys in KEYS.items():
            hashes = np.frombuffer(self._hashes[name], np.int64)
            side = is_valid[np.frombuffer(self._owners[name], np.uint32)]
            met = set(np.intersect1d(hashes[side], hashes[~side]).tolist())
            shared[name] = _shared(train, valid, lambda s, keys=keys, met=met: [k for k in keys(s) if hash(k) in met]) if met else []  # type: ignore[misc]
        return Leaks(**shared, contents=self._copies.found(is_valid, train, valid))
