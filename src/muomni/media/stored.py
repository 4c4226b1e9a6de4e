"""Where the bytes of a picture or sound lie: in a file of their own, in the manifest (`data:`), or within a
tar or parquet file.

A member of a container is named by its place in it, so that it can be read in any order, by any process,
without an index:
`shard-000.tar!OFFSET+SIZE!cat.jpg`, `train.parquet!ROWGROUP.ROW.ELEMENT.COLUMN!1f2e3d.png` (element -1 where
the column is no list).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from muomni import files
from muomni.errors import DataError, UserError

MEMBER = re.compile(
    r"(?P<container>.+?\.(?:tar|parquet))!(?:(?P<offset>\d+)\+(?P<size>\d+)|(?P<group>\d+)\.(?P<row>\d+)\.(?P<element>-1|\d+)\.(?P<column>[^!]*))"
    r"!(?P<name>.*)",
    re.DOTALL,
)
GROUPS_KEPT = 3  # columns of row groups in memory: a corpus in its order asks for one after another


def content(path: str) -> bytes | None:
    """The bytes of a medium that has no file of its own, None for the path of a file.

    Raises  DataError: undecodable (broken base64, a torn container), missing (the container).
    """
    if path.startswith("data:"):
        try:
            return base64.b64decode(path.partition(",")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError("undecodable", f"data URI: expected base64, got {path[:40]!r}...") from error
    member = _member(path)
    if member is None:
        return None
    try:
        if member["offset"] is not None:
            return _of_tar(member["container"], int(member["offset"]), int(member["size"]), path)
        return _of_parquet(member, path)
    except FileNotFoundError as error:
        raise DataError(
            "missing", f"{member['container']}: no such file, it holds {member['name'][-80:]}"
        ) from error
    except OSError as error:
        raise DataError(
            "undecodable", f"{member['container']}: can't be read: {error.strerror or error}"
        ) from error


def size(path: str) -> int | None:
    """Bytes of what `content` gives, without reading a tar; None for the path of a file. Raises DataError, as
    `content` does."""
    member = _member(path)
    if member is not None and member["size"] is not None:
        return int(member["size"])
    content_bytes = content(path)
    return None if content_bytes is None else len(content_bytes)


def stretch(path: str, start: int, count: int) -> bytes | None:
    """So many bytes of what `content` gives, from `start` on, as few as possible of a tar read; None for the
    path of a file."""
    member = _member(path)
    if member is not None and member["size"] is not None:
        return _of_tar(
            member["container"],
            int(member["offset"]) + start,
            min(count, max(0, int(member["size"]) - start)),
            path,
        )
    content_bytes = content(path)
    return None if content_bytes is None else content_bytes[start : start + count]


def digest(path: str, of_file: Callable[[Path], str] = files.sha256_file) -> str:
    """Hex sha256 of all that a medium holds, wherever it lies.

    Takes   of_file: what reads a file of its own; `files.sha256_once` remembers each for the whole process.

    Raises  DataError, as `content` does; OSError for a file that can't be read.
    """
    content_bytes = content(path)
    return of_file(Path(path)) if content_bytes is None else files.sha256_bytes(content_bytes)


def container(path: str) -> str | None:
    """The tar or parquet file that holds a medium; None for one that has a file of its own or stands in its
    manifest."""
    member = _member(path)
    return None if member is None else member["container"]


def identity(path: str) -> str:
    """What is the same for the same medium wherever its container lies inside: a tar's member by name, a
    parquet's by its bytes' hash."""
    member = _member(path)
    if member is None:
        return path
    return f"{member['container']}!{member['name']}" if member["offset"] is not None else member["name"]


def shown(path: str) -> str:
    """A medium's place as people should read it."""
    if path.startswith("data:"):
        return f"{path[:40]}..."
    member = _member(path)
    return path if member is None else f"{member['container']}!{member['name']}"


def in_tar(container: str, offset: int, size: int, name: str) -> str:
    """The path of a member of a tar."""
    return f"{container}!{offset}+{size}!{name}"


def in_parquet(container: str, group: int, row: int, element: int, column: str, name: str) -> str:
    """The path of a picture or sound in a parquet file."""
    return f"{container}!{group}.{row}.{element}.{column}!{name}"


def _member(path: str) -> re.Match[str] | None:
    return MEMBER.fullmatch(path) if "!" in path else None


def _of_tar(container: str, offset: int, count: int, path: str) -> bytes:
    with open(container, "rb", buffering=0) as stream:
        content_bytes = b""
        while len(content_bytes) < count and (
            more := os.pread(stream.fileno(), count - len(content_bytes), offset + len(content_bytes))
        ):
            content_bytes += more
    if len(content_bytes) < count:
        raise DataError(
            "undecodable", f"{shown(path)}: torn, expected {count} bytes, got {len(content_bytes)}"
        )
    return content_bytes


def _of_parquet(match: re.Match[str], path: str) -> bytes:
    status = os.stat(match["container"])
    column = _column(
        match["container"], status.st_size, status.st_mtime_ns, int(match["group"]), match["column"]
    )
    row, element = int(match["row"]), int(match["element"])
    value = column[row].as_py() if row < len(column) else None
    if element >= 0:
        value = value[element] if isinstance(value, list) and element < len(value) else None
    held = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(held, bytes):
        raise DataError(
            "undecodable",
            f"{shown(path)}: expected bytes in column {match['column']!r}, got {type(held).__name__}",
        )
    return held


@functools.lru_cache(maxsize=GROUPS_KEPT)
def _column(container: str, size: int, changed: int, group: int, column: str) -> Any:
    """A column of a row group."""
    with parquet_file(container) as file, whole_parquet(container):
        return file.read_row_group(group, columns=[column], use_threads=False).column(0)


def parquet_file(path: str | Path) -> Any:
    """A parquet file, opened by pyarrow.

    Raises  UserError where pyarrow is not installed; DataError (undecodable) for a torn or foreign file.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{path}: parquet is read by pyarrow, which is not installed",
            hint="pip install 'muomni[parquet]'",
        ) from error
    with whole_parquet(path):
        return pyarrow.parquet.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=1 << 20)


@contextlib.contextmanager
def whole_parquet(path: str | Path) -> Iterator[None]:
    """Says of what pyarrow can't read which file it is; it raises OSError without a number, ValueErrors and
    others of its own."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise DataError(
            "undecodable",
            f"{path}: expected a whole parquet file, got {what}",
            hint="copy or make the file anew",
        ) from error
