"""The delay pattern and its inverse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muomni.errors import ShapeError
from muomni.tokens import grid


@given(st.integers(0, 3), st.integers(1, 5), st.integers(0, 6), st.integers(0, 9))
def test_undelay_undoes_delay(batch, books, frames, seed):
    codes = torch.randint(0, 128, (batch, books, frames), generator=torch.Generator().manual_seed(seed))
    delayed = grid.delay(codes, fill=-7)
    assert delayed.shape == (batch, books, frames + books - 1)
    assert torch.equal(grid.undelay(delayed), codes)
    assert int((delayed == -7).sum()) == batch * books * (books - 1)


def test_book_k_starts_k_steps_later():
    assert grid.delay(torch.tensor([[[1, 2], [3, 4], [5, 6]]]), 0).tolist() == [
        [[1, 2, 0, 0], [0, 3, 4, 0], [0, 0, 5, 6]]
    ]


def test_undelay_reads_no_fill():
    delayed = grid.delay(torch.arange(6).view(1, 2, 3), fill=0)
    poisoned = delayed.clone()
    poisoned[0, 0, -1] = poisoned[0, 1, 0] = -999
    assert torch.equal(grid.undelay(poisoned), grid.undelay(delayed))


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 0, 3, dtype=torch.int64)]
)
def test_wrong_shapes_are_refused(bad):
    with pytest.raises(ShapeError):
        grid.delay(bad, 0)
    with pytest.raises(ShapeError):
        grid.undelay(torch.zeros(1, 4, 2, dtype=torch.int64))
