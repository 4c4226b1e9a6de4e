"""Rows of parquet files, a few at a time. Pictures and sounds of the Hugging Face kind stay where they are:
rows name their places."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from muomni.errors import DataError, DataNote
from muomni.media import stored
from muomni.media.modality import of_suffix

AT_ONCE = 64  # rows that are decoded at once
GROUP_BYTES = 32 * 2**20  # of a row group's media: a picture of a larger one costs too much to read by itself
DIGEST_BYTES = 8
MAGIC = (
    (b"\x89PNG", 0, "png", "image"),
    (b"\xff\xd8\xff", 0, "jpg", "image"),
    (b"GIF8", 0, "gif", "image"),
    (b"BM", 0, "bmp", "image"),
    (b"II*\0", 0, "tif", "image"),
    (b"MM\0*", 0, "tif", "image"),
    (b"WEBP", 8, "webp", "image"),
    (b"WAVE", 8, "wav", "audio"),
    (b"fLaC", 0, "flac", "audio"),
    (b"OggS", 0, "ogg", "audio"),
    (b"ID3", 0, "mp3", "audio"),
    (b"\xff\xfb", 0, "mp3", "audio"),
    (b"\xff\xf3", 0, "mp3", "audio"),
    (b"\xff\xf2", 0, "mp3", "audio"),
)

Rows = Iterator[tuple[int, dict[str, Any] | DataError]]


def rows(path: Path, container: str) -> Rows:
    """The rows of a parquet file, numbered from 1; a class of the Hugging Face kind is its name, `{bytes,
    path}` a path into the file.

    Raises  UserError without pyarrow; DataError (undecodable) for a torn file.
    """
    with stored.parquet_file(path) as file, stored.whole_parquet(path):
        classes = _classes(file)
        number = 0
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            is_large = _media_bytes(about) > GROUP_BYTES
            if is_large and not group:
                what = f"{path.name}: row groups of {_media_bytes(about) // 2**20} MiB: pictures and sounds are copied to the temporary folder"
                yield (
                    1,
                    DataNote(
                        "repaired",
                        what,
                        hint="write it with row_group_size=100 to have them read where they are",
                    ),
                )
            place = 0
            for batch in file.iter_batches(batch_size=AT_ONCE, row_groups=[group], use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    try:
                        yield number, _row(container, None if is_large else group, place, row, classes)
                    except DataError as error:
                        yield number, error
                    place += 1


def _row(
    name: str, group: int | None, place: int, row: dict[str, Any], classes: dict[str, list[str]]
) -> dict[str, Any]:
    """A row of plain values. Takes group: None where the bytes must be copied."""
    plain: dict[str, Any] = {}
    for column, value in row.items():
        if column in classes and isinstance(value, int):
            names = classes[column]
            value = (
                names[value] if 0 <= value < len(names) else None
            )  # -1: not known, as in the hidden half of a test
        elif isinstance(value, list):
            value = [_plain(each, name, group, place, number, column) for number, each in enumerate(value)]
        else:
            value = _plain(value, name, group, place, -1, column)
        plain[column] = value
    return plain


def _plain(value: Any, name: str, group: int | None, place: int, element: int, column: str) -> Any:
    """A value as JSON has it, media by their place."""
    if isinstance(value, dict):
        if value.keys() == {"bytes", "path"}:
            held = value["bytes"]
            return (
                value["path"]
                if held is None
                else _medium(held, value["path"], name, group, place, element, column)
            )
        return {key: _plain(each, name, None, place, -1, column) for key, each in value.items()}
    if isinstance(value, bytes):
        return _medium(value, None, name, group, place, element, column)
    if isinstance(value, list):
        return [_plain(each, name, None, place, -1, column) for each in value]
    if isinstance(value, tuple):  # an entry of a map
        return [_plain(each, name, None, place, -1, column) for each in value]
    if isinstance(value, datetime | date | time | timedelta | Decimal):
        return str(value)
    return value


def _medium(
    content_bytes: bytes,
    name_said: str | None,
    name: str,
    group: int | None,
    place: int,
    element: int,
    column: str,
) -> str:
    """The path of bytes: their place in the file, or, where they must be copied, themselves."""
    suffix, kind = _kind(content_bytes, name_said)
    if group is None:
        return f"data:{kind}/{suffix};base64,{base64.b64encode(content_bytes).decode()}"
    digest = hashlib.blake2b(content_bytes, digest_size=DIGEST_BYTES).hexdigest()
    return stored.in_parquet(name, group, place, element, column, f"{digest}.{suffix}")


def _kind(content_bytes: bytes, name_said: str | None) -> tuple[str, str]:
    """Suffix and kind of bytes by how they begin, else by the name that they had."""
    for magic, start, suffix, kind in MAGIC:
        if content_bytes.startswith(magic, start):
            return suffix, kind
    suffix = Path(name_said or "").suffix.lower().lstrip(".") or "bin"
    return suffix, of_suffix(f".{suffix}") or "image"


def _classes(file: Any) -> dict[str, list[str]]:
    """The names of the classes of each column that has such, as Hugging Face's datasets write them into the
    schema."""
    about = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(about)["info"]["features"] if about else {}
        return {
            name: each["names"]
            for name, each in features.items()
            if isinstance(each, dict) and each.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError):
        return {}


def _media_bytes(group: Any) -> int:
    """Bytes of the largest column of a row group, once it is decoded: what the reading of one medium costs at
    most."""
    return max(
        (group.column(number).total_uncompressed_size for number in range(group.num_columns)), default=0
    )


def digest(path: Path) -> str:
    """Names what a parquet file holds without reading pictures and sounds: its footer, and the pages of all
    columns without bytes."""
    hasher = hashlib.sha256()
    with stored.parquet_file(path) as file, stored.whole_parquet(path), path.open("rb") as stream:
        stream.seek(-8, 2)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, 2)
        hasher.update(stream.read(length))
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            for number in range(about.num_columns):
                column = about.column(number)
                if column.path_in_schema.rpartition(".")[2] == "bytes":
                    continue
                first = column.data_page_offset
                if column.has_dictionary_page and column.dictionary_page_offset:
                    first = min(first, column.dictionary_page_offset)
                stream.seek(first)
                left = column.total_compressed_size
                while left > 0 and (piece := stream.read(min(left, 1 << 20))):
                    hasher.update(piece)
                    left -= len(piece)
    return hasher.hexdigest()
