"""Where each sample of a set lies: a shard is written whole or not at all, and a sample is read by one piece
of its tar."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from muomni import files
from muomni.data.tokenized.record import END, FIELDS, Record, digest_of, key_of, members, parse
from muomni.errors import DataError, TokenSpaceError, UserError

Side = Literal["train", "valid"]
SIDES: tuple[Side, ...] = ("train", "valid")
COLUMNS = (
    "shard",
    "number",
    "offset",
    "size",
    *FIELDS,
)  # of index.npy; sizes and offsets in bytes, fields in ids
INDEX, ABOUT, MADE_OF, SPACE = "index.npy", "index.json", "shards.json", "token_space.json"
VERSION = 1


@dataclass(frozen=True)
class Bad:
    """A sample that could not be tokenised."""

    id: str
    path: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Piece:
    """What one shard holds, as `shard-000000.json` beside it says: the shard is finished when this file is
    there.

    rows  (samples, 7): the columns of `COLUMNS` but the first
    bad   samples whose numbers are left out; `skipped` counts those that have no task of tokens, by what
          they lack
    """

    side: Side
    number: int
    bytes: int
    sha256: str
    rows: list[list[int]]
    bad: list[Bad] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The tar's place in its set."""
        return f"{self.side}/{shard_name(self.number)}"

    @classmethod
    def load(cls, path: Path) -> Piece:
        """Raises  UserError where the file is torn."""
        hint = "remove it and its tar, and run `muomni data shard` again"
        held = files.read_stored(path, dict, hint=hint)
        try:
            return cls(**{**held, "bad": [Bad(**each) for each in held["bad"]]})
        except (TypeError, KeyError) as error:
            raise UserError(f"{path}: torn: {error}", hint=hint) from error


def shard_name(number: int) -> str:
    """`shard-000012.tar`."""
    return f"shard-{number:06d}.tar"


def write_shard(
    folder: Path,
    side: Side,
    number: int,
    records: Iterable[Record],
    bad: Sequence[Bad] = (),
    skipped: dict[str, int] | None = None,
) -> Piece:
    """Write a shard and what is in it; each file is whole or absent, after a kill or a power cut too.

    Raises  OSError, where the disk is full too.
    """
    held = bytearray()
    rows: list[list[int]] = []
    for record in records:
        begin = len(held)
        held += members(record)
        rows.append([int(record.key), begin, len(held) - begin, *(len(record.ids[name]) for name in FIELDS)])
    content = bytes(held) + END
    made = Piece(
        side,
        number,
        len(content),
        files.sha256_bytes(content),
        rows,
        list(bad),
        dict(sorted((skipped or {}).items())),
    )
    tar = folder / made.file
    files.write_bytes(tar, content)
    files.write_text(tar.with_suffix(".json"), json.dumps(asdict(made), separators=(",", ":")))
    return made


def finished(folder: Path, side: Side, number: int) -> Piece | None:
    """The piece of a shard that is there in full, None for one that is still to be made."""
    tar = folder / side / shard_name(number)
    about = tar.with_suffix(".json")
    if not about.exists() or not tar.exists():
        return None
    piece = Piece.load(about)
    return piece if tar.stat().st_size == piece.bytes else None


def pieces(folder: Path, shards: Mapping[Side, int]) -> Iterator[Piece]:
    """The pieces of a set in their order, one at a time. Takes  shards: how many each side has."""
    return (
        Piece.load(_piece_path(folder, side, number))
        for side, count in shards.items()
        for number in range(count)
    )


def _piece_path(folder: Path, side: Side, number: int) -> Path:
    return (folder / side / shard_name(number)).with_suffix(".json")


def write_index(folder: Path, side: Side, shards: int) -> dict[str, Any]:
    """Write a side's `index.npy` from its pieces, one after another, and give what `index.json` says of the
    side.

    Holds one piece at a time.
    """
    paths = [_piece_path(folder, side, number) for number in range(shards)]
    about: list[dict[str, Any]] = []
    bad: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for piece in map(Piece.load, paths):
        about.append(
            {
                "file": shard_name(piece.number),
                "samples": len(piece.rows),
                "bytes": piece.bytes,
                "sha256": piece.sha256,
            }
        )
        bad.update(each.reason for each in piece.bad)
        skipped.update(piece.skipped)
    path = folder / side / INDEX
    _write_rows(path, paths, sum(shard["samples"] for shard in about))
    table = np.load(path, mmap_mode="r", allow_pickle=False)
    fields = {name: table[:, COLUMNS.index(name)] for name in FIELDS}
    return {
        "samples": len(table),
        "bad": dict(sorted(bad.items())),
        "skipped": dict(sorted(skipped.items())),
        "ids": {name: int(lengths_N.sum()) for name, lengths_N in fields.items()},
        "lengths": {name: percentiles(lengths_N) for name, lengths_N in fields.items()},
        "index_sha256": files.sha256_file(path),
        "shards": about,
    }


def _write_rows(path: Path, pieces: Sequence[Path], count: int) -> None:
    """The rows of all pieces as one npy, whole or not at all; one piece is held at a time."""
    files.make_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=files.PART)
    try:
        with os.fdopen(handle, "wb") as stream:
            header = {"descr": "<i8", "fortran_order": False, "shape": (count, len(COLUMNS))}
            np.lib.format.write_array_header_1_0(stream, header)
            for piece in map(Piece.load, pieces):
                stream.write(np.array([[piece.number, *row] for row in piece.rows], "<i8").tobytes())
            stream.flush()
            os.chmod(name, 0o644)
            os.fsync(stream.fileno())
        os.replace(name, path)
        files.sync(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def percentiles(lengths_N: NDArray[np.int64]) -> dict[str, float]:
    """p50, p90, p99 of the lengths of those samples that have any, and how many have."""
    found = lengths_N[lengths_N > 0]
    shares = {"p50": 50, "p90": 90, "p99": 99}
    marks = {
        name: float(np.percentile(found, share)) if len(found) else 0.0 for name, share in shares.items()
    }
    return {"samples": float(len(found)), **marks}


class ShardSet(Sequence[Record]):
    """The samples of one side of a finished set, in their order: the first and the hundred-thousandth take
    the same time.

    The index is mapped, not read; nothing is held between two accesses, so loader workers may share one.
    """

    def __init__(self, folder: Path, side: Side, *, check_sizes: bool = True) -> None:
        """Open a side.

        Takes   check_sizes: refuse shards of another size at once; without it, the samples tell when they
                are read.
        Raises  UserError (not finished, torn index, other version); DataError where a shard is missing or
                has another size.
        """
        self.folder, self.side = folder, side
        hint = "run `muomni data shard` again: it goes on where it was"
        if not (folder / ABOUT).exists():
            raise UserError(
                f"{folder / ABOUT}: expected the index of a finished set, found nothing there", hint=hint
            )
        whole = files.read_stored(folder / ABOUT, dict, hint=hint)
        if whole.get("version") != VERSION:
            raise UserError(
                f"{folder / ABOUT}: expected version {VERSION}, got {whole.get('version')!r}",
                hint="shard it again",
            )
        self.token_space_sha256: str = whole["token_space_sha256"]
        self.about: dict[str, Any] = whole["sides"][side]
        path = folder / side / INDEX
        try:
            self.rows: NDArray[np.int64] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: torn index: {error}", hint=hint) from error
        if self.rows.shape != (self.about["samples"], len(COLUMNS)):
            raise UserError(
                f"{path}: expected {self.about['samples']} samples, got shape {self.rows.shape}", hint=hint
            )
        if check_sizes:
            self.check_sizes()

    def check_sizes(self) -> None:
        """Raises  DataError for the first shard that is not as long as the index says: torn, or packed
        again."""
        for shard in self.about["shards"]:
            path = self.folder / self.side / shard["file"]
            size = path.stat().st_size if path.exists() else None
            if size is None:
                raise DataError(
                    "missing", f"{path}: expected a shard of {shard['samples']} samples, found nothing there"
                )
            if size != shard["bytes"]:
                what = "truncated" if size < shard["bytes"] else "packed again or appended to"
                raise DataError(
                    "undecodable",
                    f"{path}: {what}: expected {shard['bytes']} bytes, got {size}",
                    hint="make this shard anew",
                )

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = int(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"sample {place} of {len(self)}")
        return self.read(place % len(self))

    def __iter__(self) -> Iterator[Record]:
        return map(self.read, range(len(self)))

    def shard_of(self, place: int) -> str:
        """The tar of a sample, relative to the set."""
        return f"{self.side}/{shard_name(int(self.rows[place][0]))}"

    def where(self, place: int) -> str:
        """What messages call a sample: its shard and key."""
        row = self.rows[place]
        return f"{self.folder / self.side / shard_name(int(row[0]))}: sample {key_of(int(row[1]))}"

    def read(self, place: int) -> Record:
        """A sample by its place in the index.

        Raises  DataError (undecodable) for bytes that are not the sample's, or hold other ids than its
                digest says; TokenSpaceError for
                a sample of another token space.
        """
        row = self.rows[place].tolist()
        path, where = self.folder / self.side / shard_name(row[0]), self.where(place)
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise DataError("missing", f"{path}: expected a shard, found nothing there") from error
        try:
            content = os.pread(handle, row[3], row[2])
        finally:
            os.close(handle)
        record = parse(content, where)
        if record.key != key_of(row[1]):
            raise DataError(
                "undecodable",
                f"{where}: expected key {key_of(row[1])}, got {record.key}",
                hint="make this shard anew",
            )
        counts = [len(record.ids[name]) for name in FIELDS]
        if counts != row[4:] or record.about.get("tokens_sha256") != digest_of(record.ids):
            raise DataError(
                "undecodable",
                f"{where}: the ids are not those that were written: changed or damaged",
                hint="make this shard anew",
            )
        if record.about.get("token_space_sha256") != self.token_space_sha256:
            got = record.about.get("token_space_sha256")
            hint = "make this shard anew with the set's token space"
            raise TokenSpaceError(
                f"{where}: expected token space {self.token_space_sha256[:12]}, got {got!s:.12}", hint=hint
            )
        return record
