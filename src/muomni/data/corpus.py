"""Documents as one flat memory-mapped token file, and rows of whole documents packed from it: text that never
waits for a tokenizer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from array import array
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muomni import files
from muomni.data import indexed
from muomni.data.check.media_pool import cores, forked
from muomni.data.sample import Sample
from muomni.errors import CheckpointError, DataError
from muomni.tokens import chat
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.chat import IGNORE

FORMAT = 3  # of the files; part of the key, so that an older build is made again
ENCODED_AT_ONCE = 1024
MANY = 16 * ENCODED_AT_ONCE  # samples from which on processes encode them
AHEAD = 4  # pieces that wait for their turn
NO_DOCUMENT = -1

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One packed row of ctx_len positions; padding has id 0, label IGNORE and document NO_DOCUMENT."""

    ids_T: Ints
    labels_T: Ints  # ids, or IGNORE where nothing is learned
    documents_T: Ints  # 0, 1, ... within the row


class TokenCorpus:
    """The tokens of many documents, opened from a folder and read page by page."""

    def __init__(self, folder: Path) -> None:
        """Open what `build` made.

        Raises  CheckpointError if it is not whole.
        """
        self.folder = folder
        try:
            meta = files.read_json(folder / "corpus.json")
            self.offsets: Ints = np.load(folder / "offsets.npy", allow_pickle=False)
            self.ids: NDArray[np.unsignedinteger] = np.memmap(
                folder / "ids.bin", dtype=meta["dtype"], mode="r"
            )
            # None: every token is learned
            self.learned: NDArray[np.uint8] | None = (
                np.memmap(folder / "learned.bin", np.uint8, "r") if meta["has_labels"] else None
            )
            self.digest: str = meta["digest"]
            self.num_bytes: int = meta["bytes"]  # of the text in UTF-8: the divisor of bits per byte
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{folder}: not a whole token corpus ({error})", hint="remove the folder; it is made again"
            ) from error
        if len(self.ids) != self.offsets[-1]:
            raise CheckpointError(
                f"{folder}: expected {self.offsets[-1]} tokens, got {len(self.ids)}",
                hint="remove the folder; it is made again",
            )

    @classmethod
    def build(cls, cache: Path, samples: Sequence[Sample], tokenizer: Tokenizer) -> TokenCorpus:
        """The corpus of these samples: made once in `cache/<digest>`, then opened; a build that dies leaves
        nothing.

        Takes   text samples (all learned, between bos and eos) and conversations without media (the
                assistant's words learned).
        Raises  DataError (empty) without samples; DataError (bad_row) if one has media.
        """
        if not samples:
            raise DataError("empty", "token corpus: expected documents, got none")
        digest = _digest(samples, tokenizer)
        folder = Path(cache) / digest[:16]
        if not (folder / "corpus.json").exists():
            with files.fresh_folder(folder) as part:
                _write(part, samples, tokenizer, digest)
        return cls(folder)

    def __reduce__(self) -> tuple[type[TokenCorpus], tuple[Path]]:
        return type(self), (self.folder,)  # a worker maps the file itself

    def __len__(self) -> int:
        """How many documents."""
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        """How many tokens, eos included."""
        return int(self.offsets[-1])

    def pack(self, ctx_len: int, *, single: bool = False) -> Packed:
        """Rows of ctx_len that use every token once; `single` puts one document, or one piece of a long one,
        in each."""
        return Packed(self, ctx_len, single=single)

    def labels(self, start: int, stop: int) -> Ints:
        """The ids of a stretch of the file, IGNORE where nothing is learned."""
        labels: Ints = self.ids[start:stop].astype(np.int64)
        if self.learned is not None:
            labels[self.learned[start:stop] == 0] = IGNORE
        return labels


class Packed:
    """Rows by number. Documents longer than ctx_len are cut into pieces; pieces are laid best-fit, longest
    first, the same way always."""

    def __init__(self, corpus: TokenCorpus, ctx_len: int, *, single: bool = False) -> None:
        self.corpus = corpus
        self.ctx_len = ctx_len
        self._pieces = _pieces(corpus.offsets, ctx_len)
        self._bounds: Ints = np.arange(len(self._pieces) + 1)  # pieces [bounds[i], bounds[i + 1]) are row i
        if not single:
            self._pieces, self._bounds = _best_fit(self._pieces, ctx_len)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def pieces(self, index: int) -> list[tuple[int, int]]:
        """The stretches of the token file that a row is made of, in their order."""
        return [
            (int(start), int(stop))
            for start, stop in self._pieces[self._bounds[index] : self._bounds[index + 1]]
        ]

    @property
    def fill(self) -> float:
        """The share of positions that hold a token."""
        return self.corpus.num_tokens / (len(self) * self.ctx_len)

    def __getitem__(self, index: int) -> Row:
        row = Row(
            np.zeros(self.ctx_len, np.int64),
            np.full(self.ctx_len, IGNORE, np.int64),
            np.full(self.ctx_len, NO_DOCUMENT, np.int64),
        )
        at = 0
        for number, (start, stop) in enumerate(self.pieces(index)):
            here = slice(at, at + stop - start)
            row.ids_T[here] = self.corpus.ids[start:stop]
            row.labels_T[here] = self.corpus.labels(start, stop)
            row.documents_T[here] = number
            at = here.stop
        return row


class Rows:
    """Packed rows as a dataset."""

    def __init__(self, packed: Packed) -> None:
        self.packed = packed

    def __len__(self) -> int:
        return len(self.packed)

    def name(self, index: int) -> str:
        """The row's number: it may hold many documents."""
        return f"row-{index}"

    def item(self, index: int, rng: np.random.Generator) -> tuple[str, Row]:
        """One row."""
        return self.name(index), self.packed[index]


def _pieces(offsets: Ints, ctx_len: int) -> Ints:
    """Where each document, or each stretch of ctx_len of a longer one, starts and stops, (pieces, 2)."""
    counts = -(-np.diff(offsets) // ctx_len)
    firsts = np.cumsum(counts) - counts
    starts = np.repeat(offsets[:-1], counts) + ctx_len * (np.arange(counts.sum()) - np.repeat(firsts, counts))
    return np.stack([starts, np.minimum(starts + ctx_len, np.repeat(offsets[1:], counts))], axis=1)


def _best_fit(pieces: Ints, ctx_len: int) -> tuple[Ints, Ints]:
    """Each piece into the fullest row that still has room for it, longest pieces first.

    Gives   the pieces row by row, in the order in which they were laid, and the bounds of the rows, (rows +
            1,).
    """
    lengths = pieces[:, 1] - pieces[:, 0]
    order = np.lexsort((pieces[:, 0], -lengths))
    row_of = np.empty(len(pieces), np.int64)  # of the pieces in that order
    by_room: dict[int, array[int]] = {}
    rooms: list[int] = []  # the keys of by_room, sorted
    num_rows = 0
    for place, index in enumerate(order):
        length = int(lengths[index])
        room_index = bisect_left(rooms, length)
        if room_index < len(rooms):
            room = rooms[room_index]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[room_index]
        else:
            room, row = ctx_len, num_rows
            num_rows += 1
        row_of[place] = row
        if left := room - length:
            if left not in by_room:
                insort(rooms, left)
                by_room[left] = array("q")
            by_room[left].append(row)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=num_rows))])
    return pieces[order[np.argsort(row_of, kind="stable")]], bounds


def _digest(samples: Sequence[Sample], tokenizer: Tokenizer) -> str:
    """Names the content and the tokenizer: equal digests mean equal files."""
    digest = hashlib.sha256(f"{FORMAT} {tokenizer.digest}".encode())
    for line in indexed.lines(samples):
        digest.update(len(line).to_bytes(8, "little") + line)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Piece:
    """Some samples encoded, one behind the other.

    ids         as they lie in the file
    lengths     tokens of each sample, (samples,)
    learned     a byte a token, 1 where it is learned; None: all are
    num_bytes   of learned text in UTF-8
    """

    ids: bytes
    lengths: Ints
    learned: bytes | None
    num_bytes: int


def _encoded(samples: Sequence[Sample], tokenizer: Tokenizer) -> _Piece:
    texts = list(indexed.texts(samples))
    encoded = iter(tokenizer.encode_many([one for one in texts if isinstance(one, str)]))
    ids, lengths, learned, num_bytes = (
        array("H" if tokenizer.vocab_size <= 2**16 else "I"),
        array("q"),
        bytearray(),
        0,
    )
    has_labels = False
    for one in texts:
        if isinstance(one, str):
            # bos in front, so that the first word is predicted too, and bits per byte count every byte.
            tokens = [tokenizer.special_tokens.bos, *next(encoded), tokenizer.special_tokens.eos]
            learned += len(tokens) * b"\1"
            num_bytes += len(one.encode())
        elif one.media:
            raise DataError(
                "bad_row",
                f"sample {one.id}: has media, which a token corpus can't hold",
                hint="use the omni stage",
            )
        else:
            rendered = chat.render(tokenizer, one.messages)
            tokens, has_labels = rendered.ids, True
            learned += bytes(label != IGNORE for label in rendered.labels)
            num_bytes += sum(len(m.text.encode()) for m in one.messages if m.role == "assistant")
        ids.extend(tokens)
        lengths.append(len(tokens))
    return _Piece(
        ids.tobytes(), np.array(lengths, np.int64), bytes(learned) if has_labels else None, num_bytes
    )


def _pieces_of(samples: Sequence[Sample], tokenizer: Tokenizer) -> Iterator[_Piece]:
    """All samples in pieces; where they are many, by two processes, since most of the work holds Python's
    lock."""
    starts = range(0, len(samples), ENCODED_AT_ONCE)
    done = 0
    if len(samples) >= MANY and cores() > 1 and sys.platform == "linux":
        waiting: deque[Future[_Piece]] = deque()
        # What a worker that dies leaves is encoded here.
        with contextlib.suppress(BrokenProcessPool), forked(2, _hold, samples, tokenizer) as pool:
            for number, start in enumerate(starts, 1):
                waiting.append(pool.submit(_held, start))
                while waiting and (len(waiting) > AHEAD or number == len(starts)):
                    piece = waiting.popleft().result()
                    done += 1
                    yield piece
    yield from (_encoded(samples[start : start + ENCODED_AT_ONCE], tokenizer) for start in starts[done:])


_HELD: tuple[Sequence[Sample], Tokenizer] | None = None  # in a worker: what it encodes pieces of


def _hold(samples: Sequence[Sample], tokenizer: Tokenizer) -> None:
    global _HELD
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are not here, and it would say so
    _HELD = samples, tokenizer


def _held(start: int) -> _Piece:
    assert _HELD is not None
    samples, tokenizer = _HELD
    return _encoded(samples[start : start + ENCODED_AT_ONCE], tokenizer)


def _write(folder: Path, samples: Sequence[Sample], tokenizer: Tokenizer, digest: str) -> None:
    lengths: list[Ints] = []
    num_tokens = num_bytes = 0
    has_labels = False
    with (folder / "ids.bin").open("wb") as ids_file, (folder / "learned.bin").open("wb") as learned_file:
        for piece in _pieces_of(samples, tokenizer):
            ids_file.write(piece.ids)
            if piece.learned is not None and not has_labels:
                has_labels = True
                learned_file.writelines(
                    int(each.sum()) * b"\1" for each in lengths
                )  # of the pieces before it
            here = int(piece.lengths.sum())
            if has_labels:
                learned_file.write(here * b"\1" if piece.learned is None else piece.learned)
            lengths.append(piece.lengths)
            num_tokens += here
            num_bytes += piece.num_bytes
    np.save(
        folder / "offsets.npy", np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64), allow_pickle=False
    )
    meta = {
        "digest": digest,
        "tokenizer": tokenizer.digest,
        "dtype": np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32).name,
        "documents": len(samples),
        "tokens": num_tokens,
        "bytes": num_bytes,
        "has_labels": has_labels,
    }
    files.write_json(folder / "corpus.json", meta)
