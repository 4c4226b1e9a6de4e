"""Near-duplicate detection: perceptual vectors for images and audio, MinHash for text, LSH indexes.

A picture becomes 16 x 16 colours, a sound its spectrogram in 24 bands x 32 stretches (dB); both are brought
to mean 0 and deviation 1, so that brightness and gain do not count. Similar vectors fall into the same
buckets of random hyperplanes (Charikar 2002), and only members of a bucket are compared: the cost grows with
the rows, not with their square. Thresholds were measured: see docs/formats.md.
"""

from __future__ import annotations

import os
import re
import tempfile
import zlib
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import soxr
from numpy.typing import NDArray
from PIL import Image

SIDE = 16
LEAST_DEVIATION = 3.0  # of 255: what is flatter has nothing to be told by
PICTURE_FAR, PICTURE_SPIKE = (
    0.16,
    1.0,
)  # most root mean square and most single difference of two like pictures, in deviations
SOUND_FAR = 0.16
RATE_HZ = 8000
WINDOW_SAMPLES, HOP_SAMPLES = 256, 64
BANDS, STRETCHES = 24, 32
LOW_HZ, HIGH_HZ = 150.0, 3400.0  # what a telephone carries
RANGE_DB = 45.0
LENGTHS_APART = 0.03  # like sounds are of like length
STEPS = 12.0  # of a vector to a deviation: int8 holds 10 deviations
TABLES, BITS = 12, 16  # at the threshold a pair shares one of 12 buckets of 16 bits with probability 0.999
CROWD = 32  # of a bucket only the last so many are compared, so that a thousand copies cost no million comparisons
HASHES, ROWS = 64, 4
HASH_BANDS = HASHES // ROWS
BLOCK = 4096  # signatures that are written to the file at once, band by band, so that a band is read without the others
SHINGLE_WORDS = 3
LEAST_WORDS = 12  # shorter texts are like others by chance
MOST_WORDS = 5000  # of a document; more adds no knowledge
TEXT_LIKE = 0.8
PAIRS_AT_ONCE = 65_536
HASHED_AT_ONCE = 256  # vectors

Vector = NDArray[np.int8]  # deviations from the mean, 12 steps each


def picture_vector(picture: Image.Image) -> Vector | None:
    """(768,) of an RGB picture; None for one of a single colour."""
    way = Image.Resampling.BOX if min(picture.size) >= SIDE else Image.Resampling.BILINEAR
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    return _standard(np.asarray(rgb.resize((SIDE, SIDE), way), dtype=np.float32), LEAST_DEVIATION)


def sound_vector(wave_S: NDArray[np.float32], rate_hz: int) -> Vector | None:
    """(768,) of a mono wave; None for one whose spectrum never changes."""
    if rate_hz != RATE_HZ:
        wave_S = soxr.resample(wave_S, rate_hz, RATE_HZ)
    wave_S = np.pad(wave_S, (0, max(0, WINDOW_SAMPLES - len(wave_S))))
    frames_FN = np.lib.stride_tricks.sliding_window_view(wave_S, WINDOW_SAMPLES)[::HOP_SAMPLES]
    spectrum_FN = np.fft.rfft(frames_FN * _window())
    power_FN = np.square(spectrum_FN.real) + np.square(spectrum_FN.imag)
    # Stretches first, since there are fewer of them than frames; sums of both kinds may be taken in any
    # order.
    pooled_PN = _pooled(power_FN, np.linspace(0, len(power_FN), STRETCHES + 1)) / (len(power_FN) / STRETCHES)
    # No BLAS for so little: its threads cost more than they bring, and twice that where others wait for the
    # cores.
    db = 10.0 * np.log10(np.einsum("pn,nb->pb", pooled_PN, _bands()) + 1e-12)
    return _standard(np.maximum(db, db.max() - RANGE_DB).astype(np.float32), 0.5)


@lru_cache(maxsize=1)
def _window() -> NDArray[np.float32]:
    return np.hanning(WINDOW_SAMPLES).astype(np.float32)


@lru_cache(maxsize=1)
def _bands() -> NDArray[np.float32]:
    """(N, B): the share of each bin of the spectrum in each band."""
    edges = np.geomspace(LOW_HZ, HIGH_HZ, BANDS + 1) / (RATE_HZ / WINDOW_SAMPLES)
    return _pooled(np.eye(WINDOW_SAMPLES // 2 + 1), edges).T.astype(np.float32)


def _pooled(rows: NDArray[np.floating], edges: NDArray[np.floating]) -> NDArray[np.floating]:
    """Sums of rows between fractional edges."""
    sums = np.concatenate(
        [np.zeros_like(rows[:1], dtype=np.float64), np.cumsum(rows, axis=0, dtype=np.float64)]
    )
    low = np.minimum(np.floor(edges).astype(int), len(rows) - 1)
    return np.diff(sums[low] + (edges - low)[:, None] * (sums[low + 1] - sums[low]), axis=0)


def _standard(values: NDArray[np.float32], least: float) -> Vector | None:
    deviation = float(values.std())
    if deviation < least:
        return None
    steps = np.round((values - values.mean()).ravel() * (STEPS / deviation))
    return np.asarray(np.clip(steps, -127, 127), dtype=np.int8)


class NearVectors:
    """Which of the vectors seen so far are all but equal to a new one."""

    def __init__(self, far: float, spike: float = np.inf, lengths_apart: float = 1.0) -> None:
        self.far, self.spike, self.lengths_apart = far, spike, lengths_apart
        self._planes = (
            np.random.default_rng(0).standard_normal((SIDE * SIDE * 3, TABLES * BITS)).astype(np.float32)
        )
        self._tables: list[defaultdict[int, list[int]]] = [defaultdict(list) for _ in range(TABLES)]
        self._kept = np.zeros((64, self._planes.shape[0]), dtype=np.int8)
        self._lengths = np.zeros(64)
        self._count = 0

    def add(self, vector: Vector, length: float = 0.0) -> list[int]:
        """The numbers (in the order of adding, from 0) of those like it; then it is one of them."""
        return next(self.add_all([vector], [length]))

    def add_all(self, vectors: Sequence[Vector], lengths: Sequence[float]) -> Iterator[list[int]]:
        """`add` one after another; their buckets are found many at once."""
        for first in range(0, len(vectors), HASHED_AT_ONCE):
            some_NV = np.stack(vectors[first : first + HASHED_AT_ONCE]).astype(np.float32)
            bits = (some_NV @ self._planes > 0).reshape(len(some_NV), TABLES, BITS)
            keys_NT = np.packbits(bits, axis=2).view(np.uint16)[..., 0]
            for vector, length, keys in zip(vectors[first:], lengths[first:], keys_NT.tolist(), strict=False):
                yield self._add(vector, length, keys)

    def _add(self, vector: Vector, length: float, keys: list[int]) -> list[int]:
        candidates: set[int] = set()
        for table, key in zip(self._tables, keys, strict=True):
            candidates.update(table[key][-CROWD:])
            table[key].append(self._count)
        near = self._like(vector, length, np.array(sorted(candidates), dtype=np.int64)) if candidates else []
        if self._count == len(self._kept):
            self._kept, self._lengths = (
                np.resize(self._kept, (2 * self._count, len(vector))),
                np.resize(self._lengths, 2 * self._count),
            )
        self._kept[self._count], self._lengths[self._count] = vector, length
        self._count += 1
        return near

    def _like(self, vector: Vector, length: float, numbers: NDArray[np.int64]) -> list[int]:
        lengths = self._lengths[numbers]
        numbers = numbers[np.abs(lengths - length) <= self.lengths_apart * np.maximum(lengths, length)]
        apart = (self._kept[numbers].astype(np.float32) - vector) / np.float32(STEPS)
        is_like = np.sqrt(np.einsum("nv,nv->n", apart, apart) / len(vector)) <= self.far
        if np.isfinite(self.spike):
            is_like &= np.abs(apart).max(axis=1) <= self.spike
        return [int(number) for number in numbers[is_like]]


def near_pictures() -> NearVectors:
    """An index for `picture_vector`."""
    return NearVectors(PICTURE_FAR, PICTURE_SPIKE)


def near_sounds() -> NearVectors:
    """An index for `sound_vector`, with the sound's seconds as length."""
    return NearVectors(SOUND_FAR, lengths_apart=LENGTHS_APART)


NEAR = {"image": near_pictures, "audio": near_sounds}  # by modality


class NearTexts:
    """Which texts say all but the same as an earlier one: equal but for case and punctuation, or four fifths
    of their word triples shared.

    Texts are added one after another, a few bytes of each are held and 256 in a file; then all are compared
    at once, band by band.
    Source  Broder 1997 (shingles), by 64 minimal hashes in 16 bands.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._factors = rng.integers(1, 2**63, HASHES, dtype=np.uint64) | np.uint64(1)
        self._offsets = rng.integers(0, 2**63, HASHES, dtype=np.uint64)
        self._plain = array("q")  # hash of the words; 0 where there are none
        self._signed = array("q")  # number of the signature, or -1
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (it goes with the last who holds it)
        self._block = np.zeros((HASH_BANDS, BLOCK, ROWS), np.uint32)  # the newest signatures
        self._signatures = 0

    def __len__(self) -> int:
        return len(self._plain)

    def add(self, text: str) -> None:
        """One more."""
        words = re.findall(r"\w+", text.casefold())
        self._plain.append((hash(" ".join(words)) or 1) if words else 0)
        if len(words) < LEAST_WORDS:
            self._signed.append(-1)
            return
        self._block[:, self._signatures % BLOCK] = self._signature(words[:MOST_WORDS]).reshape(
            HASH_BANDS, ROWS
        )
        self._signed.append(self._signatures)
        self._signatures += 1
        if self._signatures % BLOCK == 0:
            self._store()

    def near(self, chosen: NDArray[np.int64] | None = None) -> Iterator[tuple[int, list[int]]]:
        """Each text that is like earlier ones with the numbers of these: of one that is equal the first, else
        some of a bucket.

        Takes   chosen: numbers of the texts to be compared, in order; None: all. What is given are places
                among these.
        """
        chosen = np.arange(len(self)) if chosen is None else chosen
        plain = np.frombuffer(self._plain, np.int64)[chosen]
        _, first, inverse = np.unique(plain, return_index=True, return_inverse=True)
        equal = np.where(
            plain == 0, np.arange(len(plain)), first[inverse]
        )  # the first that is equal: itself, where none is before it
        is_new = equal == np.arange(len(plain))
        signed = np.frombuffer(self._signed, np.int64)[chosen]
        like = self._like(np.flatnonzero(is_new & (signed >= 0)), signed)
        for number in sorted({*np.flatnonzero(~is_new).tolist(), *like}):
            yield number, like.get(number, [int(equal[number])])

    def _like(self, places: NDArray[np.int64], signed: NDArray[np.int64]) -> dict[int, list[int]]:
        """Of those at the given places, the earlier ones that share a bucket and enough of the signature."""
        matches: defaultdict[int, set[int]] = defaultdict(set)
        if len(places) < 2:
            return {}
        self._store()
        for band in range(HASH_BANDS):
            keys = self._keys(band)[signed[places]]
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            for lag in range(1, min(CROWD + 1, len(keys))):
                met = np.flatnonzero(keys[lag:] == keys[:-lag])
                if not len(met):
                    break
                for some in np.array_split(met, -(-len(met) // PAIRS_AT_ONCE)):
                    late, early = places[order[some + lag]], places[order[some]]
                    share = np.mean(self._of(signed[late]) == self._of(signed[early]), axis=(1, 2))
                    for one, other in zip(
                        late[share >= TEXT_LIKE].tolist(), early[share >= TEXT_LIKE].tolist(), strict=True
                    ):
                        matches[one].add(other)
        return {number: sorted(others) for number, others in matches.items()}

    def _store(self) -> None:
        """Write the block that holds the newest signature."""
        if self._signatures:
            os.pwrite(
                self._file.fileno(),
                self._block.tobytes(),
                (self._signatures - 1) // BLOCK * self._block.nbytes,
            )

    def _keys(self, band: int) -> NDArray[np.uint64]:
        """The bucket of each signature in a band, (signatures,)."""
        keys = np.zeros(self._signatures, np.uint64)
        num_bytes = self._block[0].nbytes
        for first in range(0, self._signatures, BLOCK):
            place = (first // BLOCK * HASH_BANDS + band) * num_bytes
            rows_SR = np.frombuffer(os.pread(self._file.fileno(), num_bytes, place), np.uint32).reshape(
                BLOCK, ROWS
            )
            some = keys[first : first + BLOCK]
            for row in range(ROWS):
                some[:] = some * self._factors[band * ROWS + row] + rows_SR[: len(some), row]
        return keys

    def _of(self, numbers: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Signatures by number, (N, HASH_BANDS, ROWS)."""
        shape = (-(-self._signatures // BLOCK), HASH_BANDS, BLOCK, ROWS)
        return np.asarray(
            np.memmap(self._file, np.uint32, "r", shape=shape)[numbers // BLOCK, :, numbers % BLOCK]
        )

    def _signature(self, words: list[str]) -> NDArray[np.uint32]:
        triples = {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}
        hashes = np.array(
            [zlib.crc32(triple.encode(errors="replace")) for triple in triples], dtype=np.uint64
        )
        mixed = (hashes[None, :] * self._factors[:, None] + self._offsets[:, None]) >> np.uint64(32)
        return np.asarray(mixed.min(axis=1), dtype=np.uint32)
