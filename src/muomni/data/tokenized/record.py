"""One sample of ids, and the bytes that it is in a tar: `KEY.json`, then `KEY.FIELD.npy` for every field.

WebDataset groups members by all that stands before the first dot of a name, so a key is digits only. Every
sample has every member and
every key of JSON with the same types, since the `datasets` library takes its schema from the first five
samples: an absent medium is an
empty array, and its numbers are 0.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muomni import files
from muomni.errors import DataError

FIELDS = ("text_in", "text_out", "image", "audio")
BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)  # of a tar
KEY_DIGITS = 8
Ids = NDArray[np.int32]

# What stands in every sample's JSON about its media, by type. Decoding needs it: `samples` cuts what whole
# frames added.
BLANK: dict[str, dict[str, float | int]] = {
    "audio": {"file_rate_hz": 0, "rate_hz": 0, "seconds": 0.0, "samples": 0, "codebooks": 0, "frames": 0},
    "image": {"file_height": 0, "file_width": 0, "size_px": 0, "codebooks": 0, "rows": 0, "columns": 0},
}
KEYS = (
    *("__key__", "id", "group", "task", "side", "side_by", "token_space_sha256"),
    *("tokens", "tokens_sha256", "audio", "image"),
)


@dataclass(frozen=True)
class Record:
    """A sample of a shard.

    about   its JSON, with the keys `KEYS`
    ids     (n,) int32 global ids of each field, n = 0 where the sample has none; K streams side by side
            stand one after another
    """

    about: dict[str, Any]
    ids: dict[str, Ids]

    @property
    def key(self) -> str:
        """What its members are called: its number on its side, before unreadable samples were left out."""
        return str(self.about["__key__"])


def key_of(number: int) -> str:
    """The key of a side's sample `number`."""
    return f"{number:0{KEY_DIGITS}d}"


def digest_of(ids: Mapping[str, Ids]) -> str:
    """Hex sha256 over all arrays of a sample, their lengths among it."""
    pieces = (f"{name}:{len(ids[name])}:".encode() + _little(ids[name]).tobytes() for name in FIELDS)
    return files.sha256_bytes(b"".join(pieces))


def members(record: Record) -> bytes:
    """The tar members of a sample: equal samples give equal bytes on every machine and at any time."""
    text = json.dumps(record.about, sort_keys=True, ensure_ascii=False, allow_nan=False)
    pieces = [_member(f"{record.key}.json", text.encode("utf-8", "backslashreplace"))]
    pieces += [_member(f"{record.key}.{name}.npy", _npy(record.ids[name])) for name in FIELDS]
    return b"".join(pieces)


def parse(content: bytes, where: str) -> Record:
    """The sample that `members` wrote.

    Takes   where: what messages call it, e.g. `train/shard-000003.tar: sample 00003007`.
    Raises  DataError (undecodable) for bytes that are not exactly the members of one sample in their order.
    """
    about: Any = None
    ids: dict[str, Ids] = {}
    place, key = 0, ""
    for name in ("json", *FIELDS):
        try:
            header = tarfile.TarInfo.frombuf(content[place : place + BLOCK_BYTES], "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _torn(where, f"a tar header at byte {place}", str(error)) from error
        key = key or header.name.partition(".")[0]
        expected = f"{key}.json" if name == "json" else f"{key}.{name}.npy"
        if header.name != expected or not header.isreg():
            raise _torn(where, f"member {expected}", f"{header.name!r:.80}")
        begin, end = place + BLOCK_BYTES, place + BLOCK_BYTES + header.size
        if end > len(content):
            raise _torn(where, f"{header.size} bytes of {expected}", f"{len(content) - begin}")
        held = content[begin:end]
        if name == "json":
            about = _json(held, where)
        else:
            ids[name] = _array(held, f"{where}: {expected}")
        place = begin + _padded(header.size)
    if place != len(content):
        raise _torn(where, f"{place} bytes of members", f"{len(content)}")
    if about.get("__key__") != key:
        raise _torn(where, f"`__key__` {key} in {key}.json", repr(about.get("__key__")))
    return Record(about, ids)


def _json(content_bytes: bytes, where: str) -> dict[str, Any]:
    try:
        about = json.loads(content_bytes)
    except ValueError as error:
        raise _torn(where, "JSON", str(error)[:120]) from error
    if not isinstance(about, dict):
        raise _torn(where, "a JSON object", type(about).__name__)
    return about


def _array(content_bytes: bytes, where: str) -> Ids:
    """Raises DataError for pickles, other types and other dimensions: nothing but a row of int32 is read."""
    try:
        array = np.lib.format.read_array(io.BytesIO(content_bytes), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _torn(where, "an int32 array without pickle", str(error)[:120]) from error
    if array.dtype != np.dtype("<i4") or array.ndim != 1:
        raise _torn(where, "int32 (n,)", f"{array.dtype} {array.shape}")
    return np.asarray(array, np.int32)


def _torn(where: str, expected: str, got: str) -> DataError:
    return DataError("undecodable", f"{where}: expected {expected}, got {got}", hint="make this shard anew")


def _little(ids: Ids) -> NDArray[np.int32]:
    return np.ascontiguousarray(ids, "<i4")


def _npy(ids: Ids) -> bytes:
    return _npy_header(len(ids)) + _little(ids).tobytes()


@lru_cache(maxsize=4096)
def _npy_header(count: int) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<i4", "fortran_order": False, "shape": (count,)})
    return stream.getvalue()


def _member(name: str, content: bytes) -> bytes:
    header = tarfile.TarInfo(name)  # time, owner and group of a new one are 0
    header.size = len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(_padded(len(content)) - len(content))


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES
