"""The order of samples as a pure function of (seed, epoch, position): seek is O(1), and any number of ranks slices one global sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


def _mix(value: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014): a cheap hash of 64-bit words."""
    with np.errstate(over="ignore"):
        value = (value + key) & _MASK
        value = ((value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)) & _MASK
        value = ((value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)) & _MASK
        return value ^ (value >> np.uint64(31))


def permute(positions: NDArray[np.int64], length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where each position of an epoch goes: a bijection of [0, length), four Feistel rounds with cycle walking.

    Takes  positions (N,) int64 in [0, length). Gives (N,) int64. Any position alone costs O(1).
    """
    if length <= 1:
        return np.zeros_like(positions)
    half = max(1, (int(length - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    keys = [np.uint64(int(word)) for word in np.random.SeedSequence([seed & 0xFFFFFFFF, epoch, length]).generate_state(4, np.uint64)]
    values = positions.astype(np.uint64)
    pending = np.ones(len(values), dtype=bool)
    while pending.any():
        left, right = values[pending] >> np.uint64(half), values[pending] & low
        for key in keys:
            left, right = right, left ^ (_mix(right, key) & low)
        values[pending] = (left << np.uint64(half)) | right
        pending = values >= np.uint64(length)
    return values.astype(np.int64)


@dataclass(frozen=True)
class Draw:
    """One sample as the order names it: `index` into the dataset, and the key of its own random numbers."""

    index: int
    epoch: int
    position: int


class Order:
    """Batches of sample numbers, for ever: batch n is a pure function of (lengths, weights, seed, n).

    sizes     samples per source; weights  draws per sample and epoch of each source (2.0: twice, 0.5: every other epoch)
    lengths   optional length per sample (all sources in a row): batches then hold samples of like length, their order shuffled
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        lengths: Sequence[int] | None = None,
        shuffle: bool = True,
        window_batches: int = 32,
    ) -> None:
        weights = list(weights) if weights is not None else [1.0] * len(sizes)
        self.sizes = list(sizes)
        self.draws = [max(1, round(size * weight)) if size and weight > 0 else 0 for size, weight in zip(sizes, weights, strict=True)]
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.batch_size, self.seed, self.shuffle, self.window = batch_size, seed, shuffle, window_batches
        self.lengths = np.asarray(lengths, dtype=np.int64) if lengths is not None else None
        self.samples_per_epoch = sum(self.draws)
        if not self.samples_per_epoch:
            raise ValueError("an order needs at least one sample")
        self.batches_per_epoch = -(-self.samples_per_epoch // batch_size)
        self._epoch: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def _indices(self, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch in their shuffled order, (samples_per_epoch,)."""
        parts = []
        for source, (size, draws) in enumerate(zip(self.sizes, self.draws, strict=True)):
            if not draws:
                continue
            ticks = np.arange(epoch * draws, (epoch + 1) * draws, dtype=np.int64)
            if self.shuffle:
                rounds = ticks // size
                part = np.empty(draws, dtype=np.int64)
                for number in np.unique(rounds):
                    here = rounds == number
                    part[here] = permute(ticks[here] % size, size, self.seed + 7919 * (source + 1), int(number))
            else:
                part = ticks % size
            parts.append(part + self.offsets[source])
        flat = np.concatenate(parts)
        if self.shuffle:
            flat = flat[permute(np.arange(len(flat), dtype=np.int64), len(flat), self.seed, epoch)]
        return flat

    def _layout(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The samples of an epoch and the bounds of its batches, (samples,), (batches + 1,)."""
        if self._epoch is None or self._epoch[0] != epoch:
            flat = self._indices(epoch)
            if self.lengths is not None:
                span = self.batch_size * self.window
                pieces = []
                for start in range(0, len(flat), span):
                    window = flat[start : start + span]
                    pieces.append(window[np.argsort(self.lengths[window], kind="stable")])
                flat = np.concatenate(pieces)
            bounds = np.minimum(np.arange(self.batches_per_epoch + 1) * self.batch_size, len(flat))
            self._epoch = (epoch, flat, bounds)
        return self._epoch[1], self._epoch[2]

    def batch(self, number: int) -> list[Draw]:
        """The samples of global batch `number` (0, 1, 2, ... across epochs); the last batch of an epoch may be smaller."""
        epoch, place = divmod(number, self.batches_per_epoch)
        flat, bounds = self._layout(epoch)
        if self.shuffle and self.lengths is not None:
            place = int(permute(np.array([place]), self.batches_per_epoch, self.seed + 1, epoch)[0])
        low, high = int(bounds[place]), int(bounds[place + 1])
        return [Draw(int(index), epoch, low + offset) for offset, index in enumerate(flat[low:high])]
