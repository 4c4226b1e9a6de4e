"""Train or validation by the hash of a group: nothing moves when rows are added, and nothing sits on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from muomni.data.sample import Sample, Split


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


def leaks(train: Sequence[Sample], valid: Sequence[Sample], content: Callable[[Sample], Iterable[str]] | None = None) -> Leaks:
    """What both sides share: ids, groups, media files and, where `content` gives the hashes of a sample, contents."""
    return Leaks(
        ids=_shared(train, valid, lambda s: [s.id]),
        groups=_shared(train, valid, lambda s: [s.group]),
        paths=_shared(train, valid, lambda s: [part.path for part in s.media]),
        contents=_shared(train, valid, content) if content is not None else [],
    )


def _shared(train: Sequence[Sample], valid: Sequence[Sample], keys: Callable[[Sample], Iterable[Hashable]]) -> list[str]:
    ours = {key for sample in train for key in keys(sample)}
    return sorted({str(key) for sample in valid for key in keys(sample) if key in ours})
