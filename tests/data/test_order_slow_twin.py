"""The order against its slow twin, which lays out a whole epoch: the very same sequence, in memory that the
samples do not decide."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from muomni.data.order import Draw, Order, permute


class WholeEpochs:
    """The order as it was first written (c8b428a): an epoch is laid out whole, then cut into batches."""

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
        self.draws = [
            max(1, round(size * weight)) if size and weight > 0 else 0
            for size, weight in zip(sizes, weights, strict=True)
        ]
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.batch_size, self.seed, self.shuffle, self.window = batch_size, seed, shuffle, window_batches
        self.lengths = np.asarray(lengths, dtype=np.int64) if lengths is not None else None
        self.samples_per_epoch = sum(self.draws)
        self.batches_per_epoch = -(-self.samples_per_epoch // batch_size)

    def _indices(self, epoch: int) -> NDArray[np.int64]:
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
                    part[here] = permute(
                        ticks[here] % size, size, self.seed + 7919 * (source + 1), int(number)
                    )
            else:
                part = ticks % size
            parts.append(part + self.offsets[source])
        flat = np.concatenate(parts)
        if self.shuffle:
            flat = flat[permute(np.arange(len(flat), dtype=np.int64), len(flat), self.seed, epoch)]
        return flat

    def batch(self, number: int) -> list[Draw]:
        epoch, place = divmod(number, self.batches_per_epoch)
        flat = self._indices(epoch)
        if self.lengths is not None:
            span = self.batch_size * self.window
            pieces = []
            for start in range(0, len(flat), span):
                window = flat[start : start + span]
                pieces.append(window[np.argsort(self.lengths[window], kind="stable")])
            flat = np.concatenate(pieces)
        bounds = np.minimum(np.arange(self.batches_per_epoch + 1) * self.batch_size, len(flat))
        if self.shuffle and self.lengths is not None:
            place = int(permute(np.array([place]), self.batches_per_epoch, self.seed + 1, epoch)[0])
        low, high = int(bounds[place]), int(bounds[place + 1])
        return [Draw(int(index), epoch, low + offset) for offset, index in enumerate(flat[low:high])]


CASES = [
    ([103], None),
    ([60, 43], None),
    ([50, 20, 7], [1.0, 2.5, 0.3]),
    ([40, 0, 30, 10], [0.5, 1.0, 1.0, 3.0]),
    ([30, 12, 9], [1.0, 0.0, 4.4]),
    ([1, 1, 1], [1.0, 1.0, 7.0]),
    ([9, 5], [1.0, 0.0]),
]


@pytest.mark.parametrize(("sizes", "weights"), CASES)
@pytest.mark.parametrize("has_lengths", [False, True])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_batch_of_many_epochs_is_as_before(
    sizes: list[int], weights: list[float] | None, has_lengths: bool, shuffle: bool
) -> None:
    lengths = [(7 * i) % 50 for i in range(sum(sizes))] if has_lengths else None
    asked = {
        "batch_size": 8,
        "seed": 3,
        "weights": weights,
        "lengths": lengths,
        "shuffle": shuffle,
        "window_batches": 3,
    }
    slow, fast = WholeEpochs(sizes, **asked), Order(sizes, **asked)
    assert fast.batches_per_epoch == slow.batches_per_epoch
    for number in range(7 * slow.batches_per_epoch + 2):
        assert fast.batch(number) == slow.batch(number)
    far = 10_000_019
    assert fast.batch(far) == slow.batch(far)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.floats(0, 3)), min_size=1, max_size=4).filter(
        lambda s: any(n and w > 0 for n, w in s)
    ),
    st.integers(1, 9),
    st.integers(0, 2**33),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([None, 1, 255, 256, 70_000, 2**40]),
    st.integers(0, 10**6),
)
def test_any_batch_of_any_order_is_as_before(
    sources: list[tuple[int, float]],
    batch: int,
    seed: int,
    window: int,
    shuffle: bool,
    longest: int | None,
    number: int,
) -> None:
    sizes, weights = [n for n, _ in sources], [w for _, w in sources]
    lengths = (
        None if longest is None else np.random.default_rng(seed).integers(0, longest + 1, sum(sizes)).tolist()
    )
    asked = {
        "batch_size": batch,
        "seed": seed,
        "weights": weights,
        "lengths": lengths,
        "shuffle": shuffle,
        "window_batches": window,
    }
    assert Order(sizes, **asked).batch(number) == WholeEpochs(sizes, **asked).batch(number)


def test_lengths_take_the_smallest_numbers_that_hold_them() -> None:
    for most, width in ((200, 1), (60_000, 2), (10**6, 4), (2**40, 8)):
        order = Order([3], batch_size=2, seed=0, lengths=[0, most, 1])
        assert order.lengths is not None
        assert order.lengths.itemsize == width
    below = Order([2], batch_size=2, seed=0, lengths=[-1, 200])
    assert below.lengths is not None
    assert below.lengths.tolist() == [-1, 200]


@pytest.mark.parametrize("has_lengths", [False, True])
def test_memory_does_not_grow_with_the_samples(has_lengths: bool) -> None:
    """Batches of a few epochs of 3,000,000 samples; an epoch laid out whole takes 24 MB and more."""
    count = 3_000_000
    lengths = np.random.default_rng(0).integers(0, 200, count) if has_lengths else None
    order = Order([count // 2, count // 2], weights=[1.0, 1.5], batch_size=16, seed=1, lengths=lengths)
    tracemalloc.start()
    try:
        for number in range(0, 4 * order.batches_per_epoch, order.batches_per_epoch // 25):
            order.batch(number)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000, f"{peak} bytes for {count} samples"
