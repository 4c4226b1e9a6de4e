"""The order of samples: a permutation of each epoch, known at any place without the places before it."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data.order import Order, permute, tempered


@pytest.mark.parametrize("length", [*range(1, 70), 100, 127, 128, 129, 255, 257, 1000, 4097])
def test_each_epoch_is_a_bijection(length: int) -> None:
    for seed, epoch in ((0, 0), (1, 5)):
        places = permute(np.arange(length), length, seed, epoch)
        assert sorted(places.tolist()) == list(range(length))


@settings(max_examples=50)
@given(st.integers(1, 3000), st.integers(0, 2**32), st.integers(0, 50))
def test_one_place_alone_is_as_in_the_whole(length: int, seed: int, epoch: int) -> None:
    whole = permute(np.arange(length), length, seed, epoch)
    for place in {0, length // 2, length - 1}:
        assert permute(np.array([place]), length, seed, epoch)[0] == whole[place]


def test_the_order_is_shuffled_and_differs_by_epoch_and_seed() -> None:
    orders = [permute(np.arange(1000), 1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    orders.append(np.arange(1000))
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert (a == b).mean() < 0.02
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


def indices(order: Order, numbers: range) -> list[int]:
    return [draw.index for number in numbers for draw in order.batch(number)]


@pytest.mark.parametrize("lengths", [None, [(7 * i) % 50 for i in range(103)]])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_every_sample_once_and_its_last_batch_is_small(
    lengths: list[int] | None, shuffle: bool
) -> None:
    order = Order([60, 43], batch_size=8, seed=3, lengths=lengths, shuffle=shuffle, window_batches=4)
    assert order.batches_per_epoch == 13
    for epoch in range(3):
        numbers = range(13 * epoch, 13 * (epoch + 1))
        assert sorted(indices(order, numbers)) == list(range(103))
        sizes = Counter(len(order.batch(number)) for number in numbers)
        assert sizes == {8: 12, 7: 1}
        assert {draw.epoch for number in numbers for draw in order.batch(number)} == {epoch}
    epochs = [indices(order, range(13 * epoch, 13 * (epoch + 1))) for epoch in range(3)]
    assert (epochs[0] != epochs[1]) == shuffle
    assert (epochs[0] != epochs[2]) == shuffle


def test_a_batch_is_a_pure_function_of_its_number() -> None:
    def make() -> Order:
        return Order([50, 20], weights=[1.0, 2.5], batch_size=6, seed=9, lengths=[i % 7 for i in range(70)])

    walked, jumped = make(), make()
    for number in range(60):
        assert walked.batch(number) == walked.batch(number)
    for number in (59, 3, 40, 0, 17):
        assert jumped.batch(number) == walked.batch(number) == make().batch(number)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_share_one_sequence(world: int) -> None:
    """Whatever the number of processes, all samples are seen, each once; a resume may change it."""
    order = Order([100], batch_size=4, seed=1)
    shared = [indices(order, range(rank, 25, world)) for rank in range(world)]
    assert sorted(chain(*shared)) == list(range(100))
    went_on = [
        *indices(order, range(10)),
        *chain(*(indices(order, range(10 + rank, 25, world)) for rank in range(world))),
    ]
    assert sorted(went_on) == list(range(100))


def test_weights_are_draws_an_epoch() -> None:
    order = Order([40, 30, 10], weights=[0.5, 1.0, 3.0], batch_size=10, seed=2)
    assert order.samples_per_epoch == 20 + 30 + 30
    counts = Counter(indices(order, range(order.batches_per_epoch)))
    assert sum(counts[i] for i in range(40)) == 20
    assert all(counts[i] == 1 for i in range(40, 70))
    assert all(counts[i] == 3 for i in range(70, 80))
    two = Counter(indices(order, range(2 * order.batches_per_epoch)))
    assert all(two[i] == 1 for i in range(40)), "half an epoch each, and together all"


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 3)), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(0, 9),
)
def test_no_sample_is_drawn_much_oftener_than_its_source_says(
    sources: list[tuple[int, float]], size: int, seed: int
) -> None:
    sizes, weights = [s for s, _ in sources], [w for _, w in sources]
    order = Order(sizes, weights=weights, batch_size=size, seed=seed)
    epochs = 3
    counts = Counter(indices(order, range(epochs * order.batches_per_epoch)))
    start = 0
    for number, length in enumerate(sizes):
        each = [counts[i] for i in range(start, start + length)]
        assert max(each) - min(each) <= 1  # a source's samples take turns
        assert sum(each) == epochs * order.draws[number]
        start += length
    assert not [i for i in counts if i >= start]


def test_batches_by_length_hold_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 512).tolist()
    plain = Order([512], batch_size=8, seed=1)
    bucketed = Order([512], batch_size=8, seed=1, lengths=lengths)

    def waste(order: Order) -> float:
        rows = [[lengths[draw.index] for draw in order.batch(n)] for n in range(order.batches_per_epoch)]
        return sum(max(row) * len(row) for row in rows) / sum(lengths)

    assert waste(bucketed) < 1.1 < 1.5 < waste(plain)
    means = [np.mean([lengths[draw.index] for draw in bucketed.batch(n)]) for n in range(64)]
    assert abs(np.corrcoef(means, np.arange(64))[0, 1]) < 0.5, "the batches themselves are shuffled"


def test_every_draw_has_its_own_key() -> None:
    order = Order([5, 4], weights=[3.0, 1.0], batch_size=4, seed=0)
    keys = [
        (d.epoch, d.position, d.index) for n in range(3 * order.batches_per_epoch) for d in order.batch(n)
    ]
    assert len(keys) == len(set(keys)) == 3 * 19


def test_nothing_to_order_is_an_error() -> None:
    for sizes, weights in (([], None), ([0], None), ([3], [0.0])):
        with pytest.raises(ValueError, match="at least one"):
            Order(sizes, weights=weights, batch_size=2, seed=0)


def test_sources_are_mixed_anew_each_epoch() -> None:
    order = Order([50, 50], batch_size=10, seed=4)
    mixes = [tuple(i < 50 for i in indices(order, range(10 * epoch, 10 * (epoch + 1)))) for epoch in range(4)]
    assert len(set(mixes)) == 4


@pytest.mark.parametrize("temperature", [1.0, 2.0, 1e9])
def test_sources_are_drawn_by_weight_and_size_tempered(temperature: float) -> None:
    """Three sources of 900, 90 and 10, the second of weight 2: counts of an epoch against those reckoned by
    hand."""
    sources = [(1.0, 900), (2.0, 90), (1.0, 10)]
    order = Order([900, 90, 10], weights=[w for w, _ in tempered(sources, temperature)], batch_size=7, seed=1)
    drawn = Counter(
        np.searchsorted([900, 990], indices(order, range(order.batches_per_epoch)), side="right").tolist()
    )
    by_hand = {
        1.0: [900, 180, 10],
        # roots 30, 2 x 9.4868, 3.1623, together 52.1359; an epoch stays 900 + 2 x 90 + 10 = 1090 long
        2.0: [627, 397, 66],
        1e9: [273, 545, 272],  # size counts no more, weight does
    }[temperature]
    assert [drawn[n] for n in range(3)] == by_hand


def test_a_source_without_samples_is_left_as_it_is() -> None:
    assert tempered([(1.0, 0), (3.0, 10)], 2.0) == [(1.0, 0), (3.0, 10)]
    assert tempered([(1.0, 5)], 4.0) == [(1.0, 5)]
