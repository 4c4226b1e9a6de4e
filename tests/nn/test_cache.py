import pytest
import torch

from muomni.errors import ContextError, InternalError
from muomni.nn.cache import KVCache


def poisoned(layers=1, batch=2, kv_heads=2, capacity=8, head_dim=4):
    cache = KVCache(layers, batch, kv_heads, capacity, head_dim)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    return cache


def new(length):
    return torch.randn(2, 2, length, 4), torch.randn(2, 2, length, 4)


def test_slots_not_yet_written_are_never_read():
    cache = poisoned()
    for length in (3, 1, 2):
        cache.begin(length)
        k, v, _ = cache.layer(0).update(*new(length))
        assert k.shape[2] == cache.length
        assert k.isfinite().all()
        assert v.isfinite().all()


def test_what_was_written_comes_back_in_order():
    cache, given = poisoned(layers=2), [new(3), new(1), new(4)]
    for index, (k, v) in enumerate(given):
        cache.begin(k.shape[2])
        for layer in range(2):
            all_k, all_v, _ = cache.layer(layer).update(k + layer, v + layer)
            so_far = given[: index + 1]
            assert all_k.equal(torch.cat([each for each, _ in so_far], 2) + layer)
            assert all_v.equal(torch.cat([each for _, each in so_far], 2) + layer)


def test_masks_by_the_definition_with_padding_left_right_and_between():
    cache = poisoned()
    keeps = [
        torch.tensor([[False, True, True], [True, True, False]]),
        torch.tensor([[True, False], [True, True]]),
        None,
    ]
    seen = torch.zeros(2, 0, dtype=torch.bool)
    for keep, length in zip(keeps, (3, 2, 1)):
        start = seen.shape[1]
        cache.begin(length, keep)
        seen = torch.cat((seen, torch.ones(2, length, dtype=torch.bool) if keep is None else keep), 1)
        _, _, mask = cache.layer(0).update(*new(length))
        for row in range(2):
            for t in range(length):
                may = [bool(seen[row, s]) and s <= start + t for s in range(start + length)]
                may[start + t] |= not any(may)
                assert mask[row, 0, t].tolist() == may


def test_positions_count_real_slots_only():
    cache = poisoned()
    assert cache.begin(3, torch.tensor([[False, True, True], [True, True, False]])).tolist() == [
        [0, 0, 1],
        [0, 1, 2],
    ]
    assert cache.begin(1).tolist() == [[2], [2]]
    assert cache.begin(2).tolist() == [[3, 4], [3, 4]]
    assert poisoned().begin(3).tolist() == [0, 1, 2]


def test_padding_that_begins_late_leaves_earlier_positions_real():
    cache = poisoned()
    cache.begin(2)
    assert cache.begin(2, torch.tensor([[True, False], [True, True]])).tolist() == [[2, 3], [2, 3]]
    assert cache.begin(1).tolist() == [[3], [4]]


def test_one_query_without_padding_needs_no_mask():
    cache = poisoned()
    cache.begin(3)
    assert cache.mask is None
    cache.begin(1)
    assert cache.mask is None


def test_too_many_positions_and_unannounced_ones_are_refused():
    cache = poisoned(capacity=4)
    cache.begin(3)
    with pytest.raises(ContextError, match="holds 4 positions, 3 are taken, 2 more"):
        cache.begin(2)
    with pytest.raises(InternalError, match="announced 3 positions, the layer brings 1"):
        cache.layer(0).update(*new(1))
