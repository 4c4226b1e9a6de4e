"""Cache of decoded media: one budget for all data sets of a process and all of its loader workers.

Records lie in a file without a name in the temporary folder. It ends with the last process that has it open,
workers share it, and reading copies one record at a time: no process holds the cache in its own memory, and
the kernel may write its pages out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muomni import runtime

Arrays = Sequence[NDArray[Any]]
DEFAULT_BYTES = 2 << 30  # at most, where nobody says how much
FREE_SHARE = 8  # and no more than an eighth of the memory, and of the disk, that is free
HEADER = struct.Struct("<QQ")  # bytes used, records
SLOT = struct.Struct("<16sQQ")  # the key's hash, where its record begins, its bytes; all zero where none is
PROBES = 8  # slots in a row in which a key may lie
SLOT_BYTES = (
    4096  # of the budget for each slot: there are more slots than records of pictures or sounds will fit
)
ALIGN = 16


class Cache:
    """Arrays by key, as many as a budget holds; the first ones stay. Several processes read and write it at
    once.

    Samples come in another random order each epoch: throwing out what was used longest ago would throw out
    what comes next.
    """

    def __init__(self, budget_bytes: int, *, handle: int | None = None) -> None:
        self.budget_bytes = budget_bytes
        self.slots = max(64, budget_bytes // SLOT_BYTES)
        self._first = HEADER.size + SLOT.size * (self.slots + PROBES)
        self._lock = threading.Lock()
        if handle is None:
            with tempfile.TemporaryFile() as stream:
                handle = os.dup(stream.fileno())
            os.ftruncate(handle, self._first)  # zeros, which take no room until they are written
        self._handle = handle

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._handle)

    def __reduce__(self) -> tuple[Callable[..., Cache], tuple[int, Any]]:
        return _same, (
            self.budget_bytes,
            reduction.DupFd(self._handle),
        )  # a worker that is not forked gets the same file

    def part(self) -> Part:
        """A part of the cache for one data set: its keys are none of the other parts'."""
        return Part(self, f"{os.getpid()}.{next(_parts)}")

    @property
    def used_bytes(self) -> int:
        """Bytes of the records."""
        return int(self._state()[0])

    @property
    def records(self) -> int:
        """How many records are kept."""
        return int(self._state()[1])

    def get(self, key: str, make: Callable[[], Arrays]) -> list[NDArray[Any]]:
        """The arrays of a key, made where they are not there yet; the caller may write into them.

        Raises  whatever `make` does; nothing is kept then.
        """
        name = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        stored = self._find(name)
        if stored is not None:
            return stored
        arrays = list(make())
        self._put(name, arrays)
        return arrays

    def _state(self) -> tuple[int, int]:
        used, records = HEADER.unpack(os.pread(self._handle, HEADER.size, 0))
        return used, records

    def _place(self, name: bytes) -> int:
        """Where the slots of a key begin."""
        return HEADER.size + SLOT.size * (int.from_bytes(name[:8], "little") % self.slots)

    def _find(self, name: bytes) -> list[NDArray[Any]] | None:
        for key, start, size in SLOT.iter_unpack(
            os.pread(self._handle, SLOT.size * PROBES, self._place(name))
        ):
            if key == name:
                record = bytearray(size)
                if os.preadv(self._handle, [record], start) == size and record[:16] == name:
                    return _unpack(record)
        return None

    def _put(self, name: bytes, arrays: Arrays) -> None:
        record = _pack(name, arrays)
        with self._locked():
            used, records = self._state()
            if used + len(record) > self.budget_bytes:
                return
            place = self._place(name)
            slots = list(SLOT.iter_unpack(os.pread(self._handle, SLOT.size * PROBES, place)))
            free = next((number for number, (_, _, size) in enumerate(slots) if not size), None)
            if free is None or any(key == name for key, _, _ in slots):  # another worker made it meanwhile
                return
            start = self._first + used
            try:
                _write(self._handle, record, start)
                _write(self._handle, HEADER.pack(used + len(record), records + 1), 0)
                _write(self._handle, SLOT.pack(name, start, len(record)), place + SLOT.size * free)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                self.budget_bytes = 0  # a full disk: what is kept stays, nothing more is

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among the threads of this process and among the processes."""
        with self._lock:
            fcntl.lockf(self._handle, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._handle, fcntl.LOCK_UN)


@dataclass(frozen=True)
class Part:
    """What one data set keeps in a cache."""

    cache: Cache
    name: str

    def get(self, key: object, make: Callable[[], Arrays]) -> list[NDArray[Any]]:
        """`Cache.get` of a key of this part."""
        return self.cache.get(f"{self.name}\0{key}", make)


_parts = itertools.count()
_current: Cache | None = None


def begin(budget_mb: int | None = None) -> Cache:
    """An empty cache for all data sets that are made from here on; the one before ends with its own.

    Takes   budget_mb: None for the default, 0 to keep nothing.
    """
    global _current
    _current = Cache(default_bytes() if budget_mb is None else budget_mb * 2**20)
    return _current


def shared() -> Cache:
    """The cache of this process."""
    return _current if _current is not None else begin()


def default_bytes() -> int:
    """The budget of a process: 2 GiB, where that is no more than an eighth of what is free, shared by the
    ranks of this machine."""
    free = min(runtime.free_memory_bytes(), shutil.disk_usage(tempfile.gettempdir()).free)
    return int(min(DEFAULT_BYTES, free // FREE_SHARE) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _same(budget_bytes: int, handle: Any) -> Cache:
    return Cache(budget_bytes, handle=handle.detach())


def _write(handle: int, content: bytes | bytearray, place: int) -> None:
    """All of the content; a disk that fills up may take a part of it first."""
    view = memoryview(content)
    while view:
        written = os.pwrite(handle, view, place)
        view, place = view[written:], place + written


def _pack(name: bytes, arrays: Arrays) -> bytearray:
    """A record: the key's hash, the length of a description, the description, then each array where it can be
    used as it lies."""
    about = json.dumps([[array.dtype.str, array.shape] for array in arrays]).encode()
    record = bytearray(name + struct.pack("<Q", len(about)) + about)
    for array in arrays:
        record += bytes(-len(record) % ALIGN)
        record += np.ascontiguousarray(array).tobytes()
    return record


def _unpack(record: bytearray) -> list[NDArray[Any]]:
    (length,) = struct.unpack_from("<Q", record, 16)
    place, arrays = 24 + length, []
    for kind, shape in json.loads(record[24:place]):
        place += -place % ALIGN
        count = int(np.prod(shape, dtype=np.int64))
        arrays.append(np.frombuffer(record, kind, count, place).reshape(shape))
        place += arrays[-1].nbytes
    return arrays
