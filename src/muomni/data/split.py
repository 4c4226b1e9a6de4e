"""Train or validation by the hash of a group: nothing moves when rows are added, and nothing sits on both
sides."""

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
    """`valid` for about val_split of all groups. A group's side depends on nothing but its name and the
    seed."""
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
        kinds = (
            ("ids", self.ids),
            ("groups", self.groups),
            ("media", self.paths),
            ("contents", self.contents),
        )
        return (
            ", ".join(f"{len(values)} {name} (e.g. {values[0]})" for name, values in kinds if values)
            or "none"
        )


# What must not stand on both sides, by the name that it has in `Leaks`.
KEYS: dict[str, Callable[[Sample], list[str]]] = {
    "ids": lambda sample: [sample.id],
    "groups": lambda sample: [sample.group],
    "paths": lambda sample: [part.path for part in sample.media],
}


def leaks(
    train: Sequence[Sample], valid: Sequence[Sample], content: Callable[[Sample], Iterable[str]] | None = None
) -> Leaks:
    """What both sides share: ids, groups, media files and, where `content` gives the hashes of a sample,
    contents."""
    kinds = KEYS if content is None else {**KEYS, "contents": content}
    return Leaks(**{name: _shared(train, valid, keys) for name, keys in kinds.items()})


def _shared(
    train: Sequence[Sample], valid: Sequence[Sample], keys: Callable[[Sample], Iterable[Hashable]]
) -> list[str]:
    ours = {key for sample in train for key in keys(sample)}
    return sorted({str(key) for sample in valid for key in keys(sample) if key in ours})


class LeakFinder:
    """`leaks` in one pass, with what files hold: it takes samples before their sides are known and holds a
    few bytes of each key.

    modalities  what the samples hold: image, audio, text (no media)
    """

    def __init__(self) -> None:
        self.modalities: set[str] = set()
        self._copies = CopyFinder()
        self._ids, self._groups, self._paths = array("q"), array("q"), array("q")  # hashes
        self._owners = array("I")  # of paths
        self._count = 0

    def add(self, sample: Sample) -> None:
        """One more sample."""
        self._ids.append(hash(sample.id))
        self._groups.append(hash(sample.group))
        if media := sample.media:
            for part in media:
                self._paths.append(hash(part.path))
                self._owners.append(self._count)
                self.modalities.add(part.type)
            self._copies.add(media, self._count)
        else:
            self.modalities.add("text")
        self._count += 1

    def found(self, is_valid: NDArray[np.bool_], train: Sequence[Sample], valid: Sequence[Sample]) -> Leaks:
        """What both sides share; the samples are walked through again only where hashes meet."""
        owners = np.frombuffer(self._owners, np.uint32)
        hashes = {
            "ids": (self._ids, is_valid),
            "groups": (self._groups, is_valid),
            "paths": (self._paths, is_valid[owners]),
        }
        shared: dict[str, list[str]] = {}
        for name, keys in KEYS.items():
            hashes_N, side = np.frombuffer(hashes[name][0], np.int64), hashes[name][1]
            met = set(np.intersect1d(hashes_N[side], hashes_N[~side]).tolist())

            def met_keys(
                sample: Sample, keys: Callable[[Sample], Iterable[Hashable]] = keys, met: set[int] = met
            ) -> list[Hashable]:
                return [key for key in keys(sample) if hash(key) in met]

            shared[name] = _shared(train, valid, met_keys) if met else []
        return Leaks(**shared, contents=self._copies.found(is_valid, train, valid))
