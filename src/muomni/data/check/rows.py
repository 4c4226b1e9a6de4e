"""Valid rows of a data set under check: samples in a file, and a few numbers of each row for comparisons."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from muomni.data.check.media_stats import MediaStats
from muomni.data.indexed import Samples, Writer
from muomni.data.sample import Sample
from muomni.data.uses import Shape, shape

Ints = NDArray[np.int64]
AT_ITS_MEDIUM = -1  # the line of a row whose place is its first medium


@dataclass
class Row:
    """A good row: its sample, its place (file:line), the media that it uses, in their order, and the stages
    that can learn from it."""

    sample: Sample
    where: str
    media: list[MediaStats] = field(default_factory=list)
    side: str = "train"
    stages: tuple[str, ...] = ()
    texts: list[str] = field(init=False)  # the words of each turn, or those of the document
    shape: Shape = field(init=False)  # what of the sample decides who can learn from it

    def __post_init__(self) -> None:
        sample = self.sample
        self.texts = (
            [sample.text] if sample.text is not None else [message.text for message in sample.messages]
        )
        self.shape = shape(sample)

    @property
    def content(self) -> int:
        """Hash of what the sample shows and says, whatever its id and file names; the same within a
        process."""
        roles = [message.role for message in self.sample.messages]
        return hash((self.sample.text, *zip(roles, self.texts), *[medium.key for medium in self.media]))

    @property
    def words(self) -> str:
        """All that is said in it."""
        return " ".join(self.texts)


class Rows(Sequence[Row]):
    """Rows by number, each made anew when it is asked for; some 60 bytes of each are held, and every medium.

    media       each that a row uses, once
    contents, ids, groups, manifests  hashes of these, and the number of the manifest, (rows,)
    is_valid    (rows,), once `close` was told
    """

    def __init__(self, stages: Sequence[str]) -> None:
        self.media: list[MediaStats] = []
        self._stages = list(stages)
        self._bits: dict[tuple[str, ...], int] = {}
        self._writer = Writer()
        self._samples: Samples | None = None
        self._places: list[str] = []  # the listing of each manifest
        self._manifests, self._lines, self._masks = array("I"), array("q"), array("I")
        self._contents, self._ids, self._groups = array("q"), array("q"), array("q")
        self._used, self._stops = array("I"), array("q", [0])  # the media of each row
        self.is_valid: NDArray[np.bool_] = np.array([], bool)

    def begin(self, listing: str) -> None:
        """What is added from here on stands in this file."""
        self._places.append(listing)

    def add(self, row: Row, line: int, media: Sequence[int]) -> None:
        """One more.

        Takes   line: AT_ITS_MEDIUM where it has none; media: its media by their numbers.
        """
        self._writer.add(row.sample)
        self._manifests.append(len(self._places) - 1)
        self._lines.append(line)
        if row.stages not in self._bits:
            self._bits[row.stages] = sum(1 << self._stages.index(stage) for stage in row.stages)
        self._masks.append(self._bits[row.stages])
        self._contents.append(row.content)
        self._ids.append(hash(row.sample.id))
        self._groups.append(hash(row.sample.group))
        self._used.extend(media)
        self._stops.append(len(self._used))

    def close(self, is_valid: NDArray[np.bool_]) -> None:
        """No more is added; from here on rows can be asked for."""
        self._samples, self.is_valid = self._writer.close(), is_valid

    @property
    def contents(self) -> Ints:
        """Hashes of what rows show and say."""
        return np.frombuffer(self._contents, np.int64)

    @property
    def ids(self) -> Ints:
        """Hashes of ids."""
        return np.frombuffer(self._ids, np.int64)

    @property
    def manifests(self) -> Ints:
        """The manifest of each, by its number."""
        return np.frombuffer(self._manifests, np.uint32).astype(np.int64)

    @property
    def groups(self) -> Ints:
        """Hashes of groups."""
        return np.frombuffer(self._groups, np.int64)

    def used(self) -> tuple[Ints, Ints]:
        """Each use of a medium: the medium's number and the row's, in the order of the rows."""
        stops: Ints = np.frombuffer(self._stops, np.int64)
        owners = np.repeat(np.arange(len(self)), stops[1:] - stops[:-1])
        return np.frombuffer(self._used, np.uint32).astype(np.int64), owners

    def where(self, number: int) -> str:
        """`file:line` of a row, or its first medium."""
        if self._lines[number] == AT_ITS_MEDIUM:
            return self[number].sample.media[0].path
        return f"{self._places[self._manifests[number]]}:{self._lines[number]}"

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        assert self._samples is not None, "rows are still being added"
        return self._made(int(index), self._samples[int(index)])

    def __iter__(self) -> Iterator[Row]:
        assert self._samples is not None, "rows are still being added"
        for number, sample in enumerate(self._samples):
            yield self._made(number, sample)

    def _made(self, number: int, sample: Sample) -> Row:
        line = self._lines[number]
        where = (
            sample.media[0].path
            if line == AT_ITS_MEDIUM
            else f"{self._places[self._manifests[number]]}:{line}"
        )
        media = [self.media[each] for each in self._used[self._stops[number] : self._stops[number + 1]]]
        stages = tuple(stage for bit, stage in enumerate(self._stages) if self._masks[number] >> bit & 1)
        return Row(sample, where, media, "valid" if self.is_valid[number] else "train", stages)


class Usable(Sequence[dict[str, Any]]):
    """Of each good row where it is, its id and the stages that can learn from it."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [_to_json(row) for row in self._rows[index]]
        return _to_json(self._rows[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(_to_json, self._rows)


def _to_json(row: Row) -> dict[str, Any]:
    return {"where": row.where, "id": row.sample.id, "stages": list(row.stages)}
