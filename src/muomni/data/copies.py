"""Equal media files under two names on both sides of a split, found at a bounded cost.

A file is told from others by its size, which costs a look at its entry. Only where a size stands on both
sides under different names are three short stretches of it read, and only where these are equal too is it
read whole, once a process for as long as it stays as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from muomni import files
from muomni.data.sample import AudioPart, ImagePart, Sample
from muomni.errors import DataError
from muomni.media import stored

STRETCH_BYTES = 4096
UNKNOWN = -1  # the size of what can't be looked at: its reader will say why


class CopyFinder:
    """Takes samples before their sides are known, and holds a few bytes of each medium."""

    def __init__(self) -> None:
        self._sizes, self._names, self._owners = array("q"), array("q"), array("I")
        self._size = lru_cache(maxsize=512)(_size)  # rows of one medium often follow one another

    def add(self, media: Sequence[ImagePart | AudioPart], owner: int) -> None:
        """The media of one more sample, the `owner`th of all."""
        for part in media:
            self._sizes.append(self._size(part.path))
            self._names.append(hash(part.path))
            self._owners.append(owner)

    def found(
        self, is_valid: NDArray[np.bool_], train: Sequence[Sample], valid: Sequence[Sample]
    ) -> list[str]:
        """`VALID holds the bytes of TRAIN` for each medium of validation whose bytes training has under
        another name."""
        sizes, names = np.frombuffer(self._sizes, np.int64), np.frombuffer(self._names, np.int64)
        owners = np.frombuffer(self._owners, np.uint32)
        side = is_valid[owners]
        shared = np.intersect1d(sizes[side], sizes[~side])
        chosen = np.flatnonzero(np.isin(sizes, shared) & (sizes > 0))
        chosen = chosen[_has_company(sizes[chosen], names[chosen])]
        places = np.where(is_valid, np.cumsum(is_valid), np.cumsum(~is_valid)) - 1  # of a sample on its side
        chosen_names = {int(name) for name in names[chosen]}
        paths: dict[bool, dict[str, int]] = {False: {}, True: {}}
        for held_out, samples in ((False, train), (True, valid)):
            here = chosen[side[chosen] == held_out]
            _, first = np.unique(names[here], return_index=True)  # one sample that holds it, of each name
            for owner in np.unique(owners[here[first]]).tolist():
                media = samples[int(places[owner])].media
                paths[held_out].update(
                    (part.path, _size(part.path)) for part in media if hash(part.path) in chosen_names
                )
        return sorted(_pairs(paths[False], paths[True]))


def _has_company(sizes: NDArray[np.int64], names: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where another name has the size."""
    order = np.lexsort((names, sizes))
    sizes, names = sizes[order], names[order]
    is_first = np.r_[True, sizes[1:] != sizes[:-1]][: len(sizes)]
    run = np.cumsum(is_first) - 1
    is_new = is_first | np.r_[True, names[1:] != names[:-1]][: len(sizes)]
    several = np.bincount(run, weights=is_new, minlength=1) > 1
    out = np.empty(len(sizes), bool)
    out[order] = several[run]
    return out


def _pairs(train: dict[str, int], valid: dict[str, int]) -> Iterator[str]:
    """Media of validation beside those of training that hold their bytes: told apart by size, then by
    stretches, then by all they hold."""
    groups = [([*train], [path for path in valid if path not in train])]
    sizes = train | valid
    for key in (sizes.__getitem__, _stretches, partial(stored.digest, of_file=files.sha256_once)):
        groups = [parts for group in groups for parts in _parted(*group, key)]
    for ours, theirs in groups:
        yield from (f"{_shown(path)} holds the bytes of {_shown(ours[0])}" for path in theirs)


def _parted(
    train: list[str], valid: list[str], key: Callable[[str], Hashable]
) -> Iterator[tuple[list[str], list[str]]]:
    """Those of both sides that agree in something, where both sides have such; what can't be read agrees with
    nothing."""
    sides: dict[Hashable, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for number, paths in enumerate((valid, train)):
        for path in paths:
            with contextlib.suppress(OSError, DataError):
                sides[key(path)][1 - number].append(path)
    return ((ours, theirs) for ours, theirs in sides.values() if ours and theirs)


def _size(path: str) -> int:
    """Bytes of a medium."""
    try:
        size = stored.size(path)
        return size if size is not None else os.stat(path).st_size
    except (OSError, ValueError, DataError):
        return UNKNOWN


def _stretches(path: str) -> bytes:
    """A digest of the beginning, the middle and the end of a medium."""
    digest = hashlib.blake2b(digest_size=16)
    size = stored.size(path)
    if size is not None:
        for place in _places(size):
            digest.update(stored.stretch(path, place, STRETCH_BYTES) or b"")
        return digest.digest()
    with open(path, "rb", buffering=0) as stream:
        for place in _places(os.fstat(stream.fileno()).st_size):
            stream.seek(place)
            digest.update(stream.read(STRETCH_BYTES))
    return digest.digest()


def _places(size: int) -> list[int]:
    last = max(0, size - STRETCH_BYTES)
    return sorted({0, last // 2, last})


def _shown(path: str) -> str:
    return stored.shown(path)
