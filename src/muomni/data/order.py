"""The order of samples as a pure function of (seed, epoch, position): seek is O(1), and any number of ranks
slices one global sequence."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOWS_KEPT = 64  # of the order: all of an epoch of 30,000 samples in batches of 16, half a megabyte at most


def _mix(value: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014): a cheap hash of 64-bit words, which wrap around."""
    value = value + key
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@lru_cache(maxsize=256)
def _keys(seed: int, epoch: int, length: int) -> tuple[np.uint64, ...]:
    """The key of each Feistel round."""
    return tuple(np.random.SeedSequence([seed & 0xFFFFFFFF, epoch, length]).generate_state(4, np.uint64))


def permute(positions: NDArray[np.int64], length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where each position of an epoch goes: a bijection of [0, length), four Feistel rounds with cycle
    walking.

    Takes  positions (N,) int64 in [0, length). Gives (N,) int64. Any position alone costs O(1).
    """
    if length <= 1:
        return np.zeros_like(positions)
    half = max(1, (int(length - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    keys = _keys(seed, epoch, length)
    values = positions.astype(np.uint64)
    pending = np.ones(len(values), dtype=bool)
    while pending.any():
        left, right = values[pending] >> np.uint64(half), values[pending] & low
        for key in keys:
            left, right = right, left ^ (_mix(right, key) & low)
        values[pending] = (left << np.uint64(half)) | right
        pending = values >= np.uint64(length)
    return values.astype(np.int64)


def _small(lengths: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
    """Whole numbers in the smallest type that holds them all: they stay in memory, one a sample."""
    array = np.asarray(lengths, dtype=np.int64)
    if not len(array):
        return array
    least = np.promote_types(np.min_scalar_type(int(array.min())), np.min_scalar_type(int(array.max())))
    return array.astype(least)


def tempered(sources: Sequence[tuple[float, int]], temperature: float) -> list[tuple[float, int]]:
    """Weights by which sources are drawn in proportion to weight x size^(1/temperature), in epochs as long as
    without it.

    Takes   sources: (weight, samples) of each, temperature >= 1: 1 leaves all as it is, the higher the more
            alike they are drawn.
    Gives   (weight, samples) of each, for `Order`: draws are weight x samples.
    Source  Devlin et al. 2018 (multilingual BERT), there as exponent 1/T of a corpus' share.
    """
    shares = [weight * size ** (1 / temperature) if size else 0.0 for weight, size in sources]
    draws = sum(weight * size for weight, size in sources)
    whole = sum(shares)
    return [
        (draws * share / whole / size if size else weight, size)
        for share, (weight, size) in zip(shares, sources, strict=True)
    ]


@dataclass(frozen=True)
class Draw:
    """One sample as the order names it: `index` into the dataset, and the key of its own random numbers."""

    index: int
    epoch: int
    position: int


class Order:
    """Batches of sample numbers, for ever: batch n is a pure function of (lengths, weights, seed, n).

    A batch costs what the positions of its window cost, however many samples there are.

    sizes     samples per source; weights  draws per sample and epoch of each source (2.0: twice, 0.5: every
              other epoch)
    lengths   optional length per sample (all sources in a row): batches then hold samples of like length,
              their order shuffled
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        lengths: Sequence[int] | NDArray[Any] | None = None,
        shuffle: bool = True,
        window_batches: int = 32,
    ) -> None:
        weights = list(weights) if weights is not None else [1.0] * len(sizes)
        self.sizes = list(sizes)
        self.draws = [
            max(1, round(size * weight)) if size and weight > 0 else 0
            for size, weight in zip(sizes, weights, strict=True)
        ]
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.batch_size, self.seed, self.shuffle, self.window = batch_size, seed, shuffle, window_batches
        self.lengths = _small(lengths) if lengths is not None else None
        self.samples_per_epoch = sum(self.draws)
        if not self.samples_per_epoch:
            raise ValueError("an order needs at least one sample")
        self.batches_per_epoch = -(-self.samples_per_epoch // batch_size)
        # Where each source begins in an epoch before it is shuffled; one without draws begins where the next
        # does, and is never found.
        self._starts = np.concatenate([[0], np.cumsum(self.draws)[:-1]]).astype(np.int64)
        self._windows: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()

    def _indices(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """The samples at positions [start, stop) of an epoch's shuffled order, (stop - start,); the cost is
        theirs alone."""
        places = np.arange(start, stop, dtype=np.int64)
        if self.shuffle:
            places = permute(places, self.samples_per_epoch, self.seed, epoch)
        indices = np.empty(len(places), dtype=np.int64)
        owners = np.searchsorted(self._starts, places, side="right") - 1
        for source in np.unique(owners).tolist():
            size, draws = self.sizes[source], self.draws[source]
            here = owners == source
            rounds, turns = np.divmod(places[here] - self._starts[source] + epoch * draws, size)
            if self.shuffle:
                for number in np.unique(rounds).tolist():
                    now = rounds == number
                    turns[now] = permute(turns[now], size, self.seed + 7919 * (source + 1), number)
            indices[here] = turns + self.offsets[source]
        return indices

    def _window(self, epoch: int, number: int) -> NDArray[np.int64]:
        """The samples of a window of batches, by length where that is known; the last windows are kept for
        their other batches."""
        key = (epoch, number)
        if key in self._windows:
            self._windows.move_to_end(key)
            return self._windows[key]
        span = self.batch_size * self.window
        indices = self._indices(epoch, number * span, min((number + 1) * span, self.samples_per_epoch))
        if self.lengths is not None:
            indices = indices[np.argsort(self.lengths[indices], kind="stable")]
        self._windows[key] = indices
        if len(self._windows) > WINDOWS_KEPT:
            self._windows.popitem(last=False)
        return indices

    def batch(self, number: int) -> list[Draw]:
        """The samples of global batch `number` (0, 1, 2, ... across epochs); the last batch of an epoch may
        be smaller."""
        epoch, place = divmod(number, self.batches_per_epoch)
        if self.shuffle and self.lengths is not None:
            place = int(permute(np.array([place]), self.batches_per_epoch, self.seed + 1, epoch)[0])
        window, within = divmod(place, self.window)
        indices = self._window(epoch, window)[within * self.batch_size : (within + 1) * self.batch_size]
        low = place * self.batch_size
        return [Draw(index, epoch, low + offset) for offset, index in enumerate(indices.tolist())]
