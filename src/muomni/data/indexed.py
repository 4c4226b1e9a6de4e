"""Samples in a file, one a line, parsed on access: a few bytes of memory a sample, for a corpus of any size.

The file has no name and lies in the temporary folder: loader workers share it, and it ends with the last
process that has it open.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import reduction
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from muomni.data.sample import Sample
from muomni.errors import UserError

BUFFER_BYTES = 1 << 20
AT_ONCE = 256  # lines that a walk through all samples reads at once, where they lie in a row


@contextlib.contextmanager
def seldom_collected() -> Iterator[None]:
    """While many samples are made or encoded: none holds a cycle, so Python looks for cycles a thirtieth as
    often.

    That took 8 % of a check, and 30 % of encoding where torch's 200,000 objects are looked through each time.
    """
    before = gc.get_threshold()
    gc.set_threshold(20_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class Writer:
    """Takes samples one after another; `close` gives them as a sequence."""

    def __init__(self) -> None:
        self._stream = tempfile.TemporaryFile(buffering=BUFFER_BYTES)  # noqa: SIM115  (`close` ends it)
        self._starts = array("q", [0])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, sample: Sample) -> None:
        """One more.

        Raises  UserError where the temporary folder is full.
        """
        line = sample.__pydantic_serializer__.to_json(sample)  # what `model_dump_json` decodes
        try:
            self._stream.write(line)
        except OSError as error:
            raise _no_room(error) from error
        self._starts.append(self._starts[-1] + len(line))

    def close(self) -> Samples:
        """All that were added, in their order."""
        try:
            with self._stream as stream:
                stream.flush()
                return Samples(_File(os.dup(stream.fileno())), np.array(self._starts, np.int64))
        except OSError as error:
            raise _no_room(error) from error


class Samples(Sequence[Sample]):
    """Samples of a file by number, all of them or a choice: each is parsed anew, so that none is held, and
    none can be changed."""

    def __init__(
        self, file: _File, starts: NDArray[np.int64], numbers: NDArray[np.integer[Any]] | None = None
    ) -> None:
        """Open samples.

        Takes   starts (lines + 1,): where each line begins, and where the last ends; numbers: the lines that
                count, None: all.
        """
        self._file, self._starts, self._numbers = file, starts, numbers

    def __len__(self) -> int:
        return len(self._starts) - 1 if self._numbers is None else len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Sample | Samples:
        if isinstance(index, slice):
            return self.pick(range(*index.indices(len(self))))
        place = int(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"sample {place} of {len(self)}")
        line = int(self._lines(np.array([place % len(self)]))[0])
        return Sample.model_validate_json(
            self._file.read(int(self._starts[line]), int(self._starts[line + 1]))
        )

    def __iter__(self) -> Iterator[Sample]:
        return map(Sample.model_validate_json, self.lines())

    def lines(self) -> Iterator[bytes]:
        """Each sample as JSON."""
        for first in range(0, len(self), AT_ONCE):
            lines = self._lines(np.arange(first, min(first + AT_ONCE, len(self))))
            starts, stops = self._starts[lines], self._starts[lines + 1]
            # Lines of both sides of a split are mixed: they are read in one piece where little lies between
            # them.
            if 0 <= stops[-1] - starts[0] <= 2 * int((stops - starts).sum()):
                base = int(starts[0])
                piece = self._file.read(base, int(stops[-1]))
                for start, stop in zip((starts - base).tolist(), (stops - base).tolist(), strict=True):
                    yield piece[start:stop]
            else:
                for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                    yield self._file.read(start, stop)

    def pick(self, places: Sequence[int] | NDArray[Any]) -> Samples:
        """Those at the given places, in their order."""
        chosen = self._lines(np.asarray(places, np.int64))
        return Samples(
            self._file, self._starts, chosen.astype(np.int32 if len(self._starts) < 2**31 else np.int64)
        )

    def _lines(self, places: NDArray[np.int64]) -> NDArray[np.integer[Any]]:
        return places if self._numbers is None else self._numbers[places].astype(np.int64)


class _File:
    """An open file that is read by place; pickled for a worker that is not forked, it is the same file."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._handle)

    def __reduce__(self) -> tuple[Callable[..., _File], tuple[Any]]:
        return _same, (reduction.DupFd(self._handle),)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes in between; a call gives at most 2 GiB."""
        content = os.pread(self._handle, stop - start, start)
        while len(content) < stop - start:
            more = os.pread(self._handle, stop - start - len(content), start + len(content))
            assert more, "the file is shorter than its index"
            content += more
        return content


def pick(samples: Sequence[Sample], places: Sequence[int] | NDArray[Any]) -> Sequence[Sample]:
    """Those at the given places: a view where they lie in a file, else a list."""
    return samples.pick(places) if isinstance(samples, Samples) else [samples[int(place)] for place in places]


def lines(samples: Sequence[Sample]) -> Iterator[bytes]:
    """Each sample as JSON, as it lies in the file where it does."""
    return (
        samples.lines()
        if isinstance(samples, Samples)
        else (sample.model_dump_json().encode() for sample in samples)
    )


def rows(samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    """Each sample as JSON says it: for a walk through many, a third of the time that samples take."""
    return map(from_json, lines(samples))


def texts(samples: Sequence[Sample]) -> Iterator[str | Sample]:
    """The text of each document, and any other sample whole."""
    if not isinstance(samples, Samples):
        yield from (sample if sample.text is None else sample.text for sample in samples)
        return
    for line in samples.lines():
        text = from_json(line)["text"]
        yield Sample.model_validate_json(line) if text is None else text


def where(samples: Sequence[Sample], holds: Callable[[Sample], bool]) -> Sequence[Sample]:
    """Those of which something holds, found in one walk."""
    return pick(samples, np.array([place for place, sample in enumerate(samples) if holds(sample)], np.int64))


def _same(handle: Any) -> _File:
    return _File(handle.detach())


def _no_room(error: OSError) -> UserError:
    return UserError(
        f"{tempfile.gettempdir()}: expected room for the samples, got {error.strerror}",
        hint="set TMPDIR to a folder with more",
    )
