"""Data sets in several files, and WebDataset's tars: a sample is what members of one name hold, as they
follow one another.

A tar is walked through once, header by header; what pictures and sounds hold is not read then: rows name
their place in the tar.
"""

from __future__ import annotations

import functools
import glob
import itertools
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from muomni.data import streams, trees
from muomni.errors import DataError, DataNote
from muomni.media import stored
from muomni.media.modality import of_suffix

TAR, PARQUET = ".tar", ".parquet"
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
KEY = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<kind>[^/]+)", re.DOTALL)
OTHERS = {"ppm": "image", **dict.fromkeys(("mp4", "webm", "mkv", "avi", "mov"), "video")}
WORDS = {
    "txt": "text",
    "text": "text",
    "transcript": "transcript",
    "transcription": "transcription",
    "caption": "caption",
    "lab": "text",
}
SPLIT = re.compile(
    r"(?:^|[-_./])(train|training|val|valid|validation|dev|test|eval)(?=$|[-_./\d])", re.IGNORECASE
)
BLOCK_BYTES = 512
END_BYTES = 1 << 20  # behind a tar's end that are looked at for another tar
MOST_PARTS = 100_000

Rows = Iterator[tuple[int, dict[str, Any] | DataError]]


# Several files


def is_pattern(path: Path | str) -> bool:
    """Whether a path names files by a pattern: `shard-{000..009}.tar`, `train-*.parquet`."""
    return any(mark in str(path) for mark in "*?[{")


def parts(path: Path) -> list[Path]:
    """The files of a source: those that a pattern names, the parquet files or tars of a folder of such, else
    the file itself.

    Raises  DataError (missing) for files that a list in braces names and that are not there, and for a
            pattern that nothing fits.
    """
    if path.is_dir():
        return list(_inside(str(path), path.stat().st_mtime_ns))
    if path.exists() or not is_pattern(path):
        return [path]
    files_found: list[Path] = []
    for one in _spelled(str(path)):
        if any(mark in one for mark in "*?["):
            files_found += sorted(Path(each) for each in glob.glob(one, recursive=True))
        elif not os.path.exists(one):
            raise DataError(
                "missing",
                f"{one}: expected a file, found nothing there",
                hint="check the braces in the source's `path`",
            )
        else:
            files_found.append(Path(one))
    if not files_found:
        raise DataError(
            "missing", f"{path}: expected files of this pattern, found none", hint="check the source's `path`"
        )
    return files_found


@functools.lru_cache(maxsize=64)
def _inside(folder: str, changed: int) -> tuple[Path, ...]:
    """The files of a folder that hold its rows: shards in it or in its `data`, Common Voice's tables, tables
    of media; none of others."""
    top = Path(folder)
    if tables := trees.tables(top):
        return tuple(tables)
    if voice_tables := trees.common_voice(top):
        return tuple(voice_tables)
    for place in (top, top / "data"):
        for kind in (PARQUET, TAR):
            shards = (
                sorted(file for file in place.glob(f"*{kind}") if not trees.is_hidden(file.name))
                if place.is_dir()
                else []
            )
            if shards:
                return tuple(shards)
    return ()


def is_set(path: Path) -> bool:
    """Whether a path is a folder whose rows stand in files of it, or a pattern."""
    return (
        bool(_inside(str(path), path.stat().st_mtime_ns))
        if path.is_dir()
        else is_pattern(path) and not path.exists()
    )


def is_whole(path: Path) -> bool:
    """Whether a set is read as one table is: shards that hold their media, Common Voice, a pattern; not
    tables about a folder of media."""
    return is_set(path) and not (path.is_dir() and parts(path)[0].name in trees.TABLES)


def _spelled(pattern: str) -> list[str]:
    """The spellings of `a{00..02}b` and `{x,y}`."""
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    if numbers := RANGE.fullmatch(match[1]):
        low, high = int(numbers[1]), int(numbers[2])
        if not low <= high < low + MOST_PARTS:
            raise DataError(
                "missing", f"{pattern}: expected a range of at most {MOST_PARTS} files, got {match[0]}"
            )
        choices = [f"{number:0{len(numbers[1])}d}" for number in range(low, high + 1)]
    else:
        choices = match[1].split(",")
    rest = _spelled(pattern[match.end() :])
    return [f"{pattern[: match.start()]}{choice}{end}" for choice, end in itertools.product(choices, rest)]


def side(name: str) -> str | None:
    """`train` or `valid` for a file or folder that is called so: `train-00000-of-00002.parquet`, `dev.tsv`,
    `test`."""
    match = SPLIT.search(name)
    return None if match is None else trees.SIDES[match[1].lower()]


def sides(files: list[Path]) -> dict[Path, str]:
    """The side of each file, where their names, or those of their tables' folders, say it of all of them and
    there are two."""
    named = {file: side(file.parent.name if file.name in trees.TABLES else file.name) for file in files}
    by_file = {file: one for file, one in named.items() if one is not None}
    return by_file if len(by_file) == len(files) and len(set(by_file.values())) > 1 else {}


# WebDataset


def rows(path: Path, container: str, name: str = "") -> Rows:
    """The samples of a tar, numbered from 1: `image`, `audio`, `video`, `text`, `label` by the members'
    kinds, a json's keys beside them.

    Takes   container: the tar's path as rows name it; name: what stands before a sample's key in its id.
    Raises  DataError (undecodable) for a tar that is torn, packed or none.
    """
    seen: set[int] = set()
    for number, (key, members) in enumerate(_samples(path), start=1):
        if isinstance(members, DataError):
            yield number, members
        elif hash(key) in seen:
            what = f"{path.name}: members of {key[-80:]!r} lie apart, so that its sample is in pieces"
            yield number, DataError("bad_row", what, hint="sort them: tar --sort=name")
        else:
            yield number, _row(path, container, f"{name}{key}", members)
        seen.add(hash(key))


def _samples(path: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo] | DataError]]:
    """Members that follow one another with one key, by their kinds."""
    key = ""
    members: dict[str, tarfile.TarInfo] = {}
    left, first_left = 0, ""
    twice: DataError | None = None
    for member in _members(path):
        base = member.name.rpartition("/")[2]
        if not member.isfile() or base.startswith(("._", ".")) or member.name.startswith(("__MACOSX/", "__")):
            continue
        match = KEY.fullmatch(member.name.removeprefix("./"))
        if match is None:
            left, first_left = left + 1, first_left or member.name
            continue
        if match["key"] != key:
            if members:
                yield key, twice or members
            key, members, twice = match["key"], {}, None
        kind = match["kind"].lower()
        if kind in members:
            twice = DataError("bad_row", f"{path.name}: {member.name[-80:]!r} stands twice in its sample")
        members[kind] = member
    if members:
        yield key, twice or members
    if left:
        yield (
            "",
            DataNote(
                "repaired",
                f"{path.name}: {left} members without a suffix are no samples, the first {first_left[-80:]!r}",
            ),
        )


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar, one after another.

    tarfile ends without a word at a header that is torn or damaged: where it ended is looked at here.
    """
    if path.suffix.lower() in streams.PACKED:
        raise DataError(
            "undecodable",
            f"{path}: expected a plain tar, got a packed one",
            hint="unpack it: its members are read in any order",
        )
    size = path.stat().st_size
    with streams.opened(path) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    if member.offset_data + member.size > size:
                        raise DataError(
                            "undecodable",
                            f"{path}: torn, {member.name[-80:]!r} needs {member.offset_data + member.size} bytes, the file has {size}",
                            hint="copy or make the file anew",
                        )
                    yield member
                    tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                _check_end(path, stream, tar.offset, size)
        except tarfile.TarError as error:
            raise DataError(
                "undecodable", f"{path}: expected a whole tar, got {error}", hint="copy or make the file anew"
            ) from error


def _check_end(path: Path, stream: Any, offset: int, size: int) -> None:
    """Raises DataError where the walk through a tar ended before the tar did."""
    stream.seek(offset)
    block = stream.read(BLOCK_BYTES)
    if offset >= size and offset % BLOCK_BYTES == 0 and offset > 0:
        return  # a tar without its end mark, as tools write that stream
    if any(block) or len(block) < BLOCK_BYTES:
        raise DataError(
            "undecodable",
            f"{path}: torn or damaged at byte {offset} of {size}",
            hint="copy or make the file anew",
        )
    if any(stream.read(END_BYTES)):
        raise DataError(
            "undecodable",
            f"{path}: more stands behind the tar's end at byte {offset}: several tars in one file?",
            hint="give each a file of its own: tar --concatenate, or {000..009} in the source's `path`",
        )


def _row(
    path: Path, container: str, key: str, members: dict[str, tarfile.TarInfo]
) -> dict[str, Any] | DataError:
    """The row of a sample."""
    row: dict[str, Any] = {"id": key}
    try:
        for kind, member in members.items():
            for name, value in _fields(path, container, kind, member):
                if name in row and name != "id" and row[name] != value:
                    raise DataError(
                        "bad_row", f"{key[-80:]}: {name!r} stands in two members, and they differ"
                    )
                row[name] = value
    except DataError as error:
        return DataError(error.reason, f"{path.name}: {error.message}", hint=error.hint)
    return row


def _fields(path: Path, container: str, kind: str, member: tarfile.TarInfo) -> Iterator[tuple[str, Any]]:
    """What a member gives to its row."""
    before, _, last = kind.rpartition(".")
    medium = of_suffix(f".{last}") or OTHERS.get(last)
    if medium is not None or (last not in WORDS and last not in ("json", "cls", "id", "index")):
        yield before or medium or last, stored.in_tar(container, member.offset_data, member.size, member.name)
        return
    if member.size > streams.MAX_LINE_BYTES:
        raise DataError(
            "too_large",
            f"{member.name[-80:]}: expected at most {streams.MAX_LINE_BYTES} bytes of words, got {member.size}",
        )
    content_bytes = (
        stored.content(stored.in_tar(str(path), member.offset_data, member.size, member.name)) or b""
    )
    try:
        words = content_bytes.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            "undecodable",
            f"{member.name[-80:]}: expected UTF-8, got byte 0x{content_bytes[error.start]:02x} at {error.start}",
        ) from error
    if last == "json":
        try:
            value = streams.decode_json(words)
        except DataError as error:
            raise DataError(error.reason, f"{member.name[-80:]}: {error.message}") from error
        if before:
            yield before, value
        elif isinstance(value, dict):
            yield from value.items()
        else:
            raise DataError(
                "bad_row", f"{member.name[-80:]}: expected a JSON object, got {type(value).__name__}"
            )
    elif last in ("id", "index"):
        yield before or last, words.strip()
    else:
        yield before or WORDS.get(last, "label"), words.strip("\r\n") if last in WORDS else words.strip()


def digest(path: Path) -> str:
    """Names what a tar holds without reading pictures and sounds: all headers, and what its other members
    hold."""
    import hashlib

    hasher = hashlib.sha256()
    for member in _members(path):
        hasher.update(f"{member.name}\0{member.size}\0{member.mtime}\0".encode("utf-8", "surrogateescape"))
        kind = member.name.rpartition(".")[2].lower()
        if (
            member.isfile()
            and (kind in WORDS or kind in ("json", "cls"))
            and member.size <= streams.MAX_LINE_BYTES
        ):
            hasher.update(
                stored.content(stored.in_tar(str(path), member.offset_data, member.size, member.name)) or b""
            )
    return hasher.hexdigest()
